//! What a container may not see, or not change.

use std::{
    collections::BTreeSet,
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
    let mut cover = Cover { null: nothing()?, folder: None, label };
    for path in &spec.linux.readonly_paths {
        read_only(root, path)?;
    }
    let mut done = BTreeSet::new();
    for path in spec.linux.masked_paths.iter().filter(|path| done.insert(rooted::clean(path))) {
        cover.over(root, path)?;
    }
    Ok(())
}

/// What lies over masked paths.
struct Cover<'a> {
    null: OwnedFd,
    /// An empty folder, the same for all.
    folder: Option<OwnedFd>,
    label: Option<&'a str>,
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

impl Cover<'_> {
    fn over(&mut self, root: BorrowedFd<'_>, path: &Path) -> Result<()> {
        let Some(found) = target(root, path)? else { return Ok(()) };
        let about = rustix::fs::fstat(&found).doing_at("look at", path)?;
        if !FileType::from_raw_mode(about.st_mode).is_dir() {
            return attach(&clone(&self.null, false).doing_at("hide", path)?, &found, path);
        }
        if let Some(folder) = &self.folder {
            return attach(&clone(folder, false).doing_at("hide", path)?, &found, path);
        }
        // Before Linux 6.15 only what is mounted already can be cloned.
        let empty = self.empty(path)?;
        attach(&empty, &found, path)?;
        self.folder = Some(empty);
        Ok(())
    }

    fn empty(&self, path: &Path) -> Result<OwnedFd> {
        let mount =
            Mount { destination: path.to_owned(), kind: "tmpfs".into(), ..Mount::default() };
        let options = Options {
            data: vec!["mode=755".into(), "nr_blocks=1".into(), "nr_inodes=1".into()],
            ..Options::default()
        };
        let empty = new(&mount, &options, self.label)?;
        let attr = MountAttr { set: RDONLY, ..MountAttr::default() };
        sys::mount_setattr(empty.as_fd(), false, &attr).doing_at("hide", path)?;
        Ok(empty)
    }
}
