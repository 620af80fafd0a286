//! A machine inside the machine: the test binary runs itself again as the first process of new PID, mount, network
//! and cgroup namespaces, with empty folders in the places where runtimes keep state.
//!
//! Inside, tests own every process, link, firewall rule, mount and cgroup that they see, so an audit needs no guesses
//! about whose a thing is, and when the first process ends, however it ends, the kernel removes all of it. The
//! outside process is left with a temporary folder and a cgroup to remove.

use std::fs;
use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, exit};

use anyhow::{Context, Result, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getpid};

use crate::systemd;

/// Tells a run of the binary where in [`enter`] it is.
const STAGE: &str = "MOORING_E2E_STAGE";
/// The machine's folder on the outer machine's disk.
const FOLDER: &str = "MOORING_E2E_FOLDER";
/// The name of the machine's cgroup in every hierarchy.
const CGROUP: &str = "MOORING_E2E_CGROUP";

/// Where the machine keeps what containerd and the shims write.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Storage {
    /// tmpfs: quick, for tests.
    Memory,
    /// The outer machine's disk, for figures in which fsync must cost what it costs.
    Disk,
}

/// A cgroup hierarchy as it is mounted.
struct Hierarchy {
    at: PathBuf,
    version2: bool,
    /// The v1 controllers, or `name=…`.
    controllers: String,
}

/// Returns inside the machine. The outer process never returns: it waits, cleans up and exits with the inner status.
pub fn enter(storage: Storage) -> Result<PathBuf> {
    if systemd::is_first() {
        let folder = PathBuf::from(format!("/var/lib/mooring-e2e-{}", std::process::id()));
        fs::create_dir_all(&folder)?;
        return Ok(folder);
    }
    match std::env::var(STAGE).as_deref() {
        Err(_) => outside(storage),
        Ok("init") => init(storage),
        Ok(_) => {
            // When init is killed the kernel kills us too: it is the first process of our PID namespace.
            Ok(PathBuf::from(std::env::var_os(FOLDER).context("no folder given")?).join("node"))
        }
    }
}

fn outside(storage: Storage) -> Result<PathBuf> {
    if !nix::unistd::geteuid().is_root() {
        bail!("the end-to-end tests make namespaces and run containerd: run them as root");
    }
    let folder = tempfile::Builder::new()
        .prefix("mooring-e2e-")
        .tempdir_in(if storage == Storage::Disk { "/var/tmp" } else { "/tmp" })
        .context("make the machine's folder")?;
    let name = format!("mooring-e2e-{}", std::process::id());
    let cgroups: Vec<PathBuf> = hierarchies()?
        .iter()
        .filter_map(|one| Some(one.at.join(own_cgroup(one)?.trim_start_matches('/')).join(&name)))
        .collect();
    unshare(CloneFlags::CLONE_NEWPID).context("make a PID namespace")?;
    let status = again("init")
        .env(FOLDER, folder.path())
        .env(CGROUP, &name)
        .status()
        .context("run the machine's first process")?;
    for cgroup in &cgroups {
        remove_cgroup(cgroup);
    }
    if let Err(error) = folder.close() {
        eprintln!("the machine's folder stays: {error}");
    }
    exit(code_of(status));
}

fn again(stage: &str) -> Command {
    let mut command = Command::new("/proc/self/exe");
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
fn init(storage: Storage) -> Result<PathBuf> {
    prctl::set_pdeathsig(Signal::SIGKILL).context("tie the machine to the outer process")?;
    let folder = PathBuf::from(std::env::var_os(FOLDER).context("no folder given")?);
    let name = std::env::var(CGROUP).context("no cgroup name given")?;
    let hierarchies = hierarchies()?;
    join_cgroups(&hierarchies, &name)?;
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWCGROUP)
        .context("make the machine's namespaces")?;
    build(storage, &folder, &hierarchies).context("build the machine's file system")?;
    let run = Command::new("ip").args(["link", "set", "lo", "up"]).status();
    if !run.context("run ip: run tools/deps.sh")?.success() {
        bail!("the machine's loopback does not come up");
    }
    let runner = again("run").spawn().context("run the tests")?;
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
    fs::create_dir_all("/run/lock")?;
    rebuild_cgroups(hierarchies)?;
    hand_down_controllers()
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

fn hierarchies() -> Result<Vec<Hierarchy>> {
    const GENERAL: [&str; 12] = [
        "rw",
        "ro",
        "nosuid",
        "nodev",
        "noexec",
        "relatime",
        "xattr",
        "noatime",
        "seclabel",
        "nsdelegate",
        "memory_recursiveprot",
        "memory_hugetlb_accounting",
    ];
    let mounts = fs::read_to_string("/proc/self/mounts").context("read the mounts")?;
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in mounts.lines() {
        let mut words = line.split(' ').skip(1);
        let (Some(at), Some(kind), Some(options)) = (words.next(), words.next(), words.next())
        else {
            continue;
        };
        if kind != "cgroup" && kind != "cgroup2" {
            continue;
        }
        let controllers: Vec<&str> =
            options.split(',').filter(|one| !GENERAL.contains(one)).collect();
        found.retain(|one| one.at != Path::new(at));
        found.push(Hierarchy {
            at: at.into(),
            version2: kind == "cgroup2",
            controllers: controllers.join(","),
        });
    }
    Ok(found)
}

/// The path of this process in a hierarchy.
fn own_cgroup(hierarchy: &Hierarchy) -> Option<String> {
    let own = fs::read_to_string("/proc/self/cgroup").ok()?;
    own.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next()?, parts.next()?);
        let ours = if hierarchy.version2 {
            controllers.is_empty()
        } else {
            !controllers.is_empty() && controllers == hierarchy.controllers
        };
        ours.then(|| path.to_owned())
    })
}

fn join_cgroups(hierarchies: &[Hierarchy], name: &str) -> Result<()> {
    for one in hierarchies {
        let Some(own) = own_cgroup(one) else { continue };
        let parent = one.at.join(own.trim_start_matches('/'));
        let cgroup = parent.join(name);
        fs::create_dir_all(&cgroup).with_context(|| format!("make {}", cgroup.display()))?;
        if one.controllers.split(',').any(|controller| controller == "cpuset") {
            for file in ["cpuset.cpus", "cpuset.mems"] {
                let value = fs::read_to_string(parent.join(file))?;
                fs::write(cgroup.join(file), value.trim())?;
            }
        }
        fs::write(cgroup.join("cgroup.procs"), "0")
            .with_context(|| format!("join {} as {}", cgroup.display(), getpid()))?;
    }
    Ok(())
}

/// Bottom up. All processes in it are dead; the kernel may need a moment to notice.
fn remove_cgroup(at: &Path) {
    let Ok(entries) = fs::read_dir(at) else { return };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_cgroup(&entry.path());
        }
    }
    for _ in 0..100 {
        match fs::remove_dir(at) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
            Ok(()) => return,
            Err(error) => {
                eprintln!("the cgroup {} stays: {error}", at.display());
                return;
            }
        }
    }
}
