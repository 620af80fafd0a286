//! A full node: what its runtime's processes take, and how long `delete` takes when all its shims are killed at once.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::crowd::{MANY, at_once};
use super::processes::{Before, sum};
use super::{Bench, Section, Unit};
use crate::audit::all_processes;
use crate::cri::{ContainerSpec, Pod};
use crate::node::{Node, runtime};
use crate::suite::Handler;

/// As many pods as a kubelet takes by default.
const PODS: usize = 110;
/// In each of them, of the node whose memory is measured.
const CONTAINERS: usize = 3;
/// So many are started or ended at once.
const AT_ONCE: usize = 10;
/// How long containerd waits for a `delete`, which it kills then.
const LIMIT: Duration = Duration::from_secs(5);
const HANG: Duration = Duration::from_mins(2);
const GLANCE: Duration = Duration::from_millis(100);

impl Bench {
    async fn full(&self, handler: Handler, containers: usize) -> Result<Vec<Pod>> {
        let mut pods = Vec::new();
        let all = if self.plan.most < MANY { self.plan.most } else { PODS };
        while pods.len() < all {
            let count = AT_ONCE.min(all - pods.len());
            let specs = (0..count).map(|_| self.pod(handler)).collect();
            let (started, _) = at_once(specs, move |spec| async move {
                let pod = spec.run().await?;
                for number in 0..containers {
                    pod.start(&ContainerSpec::idle(&format!("main-{number}"))).await?;
                }
                Ok(pod)
            })
            .await?;
            pods.extend(started);
        }
        Ok(pods)
    }

    /// What all of the runtime's processes of a full node take together.
    pub(super) async fn node(&mut self) -> Result<()> {
        let containers = CONTAINERS.min(self.plan.most);
        for handler in self.handlers() {
            let before = Before::now();
            let pods = self.full(handler, containers).await?;
            tokio::time::sleep(self.plan.settle).await;
            let all = format!("{} pods with {containers} containers each", pods.len());
            for (name, unit, value) in sum(&before.own()?)?.lines() {
                self.table.add(Section::Node, &format!("{all}: {name}"), unit, handler, value);
            }
            end(pods).await?;
        }
        Ok(())
    }

    /// All shims of a full node are killed at once, and containerd has each `delete`.
    pub(super) async fn killed(&mut self) -> Result<()> {
        for handler in self.handlers() {
            let before = Before::now();
            let pods = self.full(handler, 1).await?;
            tokio::time::sleep(self.plan.settle).await;
            let timed = Timed::install(&self.node, handler)?;
            let own = before.own()?;
            let shims: Vec<i32> = all_processes()
                .into_iter()
                .filter(|one| own.contains(&one.pid) && is_shim(&one.command))
                .map(|one| one.pid)
                .collect();
            ensure!(shims.len() == pods.len(), "{} shims of {} pods", shims.len(), pods.len());
            let begin = uptime(&fs::read_to_string("/proc/uptime")?)?;
            for pid in &shims {
                kill(Pid::from_raw(*pid), Signal::SIGKILL).context("kill a shim")?;
            }
            let deletes = timed.all(pods.len(), self.plan.settle).await?;
            drop(timed);
            let mut late = 0.0;
            let name = |what: &str| format!("{} shims killed: {what}", pods.len());
            for one in &deletes {
                // One that containerd has killed has taken its whole time.
                let took = one.end.map_or(LIMIT.as_secs_f64(), |end| end - one.begin);
                late += if took < LIMIT.as_secs_f64() { 0.0 } else { 1.0 };
                self.table.add(Section::Killed, &name("delete"), Unit::Ms, handler, took * 1e3);
            }
            let last = deletes.iter().filter_map(|one| one.end).fold(begin, f64::max);
            let last = (last - begin) * 1e3;
            for (what, unit, value) in [
                ("until the last has answered", Unit::Ms, last),
                ("not done within five seconds", Unit::Count, late),
            ] {
                self.table.add(Section::Killed, &name(what), unit, handler, value);
            }
            end(pods).await?;
            if handler == Handler::Runc {
                self.remove_what_the_peer_leaves(&before)?;
            }
        }
        Ok(())
    }

