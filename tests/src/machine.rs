//! A machine inside the machine: the test binary runs itself again as the first process of new PID, mount, network
//! and cgroup namespaces, with empty folders in the places where runtimes keep state.
//!
//! Inside, tests own every process, link, firewall rule, mount and cgroup that they see, so an audit needs no guesses
//! about whose a thing is, and when the first process ends, however it ends, the kernel removes all of it. The
//! outside process is left with a temporary folder and a cgroup to remove; when it is killed itself, the next one
//! removes them, which finds them by its name.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, exit};

use anyhow::{Context, Result, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use tempfile::TempDir;

use crate::cgroups::{
    Hierarchy, hierarchies, is_populated, join_cgroups, own_cgroup, remove_cgroup,
};
use crate::systemd;

/// How the folders and cgroups of machines begin; who waits outside follows.
const NAME: &str = "mooring-e2e-";
/// Tells a run of the binary where in [`enter`] it is.
pub const STAGE: &str = "MOORING_E2E_STAGE";
/// The machine's folder on the outer machine's disk.
const FOLDER: &str = "MOORING_E2E_FOLDER";
/// The name of the machine's cgroup in every hierarchy.
const CGROUP: &str = "MOORING_E2E_CGROUP";

/// A machine's namespaces beside its PID namespace.
const SPACES: CloneFlags =
    CloneFlags::CLONE_NEWNS.union(CloneFlags::CLONE_NEWNET).union(CloneFlags::CLONE_NEWCGROUP);
/// The file in the folder of a machine that others know, with who waits outside.
const OUTER: &str = "outer";

/// Where the machine keeps what containerd and the shims write.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Storage {
    /// tmpfs: quick, for tests.
    Memory,
    /// The outer machine's disk, for figures in which fsync must cost what it costs.
    Disk,
}

/// Returns inside the machine. The outer process never returns: it waits, cleans up and exits with the inner status.
pub fn enter(storage: Storage) -> Result<PathBuf> {
    if systemd::is_first() {
        let folder = PathBuf::from(format!("/var/lib/mooring-e2e-{}", std::process::id()));
        fs::create_dir_all(&folder)?;
        return Ok(folder);
    }
    enter_with(
        || own_folder(NAME),
        SPACES,
        |folder, hierarchies| build(storage, folder, hierarchies),
    )
}

/// A folder of the outer machine's, named after this process. Those of processes that could not remove theirs go.
pub fn own_folder(prefix: &str) -> Result<TempDir> {
    let parent = "/var/tmp";
    for left in left_in(Path::new(parent), prefix) {
        // Somebody else may do the same just now.
        let _ = fs::remove_dir_all(left);
    }
    let prefix = format!("{prefix}{}-", std::process::id());
    tempfile::Builder::new().prefix(&prefix).tempdir_in(parent).context("make the machine's folder")
}

/// What is named after processes that are no more.
fn left_in(parent: &Path, prefix: &str) -> Vec<PathBuf> {
    let dead = |name: &str| {
        let owner = name.strip_prefix(prefix)?.split('-').next()?;
        owner.parse::<u32>().is_ok_and(|_| !Path::new("/proc").join(owner).exists()).then_some(())
    };
    let all = fs::read_dir(parent).into_iter().flatten().flatten();
    let left = all.filter(|one| one.file_name().to_str().and_then(dead).is_some());
    left.map(|one| one.path()).collect()
}

/// Like [`enter`], in a folder of the disk that others know: they can [`join`] the machine.
pub fn enter_at(at: &Path) -> Result<PathBuf> {
    let make_folder = || {
        let name = at.file_name().context("a folder without name")?;
        let parent = at.parent().context("a folder without parent")?;
        let folder = tempfile::Builder::new()
            .prefix(name)
            .rand_bytes(0)
            .tempdir_in(parent)
            .with_context(|| format!("make the machine's folder {}", at.display()))?;
        let own = Outer::of(std::process::id()).context("this process is not in /proc")?;
        fs::write(at.join(OUTER), format!("{} {}", own.pid, own.started))?;
        Ok(folder)
    };
    enter_with(make_folder, SPACES, |folder, all| build(Storage::Disk, folder, all))
}

