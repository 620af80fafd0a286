//! Which process serves a shim, for whoever has to clean up after it.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{
    interleave::point,
    sys::{
        boot::{self, BootId},
        identity::{self, Pinned},
        replace,
    },
    teardown::journal::{self, FolderLock, JournalError},
};

/// How long a killed daemon may take to be gone.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long the record of a new shim waits for whoever still cleans up after an earlier one of its name.
const EARLIER: Duration = Duration::from_secs(10);
const FILE: &str = "shim.json";
/// In the bundle: where the state folders of its shim are.
const POINTER: &str = "mooring-state-root";

/// The daemon of a shim.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DaemonRecord {
    pub pid: i32,
    /// Its start time, which tells it from a later process of that number.
    pub start_time: u64,
    /// The socket that it serves.
    #[serde(default)]
    pub socket: Option<PathBuf>,
    /// The boot in which it runs.
    #[serde(default)]
    pub boot: Option<BootId>,
}

/// The record cannot be written.
#[derive(Debug, Error)]
pub enum RecordError {
    /// An earlier shim of this name is still being cleaned up after, or the lock cannot be had.
    #[error("an earlier shim of this name: {0}")]
    Earlier(#[from] JournalError),
    #[error("write the shim's record in {folder}: {source}", folder = folder.display())]
    Io { folder: PathBuf, source: io::Error },
}

impl DaemonRecord {
    /// The calling process, which serves `socket`.
    pub fn of_this_process(socket: &Path) -> io::Result<Self> {
        let pid = i32::try_from(std::process::id()).map_err(io::Error::other)?;
        let start_time = identity::start_time(pid)?.ok_or(io::ErrorKind::NotFound)?;
        let boot = Some(BootId::current()?);
        Ok(Self { pid, start_time, socket: Some(socket.to_owned()), boot })
    }

    /// Writes the record into a state folder, which is made where it is missing: under the folder's lock, so that
    /// whoever cleans up after an earlier shim of this name removes nothing of this one. Blocks, 10 s at most.
    pub fn save(&self, state_dir: &Path) -> Result<(), RecordError> {
        let failed = |source| RecordError::Io { folder: state_dir.to_owned(), source };
        let _lock = journal::make_and_lock(state_dir, EARLIER)?;
        let text = serde_json::to_vec(self).map_err(|error| failed(error.into()))?;
        replace::file(&state_dir.join(FILE), &text, 0o600, replace::Sync::Nothing).map_err(failed)
    }

    /// Removes the record at the end of its shim, and the state folder with it, waiting for `patience` at most while
    /// another process holds its lock. A journal stays, and everything where another shim of this name has come already.
    /// Blocks.
    pub fn withdraw(&self, state_dir: &Path, patience: Duration) -> Result<(), JournalError> {
        let failed =
            |source| JournalError::Io { action: "remove", path: state_dir.to_owned(), source };
        let Some(lock) = journal::lock(state_dir, patience)? else { return Ok(()) };
        match Self::load(state_dir).map_err(failed)? {
            Some(other) if other != *self => Ok(()),
            // Of an earlier sandbox that could not be finished: whoever comes next goes on from it.
            Some(_) if journal::exists(state_dir) => {
                fs::remove_file(state_dir.join(FILE)).map_err(failed)
            }
            None if journal::exists(state_dir) => Ok(()),
            _ => journal::remove_folder(state_dir, &lock),
        }
    }

    /// The record in a state folder; nothing where there is none, or none that is understood.
    pub fn load(state_dir: &Path) -> io::Result<Option<Self>> {
        match Self::load_strictly(state_dir) {
            Err(error) if error.kind() == io::ErrorKind::InvalidData => Ok(None),
            other => other,
        }
    }

