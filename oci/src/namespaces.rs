//! Which namespaces a container has: new ones, others' by their path, or the node's own.

use std::{
    fs::File,
    os::fd::{AsFd, OwnedFd},
    os::unix::fs::MetadataExt,
    path::PathBuf,
};

use crate::{
    error::{Doing, Error, Result},
    spec::Linux,
    sys,
};

/// The kernel's flag and its name below `/proc/PID/ns`, by the specification's name.
const KINDS: [(&str, &str, i32); 8] = [
    ("user", "user", libc::CLONE_NEWUSER),
    ("mount", "mnt", libc::CLONE_NEWNS),
    ("pid", "pid", libc::CLONE_NEWPID),
    ("network", "net", libc::CLONE_NEWNET),
    ("ipc", "ipc", libc::CLONE_NEWIPC),
    ("uts", "uts", libc::CLONE_NEWUTS),
    ("cgroup", "cgroup", libc::CLONE_NEWCGROUP),
    ("time", "time", libc::CLONE_NEWTIME),
];

/// The namespaces of a container to be.
#[derive(Debug, Default)]
pub struct Namespaces {
    /// Flags of those that are made.
    pub new: i32,
    /// Those that are joined, opened by the node's own eyes.
    pub joined: Vec<(i32, OwnedFd, PathBuf)>,
}

impl Namespaces {
    /// Opens those that have a path.
    pub fn of(linux: &Linux) -> Result<Self> {
        let mut all = Self::default();
        let mut seen = 0;
        for one in &linux.namespaces {
            let Some((_, name, flag)) = KINDS.iter().find(|(kind, ..)| *kind == one.kind) else {
                return Err(Error::unsupported(format!("namespace of type {:?}", one.kind)));
            };
            if seen & flag != 0 {
                return Err(Error::invalid(format!("two {} namespaces", one.kind)));
            }
            seen |= flag;
            if one.path.as_os_str().is_empty() {
                all.new |= flag;
                continue;
            }
            let file = File::open(&one.path).doing_at("open namespace", &one.path)?;
            if sys::namespace_kind(file.as_fd()).ok() != Some(*flag) {
                let what = format!("{} is no {} namespace", one.path.display(), one.kind);
                return Err(Error::invalid(what));
            }
            // Joining the one that it is in already is nothing, and the kernel refuses it for some kinds.
            if !is_own(&file, name) {
                all.joined.push((*flag, file.into(), one.path.clone()));
            }
        }
        Ok(all)
    }

    pub fn makes(&self, flag: i32) -> bool {
        self.new & flag != 0
    }

    pub fn joins(&self, flag: i32) -> Option<&OwnedFd> {
        self.joined.iter().find(|(kind, ..)| *kind == flag).map(|(_, file, _)| file)
    }

    /// Whether the container has one of this kind that is not the node's.
    pub fn has(&self, flag: i32) -> bool {
        self.makes(flag) || self.joins(flag).is_some()
    }

    /// Enters those that have a path; the user namespace last, as rights over the others may end with it.
    pub fn join(&self) -> Result<()> {
        let last = |flag: i32| flag == libc::CLONE_NEWUSER;
        let (user, others): (Vec<_>, Vec<_>) =
            self.joined.iter().partition(|(flag, ..)| last(*flag));
        for (flag, file, path) in others.into_iter().chain(user) {
            sys::setns(file.as_fd(), *flag).doing_at("join namespace", path)?;
        }
        Ok(())
    }
}

fn is_own(file: &File, name: &str) -> bool {
    let own = std::fs::metadata(format!("/proc/self/ns/{name}"));
    let theirs = file.metadata();
    matches!((own, theirs), (Ok(own), Ok(theirs)) if own.ino() == theirs.ino() && own.dev() == theirs.dev())
}

/// The flags of the namespaces of process `pid` that this process is not in.
pub fn foreign(pid: i32) -> Result<i32> {
    let mut flags = 0;
    for (_, name, flag) in KINDS {
        let path = PathBuf::from(format!("/proc/{pid}/ns/{name}"));
        match std::fs::metadata(&path) {
            Ok(theirs) => {
                let own = std::fs::metadata(format!("/proc/self/ns/{name}"));
                if own.is_ok_and(|own| own.ino() != theirs.ino()) {
                    flags |= flag;
                }
            }
            // A kernel without this kind.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && name == "time" => {}
            Err(error) => return Err(error).doing_at("look at", &path),
        }
    }
    Ok(flags)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn linux(namespaces: &serde_json::Value) -> Linux {
        serde_json::from_value(json!({ "namespaces": namespaces })).unwrap()
    }

    #[test]
    fn kinds_are_told_apart() {
        let all = Namespaces::of(&linux(&json!([
            {"type": "mount"}, {"type": "pid"}, {"type": "network", "path": "/proc/self/ns/net"}
        ])))
        .unwrap();
        assert_eq!(all.new, libc::CLONE_NEWNS | libc::CLONE_NEWPID);
        assert!(all.joined.is_empty(), "its own is not joined");
    }

    #[test]
    fn what_is_no_namespace_of_that_kind_is_refused() {
        for (bad, said) in [
            (json!([{"type": "dream"}]), "dream"),
            (json!([{"type": "pid"}, {"type": "pid"}]), "two pid"),
            (json!([{"type": "network", "path": "/proc/self/ns/uts"}]), "no network namespace"),
            (json!([{"type": "network", "path": "/dev/null"}]), "no network namespace"),
        ] {
            let error = Namespaces::of(&linux(&bad)).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
    }
}
