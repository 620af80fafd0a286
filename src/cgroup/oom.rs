//! Being told that the kernel killed a process of a group for want of memory.

use std::{
    fs,
    io::{self, Write as _},
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    path::{Path, PathBuf},
};

use nix::sys::eventfd::{EfdFlags, EventFd};
use tokio::io::{Interest, unix::AsyncFd};

use super::{Cgroup, Error, changes::Changes};
use crate::sys::watched;

/// Waits for out-of-memory kills in one group.
pub struct OomWatch {
    source: Source,
}

enum Source {
    /// v2: the file that counts them is watched for changes.
    Events { changes: Changes, file: PathBuf, seen: u64 },
    /// v1: the kernel counts into an eventfd, and also when the group is removed.
    Notified { event: AsyncFd<OwnedFd>, control: PathBuf, _subject: OwnedFd },
}

impl OomWatch {
    /// Starts to watch. `None` where no memory controller is.
    pub fn new(group: &Cgroup) -> Result<Option<Self>, Error> {
        if let Some(folder) = group.v1.get("memory") {
            return notified(folder)
                .map(|source| Some(Self { source }))
                .map_err(Error::at("watch", folder));
        }
        let Some(file) = group.v2.as_ref().map(|folder| folder.join("memory.events")) else {
            return Ok(None);
        };
        if !file.exists() {
            return Ok(None);
        }
        let watch = || -> io::Result<Source> {
            let changes = Changes::of(&file)?;
            Ok(Source::Events { changes, file: file.clone(), seen: kills(&file).unwrap_or(0) })
        };
        watch().map(|source| Some(Self { source })).map_err(Error::at("watch", &file))
    }

    /// Waits for the next kill. `None` when the group is gone.
    pub async fn next(&mut self) -> Option<()> {
        match &mut self.source {
            Source::Events { changes, file, seen } => loop {
                let now = kills(file)?;
                if now > *seen {
                    *seen = now;
                    return Some(());
                }
                changes.next().await.ok()?;
            },
            Source::Notified { event, control, .. } => {
                loop {
                    let mut ready = event.readable().await.ok()?;
                    match ready.try_io(|event| {
                        rustix::io::read(event.get_ref(), &mut [0; 8]).map_err(io::Error::from)
                    }) {
                        Ok(Ok(_)) => break,
                        Ok(Err(_)) => return None,
                        Err(_would_block) => {}
                    }
                }
                control.exists().then_some(())
            }
        }
    }
}

fn notified(folder: &Path) -> io::Result<Source> {
    let subject = OwnedFd::from(fs::File::open(folder.join("memory.oom_control"))?);
    let event = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
    let control = folder.join("cgroup.event_control");
    let line = format!("{} {}", event.as_fd().as_raw_fd(), subject.as_raw_fd());
    fs::OpenOptions::new().write(true).open(&control)?.write_all(line.as_bytes())?;
    let event = watched(event.into(), Interest::READABLE)?;
    Ok(Source::Notified { event, control, _subject: subject })
}

/// How many processes of the group were killed. `None` when the group is gone.
fn kills(file: &Path) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.parse().ok())
}
