//! The cgroup hierarchies of the machine, and cgroups of a machine's own in them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::unistd::getpid;

/// A cgroup hierarchy as it is mounted.
pub struct Hierarchy {
    /// The mount point.
    pub at: PathBuf,
    /// Whether it is cgroup v2.
    pub version2: bool,
    /// The v1 controllers, or `name=…`.
    pub controllers: String,
}

/// All hierarchies of the machine.
pub fn hierarchies() -> Result<Vec<Hierarchy>> {
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
pub fn own_cgroup(hierarchy: &Hierarchy) -> Option<String> {
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

/// Makes a cgroup of this name below this process's own in every hierarchy, and moves the process there.
pub fn join_cgroups(hierarchies: &[Hierarchy], name: &str) -> Result<()> {
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

/// Whether there is a process in a cgroup or below it.
pub fn is_populated(at: &Path) -> bool {
    let own = fs::read_to_string(at.join("cgroup.procs"));
    let below = || fs::read_dir(at).into_iter().flatten().flatten();
    own.is_ok_and(|pids| !pids.is_empty())
        || below().filter(|one| one.path().is_dir()).any(|one| is_populated(&one.path()))
}

/// Bottom up. All processes in it are dead; the kernel may need a moment to notice.
pub fn remove_cgroup(at: &Path) {
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
