//! What lies in a node's state folders and whose it is, without changing anything: for whoever looks, and for whoever
//! frees what nobody works on any more.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use thiserror::Error;

use super::daemon_record::DaemonRecord;
use crate::{
    container::{self, Record},
    id::Id,
    resources::Resource,
    teardown::journal::{self, Journal},
};

/// One state folder, as it was at one moment.
#[derive(Clone, Debug)]
pub struct Found {
    pub namespace: Id,
    /// The sandbox's, or that of a shim of tasks without a sandbox.
    pub id: Id,
    pub folder: PathBuf,
    /// The shim that serves it, or did.
    pub shim: Option<DaemonRecord>,
    /// None where the shim has tasks without a sandbox, or where it cannot be read.
    pub journal: Option<Journal<Resource>>,
    /// The containers' records that can be read.
    pub containers: Vec<Record>,
    /// When something was last written down.
    pub written: Option<SystemTime>,
    pub hands: Hands,
}

/// In whose hands a state folder is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hands {
    /// Its shim lives.
    Shim,
    /// Another process works on it: it holds the folder's lock.
    Locked,
    /// Nobody's: what is left in it can be released.
    Nobody,
    /// That cannot be told, for these reasons: it is not to be touched.
    Unsure(Vec<String>),
}

/// A folder cannot be looked through.
#[derive(Debug, Error)]
#[error("look through {path}: {source}", path = path.display())]
pub struct SurveyError {
    pub path: PathBuf,
    pub source: io::Error,
}

/// Looks at every state folder below `state_root`, by namespace and id. A root that is not there holds none, and what
/// is no identifier is none of ours. Blocks.
pub fn survey(state_root: &Path) -> Result<Vec<Found>, SurveyError> {
    let mut all = Vec::new();
    for namespace in ids(state_root)? {
        let folder = state_root.join(&namespace);
        for id in ids(&folder)? {
            all.extend(look(&folder.join(&id), &namespace, &id));
        }
    }
    Ok(all)
}

fn ids(folder: &Path) -> Result<Vec<Id>, SurveyError> {
    let failed = |source| SurveyError { path: folder.to_owned(), source };
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(failed)?,
    };
    let mut ids = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed)?;
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        let name = entry.file_name().into_string().ok().filter(|_| is_folder);
        ids.extend(name.and_then(|name| Id::new(name).ok()));
    }
    ids.sort();
    Ok(ids)
}

/// Looks at one state folder; nothing where there is none (any more). Blocks.
pub fn look(folder: &Path, namespace: &Id, id: &Id) -> Option<Found> {
    let mut doubts = Vec::new();
    // The lock first: whoever holds it now may be done, and the folder gone, by the time the rest is read.
    let locked = journal::is_locked(folder);
    let locked = locked.unwrap_or_else(|error| {
        doubts.push(format!("its lock cannot be tried: {error}"));
        false
    });
    let shim = DaemonRecord::load_strictly(folder).unwrap_or_else(|error| {
        doubts.push(format!("the shim's record: {error}"));
        None
    });
    let alive = shim.as_ref().map_or(Ok(false), DaemonRecord::is_alive);
    let mut alive = alive.unwrap_or_else(|error| {
        doubts.push(format!("whether its shim lives cannot be found out: {error}"));
        false
    });
    let journal = journal::read(folder).unwrap_or_else(|error| {
        doubts.push(error.to_string());
        None
    });
    if journal::was_set_aside(folder) {
        doubts.push("a journal that could not be read was set aside here".to_owned());
    }
    let records = container::load_all(&folder.join("tasks"));
    let mut containers = Vec::new();
    match records {
        Ok(records) => {
            for record in records {
                match record.and_then(|record| Ok((record.is_anothers()?, record))) {
                    Ok((anothers, record)) => {
                        alive |= anothers;
                        containers.push(record);
                    }
                    Err(error) => doubts.push(error.to_string()),
                }
            }
        }
        Err(error) => doubts.push(error.to_string()),
    }
    if !folder.exists() {
        return None;
    }
    let hands = match (alive, locked) {
        (true, _) => Hands::Shim,
        (false, true) => Hands::Locked,
        (false, false) if doubts.is_empty() => Hands::Nobody,
        (false, false) => Hands::Unsure(doubts),
    };
    let written = written(folder);
    let (namespace, id, folder) = (namespace.clone(), id.clone(), folder.to_owned());
    Some(Found { namespace, id, folder, shim, journal, containers, written, hands })
}

fn written(folder: &Path) -> Option<SystemTime> {
    let files = ["", "journal.json", "shim.json", "tasks"];
    let times =
        files.iter().filter_map(|file| fs::metadata(folder.join(file)).ok()?.modified().ok());
    times.max()
}
