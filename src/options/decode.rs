//! The wire forms of runtime options.

use std::path::{Path, PathBuf};

use prost::Message;
use serde::{Deserialize, Serialize};

use super::{Error, layer::Layer};

/// The options of runc's shim; every client may send them.
const RUNC: &str = "containerd.runc.v1.Options";
/// The options that CRI sends to a runtime that it does not know: a configuration as text.
const GENERIC: &str = "runtimeoptions.v1.Options";

/// A message with the name of its type, as `google.protobuf.Any` carries it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnyValue {
    /// The type, possibly with a host before the last slash.
    pub type_url: String,
    /// The encoded message.
    pub value: Vec<u8>,
}

impl AnyValue {
    /// The full name of the message's type.
    pub fn type_name(&self) -> &str {
        self.type_url.rsplit('/').next().unwrap_or_default()
    }
}

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
    #[prost(string, tag = "8")]
    pub criu_path: String,
    #[prost(bool, tag = "9")]
    pub systemd_cgroup: bool,
    #[prost(string, tag = "10")]
    pub criu_image_path: String,
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
            Layer::parse(&String::from_utf8_lossy(&options.config_body), "the handler's options")
        }
        _ => Err(Error::UnknownType(any.type_url.clone())),
    }
}

fn from_file(path: &Path) -> Result<Layer, Error> {
    if !path.is_absolute() {
        let reason = format!("{} is not an absolute path", path.display());
        return Err(Error::Value { key: "ConfigPath", reason });
    }
    let text = std::fs::read_to_string(path)
        .map_err(|source| Error::Read { path: path.into(), source })?;
    Layer::parse(&text, &path.display().to_string())
}

impl From<RuncOptions> for Layer {
    /// In protobuf a field at its default is a field not given.
    fn from(options: RuncOptions) -> Self {
        let flag = |value: bool| value.then_some(true);
        let number = |value: u32| (value != 0).then_some(value);
        let text = |value: String| (!value.is_empty()).then_some(value);
        Self {
            no_pivot_root: flag(options.no_pivot_root),
            no_new_keyring: flag(options.no_new_keyring),
            shim_cgroup: text(options.shim_cgroup),
            io_uid: number(options.io_uid),
            io_gid: number(options.io_gid),
            binary_name: text(options.binary_name),
            root: text(options.root).map(PathBuf::from),
            criu_path: text(options.criu_path),
            systemd_cgroup: flag(options.systemd_cgroup),
            criu_image_path: text(options.criu_image_path),
            criu_work_path: text(options.criu_work_path),
            ..Self::default()
        }
    }
}
