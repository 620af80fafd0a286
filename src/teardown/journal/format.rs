//! What a journal says, and how it is read.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::super::plan::Journaled;
use crate::{
    error::{Code, Coded},
    id::Id,
    sys::boot::BootId,
};

/// The version that this build writes. It reads all from 1 to this one.
pub const VERSION: u32 = 1;
pub(super) const FILE: &str = "journal.json";
/// The most that a journal may hold, in bytes; a larger file is none of ours.
const LIMIT: u64 = 16 << 20;

/// How far a resource is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// About to be acquired: it may be there, in part or in whole.
    Intended,
    Held,
    Released,
}

/// A resource and how far it is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry<R> {
    pub resource: R,
    #[serde(rename = "state")]
    pub stage: Stage,
}

/// What identifies the sandbox and its shim.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct About {
    pub namespace: Id,
    pub id: Id,
    pub bundle: PathBuf,
    #[serde(default)]
    pub grpc_address: PathBuf,
    /// When the sandbox was created.
    pub created_at: SystemTime,
    /// The folder of the pod's files and mounts.
    #[serde(default)]
    pub run_dir: PathBuf,
    /// The process id of its shim, which is also the session of everything that the shim starts.
    #[serde(default)]
    pub shim: Option<i32>,
    /// The boot in which the sandbox was created.
    #[serde(default)]
    pub boot: Option<BootId>,
}

/// The journal's content. Steps are names: one that this build's plan does not have any more means nothing to it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Journal<R> {
    pub version: u32,
    pub about: About,
    /// What the sandbox holds, in the order of acquisition.
    #[serde(default = "Vec::new")]
    pub entries: Vec<Entry<R>>,
    /// The step that is under way.
    #[serde(default)]
    pub current: Option<String>,
    /// The steps that are done.
    #[serde(default)]
    pub done: Vec<String>,
    /// Whether the teardown is complete.
    #[serde(default)]
    pub closed: bool,
}

impl<R: Journaled> Journal<R> {
    pub(super) fn new(about: About) -> Self {
        let (entries, done) = (vec![], vec![]);
        Self { version: VERSION, about, entries, current: None, done, closed: false }
    }

    /// What the journal says of resources that outlive a reboot and are not released; nothing where there are none.
    pub(super) fn lasting(&self) -> serde_json::Result<Vec<u8>> {
        let lasting =
            |entry: &&Entry<R>| entry.resource.outlives_reboot() && entry.stage != Stage::Released;
        let entries: Vec<_> = self.entries.iter().filter(lasting).collect();
        if entries.is_empty() { Ok(Vec::new()) } else { serde_json::to_vec(&entries) }
    }
}

/// The journal cannot be read or written.
#[derive(Debug, Error)]
pub enum JournalError {
    #[error("{action} journal {path}: {source}")]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    /// The file is torn or no journal of ours.
    #[error("journal {path} is torn or not Mooring's: {reason}")]
    Foreign { path: PathBuf, reason: String },
    /// A later Mooring wrote it.
    #[error("journal {path} has version {version}, this Mooring reads up to {VERSION}")]
    Newer { path: PathBuf, version: u64 },
    /// Somebody else works on it.
    #[error("journal {path} is locked by another process of Mooring")]
    Locked { path: PathBuf },
}

impl Coded for JournalError {
    fn code(&self) -> Code {
        match self {
            Self::Locked { .. } => Code::Unavailable,
            _ => Code::Unknown,
        }
    }
}

/// Reads the journal in `folder`, if there is one.
pub fn read<R: Journaled>(folder: &Path) -> Result<Option<Journal<R>>, JournalError> {
    let path = folder.join(FILE);
    let foreign = |reason: String| JournalError::Foreign { path: path.clone(), reason };
    let text = match fs::metadata(&path) {
        Ok(found) if found.len() > LIMIT => return Err(foreign(format!("{} bytes", found.len()))),
        Ok(_) => fs::read(&path),
        Err(error) => Err(error),
    };
    let text = match text {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(JournalError::Io { action: "read", path, source }),
    };
    let value: serde_json::Value =
        serde_json::from_slice(&text).map_err(|error| foreign(error.to_string()))?;
    match value.get("version").and_then(serde_json::Value::as_u64) {
        Some(version) if version > u64::from(VERSION) => Err(JournalError::Newer { path, version }),
        Some(1..) => {
            serde_json::from_value(value).map(Some).map_err(|error| foreign(error.to_string()))
        }
        _ => Err(foreign("it has no version".into())),
    }
}
