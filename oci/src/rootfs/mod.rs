//! A container's root file system, in the mount namespace that is its own.
//!
//! What lies on the node is opened before the namespaces are made ([`Prepared`]), by who has all rights over it; the
//! container's process attaches it. Everything goes by descriptors: what was looked at is what is mounted on.

mod cgroups;
mod devices;
mod masks;
mod mounts;
pub mod options;
mod pivot;
mod prepare;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use mooring::cgroup::Cgroup;
use rustix::fs::FsWord;

use crate::{
    console,
    error::Result,
    spec::Spec,
    sys::{self, MountAttr},
};

pub use masks::protect;
pub use pivot::enter;
pub use prepare::{Prepared, write_mappings, write_offsets};

/// What the mounts are made from.
pub struct Making<'a> {
    pub spec: &'a Spec,
    pub prepared: &'a mut Prepared,
    pub group: &'a Cgroup,
    /// Whether the container has a cgroup namespace of its own.
    pub own_cgroups: bool,
    /// Whether it is in a user namespace, and so makes no device nodes.
    pub mapped: bool,
    /// Whether the node's mounts stay below the root.
    pub no_pivot: bool,
    /// The container's SELinux label of files, where the node has SELinux.
    pub label: Option<&'a str>,
}

/// What is made read-only when nothing more is to be made in it.
pub type Late = Vec<(OwnedFd, bool)>;

/// Puts the root where it can be entered, and mounts everything within it. Answers the root.
pub fn make(making: &mut Making<'_>) -> Result<OwnedFd> {
    let root = pivot::attach(making)?;
    let mut late = Late::new();
    mounts::all(making, root.as_fd(), &mut late)?;
    if devices::are_wanted(making.spec) {
        devices::make(making, root.as_fd())?;
    }
    if making.spec.process.as_ref().is_some_and(|process| process.terminal) {
        console::place(root.as_fd())?;
    }
    for (mount, deep) in &late {
        let attr = MountAttr { set: options::RDONLY, ..MountAttr::default() };
        crate::error::Doing::doing(
            sys::mount_setattr(mount.as_fd(), *deep, &attr),
            "make a mount of the container read-only",
        )?;
    }
    let cwd = making.spec.process.as_ref().map_or("", |process| process.cwd.as_str());
    if !cwd.is_empty() {
        let path = crate::rooted::clean(std::path::Path::new(cwd));
        // One that cannot be made is missed when it is entered.
        let _ = crate::rooted::folder(root.as_fd(), &path, 0o755, false);
    }
    Ok(root)
}

/// Whether the file system that `file` is on is of this kind.
fn is_on(file: BorrowedFd<'_>, magic: FsWord) -> bool {
    rustix::fs::fstatfs(file).is_ok_and(|about| about.f_type == magic)
}

const PROC_MAGIC: FsWord = 0x9fa0;
