//! Paths within a folder that is taken for the root: neither `..` nor a symlink leads out of it (openat2(2)).

use std::{
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use rustix::{
    fs::{Mode, OFlags, ResolveFlags, openat2},
    io::{Errno, Result},
};

/// Opens `path` with `root` as its root. A new file gets the permissions `mode`.
pub fn open(root: impl AsFd, path: &Path, flags: OFlags, mode: Mode) -> Result<OwnedFd> {
    // An empty path would be refused, "." is the root.
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    // The kernel answers EAGAIN when a rename anywhere races with a `..`; some tries are enough in practice.
    let mut tries = 0;
    loop {
        match openat2(&root, path, flags | OFlags::CLOEXEC, mode, resolve) {
            Err(Errno::AGAIN) if tries < 16 => tries += 1,
            answer => return answer,
        }
    }
}