/// A machine whose file system the caller builds: `make_folder` works outside, `build` as the first process of the
/// machine's PID and other namespaces. Returns the folder's `node`, inside.
pub fn enter_with(
    make_folder: impl FnOnce() -> Result<TempDir>,
    spaces: CloneFlags,
    build: impl FnOnce(&Path, &[Hierarchy]) -> Result<()>,
) -> Result<PathBuf> {
    match std::env::var(STAGE).as_deref() {
        Err(_) => {
            must_be_root()?;
            outside(make_folder()?)
        }
        Ok("init") => init(spaces, build),
        Ok(_) => inside(),
    }
}

/// When init is killed the kernel kills us too: it is the first process of our PID namespace.
fn inside() -> Result<PathBuf> {
    Ok(PathBuf::from(std::env::var_os(FOLDER).context("no folder given")?).join("node"))
}

fn must_be_root() -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("this makes namespaces and runs containerd: run it as root");
    }
    Ok(())
}

/// The process that waits outside a machine of [`enter_at`]. Its pid alone may mean another process one day.
#[derive(Debug, PartialEq, Eq)]
pub struct Outer {
    /// Its process id.
    pub pid: u32,
    /// Clock ticks since boot at its start.
    started: String,
}

impl Outer {
    fn of(pid: u32) -> Option<Self> {
        let started = stat(pid)?.get(19)?.clone();
        Some(Self { pid, started })
    }

    /// The one of the machine in a folder, as long as it lives.
    pub fn at(folder: &Path) -> Option<Self> {
        let text = fs::read_to_string(folder.join(OUTER)).ok()?;
        let (pid, started) = text.split_once(' ')?;
        let known = Self { pid: pid.parse().ok()?, started: started.to_owned() };
        (Self::of(known.pid).as_ref() == Some(&known)).then_some(known)
    }

    /// The machine's first process, as the outer machine numbers it.
    fn init(&self) -> Option<u32> {
        first_child(self.pid)
    }

    /// The process that [`enter_at`] returned in, as the outer machine numbers it.
    pub fn inner(&self) -> Option<u32> {
        first_child(self.init()?)
    }
}

/// The one that started first: numbers begin anew at their end, and the first process has orphans beside its child.
fn first_child(parent: u32) -> Option<u32> {
    let parent = parent.to_string();
    let pids = fs::read_dir("/proc").ok()?.flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let children = pids.filter_map(|pid: u32| {
        let stat = stat(pid)?;
        let started: u64 = stat.get(19)?.parse().ok()?;
        (stat.get(1) == Some(&parent)).then_some((started, pid))
    });
    children.min().map(|(_, pid)| pid)
}

/// What follows the name in a process's stat file: the state, the parent, and so on.
fn stat(pid: u32) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    Some(text.get(text.rfind(')')? + 1..)?.split_whitespace().map(str::to_owned).collect())
}

/// Returns inside the machine that another process built with [`enter_at`]. The outer process never returns.
pub fn join(folder: &Path) -> Result<PathBuf> {
    if std::env::var_os(STAGE).is_some() {
        return inside();
    }
    must_be_root()?;
    let Some(init) = Outer::at(folder).and_then(|outer| outer.init()) else {
        bail!("no machine is up in {}", folder.display());
    };
    let program = fs::read_link("/proc/self/exe")?;
    let spaces = ["net", "cgroup", "pid", "mnt"]
        .map(|name| (name, fs::File::open(format!("/proc/{init}/ns/{name}"))));
    for (name, space) in spaces {
        setns(space?, CloneFlags::empty()).with_context(|| format!("join {name}"))?;
    }
    let status = again(&program, "run").env(FOLDER, folder).status().context("run inside")?;
    exit(code_of(status));
}

