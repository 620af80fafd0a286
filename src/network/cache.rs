//! Cached results, in the files that libcni keeps too: `<cache dir>/results/<network>-<container id>-<interface>`.
//!
//! Tools that know libcni's layout read ours, and its files are read here.

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use thiserror::Error;

use super::{
    Error,
    conf::{ConfProblem, NetworkList, is_ifname, is_name},
};
use crate::{released::Released, sys::replace};

const KIND: &str = "cniCacheV1";
/// The longest name of a file, in bytes, less what the name of its draft has more.
const LONGEST: usize = 255 - "..new".len();

/// Why a cached result cannot be used.
#[derive(Debug, Error)]
pub enum CacheProblem {
    /// It cannot be read, written or removed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// It is torn, or was never JSON.
    #[error("not readable: {0}")]
    Json(#[from] serde_json::Error),
    /// It is of another kind.
    #[error("of kind {0:?}, not {KIND:?}")]
    Kind(String),
    /// It is about another attachment than its name says.
    #[error("about network {network:?}, container {container_id:?}, interface {ifname:?}")]
    Foreign {
        /// The network that it names.
        network: String,
        /// The container that it names.
        container_id: String,
        /// The interface that it names.
        ifname: String,
    },
    /// The configuration in it is not base64.
    #[error("its configuration: {0}")]
    Base64(#[from] base64::DecodeError),
    /// The configuration in it is not valid.
    #[error("its configuration: {0}")]
    Config(#[from] ConfProblem),
}

/// An attachment as its cached result tells it.
#[derive(Clone, Debug, PartialEq)]
pub struct CachedAttachment {
    pub container_id: String,
    /// The interface in the container.
    pub ifname: String,
    /// The namespace as it was at ADD.
    pub netns: PathBuf,
    /// `CNI_ARGS` of the ADD.
    pub args: Vec<(String, String)>,
    /// Capability arguments of the ADD.
    pub capabilities: Map<String, Value>,
    /// The configuration of the ADD.
    pub list: NetworkList,
    pub result: Option<Value>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    kind: String,
    #[serde(default)]
    container_id: String,
    #[serde(default)]
    config: String,
    #[serde(default)]
    if_name: String,
    #[serde(default)]
    network_name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    netns: Option<PathBuf>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cni_args: Option<Vec<(String, String)>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    capability_args: Option<Map<String, Value>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    result: Option<Value>,
}

/// The cached result of one attachment.
#[derive(Clone, Debug)]
pub(super) struct Slot {
    pub(super) path: PathBuf,
    network: String,
    container_id: String,
    ifname: String,
}

impl Slot {
    /// The place for this attachment's result.
    pub(super) fn new(
        cache_dir: &Path,
        network: &str,
        container_id: &str,
        ifname: &str,
    ) -> Result<Self, Error> {
        for (what, value, valid) in [
            ("network name", network, is_name(network)),
            ("container id", container_id, is_name(container_id)),
            ("interface name", ifname, is_ifname(ifname)),
        ] {
            if !valid {
                return Err(Error::Invalid { what, value: value.to_owned() });
            }
        }
        Ok(Self {
            path: cache_dir.join("results").join(format!("{network}-{container_id}-{ifname}")),
            network: network.to_owned(),
            container_id: container_id.to_owned(),
            ifname: ifname.to_owned(),
        })
    }

    /// Reads the result back; `None` if there is none.
    pub(super) fn load(&self) -> Result<Option<CachedAttachment>, Error> {
        let read = || match read(&self.path)? {
            Some(found) if !self.is_of(&found) => Err(CacheProblem::Foreign {
                network: found.list.name().to_owned(),
                container_id: found.container_id,
                ifname: found.ifname,
            }),
            found => Ok(found),
        };
        read().map_err(|problem| self.error(problem))
    }

    /// Whether a result can be kept here: names may be too long for a file's.
    pub(super) fn fits(&self) -> bool {
        self.path.file_name().is_some_and(|name| name.len() <= LONGEST)
    }

    /// Keeps the result. A reader sees the old file or the new one, never a part.
    pub(super) fn store(&self, attachment: &CachedAttachment) -> Result<(), Error> {
        write(&self.path, attachment).map_err(|problem| self.error(problem))
    }

    pub(super) fn remove(&self) -> Result<Released, Error> {
        match fs::remove_file(&self.path) {
            Ok(()) => Ok(Released::Done),
            Err(error) if is_absent(&error) => Ok(Released::AlreadyGone),
            Err(error) => Err(self.error(error.into())),
        }
    }

    /// Two attachments can share a file name, because names may contain the separator.
    fn is_of(&self, found: &CachedAttachment) -> bool {
        found.list.name() == self.network
            && found.container_id == self.container_id
            && found.ifname == self.ifname
    }

    fn error(&self, source: CacheProblem) -> Error {
        Error::Cache { path: self.path.clone(), source }
    }
}

/// Whether there is no such file, nor can be: a name may be longer than a file's.
fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidFilename)
}

fn read(path: &Path) -> Result<Option<CachedAttachment>, CacheProblem> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if is_absent(&error) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let file: File = serde_json::from_slice(&bytes)?;
    if file.kind != KIND {
        return Err(CacheProblem::Kind(file.kind));
    }
    let list = NetworkList::from_slice(&STANDARD.decode(file.config)?)?;
    if list.name() != file.network_name {
        return Err(CacheProblem::Foreign {
            network: file.network_name,
            container_id: file.container_id,
            ifname: file.if_name,
        });
    }
    Ok(Some(CachedAttachment {
        container_id: file.container_id,
        ifname: file.if_name,
        netns: file.netns.unwrap_or_default(),
        args: file.cni_args.unwrap_or_default(),
        capabilities: file.capability_args.unwrap_or_default(),
        list,
        result: file.result,
    }))
}

