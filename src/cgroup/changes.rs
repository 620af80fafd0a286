//! Reading a file of a v2 group whenever it changes.

use std::{fs, io, os::fd::OwnedFd, path::Path};

use tokio::io::{Interest, unix::AsyncFd};

use crate::sys::watched;

/// A file of a v2 group, held open: the kernel tells those who wait on it of each change (`POLLPRI` after a read, see
/// "Basic Operations" of its cgroup-v2.rst), without an inotify instance, of which root has 128 for the whole node.
pub(super) struct Changing(AsyncFd<OwnedFd>);

impl Changing {
    pub(super) fn of(file: &Path) -> io::Result<Self> {
        Ok(Self(watched(fs::File::open(file)?.into(), Interest::PRIORITY)?))
    }

    /// What the file holds now. An error when the group is gone.
    pub(super) fn text(&self) -> io::Result<String> {
        // These files have a few short lines.
        let mut text = [0; 1024];
        let length = rustix::io::pread(self.0.get_ref(), &mut text, 0)?;
        Ok(String::from_utf8_lossy(&text[..length]).into_owned())
    }

    /// Waits for a change since the last [`Changing::text`]; may answer without one.
    pub(super) async fn next(&self) -> io::Result<()> {
        self.0.ready(Interest::PRIORITY).await?.clear_ready();
        Ok(())
    }
}
