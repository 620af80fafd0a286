//! Network namespaces that are pinned at a file.
//!
//! A network namespace lives as long as a process is in it or a file of the kernel's nsfs is mounted somewhere.
//! The pod's is mounted at a file below `/run/netns`, as `ip netns` does it, so that it outlives the shim and plugins
//! can be given a path. A reboot takes the mount away; the file may stay.

use std::{
    fs::{self, File},
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    thread,
};

use nix::{
    errno::Errno,
    sched::{CloneFlags, setns, unshare},
    sys::statfs::{NSFS_MAGIC, fstatfs, statfs},
};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::netlink;
use crate::{
    error::{Code, Coded},
    id::Id,
    released::Released,
    sys::pin::{self, PinError},
};

/// The folder that `ip netns` and containerd use too.
pub const DEFAULT_DIR: &str = "/run/netns";

/// Enough for the few system calls that a visiting thread makes, and for a caller's closure.
const STACK: usize = 256 << 10;

/// A pinned network namespace, for the journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetnsRecord {
    /// The file at which it is mounted.
    pub path: PathBuf,
}

/// What can go wrong with a network namespace.
#[derive(Debug, Error)]
pub enum Error {
    /// The path leads to something else.
    #[error("{} is no network namespace{}", path.display(), because(reason.as_ref()))]
    NotNetns {
        path: PathBuf,
        /// Why it cannot be looked at, if that is the reason.
        reason: Option<io::Error>,
    },
    /// A namespace is pinned there already.
    #[error("a network namespace is pinned at {} already", path.display())]
    Taken { path: PathBuf },
    #[error("{action} of network namespace {}: {source}", path.display())]
    Failed { action: &'static str, path: PathBuf, source: io::Error },
    /// The namespace cannot be entered.
    #[error("enter network namespace: {0}")]
    Enter(io::Error),
    /// The thread that was to enter the namespace was lost.
    #[error("the thread in the network namespace was lost")]
    Lost,
}

impl Coded for Error {
    fn code(&self) -> Code {
        match self {
            Self::NotNetns { .. } => Code::InvalidArgument,
            Self::Taken { .. } => Code::AlreadyExists,
            Self::Failed { .. } | Self::Enter(_) | Self::Lost => Code::Unknown,
        }
    }
}

fn because(reason: Option<&io::Error>) -> String {
    reason.map(|error| format!(": {error}")).unwrap_or_default()
}

fn failed(action: &'static str, path: &Path, source: impl Into<io::Error>) -> Error {
    Error::Failed { action, path: path.to_owned(), source: source.into() }
}

fn unpinned(path: &Path, error: PinError) -> Error {
    match error {
        PinError::Taken => Error::Taken { path: path.to_owned() },
        PinError::Failed { action, source } => failed(action, path, source),
    }
}

/// The file for a sandbox's namespace below `dir`. Ids hold no two separators in a row, so no two sandboxes share it;
/// and it is known before the namespace is made, so that a crash in between loses nothing.
pub fn path_for(dir: &Path, namespace: &Id, sandbox: &Id) -> PathBuf {
    dir.join(format!("mooring-{namespace}--{sandbox}"))
}

/// Makes a network namespace and pins it at `path`. May sleep: not for the async thread.
pub fn acquire(path: &Path) -> Result<NetnsRecord, Error> {
    let make = || {
        unshare(CloneFlags::CLONE_NEWNET)?;
        // Opened on this thread: the file stands for the namespace when the thread has ended.
        File::open("/proc/thread-self/ns/net").map(OwnedFd::from)
    };
    let netns = on_a_thread(make)?.map_err(|error: io::Error| failed("making", path, error))?;
    pin(path, netns.as_fd())
}

/// Pins the network namespace that `netns` is an open file of, such as one that a user namespace owns.
pub fn pin(path: &Path, netns: BorrowedFd<'_>) -> Result<NetnsRecord, Error> {
    let wrong = |reason| Error::NotNetns { path: path.to_owned(), reason };
    if !is_netns(netns).map_err(|error| wrong(Some(error)))? {
        return Err(wrong(None));
    }
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).map_err(|error| failed("folder", path, error))?;
    }
    pin::pin(path, netns).map_err(|error| unpinned(path, error))?;
    Ok(NetnsRecord { path: path.to_owned() })
}