fn write(path: &Path, attachment: &CachedAttachment) -> Result<(), CacheProblem> {
    let CachedAttachment { container_id, ifname, netns, args, capabilities, list, result } =
        attachment.clone();
    let file = File {
        kind: KIND.to_owned(),
        container_id,
        config: STANDARD.encode(serde_json::to_vec(list.document())?),
        if_name: ifname,
        network_name: list.name().to_owned(),
        netns: Some(netns).filter(|netns| !netns.as_os_str().is_empty()),
        cni_args: Some(args).filter(|args| !args.is_empty()),
        capability_args: Some(capabilities).filter(|capabilities| !capabilities.is_empty()),
        result,
    };
    let folder = path.parent().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    // Until the journal holds the result as well the ADD may be taken for one that was cut.
    Ok(replace::file(path, &serde_json::to_vec(&file)?, 0o600, replace::Sync::Either)?)
}

/// Every attachment in the cache, whoever made it, and an error for every file that cannot be understood.
/// Reads files, so not for the async thread.
pub fn cached_attachments(cache_dir: &Path) -> (Vec<CachedAttachment>, Vec<Error>) {
    let folder = cache_dir.join("results");
    let problem = |path: &Path, source| Error::Cache { path: path.to_owned(), source };
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return (Vec::new(), Vec::new()),
        Err(error) => return (Vec::new(), vec![problem(&folder, error.into())]),
    };
    let mut paths: Vec<_> = entries
        .filter_map(Result::ok)
        .filter(|entry| !entry.file_name().as_encoded_bytes().starts_with(b"."))
        .map(|entry| entry.path())
        .collect();
    paths.sort();
    let (mut attachments, mut problems) = (Vec::new(), Vec::new());
    for path in paths {
        match read(&path) {
            Ok(found) => attachments.extend(found),
            Err(source) => problems.push(problem(&path, source)),
        }
    }
    (attachments, problems)
}

#[cfg(test)]
mod tests;
