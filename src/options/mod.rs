//! The options of a runtime handler: where they come from, in which wire forms, and what they are by default.
//!
//! Layers, the later one wins: Mooring's defaults, `/etc/mooring/config.toml` (or the file that the environment names as
//! `MOORING_CONFIG`), the profile in it that the shim's name stands for, and the handler's own options as containerd
//! passes them. What can be set is in the table of [`keys`]; where a room of this library has settings of its own, the
//! options are those.

mod decode;
#[cfg(test)]
mod docs;
mod handler;
mod keys;
mod layer;
mod profile;
mod text;
pub mod time;
mod value;

use std::{
    env,
    path::{Path, PathBuf},
    time::Duration,
};

use thiserror::Error;

use crate::{
    error::{Code, Coded},
    keeper, network, nri,
    runtime::RuntimeSettings,
};

pub use decode::{AnyValue, is_options_type};
pub use handler::HandlerOptions;
pub use profile::Profile;

/// The configuration of the node, unless the environment names another file.
const CONFIG: &str = "/etc/mooring/config.toml";

/// Everything that an administrator can choose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The profile that the shim's name stands for.
    pub profile: Option<Profile>,
    /// How containers are run; the root folder is without containerd's namespace.
    pub runtime: RuntimeSettings,
    /// How pods are networked that the shim networks.
    pub network: network::Settings,
    pub network_owner: NetworkOwner,
    /// Who is told of pods that are not CRI's.
    pub nri: nri::Settings,
    /// What keeps the namespaces of a pod that needs no process.
    pub keeper: keeper::Preference,
    /// Whether a shim at its end adds what it measured to the node's totals ([`crate::telemetry::totals`]).
    pub keep_totals: bool,
    /// The cgroup that the shim itself belongs in; empty for the one that it was started in.
    pub shim_cgroup: String,
    /// Where the journal and whatever must survive a reboot lie.
    pub state_root: PathBuf,
    /// Where files lie that may vanish with a reboot.
    pub run_root: PathBuf,
    /// How long a teardown waits for containerd before it kills on its own.
    pub containerd_timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            profile: None,
            runtime: RuntimeSettings::default(),
            network: network::Settings::default(),
            network_owner: NetworkOwner::default(),
            nri: nri::Settings::default(),
            keeper: keeper::Preference::default(),
            keep_totals: false,
            shim_cgroup: String::new(),
            state_root: "/var/lib/mooring".into(),
            run_root: "/run/mooring".into(),
            containerd_timeout: Duration::from_secs(10),
        }
    }
}

/// Who makes a pod's network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NetworkOwner {
    /// The client where it passed a network namespace, else the shim.
    #[default]
    Auto,
    Shim,
    Client,
}

/// Options that cannot be used.
#[derive(Debug, Error)]
pub enum Error {
    /// The message is of a type that stands for no options.
    #[error("runtime options of unknown type {0:?}")]
    UnknownType(String),
    /// The message is not what its type says.
    #[error("runtime options of type {type_url:?}: {source}")]
    Message { type_url: String, source: prost::DecodeError },
    /// A configuration file cannot be read.
    #[error("read configuration {path}: {source}", path = path.display())]
    Read { path: PathBuf, source: std::io::Error },
    /// A configuration is no TOML.
    #[error("configuration in {place}: {source}")]
    Toml { place: String, source: Box<toml::de::Error> },
    /// The value of an option cannot be used.
    #[error("option {key} in {place}: {reason}")]
    Value { key: &'static str, place: String, reason: value::Wrong },
}

impl Coded for Error {
    fn code(&self) -> Code {
        Code::InvalidArgument
    }
}

impl Options {
    /// Puts the layers together: defaults, the node's configuration, the profile in it, and what containerd passed.
    ///
    /// The texts that come with the options name every key that Mooring does not know.
    pub fn load(
        profile: Option<&Profile>,
        handler: Option<&AnyValue>,
    ) -> Result<(Self, Vec<String>), Error> {
        Self::load_from(&node_file(), profile, handler)
    }

    /// The same as [`Options::load`], with the node's configuration in `file`. No such file is an empty one.
    pub fn load_from(
        file: &Path,
        profile: Option<&Profile>,
        handler: Option<&AnyValue>,
    ) -> Result<(Self, Vec<String>), Error> {
        let (node, mut warnings) = Self::of_node(file, profile)?;
        let Some(handler) = handler else { return Ok((node, warnings)) };
        let (options, more) = node.overridden(handler)?;
        warnings.extend(more);
        Ok((options, warnings))
    }

    fn of_node(file: &Path, profile: Option<&Profile>) -> Result<(Self, Vec<String>), Error> {
        let mut common = read_layer(file)?;
        let place = common.place.clone();
        let own = profile::take(&mut common.values, profile).map_err(|reason| Error::Value {
            key: profile::TABLE,
            place: place.clone(),
            reason,
        })?;
        let mut options = Self { profile: profile.cloned(), ..Self::default() };
        let mut warnings = common.apply(&mut options)?;
        if let (Some(values), Some(profile)) = (own, profile) {
            let place = format!("[{}.{profile}] of {place}", profile::TABLE);
            warnings.extend(layer::Layer { values, place }.apply(&mut options)?);
        }
        Ok((options, warnings))
    }

    /// The runtime's type, as the configuration of containerd names it.
    pub fn runtime_type(&self) -> String {
        match &self.profile {
            None => "io.containerd.mooring.v1".to_owned(),
            Some(profile) => format!("io.containerd.mooring-{profile}.v1"),
        }
    }

    /// These options where `any`, a message of options, does not say otherwise.
    fn overridden(&self, any: &AnyValue) -> Result<(Self, Vec<String>), Error> {
        let mut options = self.clone();
        let warnings = decode::layer(any)?.apply(&mut options)?;
        Ok((options, warnings))
    }
}

/// The options of this node's handlers, as far as the node's configuration says: those of all handlers, then those of each
/// of its profiles.
pub fn of_node() -> Result<Vec<Options>, Error> {
    all_in(&node_file())
}

/// Every folder in which shims of this node keep state, as far as [`of_node`] says.
pub fn state_roots() -> Result<Vec<PathBuf>, Error> {
    each_of_the_node(&node_file(), |options| options.state_root)
}

/// The same for the folders of pods' files and mounts, and of the node's totals.
pub fn run_roots() -> Result<Vec<PathBuf>, Error> {
    each_of_the_node(&node_file(), |options| options.run_root)
}

fn all_in(file: &Path) -> Result<Vec<Options>, Error> {
    let mut all = vec![Options::load_from(file, None, None)?.0];
    for profile in profile::all(&read_layer(file)?.values) {
        all.push(Options::load_from(file, Some(&profile), None)?.0);
    }
    Ok(all)
}

/// What they have, each value once.
fn each_of_the_node(
    file: &Path,
    value: impl Fn(Options) -> PathBuf,
) -> Result<Vec<PathBuf>, Error> {
    let mut found = Vec::new();
    for one in all_in(file)?.into_iter().map(value) {
        if !found.contains(&one) {
            found.push(one);
        }
    }
    Ok(found)
}

/// The node's configuration. No such file is an empty one.
fn read_layer(file: &Path) -> Result<layer::Layer, Error> {
    let text = match text::read(file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(source) => return Err(Error::Read { path: file.into(), source }),
    };
    layer::Layer::parse(&text, &file.display().to_string())
}

fn node_file() -> PathBuf {
    env::var_os("MOORING_CONFIG").map_or_else(|| CONFIG.into(), PathBuf::from)
}

#[cfg(test)]
mod tests;
