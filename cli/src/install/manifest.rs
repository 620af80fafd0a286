//! What an installation made, written down so that exactly that is removed.

use std::{
    fmt::Write,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::rooted::Root;

/// Beside the state folders, which are folders: this is a file.
pub const FILE: &str = "/var/lib/mooring/install.json";
const VERSION: u32 = 1;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    version: u32,
    pub files: Vec<Made>,
    /// Folders that were missing, those above first.
    pub folders: Vec<PathBuf>,
    pub import: Option<Import>,
}

/// A file that was made or replaced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Made {
    pub path: PathBuf,
    /// Of what was written, so that what somebody has changed since is known.
    pub sha256: String,
}

/// What was added to containerd's configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Import {
    pub config: PathBuf,
    pub pattern: String,
    /// The configuration as it was; nothing where there was none.
    pub before: Option<String>,
    /// Of the configuration as it was written.
    pub sha256: String,
    /// The list of imports was not there before.
    pub made_list: bool,
}

impl Import {
    /// Whether the configuration is as it was written.
    pub fn made(&self, text: &[u8]) -> bool {
        self.sha256 == digest(text)
    }
}

impl Manifest {
    /// That of an earlier installation; an empty one where there is none.
    pub fn load(root: &Root) -> Result<Self> {
        let Some(text) = root.read(FILE.as_ref()).with_context(|| format!("read {FILE}"))? else {
            return Ok(Self { version: VERSION, ..Self::default() });
        };
        let found: Self = serde_json::from_slice(&text)
            .with_context(|| format!("{FILE} is no record of an installation"))?;
        if found.version > VERSION {
            bail!("{FILE} is of a later version of mooring ({})", found.version);
        }
        Ok(found)
    }

    pub fn is_empty(&self) -> bool {
        self.files.is_empty() && self.import.is_none()
    }

    pub fn save(&mut self, root: &Root) -> Result<()> {
        let folder = Path::new(FILE).parent().unwrap_or(Path::new("/"));
        let made =
            root.make_folder(folder).with_context(|| format!("make {}", folder.display()))?;
        self.folders.extend(made);
        let text = serde_json::to_vec_pretty(self)?;
        root.write(FILE.as_ref(), &text, 0o600).with_context(|| format!("write {FILE}"))
    }

    /// Whether a file is as it was made.
    pub fn made(&self, path: &Path, text: &[u8]) -> bool {
        let digest = digest(text);
        self.files.iter().any(|made| made.path == path && made.sha256 == digest)
    }

    pub fn note(&mut self, path: &Path, text: &[u8]) {
        self.files.retain(|made| made.path != path);
        self.files.push(Made { path: path.to_owned(), sha256: digest(text) });
    }
}

/// As the record has it.
pub fn digest(text: &[u8]) -> String {
    Sha256::digest(text).iter().fold(String::new(), |mut hex, byte| {
        // Writing to a string cannot fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}