/// Unmounts the namespace and removes its file. A busy one is waited for briefly, then detached. May sleep: not for
/// the async thread.
pub fn release(record: &NetnsRecord) -> Result<Released, Error> {
    pin::unpin(&record.path).map_err(|error| unpinned(&record.path, error))
}

/// Whether a namespace is to be found at `path`: it is there, and it is of nsfs. A file whose mount is gone is not.
pub fn is_open(path: &Path) -> bool {
    pin::is_pinned(path)
}

/// Checks that `path` leads to a network namespace, whoever made it.
pub fn check(path: &Path) -> Result<(), Error> {
    open(path).map(drop)
}

/// Opens the network namespace at `path`.
pub fn open(path: &Path) -> Result<OwnedFd, Error> {
    let wrong = |reason| Error::NotNetns { path: path.to_owned(), reason };
    // Looked at before it is opened: opening something else, such as a device, could have effects.
    let found = statfs(path).map_err(|error| wrong(Some(error.into())))?;
    if found.filesystem_type() != NSFS_MAGIC {
        return Err(wrong(None));
    }
    let file = OwnedFd::from(File::open(path).map_err(|error| wrong(Some(error)))?);
    if is_netns(file.as_fd()).map_err(|error| wrong(Some(error)))? {
        Ok(file)
    } else {
        Err(wrong(None))
    }
}

/// Runs `visit` on a thread of its own in the network namespace, and gives what it gave. Blocks until it has ended.
pub fn in_netns<T: Send>(
    netns: BorrowedFd<'_>,
    visit: impl FnOnce() -> T + Send,
) -> Result<T, Error> {
    on_a_thread(|| setns(netns, CloneFlags::CLONE_NEWNET).map(|()| visit()))?
        .map_err(|error| Error::Enter(error.into()))
}

/// Brings `lo` up in the network namespace at `path`. Blocks: not for the async thread.
pub fn loopback_up(path: &Path) -> Result<(), Error> {
    let netns = open(path)?;
    in_netns(netns.as_fd(), netlink::loopback_up)?
        .map_err(|error| failed("bringing up lo", path, error))
}

/// Whether an open file stands for a network namespace.
fn is_netns(netns: BorrowedFd<'_>) -> Result<bool, io::Error> {
    if fstatfs(netns)?.filesystem_type() != NSFS_MAGIC {
        return Ok(false);
    }
    // The kernel names a namespace's file by its kind, but one that is mounted by its place. Entering it tells: the
    // kernel refuses a namespace of another kind with EINVAL.
    let name = fs::read_link(format!("/proc/self/fd/{}", netns.as_raw_fd()))?;
    if name.to_string_lossy().starts_with("net:[") {
        return Ok(true);
    }
    match in_netns(netns, || ()) {
        Ok(()) => Ok(true),
        Err(Error::Enter(error)) if error.raw_os_error() == Some(Errno::EINVAL as i32) => Ok(false),
        Err(Error::Enter(error)) => Err(error),
        Err(error) => Err(io::Error::other(error)),
    }
}

/// Namespaces belong to threads: one that ends takes nothing of it back to the others.
fn on_a_thread<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, Error> {
    thread::scope(|scope| {
        let builder = thread::Builder::new().name("netns".to_owned()).stack_size(STACK);
        let worker = builder.spawn_scoped(scope, work).map_err(|_| Error::Lost)?;
        worker.join().map_err(|_| Error::Lost)
    })
}

#[cfg(test)]
mod tests;