    /// The peer reports a pod of a killed shim as removed; its processes, the runtime's state and the shim's socket stay.
    fn remove_what_the_peer_leaves(&self, before: &Before) -> Result<()> {
        for pid in before.since() {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        let root = Path::new("/run/containerd/runc/k8s.io");
        let program = runtime(self.node.deps());
        let (program, arguments) = program.split_first().context("no OCI runtime")?;
        for one in fs::read_dir(root).into_iter().flatten().flatten() {
            let mut command = Command::new(program);
            command.args(arguments).arg("--root").arg(root).args(["delete", "--force"]);
            let done = command.arg(one.file_name()).output()?;
            ensure!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        }
        // No shim lives now.
        for one in fs::read_dir("/run/containerd/s").into_iter().flatten().flatten() {
            fs::remove_file(one.path())?;
        }
        Ok(())
    }
}

async fn end(mut pods: Vec<Pod>) -> Result<()> {
    while !pods.is_empty() {
        let some = pods.split_off(pods.len().saturating_sub(AT_ONCE));
        at_once(some, |pod| async move { removed(&pod).await }).await?;
    }
    Ok(())
}

/// Asks until it is done, as a kubelet does: CRI refuses for a while what it does not yet know to have ended.
async fn removed(pod: &Pod) -> Result<()> {
    let since = Instant::now();
    loop {
        match pod.end().await {
            Err(error) if since.elapsed() > HANG => return Err(error),
            Err(_) => tokio::time::sleep(GLANCE).await,
            Ok(()) => return Ok(()),
        }
    }
}

fn is_shim(command: &str) -> bool {
    let program = command.split(' ').next().unwrap_or_default();
    program.rsplit('/').next().is_some_and(|name| name.starts_with("containerd-shim-"))
}

/// The seconds since the machine's start, to the hundredth, which a shell can read without a process.
fn uptime(text: &str) -> Result<f64> {
    let first = text.split_whitespace().next().context("an uptime without numbers")?;
    Ok(first.parse()?)
}

/// A `delete` that containerd has run, by [`uptime`].
struct Delete {
    begin: f64,
    end: Option<f64>,
}

/// Between containerd and a shim's program, until this is dropped: two files for each `delete` say when it began and
/// ended. The shell between them takes a millisecond of its own.
struct Timed {
    link: PathBuf,
    program: PathBuf,
    folder: PathBuf,
}

impl Timed {
    fn install(node: &Node, handler: Handler) -> Result<Self> {
        let name = handler.runtime().trim_start_matches("io.containerd.").replace('.', "-");
        let link = node.folder().join("bin").join(format!("containerd-shim-{name}"));
        let program = fs::read_link(&link).with_context(|| format!("read {}", link.display()))?;
        let folder = node.folder().join("deletes");
        fs::create_dir(&folder)?;
        let script = link.with_extension("timed");
        let text = format!(
            "#!/bin/bash\nread -r begin _ </proc/uptime\necho $begin >'{dir}'/$$.begin\n\
             (exec -a '{link}' '{program}' \"$@\")\ncode=$?\n\
             read -r end _ </proc/uptime\necho $end >'{dir}'/$$.end\nexit $code\n",
            dir = folder.display(),
            link = link.display(),
            program = program.display(),
        );
        fs::write(&script, text)?;
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
        fs::rename(&script, &link).context("put the script between")?;
        Ok(Self { link, program, folder })
    }

    /// Those that have begun until now.
    fn read(&self) -> Result<Vec<Delete>> {
        let mut all = Vec::new();
        for one in fs::read_dir(&self.folder)? {
            let begin = one?.path();
            if begin.extension().is_some_and(|kind| kind == "begin") {
                // One that is just written has none yet.
                let time = |at: &Path| uptime(&fs::read_to_string(at).ok()?).ok();
                let end = time(&begin.with_extension("end"));
                all.extend(time(&begin).map(|begin| Delete { begin, end }));
            }
        }
        Ok(all)
    }

    /// All of them, once there are so many, none is under way, and no further one has begun for some time.
    async fn all(&self, least: usize, settle: Duration) -> Result<Vec<Delete>> {
        let (since, mut quiet) = (Instant::now(), Instant::now());
        let mut before = (0, 0);
        loop {
            let all = self.read()?;
            let state = (all.len(), all.iter().filter(|one| one.end.is_some()).count());
            if state != before {
                (before, quiet) = (state, Instant::now());
            }
            let over = state.0 == state.1 || quiet.elapsed() > 2 * LIMIT;
            if state.0 >= least && over && quiet.elapsed() > settle {
                return Ok(all);
            }
            if since.elapsed() > HANG {
                bail!("of {least} shims {} were deleted", state.0);
            }
            tokio::time::sleep(GLANCE).await;
        }
    }
}

impl Drop for Timed {
    fn drop(&mut self) {
        let new = self.link.with_extension("again");
        let _ = symlink(&self.program, &new).and_then(|()| fs::rename(&new, &self.link));
        let _ = fs::remove_dir_all(&self.folder);
    }
}
