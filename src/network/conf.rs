//! Network configurations: finding and understanding them.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde_json::{Map, Value, json};
use thiserror::Error;

use super::{Error, Settings};

/// A spec version, compared number by number.
type Version = (u32, u32, u32);

const OLDEST: Version = (0, 3, 0);
const NEWEST: Version = (1, 1, 0);
/// From here on CHECK exists, and DEL is given the ADD's result.
pub(super) const WITH_CHECK: Version = (0, 4, 0);
/// From here on STATUS and GC exist.
pub(super) const WITH_STATUS: Version = (1, 1, 0);

/// Why a configuration cannot be used.
#[derive(Debug, Error)]
pub enum ConfProblem {
    #[error("{0}")]
    Read(#[from] io::Error),
    #[error("no JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// A member is missing or of the wrong kind.
    #[error("{0:?} is missing or not of its kind")]
    Member(&'static str),
    /// The network's name is not allowed.
    #[error("the name {0:?} is not allowed")]
    Name(String),
    /// No version of it is one that is spoken here.
    #[error("cniVersion {0:?} is not supported (0.3.0 to 1.1.0 are)")]
    Version(String),
    #[error("there are no plugins")]
    NoPlugins,
    /// A plugin has no type.
    #[error("plugin {0} has no type")]
    NoType(usize),
}

/// One network: its plugins in the order of ADD.
#[derive(Clone, Debug, PartialEq)]
pub struct NetworkList {
    name: String,
    cni_version: String,
    version: Version,
    disable_gc: bool,
    plugins: Vec<Plugin>,
    document: Value,
}

/// One plugin's part of a list.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Plugin {
    pub(super) kind: String,
    config: Map<String, Value>,
}

impl NetworkList {
    pub fn from_value(document: Value) -> Result<Self, ConfProblem> {
        let text = |key| match document.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.as_str())),
            Some(_) => Err(ConfProblem::Member(key)),
        };
        let name = text("name")?.ok_or(ConfProblem::Member("name"))?.to_owned();
        if !is_name(&name) {
            return Err(ConfProblem::Name(name));
        }
        let (cni_version, version) =
            choose_version(text("cniVersion")?, document.get("cniVersions"))?;
        let entries = match document.get("plugins") {
            None => return Err(ConfProblem::NoPlugins),
            Some(Value::Array(entries)) if entries.is_empty() => {
                return Err(ConfProblem::NoPlugins);
            }
            Some(Value::Array(entries)) => entries,
            Some(_) => return Err(ConfProblem::Member("plugins")),
        };
        let plugins = entries
            .iter()
            .enumerate()
            .map(|(index, entry)| Plugin::from_value(entry).ok_or(ConfProblem::NoType(index)))
            .collect::<Result<_, _>>()?;
        let disable_gc = flag(&document, "disableGC")?;
        Ok(Self { name, cni_version, version, disable_gc, plugins, document })
    }

    /// Understands a configuration list in JSON.
    pub fn from_slice(bytes: &[u8]) -> Result<Self, ConfProblem> {
        Self::from_value(serde_json::from_slice(bytes)?)
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// The version that is spoken with its plugins.
    pub fn cni_version(&self) -> &str {
        &self.cni_version
    }

    /// The whole list as JSON.
    pub fn document(&self) -> &Value {
        &self.document
    }

    /// The plugins' types in the order of ADD.
    pub fn plugin_types(&self) -> impl Iterator<Item = &str> {
        self.plugins.iter().map(|plugin| plugin.kind.as_str())
    }

    pub(super) fn plugins(&self) -> &[Plugin] {
        &self.plugins
    }

    pub(super) fn speaks(&self, version: Version) -> bool {
        self.version >= version
    }

    /// Whether its plugins can be told which attachments are valid.
    pub fn collects_garbage(&self) -> bool {
        self.speaks(WITH_STATUS) && !self.disable_gc
    }

    /// What `plugin` reads on its standard input. Of `capabilities` it is told those that it declares.
    pub(super) fn input(
        &self,
        plugin: &Plugin,
        previous: Option<&Value>,
        capabilities: &Map<String, Value>,
    ) -> Map<String, Value> {
        let mut config = plugin.config.clone();
        config.insert("name".to_owned(), self.name.clone().into());
        config.insert("cniVersion".to_owned(), self.cni_version.clone().into());
        if let Some(previous) = previous {
            config.insert("prevResult".to_owned(), previous.clone());
        }
        let declared = plugin.config.get("capabilities").and_then(Value::as_object);
        let granted: Map<_, _> = capabilities
            .iter()
            .filter(|(key, _)| declared.and_then(|all| all.get(*key)) == Some(&Value::Bool(true)))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        if !granted.is_empty() {
            config.insert("runtimeConfig".to_owned(), granted.into());
        }
        config
    }
}

impl Plugin {
    fn from_value(entry: &Value) -> Option<Self> {
        let config = entry.as_object()?.clone();
        let kind = config.get("type")?.as_str()?.to_owned();
        (!kind.is_empty()).then_some(Self { kind, config })
    }
}

