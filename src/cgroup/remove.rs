//! Removing a group once it is empty.

use std::{
    fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::{
    io::Interest,
    time::{Instant, sleep, timeout_at},
};

use super::{Cgroup, Error, changes::Changing, group::children, is_gone};
use crate::{
    released::Released,
    sys::{survivor::Survivors, watched},
};

/// Who waits on a v2 group that somebody else removes meanwhile is told nothing: then it is looked at again.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// A dead process leaves its group a moment after its exit can be seen, and v1 tells nobody.
const MOMENT: Duration = Duration::from_millis(1);

impl Cgroup {
    /// Removes the group and all groups below it, waiting until `deadline` for dying processes to leave.
    pub async fn remove(&self, deadline: Instant) -> Result<Released, Error> {
        let folders: Vec<PathBuf> = self.folders().into_iter().map(Path::to_owned).collect();
        let mut found = Released::AlreadyGone;
        for folder in folders {
            let mut moment = MOMENT;
            loop {
                match remove_tree(&folder) {
                    Ok(outcome) => {
                        found = found.and(outcome);
                        break;
                    }
                    Err(error) if error.kind() != io::ErrorKind::ResourceBusy => {
                        return Err(Error::at("remove cgroup", &folder)(error));
                    }
                    Err(_) if Instant::now() >= deadline => {
                        let group = self.clone();
                        let survivors = Survivors::seen(move || group.survivors()).await;
                        return Err(Error::Busy { path: folder, survivors });
                    }
                    Err(_) => {}
                }
                if !self.emptied(deadline).await {
                    // Nothing to wait for any more, yet busy: the kernel is about to finish.
                    sleep(moment).await;
                    moment = (moment * 2).min(Duration::from_millis(50));
                }
            }
        }
        Ok(found)
    }

    /// Waits until the processes that are in the group now have left. Answers false when there was nothing to wait for.
    async fn emptied(&self, deadline: Instant) -> bool {
        if let Some(folder) = &self.v2
            && fs::read_to_string(folder.join(EVENTS)).is_ok_and(|events| is_populated(&events))
        {
            let until = deadline.min(Instant::now() + LOOK_AGAIN);
            return timeout_at(until, unpopulated(folder)).await.is_ok_and(|seen| seen.is_ok());
        }
        let pinned: Vec<OwnedFd> = self
            .pids()
            .unwrap_or_default()
            .into_iter()
            .filter_map(|pid| pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok())
            .collect();
        let found = !pinned.is_empty();
        for process in pinned {
            let Ok(process) = watched(process, Interest::READABLE) else { return false };
            if timeout_at(deadline, process.readable()).await.is_err() {
                return false;
            }
        }
        found
    }
}

/// The file of a v2 group that says whether processes are in it or below it.
const EVENTS: &str = "cgroup.events";

fn is_populated(events: &str) -> bool {
    events.lines().any(|line| line == "populated 1")
}

async fn unpopulated(folder: &Path) -> io::Result<()> {
    let events = Changing::of(&folder.join(EVENTS))?;
    while is_populated(&events.text()?) {
        events.next().await?;
    }
    Ok(())
}

/// Removes the deepest groups first. A group's files are the kernel's and go with it.
fn remove_tree(folder: &Path) -> io::Result<Released> {
    let removed = |answer: io::Result<()>| match answer {
        Ok(()) => Ok(Released::Done),
        Err(error) if is_gone(&error) => Ok(Released::AlreadyGone),
        Err(error) => Err(error),
    };
    // Most groups have no children: try before looking.
    match removed(fs::remove_dir(folder)) {
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
            for child in children(folder)? {
                remove_tree(&child)?;
            }
            removed(fs::remove_dir(folder))
        }
        answer => answer,
    }
}
