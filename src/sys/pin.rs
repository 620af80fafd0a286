//! Namespaces that a mount keeps.
//!
//! A namespace lives as long as a process is in it, or its file (of the kernel's nsfs) is open or mounted somewhere. A
//! pin is such a mount, on a file made for it. It is an ordinary mount, which other mount namespaces may have copied:
//! where its propagation does not take it away there too, the removal of the file does, since the kernel then detaches
//! whatever is mounted on it anywhere.

use std::{
    fs::{self, OpenOptions},
    io,
    os::{
        fd::{AsRawFd, BorrowedFd},
        unix::fs::OpenOptionsExt,
    },
    path::Path,
};

use nix::{
    mount::{MsFlags, mount},
    sys::statfs::{NSFS_MAGIC, statfs},
};
use thiserror::Error;

use super::unmount;
use crate::{interleave::point, released::Released};

/// A pin that was not made, or not removed.
#[derive(Debug, Error)]
pub enum PinError {
    /// Something is pinned there already.
    #[error("a namespace is pinned there already")]
    Taken,
    #[error("{action}: {source}")]
    Failed { action: &'static str, source: io::Error },
}

fn failed(action: &'static str) -> impl FnOnce(io::Error) -> PinError {
    move |source| PinError::Failed { action, source }
}

/// Pins the namespace that `namespace` is an open file of at `path`, in a folder that is there. Blocks for a moment.
pub fn pin(path: &Path, namespace: BorrowedFd<'_>) -> Result<(), PinError> {
    point("make the file of a namespace");
    let create = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o444)
        .custom_flags(nix::fcntl::OFlag::O_NOFOLLOW.bits())
        .open(path);
    match create {
        Ok(_) => {}
        // A file without mount was left by a crash or a reboot and serves again.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && is_plain_file(path) => {
            if is_pinned(path) {
                return Err(PinError::Taken);
            }
        }
        Err(error) => return Err(failed("file")(error)),
    }
    let source = format!("/proc/self/fd/{}", namespace.as_raw_fd());
    point("pin the namespace");
    let bound = mount(Some(source.as_str()), path, None::<&str>, MsFlags::MS_BIND, None::<&str>);
    bound.map_err(|errno| {
        // Best effort: the failed mount is what the caller has to know.
        let _ = fs::remove_file(path);
        failed("mount")(errno.into())
    })
}

/// Unmounts what is pinned at `path` and removes its file. A busy one is waited for briefly, then detached. Blocks for a
/// moment. May be repeated.
pub fn unpin(path: &Path) -> Result<Released, PinError> {
    point("unpin the namespace");
    let released = unmount::all(path).map_err(failed("unmount"))?;
    point("remove the file of a namespace");
    match fs::remove_file(path) {
        Ok(()) => Ok(Released::Done),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(released),
        Err(error) => Err(failed("removal")(error)),
    }
}

/// Whether a namespace is to be found at `path`: it is there, and it is of nsfs. A file whose mount is gone is not.
pub fn is_pinned(path: &Path) -> bool {
    statfs(path).is_ok_and(|found| found.filesystem_type() == NSFS_MAGIC)
}

fn is_plain_file(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|found| found.is_file())
}

#[cfg(test)]
mod tests {
    use std::{fs::File, os::fd::AsFd, process::Command};

    use super::*;

    /// The mounts of the mount namespace of `process` that are below `folder`.
    fn seen_by(process: u32, folder: &Path) -> usize {
        let table = fs::read_to_string(format!("/proc/{process}/mountinfo")).unwrap();
        table.lines().filter(|line| line.contains(&*folder.to_string_lossy())).count()
    }

    /// A service with a mount namespace of its own, begun while a pod lives, must not keep the pod's namespaces.
    #[test]
    fn a_copy_in_another_mount_namespace_goes_with_the_pin() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("uts");
        pin(&path, File::open("/proc/self/ns/uts").unwrap().as_fd()).unwrap();
        let mut other = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sleep", "100"])
            .spawn()
            .unwrap();
        while seen_by(other.id(), folder.path()) == 0
            || fs::read_link(format!("/proc/{}/ns/mnt", other.id())).unwrap()
                == fs::read_link("/proc/self/ns/mnt").unwrap()
        {
            std::thread::yield_now();
        }
        assert_eq!(unpin(&path).unwrap(), Released::Done);
        let left = seen_by(other.id(), folder.path());
        other.kill().unwrap();
        // Another test's reaper may have been quicker.
        let _ = other.wait();
        assert_eq!(left, 0);
        assert_eq!(unpin(&path).unwrap(), Released::AlreadyGone);
    }
}
