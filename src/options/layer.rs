//! One source of options: what it says, and what it leaves to others.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use serde::Deserialize;

use super::{Error, NetworkOwner, Options, time};

/// The keys of the options, as they are written in a handler's table and in the node's configuration.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Layer {
    pub binary_name: Option<String>,
    pub root: Option<PathBuf>,
    pub systemd_cgroup: Option<bool>,
    pub no_pivot_root: Option<bool>,
    pub no_new_keyring: Option<bool>,
    pub shim_cgroup: Option<String>,
    pub io_uid: Option<u32>,
    pub io_gid: Option<u32>,
    pub criu_path: Option<String>,
    pub criu_image_path: Option<String>,
    pub criu_work_path: Option<String>,
    pub network_owner: Option<NetworkOwner>,
    pub cni_conf_dir: Option<PathBuf>,
    pub cni_bin_dirs: Option<Vec<PathBuf>>,
    pub cni_max_conf_num: Option<usize>,
    pub cni_if_name: Option<String>,
    pub cni_loopback: Option<bool>,
    pub cni_cache_dir: Option<PathBuf>,
    #[serde(deserialize_with = "time::duration")]
    pub cni_timeout: Option<Duration>,
    pub state_root: Option<PathBuf>,
    pub run_root: Option<PathBuf>,
    #[serde(deserialize_with = "time::duration")]
    pub containerd_timeout: Option<Duration>,
    #[serde(deserialize_with = "time::duration")]
    pub runtime_timeout: Option<Duration>,
    // Keys of containerd's own message, which it leaves in the text.
    pub type_url: Option<String>,
    pub config_path: Option<String>,
    #[serde(flatten)]
    pub unknown: BTreeMap<String, toml::Value>,
    #[serde(skip)]
    pub place: String,
}

impl Layer {
    /// Reads TOML that was found in `place`.
    pub fn parse(text: &str, place: &str) -> Result<Self, Error> {
        let wrong = |source| Error::Toml { place: place.to_owned(), source: Box::new(source) };
        let layer: Self = toml::from_str(text).map_err(wrong)?;
        Ok(Self { place: place.to_owned(), ..layer })
    }

    /// One text for each key that is not known.
    pub fn unknown(&self) -> Vec<String> {
        let name = |key: &String| format!("unknown option {key:?} in {}", self.place);
        self.unknown.keys().map(name).collect()
    }

    /// Puts what this layer says over `options`.
    pub fn apply(self, options: &mut Options) -> Result<(), Error> {
        let runtime = &mut options.runtime;
        set(&mut runtime.binary_name, self.binary_name);
        set(&mut runtime.root, absolute("Root", self.root)?);
        set(&mut runtime.systemd_cgroup, self.systemd_cgroup);
        set(&mut runtime.no_pivot_root, self.no_pivot_root);
        set(&mut runtime.no_new_keyring, self.no_new_keyring);
        set(&mut runtime.shim_cgroup, self.shim_cgroup);
        set(&mut runtime.io_uid, self.io_uid);
        set(&mut runtime.io_gid, self.io_gid);
        set(&mut runtime.criu_path, self.criu_path);
        set(&mut runtime.criu_image_path, self.criu_image_path);
        set(&mut runtime.criu_work_path, self.criu_work_path);
        if runtime.binary_name.is_empty() {
            return Err(Error::Value { key: "BinaryName", reason: "it is empty".into() });
        }

        let network = &mut options.network;
        set(&mut network.owner, self.network_owner);
        set(&mut network.conf_dir, absolute("CniConfDir", self.cni_conf_dir)?);
        for folder in self.cni_bin_dirs.iter().flatten() {
            absolute("CniBinDirs", Some(folder.clone()))?;
        }
        set(&mut network.bin_dirs, self.cni_bin_dirs);
        set(&mut network.max_conf_num, self.cni_max_conf_num);
        set(&mut network.loopback, self.cni_loopback);
        set(&mut network.if_name, self.cni_if_name.map(interface).transpose()?);
        set(&mut network.cache_dir, absolute("CniCacheDir", self.cni_cache_dir)?);
        set(&mut network.timeout, self.cni_timeout);

        set(&mut options.state_root, absolute("StateRoot", self.state_root)?);
        set(&mut options.run_root, absolute("RunRoot", self.run_root)?);
        set(&mut options.deadlines.containerd, self.containerd_timeout);
        set(&mut options.deadlines.runtime, self.runtime_timeout);
        Ok(())
    }
}

fn set<T>(option: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *option = value;
    }
}

fn absolute(key: &'static str, path: Option<PathBuf>) -> Result<Option<PathBuf>, Error> {
    match path {
        Some(path) if !path.is_absolute() => {
            Err(Error::Value { key, reason: format!("{} is not an absolute path", path.display()) })
        }
        other => Ok(other),
    }
}

/// The kernel's rule for the name of a network interface.
fn interface(name: String) -> Result<String, Error> {
    let allowed = |c: char| !c.is_whitespace() && !c.is_control() && c != '/' && c != ':';
    if matches!(name.len(), 1..=15) && name.chars().all(allowed) && name != "." && name != ".." {
        return Ok(name);
    }
    Err(Error::Value { key: "CniIfName", reason: format!("{name:?} is no name of an interface") })
}
