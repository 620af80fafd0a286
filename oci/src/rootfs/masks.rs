//! What a container may not see, or not change.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use rustix::{
    fs::{FileType, Mode, OFlags},
    mount::OpenTreeFlags,
};

use super::{
    PROC_MAGIC, is_on,
    mounts::{attach, new},
    options::{Options, RDONLY},
};
use crate::{
    error::{Doing, Error, Result},
    rooted,
    spec::{Mount, Spec},
    sys::{self, MountAttr},
};

/// Hides the masked paths, and takes the right to write from the read-only ones. Called while the node's files are in
/// sight: a file is hidden by the node's own /dev/null, so that nothing of the container's can stand in its place.
pub fn protect(root: BorrowedFd<'_>, spec: &Spec, label: Option<&str>) -> Result<()> {
    let null = nothing()?;
    for path in &spec.linux.readonly_paths {
        read_only(root, path)?;
    }
    for path in &spec.linux.masked_paths {
        mask(root, path, &null, label)?;
    }
    Ok(())
}

/// The node's /dev/null, and really that.
fn nothing() -> Result<OwnedFd> {
    let null = rustix::fs::open("/dev/null", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .doing("open /dev/null")?;
    let about = rustix::fs::fstat(&null).doing("look at /dev/null")?;
    let is_device = FileType::from_raw_mode(about.st_mode) == FileType::CharacterDevice;
    if is_device && about.st_rdev == rustix::fs::makedev(1, 3) {
        Ok(null)
    } else {
        Err(Error::invalid("/dev/null of the node is something else"))
    }
}

/// What is to be protected; nothing where the container has no such path.
fn target(root: BorrowedFd<'_>, path: &Path) -> Result<Option<OwnedFd>> {
    let path = rooted::clean(path);
    let found = rooted::find(root, &path, rooted::is_of_the_kernel(&path))?;
    if let Some(found) = &found
        && path.starts_with("/proc")
        && !is_on(found.as_fd(), PROC_MAGIC)
        && path == Path::new("/proc")
    {
        return Err(Error::invalid("/proc is not the kernel's"));
    }
    Ok(found)
}

fn clone(tree: impl AsFd, deep: bool) -> rustix::io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    if deep {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    rustix::mount::open_tree(tree, "", flags)
}

fn read_only(root: BorrowedFd<'_>, path: &Path) -> Result<()> {
    let Some(found) = target(root, path)? else { return Ok(()) };
    let tree = clone(&found, true).doing_at("make read-only", path)?;
    let attr = MountAttr { set: RDONLY, ..MountAttr::default() };
    sys::mount_setattr(tree.as_fd(), true, &attr).doing_at("make read-only", path)?;
    attach(&tree, &found, path)
}

fn mask(root: BorrowedFd<'_>, path: &Path, null: &OwnedFd, label: Option<&str>) -> Result<()> {
    let Some(found) = target(root, path)? else { return Ok(()) };
    let about = rustix::fs::fstat(&found).doing_at("look at", path)?;
    if FileType::from_raw_mode(about.st_mode).is_dir() {
        let mount =
            Mount { destination: path.to_owned(), kind: "tmpfs".into(), ..Mount::default() };
        let empty = new(
            &mount,
            &Options {
                data: vec!["mode=755".into(), "nr_blocks=1".into(), "nr_inodes=1".into()],
                ..Options::default()
            },
            label,
        )?;
        let attr = MountAttr { set: RDONLY, ..MountAttr::default() };
        sys::mount_setattr(empty.as_fd(), false, &attr).doing_at("hide", path)?;
        return attach(&empty, &found, path);
    }
    let cover = clone(null, false).doing_at("hide", path)?;
    attach(&cover, &found, path)
}
