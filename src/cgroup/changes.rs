//! Being told when a file of a v2 group changes.

use std::{io, os::fd::OwnedFd, path::Path};

use rustix::fs::inotify::{CreateFlags, WatchFlags, add_watch, init};
use tokio::io::{Interest, unix::AsyncFd};

use crate::sys::watched;

/// Wakes whenever the watched file has changed since it was asked last.
pub(super) struct Changes(AsyncFd<OwnedFd>);

impl Changes {
    pub(super) fn of(file: &Path) -> io::Result<Self> {
        let queue = init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        add_watch(&queue, file, WatchFlags::MODIFY)?;
        Ok(Self(watched(queue, Interest::READABLE)?))
    }

    /// Waits for a change. What changed does not matter: the file is read anew.
    pub(super) async fn next(&self) -> io::Result<()> {
        let mut ready = self.0.readable().await?;
        let mut queue = [0; 1024];
        while matches!(rustix::io::read(self.0.get_ref(), &mut queue), Ok(1..)) {}
        ready.clear_ready();
        Ok(())
    }
}
