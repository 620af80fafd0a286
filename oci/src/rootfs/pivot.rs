//! Into the root, and out of everything else.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use mooring::sys::mountinfo::{self, Entry};
use rustix::{
    fs::{CWD, Mode, OFlags},
    io::Errno,
    mount::{MountFlags, MountPropagationFlags, MoveMountFlags, UnmountFlags},
};

use super::{
    Making,
    options::{PRIVATE, RDONLY, SHARED},
    prepare::usual_propagation,
};
use crate::{
    error::{Doing, Error, Result},
    spec::Spec,
    sys::{self, MountAttr},
};

fn folder(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).doing_at("open", path)
}

/// Cuts the new mount namespace off from the node's, and puts the root's mounts into it.
pub(super) fn attach(making: &mut Making<'_>) -> Result<OwnedFd> {
    // Without pivot_root the node's mounts stay in this namespace, and what is taken off them must not go on the node.
    let usual = if making.no_pivot { PRIVATE } else { usual_propagation(making.spec)? };
    let top = folder("/".as_ref())?;
    let attr = MountAttr { propagation: usual, ..MountAttr::default() };
    sys::mount_setattr(top.as_fd(), true, &attr).doing("set the propagation of /")?;
    if usual == SHARED {
        // What is mounted on a shared mount would appear on the node too.
        let attr = MountAttr { propagation: PRIVATE, ..MountAttr::default() };
        for above in making.prepared.root_path.ancestors() {
            let opened = folder(above)?;
            match sys::mount_setattr(opened.as_fd(), false, &attr) {
                Ok(()) => break,
                // No mount begins here.
                Err(error) if Errno::from_io_error(&error) == Some(Errno::INVAL) => {}
                Err(error) => return Err(error).doing_at("make private", above),
            }
        }
    }
    let path = &making.prepared.root_path;
    let root = making.prepared.root.try_clone().doing("hold the root")?;
    rustix::mount::move_mount(
        &root,
        "",
        CWD,
        path.as_path(),
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )
    .doing_at("mount the root at", path)?;
    Ok(root)
}

/// A moved root lies over the node's mounts, which stay in the namespace. The kernel lets a user namespace mount all of /proc
/// and /sys where such a mount is there that nothing hides: so the node's are taken away, or hidden.
fn hide_the_nodes(root_path: &Path) -> Result<()> {
    let mounts = mountinfo::read().doing("read the mounts")?;
    let bare = mounts.iter().rev().filter(|one| matches!(one.kind.as_str(), "proc" | "sysfs"));
    for Entry { target, .. } in bare.filter(|one| !one.target.starts_with(root_path)) {
        let flags = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
        if rustix::mount::unmount(target, flags).is_err() {
            // One that came with a user namespace cannot be taken away.
            let flags = MountFlags::empty();
            rustix::mount::mount("tmpfs", target, "tmpfs", flags, None).doing_at("hide", target)?;
        }
    }
    Ok(())
}

/// Makes `root` this process's root, and takes the node's files out of its sight.
pub fn enter(root: BorrowedFd<'_>, root_path: &Path, spec: &Spec, no_pivot: bool) -> Result<()> {
    let deed = "enter the root file system";
    rustix::process::fchdir(root).doing(deed)?;
    if no_pivot {
        hide_the_nodes(root_path)?;
        rustix::mount::mount_move(".", "/").doing(deed)?;
        rustix::process::chroot(".").doing(deed)?;
    } else {
        let old = folder("/".as_ref())?;
        sys::pivot_root(c".", c".").doing(deed)?;
        // The old root lies on top of the new one now.
        rustix::process::fchdir(&old).doing(deed)?;
        let down = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
        rustix::mount::mount_change(".", down).doing(deed)?;
        rustix::mount::unmount(".", UnmountFlags::DETACH).doing(deed)?;
    }
    rustix::process::chdir("/").doing(deed)?;
    let usual = usual_propagation(spec)?;
    if !spec.linux.rootfs_propagation.is_empty() {
        let attr = MountAttr { propagation: usual, ..MountAttr::default() };
        sys::mount_setattr(root, false, &attr).doing("set the propagation of the root")?;
    }
    if spec.root.readonly {
        let attr = MountAttr { set: RDONLY, ..MountAttr::default() };
        sys::mount_setattr(root, false, &attr).doing("make the root read-only")?;
    }
    // A root that could be left would be none.
    let here = folder("/".as_ref())?;
    let (now, wanted) =
        (rustix::fs::fstat(&here).doing(deed)?, rustix::fs::fstat(root).doing(deed)?);
    if (now.st_dev, now.st_ino) != (wanted.st_dev, wanted.st_ino) {
        return Err(Error::invalid("the root file system was exchanged while it was entered"));
    }
    Ok(())
}
