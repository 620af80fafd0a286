//! Which process serves a shim, for whoever has to clean up after it.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::sys::identity::{self, Pinned};

/// How long a killed daemon may take to be gone.
const PATIENCE: Duration = Duration::from_secs(2);
const FILE: &str = "shim.json";
/// In the bundle, where the state folder is not where the node's configuration says.
const POINTER: &str = "mooring-state-root";

/// The daemon of a shim.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DaemonRecord {
    /// Its process id.
    pub pid: i32,
    /// Its start time, which tells it from a later process of that number.
    pub start_time: u64,
    /// The socket that it serves.
    #[serde(default)]
    pub socket: Option<PathBuf>,
}

impl DaemonRecord {
    /// The calling process, which serves `socket`.
    pub fn of_this_process(socket: &Path) -> io::Result<Self> {
        let pid = i32::try_from(std::process::id()).map_err(io::Error::other)?;
        let start_time = identity::start_time(pid).ok_or(io::ErrorKind::NotFound)?;
        Ok(Self { pid, start_time, socket: Some(socket.to_owned()) })
    }

    /// Writes the record into a state folder, which is made where it is missing.
    pub fn save(&self, state_dir: &Path) -> io::Result<()> {
        use std::os::unix::fs::DirBuilderExt;
        fs::DirBuilder::new().recursive(true).mode(0o700).create(state_dir)?;
        let fresh = state_dir.join("shim.json.new");
        fs::write(&fresh, serde_json::to_vec(self)?)?;
        fs::rename(fresh, state_dir.join(FILE))
    }

    /// The record in a state folder; nothing where there is none that can be read.
    pub fn load(state_dir: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(state_dir.join(FILE)).ok()?).ok()
    }

    /// Kills the daemon, if it is still this one, and waits until it is gone. Blocks, 2 s at most.
    pub fn kill(&self) -> io::Result<()> {
        match Pinned::new(self.pid, Some(self.start_time)) {
            Some(pinned) => pinned.kill_and_wait(PATIENCE).map(drop),
            None => Ok(()),
        }
    }
}

/// Leaves word in the bundle where the state folders are.
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
        let right =
            DaemonRecord { pid, start_time: identity::start_time(pid).unwrap(), socket: None };
        DaemonRecord { start_time: right.start_time + 1, ..right.clone() }.kill().unwrap();
        assert!(
            identity::is_alive(pid, right.start_time),
            "another process of that number lives on"
        );
        right.save(folder.path()).unwrap();
        assert_eq!(DaemonRecord::load(folder.path()), Some(right.clone()));
        right.kill().unwrap();
        assert_eq!(child.status(), 128 + 9);
    }
}
