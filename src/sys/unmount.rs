//! Unmounting that ends with nothing mounted: every layer, a busy one by detaching it.

use std::{io, path::Path, time::Duration};

use rustix::{
    fs::{AtFlags, CWD, StatxAttributes, StatxFlags, statx},
    io::Errno,
    mount::{UnmountFlags, unmount},
};

use crate::released::Released;

/// How long to wait for a busy mount before it is detached: five times, doubled each time, 31 ms in all.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const PAUSES: u32 = 5;
/// More layers than this on one folder are no pod's; the number only keeps a broken kernel from holding us for ever.
const MOST_LAYERS: usize = 10_000;

/// Unmounts everything that is mounted at `path`, layer by layer. Blocking.
///
/// Each time it looks first: where nothing is left, nothing is called that might wait (umount2 can wait for whatever else
/// unmounts on this machine). A mount that stays busy for some milliseconds is detached: gone from the tree at once, freed
/// by its last user.
pub fn all(path: &Path) -> io::Result<Released> {
    let mut found = Released::AlreadyGone;
    for _ in 0..MOST_LAYERS {
        if is_mount_root(path) == Some(false) {
            return Ok(found);
        }
        match patiently(path) {
            Ok(()) => found = Released::Done,
            // Nothing is mounted here, or there is no here.
            Err(Errno::INVAL | Errno::NOENT | Errno::NOTDIR) => return Ok(found),
            Err(errno) => return Err(errno.into()),
        }
    }
    Err(Errno::LOOP.into())
}

/// Whether something is mounted at `path`; `None` where it cannot be told. Asks no file system for news, so that one
/// that does not answer holds up nothing.
fn is_mount_root(path: &Path) -> Option<bool> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC;
    let found = statx(CWD, path, flags, StatxFlags::empty()).ok()?;
    let known = found.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT);
    known.then(|| found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

fn patiently(path: &Path) -> rustix::io::Result<()> {
    let mut pause = FIRST_PAUSE;
    for _ in 0..PAUSES {
        match unmount(path, UnmountFlags::NOFOLLOW) {
            Err(Errno::BUSY) => {}
            answer => return answer,
        }
        std::thread::sleep(pause);
        pause *= 2;
    }
    unmount(path, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH)?;
    log::warn!("{} was busy and is detached", path.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_told_what_is_a_mount_and_what_is_not() {
        assert_eq!(is_mount_root(Path::new("/proc")), Some(true));
        assert_eq!(is_mount_root(Path::new("/proc/self")), Some(false));
        assert_eq!(is_mount_root(Path::new("/nonexistent")), None);
    }
}
