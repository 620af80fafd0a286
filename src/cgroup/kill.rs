//! Ending everything in a group.

use std::{collections::BTreeSet, fs, io, path::Path};

use rustix::process::Signal;

use super::{Cgroup, Error, group::children, is_gone};
use crate::{released::Released, sys::identity::Pinned};

/// A fork bomb can outrun one pass over the list of processes; frozen, it cannot outrun this many.
const MOST_PASSES: usize = 64;

impl Cgroup {
    /// Kills every process of the group and of the groups below, frozen ones too. They are dying when this returns,
    /// not dead.
    pub fn kill_all(&self) -> Result<Released, Error> {
        let mut found = Released::AlreadyGone;
        let mut whole = false;
        if let Some(folder) = &self.v2 {
            let kill = folder.join("cgroup.kill");
            match fs::write(&kill, "1") {
                // On a hybrid machine processes may have been moved within one hierarchy only: v1 is looked at too.
                Ok(()) => whole = self.is_unified(),
                Err(error)
                    if is_gone(&error) || error.kind() == io::ErrorKind::PermissionDenied => {}
                Err(error) => return Err(Error::at("write", &kill)(error)),
            }
        }
        if !whole {
            found = self.kill_each()?;
        }
        // A v1 freezer holds back even SIGKILL.
        self.thaw();
        Ok(if whole { Released::Done } else { found })
    }

    fn kill_each(&self) -> Result<Released, Error> {
        let mut killed = BTreeSet::new();
        let mut frozen = false;
        let mut failure = None;
        for _ in 0..MOST_PASSES {
            let fresh: Vec<i32> =
                self.pids()?.into_iter().filter(|pid| !killed.contains(pid)).collect();
            if fresh.is_empty() {
                break;
            }
            if !killed.is_empty() && !frozen {
                frozen = true;
                self.freeze();
            }
            for pid in fresh {
                if let Err(error) = self.signal_member(pid, Signal::KILL) {
                    // The others are killed all the same.
                    failure.get_or_insert(error);
                }
                killed.insert(pid);
            }
        }
        if let Some(error) = failure {
            self.thaw();
            return Err(error);
        }
        Ok(if killed.is_empty() { Released::AlreadyGone } else { Released::Done })
    }

    /// Sends `signal` to every process of the group. Answers how many got it.
    pub fn signal_all(&self, signal: Signal) -> Result<usize, Error> {
        if signal == Signal::KILL {
            let count = self.pids()?.len();
            self.kill_all()?;
            return Ok(count);
        }
        let mut reached = 0;
        for pid in self.pids()? {
            reached += usize::from(self.signal_member(pid, signal)?);
        }
        Ok(reached)
    }

    /// Signals `pid` if it is still a member once it is pinned by a descriptor: a number alone may have been
    /// given to somebody else since the list was read. Whether it was still a member; that it could not be signalled
    /// is an error, and not that it is gone.
    fn signal_member(&self, pid: i32, signal: Signal) -> Result<bool, Error> {
        let failed = |source| Error::Signal { pid, source };
        let Some(pinned) = Pinned::new(pid, None).map_err(failed)? else { return Ok(false) };
        if !self.pids()?.contains(&pid) {
            return Ok(false);
        }
        pinned.signal(signal).map_err(failed)?;
        Ok(true)
    }

    fn freeze(&self) {
        self.set_frozen(true);
    }

    /// Lets a frozen group go on, with the groups below it.
    pub fn thaw(&self) {
        self.set_frozen(false);
    }

    fn set_frozen(&self, frozen: bool) {
        if let Some(folder) = self.v1.get("freezer") {
            each(folder, &|folder| {
                let file = folder.join("freezer.state");
                let (now, wanted) =
                    (fs::read_to_string(&file), if frozen { "FROZEN" } else { "THAWED" });
                if now.is_ok_and(|now| now.trim() != wanted) {
                    // The group may vanish at any time, which thaws it best.
                    let _ = fs::write(&file, wanted);
                }
            });
        } else if let Some(folder) = &self.v2 {
            let file = folder.join("cgroup.freeze");
            if fs::read_to_string(&file).is_ok_and(|now| (now.trim() == "1") != frozen) {
                let _ = fs::write(&file, if frozen { "1" } else { "0" });
            }
        }
    }
}

fn each(folder: &Path, action: &dyn Fn(&Path)) {
    action(folder);
    // What cannot be listed is not thawed, and is looked at again by whoever removes it.
    for child in children(folder).unwrap_or_default() {
        each(&child, action);
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::{cgroup::Hierarchies, process::testing::TestChild};

    fn member(group: &Cgroup) -> TestChild {
        let child = TestChild::start(Command::new("sleep").arg("1000"));
        for folder in group.folders() {
            fs::write(folder.join("cgroup.procs"), child.pid.to_string()).unwrap();
        }
        child
    }

    #[tokio::test]
    async fn everything_dies_even_frozen_and_the_folders_go() {
        let name = format!("/mooring-kill-{}", std::process::id());
        let group = Hierarchies::read().unwrap().group(&name).unwrap();
        group.ensure().unwrap();
        let below = Hierarchies::read().unwrap().group(&format!("{name}/below")).unwrap();
        below.ensure().unwrap();
        let mut children = [member(&group), member(&group), member(&below)];
        group.freeze();
        assert_eq!(group.pids().unwrap().len(), 3);
        assert_eq!(group.kill_all().unwrap(), Released::Done);
        for child in &mut children {
            assert_eq!(child.status(), 128 + 9);
        }
        let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(5);
        assert_eq!(group.remove(deadline).await.unwrap(), Released::Done);
        assert!(group.folders().iter().all(|folder| !folder.exists()));
        assert_eq!(group.remove(deadline).await.unwrap(), Released::AlreadyGone);
        assert_eq!(group.kill_all().unwrap(), Released::AlreadyGone);
    }

    #[test]
    fn a_group_of_v1_alone_is_killed_process_by_process() {
        let name = format!("/mooring-each-{}", std::process::id());
        let mut group = Hierarchies::read().unwrap().group(&name).unwrap();
        if group.is_unified() {
            return;
        }
        group.v2 = None;
        let created = group.ensure().unwrap();
        let mut child = member(&group);
        assert_eq!(group.kill_all().unwrap(), Released::Done);
        assert_eq!(child.status(), 128 + 9);
        created.remove();
    }
}