fn outside(folder: TempDir) -> Result<PathBuf> {
    let name = format!("{NAME}{}", std::process::id());
    let own = |one: &Hierarchy| Some(one.at.join(own_cgroup(one)?.trim_start_matches('/')));
    let parents: Vec<PathBuf> = hierarchies()?.iter().filter_map(own).collect();
    // The first process of a machine dies with the one outside, and its cgroups are the next one's to remove.
    for left in parents.iter().flat_map(|parent| left_in(parent, NAME)) {
        if !is_populated(&left) {
            remove_cgroup(&left);
        }
    }
    let cgroups: Vec<PathBuf> = parents.iter().map(|parent| parent.join(&name)).collect();
    // Who is told to end still has to clean up.
    let mut signals = SigSet::empty();
    for one in [Signal::SIGCHLD, Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        signals.add(one);
    }
    signals.thread_block().context("block signals")?;
    unshare(CloneFlags::CLONE_NEWPID).context("make a PID namespace")?;
    let mut first = again(Path::new("/proc/self/exe"), "init")
        .env(FOLDER, folder.path())
        .env(CGROUP, &name)
        .spawn()
        .context("run the machine's first process")?;
    let mut told = false;
    let code = loop {
        if let Some(status) = first.try_wait().context("wait for the machine")? {
            break code_of(status);
        }
        let signal = signals.wait().context("wait for a signal")?;
        if signal == Signal::SIGINT && !told {
            // Who asks for an end may get one in order; who asks twice gets one.
            told = true;
            let inner = first_child(first.id()).and_then(|pid| i32::try_from(pid).ok());
            if inner.is_some_and(|pid| kill(Pid::from_raw(pid), signal).is_ok()) {
                continue;
            }
        }
        if signal != Signal::SIGCHLD {
            // The whole machine with it.
            first.kill().context("end the machine")?;
            first.wait().context("wait for the machine")?;
            break 128 + signal as i32;
        }
    };
    for cgroup in &cgroups {
        remove_cgroup(cgroup);
    }
    if let Err(error) = folder.close() {
        eprintln!("the machine's folder stays: {error}");
    }
    exit(code);
}

fn again(program: &Path, stage: &str) -> Command {
    let mut command = Command::new(program);
    command.args(std::env::args_os().skip(1)).env(STAGE, stage);
    if let Some(name) = std::env::args_os().next() {
        command.arg0(name);
    }
    command
}

fn code_of(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

/// The first process: builds the machine, runs the tests in it, reaps orphans.
fn init(
    spaces: CloneFlags,
    build: impl FnOnce(&Path, &[Hierarchy]) -> Result<()>,
) -> Result<PathBuf> {
    prctl::set_pdeathsig(Signal::SIGKILL).context("tie the machine to the outer process")?;
    // The outer process waits for its signals blocked, and a mask is inherited: whoever runs here hears them.
    SigSet::all().thread_unblock().context("unblock signals")?;
    let folder = PathBuf::from(std::env::var_os(FOLDER).context("no folder given")?);
    let name = std::env::var(CGROUP).context("no cgroup name given")?;
    let hierarchies = hierarchies()?;
    join_cgroups(&hierarchies, &name)?;
    unshare(spaces).context("make the machine's namespaces")?;
    build(&folder, &hierarchies).context("build the machine's file system")?;
    let runner = again(Path::new("/proc/self/exe"), "run").spawn().context("run the tests")?;
    let runner = Pid::from_raw(i32::try_from(runner.id())?);
    loop {
        match waitpid(None, Some(WaitPidFlag::empty())) {
            Ok(WaitStatus::Exited(pid, code)) if pid == runner => exit(code),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == runner => exit(128 + signal as i32),
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => bail!("wait for the tests: {error}"),
        }
    }
}

fn build(storage: Storage, folder: &Path, hierarchies: &[Hierarchy]) -> Result<()> {
    let none = None::<&str>;
    // Like a node's: shared mounts, but with nobody outside.
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SHARED, none)?;
    mount(Some("proc"), "/proc", Some("proc"), MsFlags::empty(), none).context("mount /proc")?;

    let own_folder = folder.join("node");
    fs::create_dir_all(&own_folder)?;
    if storage == Storage::Memory {
        tmpfs(&own_folder)?;
    }
    // The outer machine's files, with all that is written to them kept inside.
    for at in ["/etc", "/var/lib"] {
        let layer = own_folder.join("layers").join(at.trim_start_matches('/').replace('/', "-"));
        let (upper, work) = (layer.join("upper"), layer.join("work"));
        fs::create_dir_all(&upper)?;
        fs::create_dir_all(&work)?;
        let data = format!("lowerdir={at},upperdir={},workdir={}", upper.display(), work.display());
        mount(Some("overlay"), at, Some("overlay"), MsFlags::empty(), Some(data.as_str()))
            .with_context(|| format!("cover {at}"))?;
    }
    for at in ["/var/lib/cni", "/var/lib/mooring"] {
        let at = Path::new(at);
        let _ = fs::remove_dir_all(at);
        fs::create_dir_all(at)?;
        if storage == Storage::Disk {
            let own = own_folder.join("layers").join(at.file_name().unwrap_or_default());
            fs::create_dir_all(&own)?;
            mount(Some(&own), at, none, MsFlags::MS_BIND, none)?;
        } else {
            tmpfs(at)?;
        }
    }
    tmpfs(Path::new("/run"))?;
    own_tmp(folder)?;
    fs::create_dir_all("/run/lock")?;
    rebuild_cgroups(hierarchies)?;
    hand_down_controllers()?;
    let run = Command::new("ip").args(["link", "set", "lo", "up"]).status();
    if !run.context("run ip: run tools/deps.sh")?.success() {
        bail!("the machine's loopback does not come up");
    }
    Ok(())
}

