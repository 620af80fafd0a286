//! Being told that the kernel killed a process of a group for want of memory.

use std::{
    collections::BTreeMap,
    fs,
    future::pending,
    io::{self, Write as _},
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use nix::sys::eventfd::{EfdFlags, EventFd};
use tokio::io::{Interest, unix::AsyncFd};

use super::{Cgroup, Error, changes::Changing};
use crate::sys::watched;

/// The file of a v2 group that counts such kills, those of the groups below it among them.
const EVENTS: &str = "memory.events";

/// The kills in v2 groups that watched ones lie in, as far as these account for them. systemd removes a scope as soon as its
/// last process has ended, often before anybody could read there why it did: a kill that no group accounts for was one
/// of a group that is gone.
#[derive(Debug, Default)]
pub struct OomKills(Mutex<BTreeMap<PathBuf, u64>>);

impl OomKills {
    fn change<T>(&self, parent: &Path, change: impl FnOnce(&mut u64, u64) -> T) -> Option<T> {
        let now = kills(&fs::read_to_string(parent.join(EVENTS)).ok()?)?;
        let mut parents = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Some(change(parents.entry(parent.to_owned()).or_insert(now), now))
    }

    /// A group in `parent` is watched from now on.
    fn begin(&self, parent: &Path) {
        self.change(parent, |_, _| ());
    }

    /// A watched group in `parent` has counted so many more.
    fn account(&self, parent: &Path, more: u64) {
        self.change(parent, |accounted, now| *accounted = now.min(*accounted + more));
    }

    /// Whether there are kills in `parent` that no group accounted for. They are, now.
    fn claim(&self, parent: &Path) -> bool {
        let claimed = |accounted: &mut u64, now: u64| {
            let more = now > *accounted;
            *accounted = now.max(*accounted);
            more
        };
        self.change(parent, claimed).unwrap_or(false)
    }
}

/// Waits for out-of-memory kills in one group.
pub struct OomWatch {
    source: Source,
}

enum Source {
    /// v2: the file that counts them changes.
    Events { file: Changing, seen: u64, parent: PathBuf, all: Arc<OomKills> },
    /// v1: the kernel counts into an eventfd, and also when the group is removed.
    Notified { event: AsyncFd<OwnedFd>, control: PathBuf, _subject: OwnedFd },
}

impl OomWatch {
    /// Starts to watch; `all` is shared by the watches of groups that may lie beside each other. `None` where no memory
    /// controller is.
    pub fn new(group: &Cgroup, all: &Arc<OomKills>) -> Result<Option<Self>, Error> {
        if let Some(folder) = group.v1.get("memory") {
            return notified(folder)
                .map(|source| Some(Self { source }))
                .map_err(Error::at("watch", folder));
        }
        let Some(folder) = &group.v2 else { return Ok(None) };
        let path = folder.join(EVENTS);
        if !path.exists() {
            return Ok(None);
        }
        let file = Changing::of(&path).map_err(Error::at("watch", &path))?;
        let parent = folder.parent().unwrap_or(folder).to_owned();
        all.begin(&parent);
        let seen = file.text().ok().and_then(|text| kills(&text)).unwrap_or(0);
        Ok(Some(Self { source: Source::Events { file, seen, parent, all: Arc::clone(all) } }))
    }

    /// Waits for the next kill; for ever when the group is gone.
    pub async fn next(&mut self) {
        while let Some(more) = self.look() {
            if more {
                return;
            }
            let changed = match &self.source {
                Source::Events { file, .. } => file.next().await,
                Source::Notified { event, .. } => {
                    event.readable().await.map(|mut ready| ready.clear_ready())
                }
            };
            if changed.is_err() {
                break;
            }
        }
        pending::<()>().await;
    }

    /// Whether there was a kill that [`OomWatch::next`] has not told of, asked when the group's init has ended: the kernel
    /// counts before it kills, but may tell of it later, or never when the group is removed. `killed`: SIGKILL ended the
    /// init; only then a kill that no group accounts for may be this one's.
    pub fn missed(&mut self, killed: bool) -> bool {
        self.look().unwrap_or_else(|| match &self.source {
            Source::Events { parent, all, .. } => killed && all.claim(parent),
            Source::Notified { .. } => false,
        })
    }

    /// Whether there was a kill since the last look. `None` when the group is gone.
    fn look(&mut self) -> Option<bool> {
        match &mut self.source {
            Source::Events { file, seen, parent, all } => {
                let now = kills(&file.text().ok()?)?;
                let more = now.saturating_sub(*seen);
                if more > 0 {
                    *seen = now;
                    all.account(parent, more);
                }
                Some(more > 0)
            }
            Source::Notified { event, control, .. } => {
                let counted = rustix::io::read(event.get_ref(), &mut [0; 8]).is_ok();
                control.exists().then_some(counted)
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

/// How many processes were killed, as [`EVENTS`] says.
fn kills(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Has `folder` count so many kills.
    fn count(folder: &Path, kills: u64) {
        fs::write(folder.join(EVENTS), format!("low 0\noom 9\noom_kill {kills}\n")).unwrap();
    }

    #[test]
    fn a_kill_that_no_group_accounts_for_was_in_one_that_is_gone() {
        let parent = tempfile::tempdir().unwrap();
        let all = OomKills::default();
        count(parent.path(), 3);
        all.begin(parent.path());
        assert!(!all.claim(parent.path()), "what was before");
        count(parent.path(), 5);
        all.account(parent.path(), 1);
        all.begin(parent.path());
        assert!(all.claim(parent.path()), "the other of the two");
        assert!(!all.claim(parent.path()), "each once");
        // A group's own count may be read after another has claimed it.
        all.account(parent.path(), 1);
        count(parent.path(), 6);
        assert!(all.claim(parent.path()));
        fs::remove_file(parent.path().join(EVENTS)).unwrap();
        assert!(!all.claim(parent.path()), "the parent is gone too");
    }
}
