//! What is written down of a container before and after it is created.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::{Error, is_alive, start_time};
use crate::{
    cgroup::Cgroup,
    id::Id,
    runtime::RuntimeSettings,
    sys::{
        boot::{self, BootId},
        replace,
    },
};

/// The form of the record. A newer shim reads older ones; an older one refuses newer ones.
const VERSION: u32 = 1;

/// A process (a container's init, a shim): a number, and what tells its owner from the next one of that number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Init {
    pub pid: i32,
    /// Its start time, in clock ticks since boot.
    pub start_time: u64,
}

impl Init {
    /// The identity of a process that is known to live.
    pub fn of(pid: i32) -> io::Result<Option<Self>> {
        Ok(start_time(pid)?.map(|start_time| Self { pid, start_time }))
    }
}

/// One container, as `tasks/<id>.json` in the sandbox's state folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    version: u32,
    pub id: Id,
    pub bundle: PathBuf,
    /// The runtime that created it.
    pub runtime: RuntimeSettings,
    /// Its init, once the runtime has answered.
    #[serde(default)]
    pub init: Option<Init>,
    /// Its control group: the planned one until the runtime has answered.
    #[serde(default)]
    pub cgroup: Cgroup,
    /// Whether the shim mounted (or was about to mount) its root file system.
    #[serde(default)]
    pub rootfs_mounted: bool,
    /// The folder of the sockets over which terminals of the container's processes arrive; there while one is awaited.
    #[serde(default)]
    pub consoles: Option<PathBuf>,
    /// criu's configuration, which also marks its processes; there while the container is checkpointed or restored.
    #[serde(default)]
    pub criu_config: Option<PathBuf>,
    /// The boot in which it was created.
    #[serde(default)]
    pub boot: Option<BootId>,
    /// The shim that created it.
    #[serde(default)]
    pub shim: Option<Init>,
}

impl Record {
    /// The record of a container that is about to be created.
    pub fn new(id: Id, bundle: PathBuf, runtime: RuntimeSettings) -> Result<Self, Error> {
        let failed = |action| {
            let path = bundle.clone();
            move |source| Error::File { action, path, source }
        };
        let boot = BootId::current().map_err(failed("find out the boot of"))?;
        let shim = Init::of(own_pid()).map_err(failed("find out the shim of"))?;
        Ok(Self {
            version: VERSION,
            id,
            bundle,
            runtime,
            init: None,
            cgroup: Cgroup::default(),
            rootfs_mounted: false,
            consoles: None,
            criu_config: None,
            boot: Some(boot),
            shim,
        })
    }

    /// Whether the shim that created it lives, and is not this process: then the container is that one's to end.
    pub fn is_anothers(&self) -> Result<bool, Error> {
        let Some(shim) = self.shim.filter(|shim| shim.pid != own_pid()) else { return Ok(false) };
        let lives = boot::is_over(self.boot.as_ref())
            .and_then(|over| Ok(!over && is_alive(shim.pid, shim.start_time)?));
        lives.map_err(|source| Error::Process { id: self.id.to_string(), pid: shim.pid, source })
    }

    fn path(dir: &Path, id: &Id) -> PathBuf {
        dir.join(format!("{id}.json"))
    }

    /// Writes the record into `dir`, whole or not at all. It need not survive the machine: no process does.
    pub fn save(&self, dir: &Path) -> Result<(), Error> {
        let path = Self::path(dir, &self.id);
        let fail = |action| {
            let path = path.clone();
            move |source| Error::File { action, path, source }
        };
        let text = serde_json::to_vec(self).map_err(|error| fail("write")(error.into()))?;
        fs::create_dir_all(dir).map_err(fail("make the folder of"))?;
        // A container's id never begins with a dot, so the draft's name is nobody else's.
        replace::file(&path, &text, 0o600, replace::Sync::Nothing).map_err(fail("write"))
    }