    /// The same, and one that is not understood is an error.
    pub fn load_strictly(state_dir: &Path) -> io::Result<Option<Self>> {
        point("read the shim's record");
        match fs::read(state_dir.join(FILE)) {
            Ok(text) => serde_json::from_slice(&text)
                .map(Some)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub fn is_alive(&self) -> io::Result<bool> {
        Ok(!boot::is_over(self.boot.as_ref())? && identity::is_alive(self.pid, self.start_time)?)
    }

    fn pinned(&self) -> io::Result<Option<Pinned>> {
        if boot::is_over(self.boot.as_ref())? {
            return Ok(None);
        }
        Pinned::new(self.pid, Some(self.start_time))
    }

    /// Waits for its end, for `limit` at most; whether it has ended.
    pub async fn ended_within(&self, limit: Duration) -> io::Result<bool> {
        match self.pinned()? {
            Some(pinned) => match tokio::time::timeout(limit, pinned.ended()).await {
                Ok(ended) => ended.map(|()| true),
                Err(_) => Ok(false),
            },
            None => Ok(true),
        }
    }

    /// Kills the daemon, if it is still this one, and waits until it is gone. Blocks, 2 s at most.
    pub fn kill(&self) -> io::Result<()> {
        match self.pinned()? {
            Some(pinned) => pinned.kill_and_wait(PATIENCE).map(drop),
            None => Ok(()),
        }
    }
}

/// Removes what is left in the state folder of `shim`, and the namespace's folder with its last one. Where another shim
/// of the same name has come meanwhile, its record stays, and the folder with it. Blocks.
pub fn remove_folder(
    state_dir: &Path,
    shim: Option<&DaemonRecord>,
    lock: &FolderLock,
) -> Result<(), JournalError> {
    let failed = |source| JournalError::Io { action: "remove", path: state_dir.to_owned(), source };
    let now = DaemonRecord::load(state_dir).map_err(failed)?;
    if now.is_none() || now.as_ref() == shim {
        return journal::remove_folder(state_dir, lock);
    }
    journal::remove(state_dir, lock)
}

/// Writes into the bundle where the state folders are. `delete` knows nothing else for certain: the node's
/// configuration may be another by then.
pub fn point_to(bundle: &Path, state_root: &Path) -> io::Result<()> {
    fs::write(bundle.join(POINTER), state_root.as_os_str().as_encoded_bytes())
}

/// Where the bundle says that the state folders are.
pub fn state_root(bundle: &Path) -> Option<PathBuf> {
    let text = fs::read_to_string(bundle.join(POINTER)).ok()?;
    Some(PathBuf::from(text)).filter(|path| path.is_absolute())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::testing::TestChild;

    #[test]
    fn only_the_recorded_process_is_killed() {
        let folder = tempfile::tempdir().unwrap();
        let mut child = TestChild::start(std::process::Command::new("sleep").arg("60"));
        let pid = child.pid;
        let right = DaemonRecord {
            pid,
            start_time: identity::start_time(pid).unwrap().unwrap(),
            socket: None,
            boot: Some(BootId::current().unwrap()),
        };
        DaemonRecord { start_time: right.start_time + 1, ..right.clone() }.kill().unwrap();
        let earlier = DaemonRecord { boot: Some(BootId::earlier()), ..right.clone() };
        assert!(!earlier.is_alive().unwrap());
        earlier.kill().unwrap();
        assert!(right.is_alive().unwrap(), "another process of that number lives on");
        right.save(folder.path()).unwrap();
        assert_eq!(DaemonRecord::load(folder.path()).unwrap(), Some(right.clone()));
        right.kill().unwrap();
        assert_eq!(child.status(), 128 + 9);
    }

    #[test]
    fn a_shim_that_ends_takes_no_journal_with_it() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("ns/pod");
        let own = DaemonRecord { pid: 1, start_time: 2, socket: None, boot: None };
        let new = DaemonRecord { pid: 3, ..own.clone() };
        let journal = folder.join("journal.json");
        for (recorded, left) in [(&own, None), (&new, Some(new.clone()))] {
            recorded.save(&folder).unwrap();
            fs::write(&journal, "{}").unwrap();
            own.withdraw(&folder, Duration::ZERO).unwrap();
            assert!(journal.exists());
            assert_eq!(DaemonRecord::load(&folder).unwrap(), left);
        }
        fs::remove_file(&journal).unwrap();
        own.withdraw(&folder, Duration::ZERO).unwrap();
        assert!(folder.exists(), "it is the new one's");
        new.withdraw(&folder, Duration::ZERO).unwrap();
        assert!(!root.path().join("ns").exists());
    }

    #[test]
    fn what_is_removed_is_never_a_newer_shims() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("ns/pod");
        let old = DaemonRecord { pid: 1, start_time: 2, socket: None, boot: None };
        let new = DaemonRecord { pid: 3, ..old.clone() };
        old.save(&folder).unwrap();
        fs::write(folder.join("journal.json"), "{}").unwrap();
        let lock = journal::lock(&folder, Duration::ZERO).unwrap().unwrap();
        // The new one waits for the lock, and finds the folder as it needs it.
        let waits = std::thread::spawn({
            let (folder, new) = (folder.clone(), new.clone());
            move || new.save(&folder).unwrap()
        });
        std::thread::sleep(Duration::from_millis(50));
        remove_folder(&folder, Some(&old), &lock).unwrap();
        drop(lock);
        waits.join().unwrap();
        assert_eq!(DaemonRecord::load(&folder).unwrap(), Some(new.clone()));
        // One that comes to clean up later still leaves it alone.
        fs::write(folder.join("journal.json"), "{}").unwrap();
        let lock = journal::lock(&folder, Duration::ZERO).unwrap().unwrap();
        remove_folder(&folder, Some(&old), &lock).unwrap();
        assert!(!folder.join("journal.json").exists());
        assert_eq!(DaemonRecord::load(&folder).unwrap(), Some(new.clone()));
        remove_folder(&folder, Some(&new), &lock).unwrap();
        assert!(!root.path().join("ns").exists());
    }
}
