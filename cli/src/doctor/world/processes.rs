//! The processes of this node, as far as a look wants to know them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

#[derive(Debug, Default)]
pub struct Process {
    pub pid: i32,
    pub parent: i32,
    /// In clock ticks since boot.
    pub start: u64,
    pub name: String,
    pub arguments: Vec<String>,
    /// Its lines of `/proc/PID/cgroup`.
    pub cgroup: String,
    /// The network namespaces of its threads: the kernel's numbers, and a path to each.
    pub netns: BTreeMap<u64, PathBuf>,
    /// What a CNI plugin was called with: the container's id and the namespace.
    pub cni: Option<(String, PathBuf)>,
}

/// A shim's command line, whichever shim it is.
#[derive(Debug, PartialEq, Eq)]
pub struct ShimCall<'a> {
    pub namespace: &'a str,
    pub id: &'a str,
    pub address: &'a str,
    /// `start` or `delete`; a daemon of Mooring has `start`, one of runc-v2 nothing.
    pub action: &'a str,
    pub is_ours: bool,
}

impl Process {
    pub fn program(&self) -> &str {
        let first = self.arguments.first().map_or("", String::as_str);
        first.rsplit('/').next().unwrap_or(first)
    }

    /// What a shim was called with, if this is one.
    pub fn shim(&self) -> Option<ShimCall<'_>> {
        let name = self.program().strip_prefix("containerd-shim-")?;
        let value = |flag: &str| {
            let at = self.arguments.iter().position(|one| one.trim_start_matches('-') == flag)?;
            self.arguments.get(at + 1).map(String::as_str)
        };
        let action = self.arguments.last().map_or("", String::as_str);
        Some(ShimCall {
            namespace: value("namespace")?,
            id: value("id")?,
            address: value("address").unwrap_or_default(),
            action: if matches!(action, "start" | "delete") { action } else { "" },
            is_ours: name.starts_with("mooring"),
        })
    }

    fn read(pid: i32) -> Option<Self> {
        let at = PathBuf::from(format!("/proc/{pid}"));
        let stat = fs::read_to_string(at.join("stat")).ok()?;
        let (open, close) = (stat.find('(')?, stat.rfind(')')?);
        let fields: Vec<&str> = stat.get(close + 1..)?.split_whitespace().collect();
        // Dead, and held by its parent alone.
        if matches!(fields.first(), Some(&("Z" | "X"))) {
            return None;
        }
        let words = |file: &str| {
            let text = fs::read(at.join(file)).unwrap_or_default();
            let words = text.split(|byte| *byte == 0).filter(|word| !word.is_empty());
            words.map(|word| String::from_utf8_lossy(word).into_owned()).collect::<Vec<_>>()
        };
        let environment = words("environ");
        let value =
            |key: &str| environment.iter().find_map(|one| one.strip_prefix(key)?.strip_prefix('='));
        let cni = value("CNI_COMMAND").map(|_| {
            let id = value("CNI_CONTAINERID").unwrap_or_default().to_owned();
            (id, PathBuf::from(value("CNI_NETNS").unwrap_or_default()))
        });
        let tasks = fs::read_dir(at.join("task")).into_iter().flatten().flatten();
        let netns = tasks.filter_map(|task| {
            let path = task.path().join("ns/net");
            Some((inode(&fs::read_link(&path).ok()?)?, path))
        });
        Some(Self {
            pid,
            parent: fields.get(1)?.parse().ok()?,
            start: fields.get(19)?.parse().ok()?,
            name: stat.get(open + 1..close)?.to_owned(),
            arguments: words("cmdline"),
            cgroup: fs::read_to_string(at.join("cgroup")).unwrap_or_default(),
            netns: netns.collect(),
            cni,
        })
    }

    /// When it started.
    pub fn started(&self) -> Option<SystemTime> {
        let text = fs::read_to_string("/proc/stat").ok()?;
        let boot = text.lines().find_map(|line| line.strip_prefix("btime "))?;
        let boot = Duration::from_secs(boot.trim().parse().ok()?);
        let ticks = rustix::param::clock_ticks_per_second().max(1);
        SystemTime::UNIX_EPOCH.checked_add(boot + Duration::from_secs(self.start / ticks))
    }
}

/// The number in `net:[4026531840]`.
pub fn inode(link: &Path) -> Option<u64> {
    link.to_str()?.strip_prefix("net:[")?.strip_suffix(']')?.parse().ok()
}

/// All of them, by number.
pub fn all() -> BTreeMap<i32, Process> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter_map(|pid| Some((pid, Process::read(pid)?))).collect()
}

/// What is behind every open descriptor of the node: a large table, read only where something would be found without it.
pub fn open_files() -> BTreeSet<PathBuf> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let folders = entries.map(|entry| entry.path().join("fd"));
    let files = folders.flat_map(|folder| fs::read_dir(folder).into_iter().flatten().flatten());
    files.filter_map(|file| fs::read_link(file.path()).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shims_are_known_by_their_command_line() {
        let of = |line: &str| Process {
            arguments: line.split(' ').map(str::to_owned).collect(),
            ..Process::default()
        };
        let ours = of("/usr/bin/containerd-shim-mooring-v1 -namespace ns -address /c -id a start");
        let wanted =
            ShimCall { namespace: "ns", id: "a", address: "/c", action: "start", is_ours: true };
        assert_eq!(ours.shim(), Some(wanted));
        let peers = of("/x/containerd-shim-runc-v2 -namespace k8s.io -id b -address /c");
        let peers = peers.shim().unwrap();
        assert!(!peers.is_ours && peers.action.is_empty() && peers.id == "b", "{peers:?}");
        for line in ["containerd-shim-runc-v2", "sleep 1", "", "/bin/sh -namespace ns -id a"] {
            assert_eq!(of(line).shim(), None, "{line}");
        }
    }

    #[test]
    fn this_process_is_among_them_with_its_namespace() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let all = all();
        let own = fs::read_link("/proc/self/ns/net").unwrap();
        assert!(all[&pid].netns.contains_key(&inode(&own).unwrap()), "{:?}", all[&pid]);
        assert!(all[&pid].started().unwrap() <= SystemTime::now());
    }
}