/// Version 2 lets no process be beside cgroups with controllers: ours step aside, into a cgroup of their own.
fn hand_down_controllers() -> Result<()> {
    let top = Path::new("/sys/fs/cgroup");
    let Ok(controllers) = fs::read_to_string(top.join("cgroup.controllers")) else { return Ok(()) };
    let own = top.join("machine");
    fs::create_dir_all(&own)?;
    fs::write(own.join("cgroup.procs"), "0").context("step aside")?;
    let all: Vec<String> = controllers.split_whitespace().map(|one| format!("+{one}")).collect();
    fs::write(top.join("cgroup.subtree_control"), all.join(" "))
        .context("hand down the controllers")
}

/// A /tmp of the machine's own. Its folder stays where others look for it, if it lies in there.
fn own_tmp(folder: &Path) -> Result<()> {
    let none = None::<&str>;
    let at = Path::new("/tmp");
    let outer = fs::File::open(folder).context("open the machine's folder")?;
    tmpfs(at)?;
    if folder.starts_with(at) {
        fs::create_dir_all(folder)?;
        let outer = format!("/proc/self/fd/{}", outer.as_raw_fd());
        mount(Some(outer.as_str()), folder, none, MsFlags::MS_BIND | MsFlags::MS_REC, none)
            .context("keep the machine's folder in /tmp")?;
    }
    Ok(())
}

fn tmpfs(at: &Path) -> Result<()> {
    mount(Some("machine"), at, Some("tmpfs"), MsFlags::empty(), Some("mode=755"))
        .with_context(|| format!("mount a tmpfs on {}", at.display()))
}

/// Every hierarchy again at its place, as seen from the machine's cgroup namespace.
fn rebuild_cgroups(hierarchies: &[Hierarchy]) -> Result<()> {
    let none = None::<&str>;
    let top = Path::new("/sys/fs/cgroup");
    let only_version2 = hierarchies.iter().any(|one| one.at == top);
    // sysfs shows the links of the network namespace in which it was mounted.
    umount2(top, MntFlags::MNT_DETACH).context("uncover /sys/fs/cgroup")?;
    mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), none).context("mount /sys")?;
    if !only_version2 {
        tmpfs(top)?;
    }
    for one in hierarchies {
        fs::create_dir_all(&one.at)?;
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        let (kind, data) = if one.version2 {
            ("cgroup2", None)
        } else {
            ("cgroup", Some(one.controllers.as_str()))
        };
        mount(Some("cgroup"), &one.at, Some(kind), flags, data)
            .with_context(|| format!("mount the cgroup hierarchy {}", one.at.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_named_after_a_dead_process_was_left() {
        let parent = tempfile::tempdir().unwrap();
        let mut dead = Command::new("true").spawn().unwrap();
        dead.wait().unwrap();
        let (dead, own) = (dead.id(), std::process::id());
        for name in [
            format!("{NAME}{dead}"),
            format!("{NAME}{dead}-abc"),
            format!("{NAME}{own}"),
            format!("{NAME}{own}-abc"),
            format!("{NAME}abc"),
            format!("{NAME}-{dead}"),
            format!("other-{dead}"),
        ] {
            fs::create_dir(parent.path().join(name)).unwrap();
        }
        let mut left = left_in(parent.path(), NAME);
        left.sort();
        let expected = [format!("{NAME}{dead}"), format!("{NAME}{dead}-abc")];
        assert_eq!(left, expected.map(|name| parent.path().join(name)));
    }
}
