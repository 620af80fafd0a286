//! A container of the nodes' OCI runtime, with nothing around it: the calls and system calls that a shim cannot do
//! without.

use std::fs;
use std::io::{ErrorKind, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde_json::{Value, json};

use crate::cgroups::{Hierarchy, hierarchies};
use crate::node::{Node, runtime};

/// What a real container was made of.
pub struct Model {
    /// The runtime's command line.
    program: Vec<String>,
    /// Below it containers are made.
    folder: PathBuf,
    /// The specification, as CRI and the shim made it.
    spec: Value,
    /// The options of the root file system's overlay, but for its own folders.
    lower: String,
    cgroups: Vec<Hierarchy>,
}

/// A container that runs.
pub struct Bare<'a> {
    model: &'a Model,
    id: String,
    bundle: PathBuf,
    pid: Pid,
    handle: OwnedFd,
}

/// The files of a pod, which go with it.
fn keep_pods_files(spec: &mut Value, folder: &Path) -> Result<()> {
    let mounts = spec.get_mut("mounts").and_then(Value::as_array_mut).context("no mounts")?;
    for one in mounts {
        let bind = one.get("type").and_then(Value::as_str) == Some("bind");
        let source = one.get("source").and_then(Value::as_str).unwrap_or_default().to_owned();
        if !bind || !source.starts_with('/') {
            continue;
        }
        let own = folder.join(source.trim_start_matches('/').replace('/', "-"));
        if Path::new(&source).is_dir() {
            fs::create_dir_all(&own)?;
        } else {
            fs::copy(&source, &own).with_context(|| format!("keep {source}"))?;
        }
        one["source"] = json!(own);
    }
    Ok(())
}

/// The lower layers of the overlay at `root`, as options of a mount.
fn lower_of(root: &Path) -> Result<String> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let root = root.to_str().context("a path that is no text")?;
    for line in mounts.lines() {
        let mut words = line.split(' ');
        if words.nth(1) == Some(root) && words.next() == Some("overlay") {
            let options = words.next().unwrap_or_default();
            // One for all layers, or one for each, depending on who mounted it.
            let lower = options.split(',').filter(|one| one.starts_with("lowerdir"));
            let lower = lower.collect::<Vec<_>>().join(",");
            ensure!(!lower.is_empty(), "an overlay without lower layers: {options}");
            return Ok(lower);
        }
    }
    bail!("{root} is no overlay")
}

impl Model {
    /// Of a container that runs on the node.
    pub fn of(node: &Node, container: &str) -> Result<Self> {
        let tasks = node.folder().join("state/io.containerd.runtime.v2.task/k8s.io");
        let bundle = tasks.join(container);
        let text = fs::read(bundle.join("config.json")).context("read the specification")?;
        let mut spec: Value = serde_json::from_slice(&text)?;
        let folder = node.folder().join("floor");
        fs::create_dir_all(&folder)?;
        keep_pods_files(&mut spec, &folder)?;
        Ok(Self {
            program: runtime(node.deps()),
            lower: lower_of(&bundle.join("rootfs"))?,
            folder,
            spec,
            cgroups: hierarchies()?,
        })
    }

    fn call(&self, verb: &str) -> Result<Command> {
        let (program, arguments) = self.program.split_first().context("no runtime")?;
        let mut command = Command::new(program);
        command.args(arguments).arg("--root").arg(self.folder.join("runtime")).arg(verb);
        command.stdin(Stdio::null());
        Ok(command)
    }

    /// The cgroup of a container below its pod's.
    fn cgroup(pod: &str, id: &str) -> String {
        format!("/e2e/{pod}/{id}")
    }

    /// Mounts a root file system, creates and starts a container in a network namespace.
    pub fn start(&self, pod: &str, id: &str, netns: &Path) -> Result<Bare<'_>> {
        let bundle = self.folder.join(pod).join(id);
        for folder in ["rootfs", "upper", "work"] {
            fs::create_dir_all(bundle.join(folder))?;
        }
        let at = |name: &str| bundle.join(name).display().to_string();
        let options = format!("{},upperdir={},workdir={}", self.lower, at("upper"), at("work"));
        let flags = MsFlags::empty();
        mount(Some("overlay"), &bundle.join("rootfs"), Some("overlay"), flags, Some(&*options))
            .context("mount the root file system")?;
        let mut spec = self.spec.clone();
        spec["root"]["path"] = json!("rootfs");
        spec["linux"]["cgroupsPath"] = json!(Self::cgroup(pod, id));
        let spaces = spec["linux"]["namespaces"].as_array_mut().context("no namespaces")?;
        for space in spaces {
            let Some(space) = space.as_object_mut() else { continue };
            space.remove("path");
            if space.get("type").and_then(Value::as_str) == Some("network") {
                space.insert("path".to_owned(), json!(netns));
            }
        }
        fs::write(bundle.join("config.json"), spec.to_string())?;
        let file = bundle.join("init.pid");
        let log = fs::File::create(bundle.join("log"))?;
        let mut create = self.call("create")?;
        create.arg("--bundle").arg(&bundle).arg("--pid-file").arg(&file).arg(id);
        let status = create.stdout(log.try_clone()?).stderr(log).status()?;
        if !status.success() {
            let said = fs::read_to_string(bundle.join("log")).unwrap_or_default();
            bail!("create of the OCI runtime: {status}: {said}");
        }
        let pid: i32 = fs::read_to_string(&file)?.trim().parse()?;
        let pid = Pid::from_raw(pid).context("no process id")?;
        let handle = pidfd_open(pid, PidfdFlags::empty())?;
        let container = Bare { model: self, id: id.to_owned(), bundle, pid, handle };
        container.begin()?;
        Ok(container)
    }

    /// Removes the cgroup of a pod and what its containers have written, which no shim removes.
    pub fn forget(&self, pod: &str) -> Result<()> {
        fs::remove_dir_all(self.folder.join(pod)).context("remove the bundles")?;
        self.remove_cgroup(&format!("/e2e/{pod}"))
    }

    fn remove_cgroup(&self, path: &str) -> Result<()> {
        for one in &self.cgroups {
            remove_cgroup(&one.at.join(path.trim_start_matches('/')))?;
        }
        Ok(())
    }
}

