//! The wire forms of runtime options.

use std::path::Path;

use prost::Message;
use serde::{Deserialize, Serialize};

use super::{Error, layer::Layer, text, value::Wrong};

/// The options of runc's shim; every client may send them.
const RUNC: &str = "containerd.runc.v1.Options";
/// The options that CRI sends to a runtime that it does not know: a configuration as text.
const GENERIC: &str = "runtimeoptions.v1.Options";
/// Where options of either type come from, in messages.
const PLACE: &str = "the handler's options";

/// A message with the name of its type, as `google.protobuf.Any` carries it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnyValue {
    /// The type, possibly with a host before the last slash.
    pub type_url: String,
    pub value: Vec<u8>,
}

impl AnyValue {
    /// The full name of the message's type.
    pub fn type_name(&self) -> &str {
        self.type_url.rsplit('/').next().unwrap_or_default()
    }
}

/// What of `containerd.runc.v1.Options` has an effect.
#[derive(Clone, PartialEq, Message)]
pub(super) struct RuncOptions {
    #[prost(bool, tag = "1")]
    pub no_pivot_root: bool,
    #[prost(bool, tag = "2")]
    pub no_new_keyring: bool,
    #[prost(string, tag = "3")]
    pub shim_cgroup: String,
    #[prost(uint32, tag = "4")]
    pub io_uid: u32,
    #[prost(uint32, tag = "5")]
    pub io_gid: u32,
    #[prost(string, tag = "6")]
    pub binary_name: String,
    #[prost(string, tag = "7")]
    pub root: String,
    #[prost(bool, tag = "9")]
    pub systemd_cgroup: bool,
    #[prost(string, tag = "11")]
    pub criu_work_path: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct GenericOptions {
    #[prost(string, tag = "1")]
    pub type_url: String,
    #[prost(string, tag = "2")]
    pub config_path: String,
    #[prost(bytes = "vec", tag = "3")]
    pub config_body: Vec<u8>,
}

/// Whether a message of type `type_url` stands for runtime options.
pub fn is_options_type(type_url: &str) -> bool {
    matches!(type_url.rsplit('/').next(), Some(RUNC | GENERIC))
}

/// What a message of options says. An empty one says nothing.
pub(super) fn layer(any: &AnyValue) -> Result<Layer, Error> {
    let wrong = |source| Error::Message { type_url: any.type_url.clone(), source };
    match any.type_name() {
        "" if any.value.is_empty() => Ok(Layer::default()),
        RUNC => Ok(RuncOptions::decode(&*any.value).map_err(wrong)?.into()),
        GENERIC => {
            let options = GenericOptions::decode(&*any.value).map_err(wrong)?;
            if options.config_body.is_empty() && !options.config_path.is_empty() {
                return from_file(Path::new(&options.config_path));
            }
            // Text that is no UTF-8 is no TOML either; the parser says where.
            Layer::parse(&String::from_utf8_lossy(&options.config_body), PLACE)
        }
        _ => Err(Error::UnknownType(any.type_url.clone())),
    }
}

fn from_file(path: &Path) -> Result<Layer, Error> {
    if !path.is_absolute() {
        let reason = Wrong::Relative(path.to_owned());
        return Err(Error::Value { key: "ConfigPath", place: PLACE.into(), reason });
    }
    let text = text::read(path).map_err(|source| Error::Read { path: path.into(), source })?;
    Layer::parse(&text, &path.display().to_string())
}

impl From<RuncOptions> for Layer {
    fn from(options: RuncOptions) -> Self {
        let mut layer = Self { place: PLACE.into(), ..Self::default() };
        layer.given("NoPivotRoot", options.no_pivot_root);
        layer.given("NoNewKeyring", options.no_new_keyring);
        layer.given("ShimCgroup", options.shim_cgroup);
        layer.given("IoUid", options.io_uid);
        layer.given("IoGid", options.io_gid);
        layer.given("BinaryName", options.binary_name);
        layer.given("Root", options.root);
        layer.given("SystemdCgroup", options.systemd_cgroup);
        layer.given("CriuWorkPath", options.criu_work_path);
        layer
    }
}
