//! A mount as containerd describes it, the place where it goes, and what has been made so far.

use std::{
    fmt,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{CWD, Mode, OFlags},
    io::Errno,
    mount::{MoveMountFlags, OpenTreeFlags, UnmountFlags, move_mount, open_tree},
};
use serde::{Deserialize, Serialize};

use super::{Error, idmap::proc_path};
use crate::sys::rooted;

/// One mount, as containerd describes it (`containerd.types.Mount`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// The file system's type, or `bind`.
    pub kind: String,
    pub source: String,
    /// Where, relative to the root file system; the root itself when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<PathBuf>,
    #[serde(default)]
    pub options: Vec<String>,
}

impl Mount {
    /// A mount on the root itself.
    pub fn new(kind: &str, source: &str, options: &[&str]) -> Self {
        Self {
            kind: kind.to_owned(),
            source: source.to_owned(),
            target: None,
            options: options.iter().map(|&option| option.to_owned()).collect(),
        }
    }
}

/// Names the mount in messages; an overlay's options can be pages long, so they stay out.
impl fmt::Display for Mount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "mount of {} {:?}", self.kind, self.source)
    }
}

/// Where a mount goes: a path that is resolved with `root` as its root, whatever symlinks are in it.
pub(crate) struct Place<'a> {
    pub root: &'a Path,
    pub within: Option<&'a Path>,
}

impl Place<'_> {
    /// The topmost mount's directory or file at this place, at this moment.
    pub(crate) fn open(&self) -> Result<OwnedFd, Error> {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let root = rustix::fs::open(self.root, flags | OFlags::DIRECTORY, Mode::empty())
            .map_err(|errno| Error::at("open mount target", self.root, errno))?;
        match self.within {
            None => Ok(root),
            Some(path) => open_within(root, path, OFlags::PATH),
        }
    }
}

/// Opens `path` with `root` as its root: neither `..` nor a symlink leads out of it.
pub(crate) fn open_within(root: impl AsFd, path: &Path, flags: OFlags) -> Result<OwnedFd, Error> {
    rooted::open(root, path, flags, Mode::empty())
        .map_err(|errno| Error::at("open within root", path, errno))
}

/// The mounts made so far; dropped with any left in it, it takes them away again, the last one first.
pub(crate) struct Rollback(pub Vec<OwnedFd>);

impl Drop for Rollback {
    fn drop(&mut self) {
        while let Some(made) = self.0.pop() {
            // The descriptor itself keeps the mount busy, hence the detaching.
            if let Err(errno) = rustix::mount::unmount(proc_path(&made), UnmountFlags::DETACH) {
                log::warn!("undo a mount that was made before another one failed: {errno}");
            }
        }
    }
}

/// Opens `path` itself, following symlinks, as a handle.
pub(crate) fn handle(path: &str) -> rustix::io::Result<OwnedFd> {
    rustix::fs::openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
}

/// Moves a mount that is nowhere yet to `place`.
pub(super) fn move_to(
    tree: OwnedFd,
    mount: &Mount,
    place: &Place<'_>,
    rollback: &mut Rollback,
) -> Result<(), Error> {
    let target = place.open()?;
    move_to_handle(&tree, &target)
        .map_err(|errno| Error::system(format!("{mount}: attach"), errno))?;
    rollback.0.push(tree);
    Ok(())
}

/// Moves a mount that is nowhere yet onto what `target` refers to.
pub(super) fn move_to_handle(tree: impl AsFd, target: impl AsFd) -> rustix::io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(tree, "", target, "", flags)
}

/// Whether the kernel, or the file system, may merely not know the newer way of mounting.
pub(super) fn is_unknown(errno: Errno) -> bool {
    matches!(errno, Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP)
}

/// A mount of its own, attached nowhere, of what is at `source`.
pub(super) fn clone_tree(source: &str, recursive: bool) -> rustix::io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    open_tree(CWD, source, flags)
}
