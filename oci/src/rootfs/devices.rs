//! Devices, and the links that programs look for beside them.

use std::{
    os::fd::{AsFd, BorrowedFd},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, FileType, Mode},
    io::Errno,
    process::{Gid, Uid},
};

use super::{Making, mounts::attach, options::Options};
use crate::{
    error::{Doing, Error, Result},
    rooted,
    spec::{Device, Spec},
};

/// What every container has.
const USUAL: [(&str, u32, u32); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

const LINKS: [(&str, &str); 4] = [
    ("/proc/self/fd", "fd"),
    ("/proc/self/fd/0", "stdin"),
    ("/proc/self/fd/1", "stdout"),
    ("/proc/self/fd/2", "stderr"),
];

/// Whether /dev is the container's own: what of the node is mounted there is not changed.
pub(super) fn are_wanted(spec: &Spec) -> bool {
    !spec.mounts.iter().any(|mount| {
        rooted::clean(&mount.destination) == Path::new("/dev")
            && Options::of(mount).is_ok_and(|options| options.bind.is_some())
    })
}

/// The specification's devices, and the usual ones that are not among them.
pub(super) fn all(spec: &Spec) -> Vec<Device> {
    let mut all: Vec<Device> = spec.linux.devices.clone();
    for (path, major, minor) in USUAL {
        if !all.iter().any(|known| known.path == Path::new(path)) {
            let path = PathBuf::from(path);
            all.push(Device { path, kind: "c".into(), major, minor, ..Device::default() });
        }
    }
    all
}

pub(super) fn make(making: &mut Making<'_>, root: BorrowedFd<'_>) -> Result<()> {
    if making.mapped {
        for (path, node) in making.prepared.nodes.drain(..) {
            let path = rooted::clean(&path);
            let target = rooted::file(root, &path)?;
            attach(&node, &target, &path)?;
        }
    } else {
        for device in all(making.spec) {
            make_node(root, &device)?;
        }
    }
    let dev = rooted::folder(root, Path::new("/dev"), 0o755, true)?;
    for (target, name) in LINKS {
        link(dev.as_fd(), target, name)?;
    }
    // What the image has there would be somebody else's terminals.
    match rustix::fs::unlinkat(&dev, "ptmx", AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT | Errno::ROFS | Errno::BUSY) => {}
        Err(error) => return Err(error).doing("remove /dev/ptmx"),
    }
    link(dev.as_fd(), "pts/ptmx", "ptmx")
}

fn link(dev: BorrowedFd<'_>, target: &str, name: &str) -> Result<()> {
    match rustix::fs::symlinkat(target, dev, name) {
        Ok(()) | Err(Errno::EXIST | Errno::ROFS) => Ok(()),
        Err(error) => Err(error).doing(&format!("make the link /dev/{name}")),
    }
}

fn make_node(root: BorrowedFd<'_>, device: &Device) -> Result<()> {
    let path = rooted::clean(&device.path);
    let what = format!("make device {}", path.display());
    let kind = match device.kind.as_str() {
        "c" | "u" => FileType::CharacterDevice,
        "b" => FileType::BlockDevice,
        "p" => FileType::Fifo,
        other => return Err(Error::invalid(format!("{what}: type {other:?}"))),
    };
    let Some((above, name)) = rooted::split(&path) else {
        return Err(Error::invalid(format!("{what}: no path")));
    };
    let above = rooted::folder(root, &above, 0o755, false)?;
    let mode = Mode::from_raw_mode(device.file_mode.unwrap_or(0o666) & 0o7777);
    let number = rustix::fs::makedev(device.major, device.minor);
    match rustix::fs::mknodat(&above, name, kind, mode, number) {
        Ok(()) => {}
        Err(Errno::EXIST) => {
            // As an image or a mount has it: the right one is as good as a new one.
            let about = rustix::fs::statat(&above, name, AtFlags::SYMLINK_NOFOLLOW).doing(&what)?;
            let same = FileType::from_raw_mode(about.st_mode) == kind
                && (kind == FileType::Fifo || about.st_rdev == number);
            return if same {
                Ok(())
            } else {
                Err(Error::invalid(format!("{what}: something else is there")))
            };
        }
        Err(error) => return Err(error).doing(&what),
    }
    let (uid, gid) = (device.uid.unwrap_or(0), device.gid.unwrap_or(0));
    if (uid, gid) != (0, 0) {
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        rustix::fs::chownat(&above, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
            .doing(&what)?;
    }
    Ok(())
}
