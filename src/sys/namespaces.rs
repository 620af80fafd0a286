//! Telling the node's namespaces from others.
//!
//! A namespace is a file of the kernel's nsfs: device and inode name it, by whatever path it is reached.

use std::{fs, io, os::unix::fs::MetadataExt, path::Path};

/// The kinds of namespaces: an OCI specification's name and the kernel's below `/proc/PID/ns`.
const KINDS: [(&str, &str); 8] = [
    ("network", "net"),
    ("ipc", "ipc"),
    ("uts", "uts"),
    ("pid", "pid"),
    ("user", "user"),
    ("mount", "mnt"),
    ("cgroup", "cgroup"),
    ("time", "time"),
];

/// The kernel's name of a kind of namespace that an OCI specification names `kind`.
pub fn file_of(kind: &str) -> Option<&'static str> {
    KINDS.iter().find(|(name, _)| *name == kind).map(|(_, file)| *file)
}

/// Whether `path` leads to the node's namespace of the kind that the kernel calls `file`: that of this process, or of
/// the node's init. Blocks for as long as the file system of `path` takes.
pub fn is_the_nodes(path: &Path, file: &str) -> io::Result<bool> {
    let found = identity(path)?;
    // Of the process: its threads visit pods.
    if found == identity(format!("/proc/self/ns/{file}").as_ref())? {
        return Ok(true);
    }
    match identity(format!("/proc/1/ns/{file}").as_ref()) {
        Ok(init) => Ok(found == init),
        // Without rights over the node's init (rootless) nothing of its can be joined.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(false),
        Err(error) => Err(error),
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::metadata(path).map(|found| (found.dev(), found.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nodes_is_known_by_any_path() {
        let folder = tempfile::tempdir().unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink("/proc/self/ns/net", &link).unwrap();
        for path in ["/proc/self/ns/net".as_ref(), "/proc/self/ns/../ns/net".as_ref(), &*link] {
            assert!(is_the_nodes(path, "net").unwrap(), "{}", path.display());
        }
        // Another kind, and no namespace at all.
        assert!(!is_the_nodes("/proc/self/ns/uts".as_ref(), "net").unwrap());
        assert!(!is_the_nodes("/etc".as_ref(), "net").unwrap());
        assert!(is_the_nodes("/proc/self/ns/absent".as_ref(), "net").is_err());
    }

    #[test]
    fn a_threads_own_is_not_the_nodes() {
        std::thread::scope(|scope| {
            let visitor = scope.spawn(|| {
                nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWUTS).unwrap();
                is_the_nodes("/proc/thread-self/ns/uts".as_ref(), "uts")
            });
            assert!(!visitor.join().unwrap().unwrap());
        });
    }
}
