//! A containerd that stays up: `up`, `down`, `status`, and a way in.

use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use mooring_e2e::audit::{Snapshot, leftovers};
use mooring_e2e::machine::{Outer, enter_at, join};
use mooring_e2e::node::{Node, Settings};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// What the background process prints when containerd is ready.
const READY: &str = "ready";
/// How long the machine may take to be gone once it was told to end.
const END: Duration = Duration::from_mins(1);

/// Where the kept containerd listens.
pub fn socket(dir: &Path) -> PathBuf {
    dir.join("node/c.sock")
}

fn baseline(folder: &Path) -> PathBuf {
    folder.join("baseline")
}

/// What was there when containerd had just come up.
pub fn before(folder: &Path) -> Result<Snapshot> {
    let text = fs::read_to_string(baseline(folder)).context("what was there when it came up")?;
    Ok(Snapshot::from_text(&text))
}

pub fn up(dir: &Path) -> Result<ExitCode> {
    if Outer::at(dir).is_some() {
        println!("already up");
        return status(dir);
    }
    if dir.join("outer").exists() {
        // Its machine died without cleaning up, and the kernel has taken the mounts.
        fs::remove_dir_all(dir).context("remove what an earlier one left")?;
    }
    let log = dir.with_extension("log");
    let mut keeper = Command::new("setsid")
        .arg(fs::read_link("/proc/self/exe")?)
        .args(["--dir".as_ref(), dir.as_os_str(), "keep".as_ref()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(fs::File::create(&log).context("make the log")?)
        .spawn()
        .context("start the keeper")?;
    let output = keeper.stdout.take().context("no pipe")?;
    let mut ready = false;
    for line in BufReader::new(output).lines() {
        let line = line?;
        if line == READY {
            ready = true;
            break;
        }
        println!("{line}");
    }
    if !ready {
        let _ = keeper.wait();
        bail!("containerd did not come up: {}", fs::read_to_string(&log)?.trim());
    }
    fs::remove_file(&log)?;
    // The baseline is taken from where later audits look.
    let program = fs::read_link("/proc/self/exe")?;
    let note = Command::new(program)
        .arg("--dir")
        .arg(dir)
        .args(["audit", "--baseline"])
        .status()
        .context("note what is there")?;
    if !note.success() {
        bail!("cannot note what is there: see above");
    }
    status(dir)
}

/// Boots containerd and holds it until it is told to end.
pub fn keep(dir: &Path) -> Result<ExitCode> {
    let folder = enter_at(dir)?;
    crate::block_on(async {
        let mut end = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        println!("booting containerd in {}", dir.display());
        // Everything that boots ends with the machine.
        let node = Node::boot(&folder, &Settings::default()).await?;
        println!("{READY}");
        end.recv().await;
        node.end(Signal::SIGTERM).await?;
        Ok(ExitCode::SUCCESS)
    })
}

/// Writes down what is there.
pub fn note(folder: &Path) -> Result<ExitCode> {
    crate::block_on(async {
        let node = Node::attach(folder)?;
        fs::write(baseline(folder), Snapshot::take(&node).await?.to_text())?;
        Ok(ExitCode::SUCCESS)
    })
}

pub fn down(dir: &Path) -> Result<ExitCode> {
    let Some(outer) = Outer::at(dir) else {
        println!("nothing is up in {}", dir.display());
        return Ok(ExitCode::SUCCESS);
    };
    let program = fs::read_link("/proc/self/exe")?;
    let mut tidy = Command::new(program);
    tidy.arg("--dir").arg(dir).args(["audit", "--remove"]);
    let clean = tidy.status().context("remove the pods")?.success();
    if let Some(keeper) = outer.inner() {
        kill(Pid::from_raw(i32::try_from(keeper)?), Signal::SIGTERM).context("end the keeper")?;
    }
    let until = Instant::now() + END;
    while Outer::at(dir).is_some() {
        if Instant::now() > until {
            bail!("process {} does not end", outer.pid);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    println!("down");
    Ok(if clean { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Removes all pods and tasks of the kept containerd and says what they left.
pub fn remove(folder: &Path) -> Result<ExitCode> {
    crate::block_on(async {
        let node = Node::attach(folder)?;
        node.remove_workloads().await?;
        let left = leftovers(&node, &before(folder)?).await?;
        crate::audit::report(&left);
        Ok(if left.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    })
}

pub fn status(dir: &Path) -> Result<ExitCode> {
    let Some(outer) = Outer::at(dir) else {
        println!("nothing is up in {}", dir.display());
        return Ok(ExitCode::FAILURE);
    };
    crate::block_on(async {
        let node = Node::attach(&dir.join("node"))?;
        let request = k8s_cri::v1::VersionRequest::default();
        let version = node.cri().version(request).await.context("ask containerd")?.into_inner();
        let list = k8s_cri::v1::ListPodSandboxRequest { filter: None };
        let pods = node.cri().list_pod_sandbox(list).await?.into_inner().items;
        println!("containerd {}, kept by process {}", version.runtime_version, outer.pid);
        println!("socket     {}", socket(dir).display());
        println!("log        {}", dir.join("node/containerd.log").display());
        println!("pods       {}", pods.len());
        for pod in pods {
            let name = pod.metadata.unwrap_or_default().name;
            println!("  {} {name}, handler {}", pod.id, pod.runtime_handler);
        }
        Ok(ExitCode::SUCCESS)
    })
}

pub fn exec(dir: &Path, command: &[OsString]) -> Result<ExitCode> {
    let folder = join(dir)?;
    let node = crate::block_on(async { Node::attach(&folder) })?;
    let shell = [OsString::from("sh")];
    let words = if command.is_empty() { &shell } else { command };
    let [program, arguments @ ..] = words else { bail!("no command") };
    let status = Command::new(program)
        .args(arguments)
        .current_dir(&folder)
        .env("PATH", node.path())
        .env("CONTAINERD_ADDRESS", node.socket())
        .env("CONTAINER_RUNTIME_ENDPOINT", format!("unix://{}", node.socket().display()))
        .status()
        .with_context(|| format!("run {}", program.display()))?;
    let code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
    Ok(ExitCode::from(code))
}

/// The beginning of an id.
pub fn short(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}