    /// Forgets the record of a container of which nothing is left. One that stays on a broken or read-only disk names
    /// nothing, and is no reason to keep a pod.
    pub fn remove(dir: &Path, id: &Id) -> Result<(), Error> {
        let path = Self::path(dir, id);
        match fs::remove_file(&path) {
            Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(source)
                if matches!(Errno::from_io_error(&source), Some(Errno::ROFS | Errno::IO)) =>
            {
                log::warn!("remove {}: {source}", path.display());
                Ok(())
            }
            removed => removed.map_err(|source| Error::File { action: "remove", path, source }),
        }
    }

    fn load(path: &Path) -> Result<Self, Error> {
        let foreign = |what| Error::Foreign { path: path.to_owned(), what };
        let text = fs::read(path).map_err(|source| Error::File {
            action: "read",
            path: path.to_owned(),
            source,
        })?;
        let record: Self =
            serde_json::from_slice(&text).map_err(|error| foreign(error.to_string()))?;
        if record.version > VERSION {
            return Err(foreign(format!("version {} is newer than {VERSION}", record.version)));
        }
        if path.file_stem().is_none_or(|stem| stem != record.id.as_str()) {
            return Err(foreign(format!("it is of container \"{}\"", record.id)));
        }
        Ok(record)
    }
}

fn own_pid() -> i32 {
    rustix::process::getpid().as_raw_nonzero().get()
}

/// Every record in `dir`, each read or with the reason why not. A folder that is not there holds none.
pub fn load_all(dir: &Path) -> Result<Vec<Result<Record, Error>>, Error> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(Error::File { action: "list", path: dir.to_owned(), source }),
    };
    let mut paths: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            let hidden =
                path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
            !hidden && path.extension().is_some_and(|extension| extension == "json")
        })
        .collect();
    paths.sort();
    Ok(paths.iter().map(|path| Record::load(path)).collect())
}

/// The record of `container` in any of the state folders of a namespace, and the folder that it is in: for whoever
/// knows a container but not the sandbox or group that it was in.
pub fn find(namespace_dir: &Path, container: &Id) -> Option<(PathBuf, Record)> {
    let folders = fs::read_dir(namespace_dir).ok()?;
    folders.flatten().map(|folder| folder.path().join("tasks")).find_map(|tasks| {
        let record = Record::load(&Record::path(&tasks, container)).ok()?;
        Some((tasks, record))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(id: &str) -> Record {
        Record::new(Id::new(id).unwrap(), "/bundle".into(), RuntimeSettings::default()).unwrap()
    }

    #[test]
    fn a_record_comes_back_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let mut written = record("a");
        written.save(dir.path()).unwrap();
        written.init = Init::of(i32::try_from(std::process::id()).unwrap()).unwrap();
        written.save(dir.path()).unwrap();
        let read: Vec<Record> =
            load_all(dir.path()).unwrap().into_iter().map(Result::unwrap).collect();
        assert_eq!(read, [written]);
        Record::remove(dir.path(), &Id::new("a").unwrap()).unwrap();
        Record::remove(dir.path(), &Id::new("a").unwrap()).unwrap();
        assert!(load_all(dir.path()).unwrap().is_empty());
    }

    #[test]
    fn torn_and_foreign_files_are_reported_beside_the_others() {
        let dir = tempfile::tempdir().unwrap();
        record("a").save(dir.path()).unwrap();
        fs::write(dir.path().join("b.json"), b"{\"version\":1,\"id\"").unwrap();
        fs::copy(dir.path().join("a.json"), dir.path().join("c.json")).unwrap();
        let mut newer = serde_json::to_value(record("d")).unwrap();
        newer["version"] = 99.into();
        fs::write(dir.path().join("d.json"), newer.to_string()).unwrap();
        let read: Vec<bool> = load_all(dir.path()).unwrap().iter().map(Result::is_ok).collect();
        assert_eq!(read, [true, false, false, false]);
    }
}