/// Loads the networks that a pod joins: the first `max_conf_num` valid files in lexical order.
/// A file that is not valid is skipped with a warning. Reads files, so not for the async thread.
pub fn load(settings: &Settings) -> Result<Vec<NetworkList>, Error> {
    let dir = &settings.conf_dir;
    let files = conf_files(dir, &["conf", "conflist", "json"])
        .map_err(|source| Error::ConfDir { dir: dir.clone(), source })?;
    let limit = if settings.max_conf_num == 0 { usize::MAX } else { settings.max_conf_num };
    let (mut networks, mut skipped) = (Vec::new(), Vec::new());
    for file in files {
        if networks.len() >= limit {
            break;
        }
        match load_file(&file) {
            Ok(network) => networks.push(network),
            Err(problem) => {
                log::warn!("CNI configuration {} is skipped: {problem}", file.display());
                skipped.push(format!("{}: {problem}", file.display()));
            }
        }
    }
    if networks.is_empty() {
        return Err(Error::NoNetworks { dir: dir.clone(), skipped });
    }
    Ok(networks)
}

/// The plain files of `dir` with one of these extensions, in lexical order; none if there is no such folder.
fn conf_files(dir: &Path, extensions: &[&str]) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let matches = path.extension().is_some_and(|ext| extensions.iter().any(|e| ext == *e));
        // Follows symbolic links: configuration is often linked into place. A pipe would block the reader.
        if matches && !path.is_dir() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn load_file(path: &Path) -> Result<NetworkList, ConfProblem> {
    let mut document = read_json(path)?;
    if path.extension().is_some_and(|ext| ext == "conflist") {
        if !flag(&document, "loadOnlyInlinedPlugins")? {
            add_plugins_of_folder(path, &mut document)?;
        }
        return NetworkList::from_value(document);
    }
    if Plugin::from_value(&document).is_none() {
        return Err(ConfProblem::NoType(0));
    }
    let mut list = Map::new();
    for key in ["name", "cniVersion", "cniVersions"] {
        if let Some(value) = document.get(key) {
            list.insert(key.to_owned(), value.clone());
        }
    }
    list.insert("plugins".to_owned(), json!([document]));
    NetworkList::from_value(list.into())
}

/// A list may have further plugins in `<conf dir>/<network>/*.conf`. They become part of the list here, so that its
/// recorded form is whole.
fn add_plugins_of_folder(path: &Path, document: &mut Value) -> Result<(), ConfProblem> {
    let Some(name) = document.get("name").and_then(Value::as_str).filter(|name| is_name(name))
    else {
        return Ok(());
    };
    let files = conf_files(&path.with_file_name(name), &["conf"])?;
    let more = files.iter().map(|file| read_json(file)).collect::<Result<Vec<_>, _>>()?;
    if more.is_empty() {
        return Ok(());
    }
    let document = document.as_object_mut().ok_or(ConfProblem::Member("plugins"))?;
    match document.entry("plugins").or_insert_with(|| json!([])) {
        Value::Array(plugins) => plugins.extend(more),
        _ => return Err(ConfProblem::Member("plugins")),
    }
    Ok(())
}

fn read_json(path: &Path) -> Result<Value, ConfProblem> {
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a plain file").into());
    }
    Ok(serde_json::from_slice(&fs::read(path)?)?)
}

/// Flags may be booleans or their names.
fn flag(document: &Value, key: &'static str) -> Result<bool, ConfProblem> {
    match document.get(key) {
        None => Ok(false),
        Some(Value::Bool(value)) => Ok(*value),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("true") => Ok(true),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("false") => Ok(false),
        Some(_) => Err(ConfProblem::Member(key)),
    }
}

/// The newest version that the list offers and that is known here.
fn choose_version(
    one: Option<&str>,
    several: Option<&Value>,
) -> Result<(String, Version), ConfProblem> {
    let several = match several {
        None => &[][..],
        Some(Value::Array(versions)) => versions,
        Some(_) => return Err(ConfProblem::Member("cniVersions")),
    };
    several
        .iter()
        .filter_map(Value::as_str)
        .chain(one)
        .filter_map(|text| Some((text.to_owned(), parse_version(text)?)))
        .filter(|(_, version)| (OLDEST..=NEWEST).contains(version))
        .max_by_key(|(_, version)| *version)
        .ok_or_else(|| ConfProblem::Version(one.unwrap_or_default().to_owned()))
}

fn parse_version(text: &str) -> Option<Version> {
    let mut parts = text.split('.').map(str::parse);
    let mut next = || parts.next().unwrap_or(Ok(0)).ok();
    let version = (next()?, next()?, next()?);
    parts.next().is_none().then_some(version)
}

/// Whether plugins must accept `text` as the name of a network or the id of a container.
pub(super) fn is_name(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    text.bytes().all(plain) && text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
}

/// The kernel's rule for interface names, and the specification's; control characters have no place in a log either.
pub fn is_ifname(name: &str) -> bool {
    let refused = |c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control();
    (1..16).contains(&name.len()) && !matches!(name, "." | "..") && !name.contains(refused)
}

#[cfg(test)]
mod tests;