/// Removes a group whose processes have ended; the kernel may need a moment to notice.
fn remove_cgroup(at: &Path) -> Result<()> {
    let until = Instant::now() + crate::patience(Duration::from_secs(5));
    loop {
        match fs::remove_dir(at) {
            Err(error) if error.kind() == ErrorKind::ResourceBusy && Instant::now() < until => {
                std::thread::yield_now();
            }
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("remove {}", at.display()));
            }
            _ => return Ok(()),
        }
    }
}

/// Waits until a process has ended.
fn wait(handle: &OwnedFd) -> Result<()> {
    let mut all = [PollFd::new(handle, PollFlags::IN)];
    while poll(&mut all, None)? == 0 {}
    Ok(())
}

impl Bare<'_> {
    /// runc's init waits until somebody reads from a fifo; other runtimes have a call for it.
    fn begin(&self) -> Result<()> {
        let fifo = self.model.folder.join("runtime").join(&self.id).join("exec.fifo");
        if let Ok(mut file) = fs::File::open(&fifo) {
            let mut byte = Vec::new();
            file.read_to_end(&mut byte)?;
            return Ok(fs::remove_file(&fifo)?);
        }
        self.run("start", &[])
    }

    fn run(&self, verb: &str, arguments: &[&str]) -> Result<()> {
        let output = self.model.call(verb)?.args(arguments).arg(&self.id).output()?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            bail!("{verb} of the OCI runtime: {}: {said}", output.status);
        }
        Ok(())
    }

    /// Runs a command in it, to its end.
    pub fn exec(&self, command: &[&str]) -> Result<()> {
        let mut process = self.model.spec.get("process").cloned().context("no process")?;
        process["args"] = json!(command);
        let file = tempfile::Builder::new().prefix("exec-").tempfile_in(&self.bundle)?;
        fs::write(file.path(), process.to_string())?;
        let pid = file.path().with_extension("pid");
        let (mut read, write) = std::io::pipe()?;
        let mut exec = self.model.call("exec")?;
        exec.arg("--process").arg(file.path()).arg("--pid-file").arg(&pid).arg("--detach");
        let status = exec.arg(&self.id).stdout(write.try_clone()?).stderr(write).status()?;
        // It holds the ends that were given away.
        drop(exec);
        let mut said = String::new();
        read.read_to_string(&mut said)?;
        if !status.success() {
            bail!("exec of the OCI runtime: {status}: {said}");
        }
        let number = fs::read_to_string(&pid)?.trim().parse().ok().and_then(Pid::from_raw);
        // One that is gone already has nobody to wait for.
        if let Ok(handle) = pidfd_open(number.context("no process id")?, PidfdFlags::empty()) {
            wait(&handle)?;
        }
        Ok(fs::remove_file(pid)?)
    }

    /// Changes its limits.
    pub fn update(&self) -> Result<()> {
        self.run("update", &["--cpu-share", "512"])
    }

    /// Reads what its groups have counted.
    pub fn statistics(&self, pod: &str) -> Result<usize> {
        const FILES: [&str; 8] = [
            "cpuacct.usage",
            "cpuacct.stat",
            "cpu.stat",
            "memory.stat",
            "memory.usage_in_bytes",
            "memory.current",
            "pids.current",
            "io.stat",
        ];
        let path = Model::cgroup(pod, &self.id);
        let groups = self.model.cgroups.iter().map(|one| one.at.join(path.trim_start_matches('/')));
        let files = groups.flat_map(|group| FILES.map(|file| group.join(file)));
        let read = files.filter_map(|file| fs::read(file).ok()).map(|text| text.len()).sum();
        if read == 0 {
            bail!("no group of {path} has counted anything");
        }
        Ok(read)
    }

    /// Kills it, waits for its end and removes what the runtime and the kernel have of it.
    pub fn stop(self, pod: &str) -> Result<()> {
        pidfd_send_signal(&self.handle, Signal::KILL)
            .with_context(|| format!("kill process {:?}", self.pid))?;
        wait(&self.handle)?;
        self.model.remove_cgroup(&Model::cgroup(pod, &self.id))?;
        fs::remove_dir_all(self.model.folder.join("runtime").join(&self.id))?;
        umount2(&self.bundle.join("rootfs"), MntFlags::MNT_DETACH)
            .context("unmount the root file system")
    }
}
