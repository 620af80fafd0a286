//! The options of a runtime handler: where they come from, in which wire forms, and what they are by default.
//!
//! Three layers, the later one wins: Mooring's defaults, `/etc/mooring/config.toml` (or the file that the environment
//! names as `MOORING_CONFIG`), and the handler's own options as containerd passes them.

mod decode;
mod layer;
mod time;

use std::{
    env,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::error::{Code, Coded};

pub use decode::{AnyValue, is_options_type};

/// The configuration of the node, unless the environment names another file.
const CONFIG: &str = "/etc/mooring/config.toml";

/// Everything that an administrator can choose.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Options {
    /// How containers are run.
    pub runtime: RuntimeOptions,
    /// Who makes the pod's network, and how.
    pub network: NetworkOptions,
    /// Where the journal and whatever must survive a reboot lie (`StateRoot`).
    pub state_root: PathBuf,
    /// Where files lie that may vanish with a reboot (`RunRoot`).
    pub run_root: PathBuf,
    /// How long things may take.
    pub deadlines: Deadlines,
}

/// What the OCI runtime is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuntimeOptions {
    /// The OCI runtime: a path, or a name to be found in `PATH` (`BinaryName`).
    pub binary_name: String,
    /// The runtime's root folder; the namespace is added to it (`Root`).
    pub root: PathBuf,
    /// Cgroups are made by systemd (`SystemdCgroup`).
    pub systemd_cgroup: bool,
    /// No `pivot_root` for containers (`NoPivotRoot`).
    pub no_pivot_root: bool,
    /// No session keyring for containers (`NoNewKeyring`).
    pub no_new_keyring: bool,
    /// The cgroup that the shim itself belongs in, if any (`ShimCgroup`).
    pub shim_cgroup: String,
    /// The owner of a container's standard streams (`IoUid`).
    pub io_uid: u32,
    /// The group of a container's standard streams (`IoGid`).
    pub io_gid: u32,
    /// The checkpointing program (`CriuPath`).
    pub criu_path: String,
    /// Where checkpoints are kept (`CriuImagePath`).
    pub criu_image_path: String,
    /// Where the checkpointing program works (`CriuWorkPath`).
    pub criu_work_path: String,
}

/// Who makes a pod's network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NetworkOwner {
    /// The client where it passed a network namespace, else the shim.
    #[default]
    Auto,
    /// The shim, always.
    Shim,
    /// The client, always.
    Client,
}

/// How pods that the shim networks are networked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkOptions {
    /// Who makes the network (`NetworkOwner`).
    pub owner: NetworkOwner,
    /// Where the network configurations lie (`CniConfDir`).
    pub conf_dir: PathBuf,
    /// Where the plugins lie (`CniBinDirs`).
    pub bin_dirs: Vec<PathBuf>,
    /// How many configurations are used, in lexical order; 0 is all (`CniMaxConfNum`).
    pub max_conf_num: usize,
    /// The interface of the first network in the pod (`CniIfName`).
    pub if_name: String,
    /// Whether the pod's `lo` is brought up (`CniLoopback`).
    pub loopback: bool,
    /// Where results of ADD are kept until their DEL (`CniCacheDir`).
    pub cache_dir: PathBuf,
    /// How long one plugin may take (`CniTimeout`).
    pub timeout: Duration,
}

/// How long things may take before they are given up, or done in another way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deadlines {
    /// How long a teardown waits for containerd before it kills on its own (`ContainerdTimeout`).
    pub containerd: Duration,
    /// How long one call of the OCI runtime may take (`RuntimeTimeout`).
    pub runtime: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            runtime: RuntimeOptions::default(),
            network: NetworkOptions::default(),
            state_root: "/var/lib/mooring".into(),
            run_root: "/run/mooring".into(),
            deadlines: Deadlines::default(),
        }
    }
}

impl Default for RuntimeOptions {
    fn default() -> Self {
        Self {
            binary_name: "runc".into(),
            root: "/run/containerd/runc".into(),
            systemd_cgroup: false,
            no_pivot_root: false,
            no_new_keyring: false,
            shim_cgroup: String::new(),
            io_uid: 0,
            io_gid: 0,
            criu_path: String::new(),
            criu_image_path: String::new(),
            criu_work_path: String::new(),
        }
    }
}

impl Default for NetworkOptions {
    fn default() -> Self {
        Self {
            owner: NetworkOwner::Auto,
            conf_dir: "/etc/cni/net.d".into(),
            bin_dirs: vec!["/opt/cni/bin".into(), "/usr/lib/cni".into()],
            max_conf_num: 1,
            if_name: "eth0".into(),
            loopback: true,
            cache_dir: "/var/lib/cni".into(),
            timeout: Duration::from_mins(1),
        }
    }
}

impl Default for Deadlines {
    fn default() -> Self {
        Self { containerd: Duration::from_secs(10), runtime: Duration::from_mins(2) }
    }
}

/// Options that cannot be used.
#[derive(Debug, Error)]
pub enum Error {
    /// The message is of a type that stands for no options.
    #[error("runtime options of unknown type {0:?}")]
    UnknownType(String),
    /// The message is not what its type says.
    #[error("runtime options of type {type_url:?}: {source}")]
    Message {
        /// The type.
        type_url: String,
        /// What is wrong with it.
        source: prost::DecodeError,
    },
    /// A configuration file cannot be read.
    #[error("read configuration {path}: {source}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// A configuration is no TOML, or a value in it has the wrong type.
    #[error("configuration in {place}: {source}")]
    Toml {
        /// The file, or the handler's table.
        place: String,
        /// What is wrong with it.
        source: Box<toml::de::Error>,
    },
    /// A value is of the right type and still cannot be used.
    #[error("option {key}: {reason}")]
    Value {
        /// The option.
        key: &'static str,
        /// Why its value is no good.
        reason: String,
    },
}

impl Coded for Error {
    fn code(&self) -> Code {
        Code::InvalidArgument
    }
}

impl Options {
    /// Puts the layers together: defaults, the node's configuration, and what containerd passed.
    ///
    /// The texts that come with the options name every key that Mooring does not know.
    pub fn load(handler: Option<&AnyValue>) -> Result<(Self, Vec<String>), Error> {
        Self::load_from(&node_file(), handler)
    }

    /// The options of a container in a sandbox: what containerd passed with the container over what it passed with
    /// the sandbox. containerd may pass no more than the shim's address with a container.
    pub fn load_for_container(
        sandbox: Option<&AnyValue>,
        container: &AnyValue,
    ) -> Result<(Self, Vec<String>), Error> {
        Self::load_layers(&node_file(), sandbox.into_iter().chain([container]))
    }

    /// The same as [`Options::load`], with the node's configuration in `file`. No such file is no configuration.
    pub fn load_from(
        file: &Path,
        handler: Option<&AnyValue>,
    ) -> Result<(Self, Vec<String>), Error> {
        Self::load_layers(file, handler)
    }

    fn load_layers<'a>(
        file: &Path,
        given: impl IntoIterator<Item = &'a AnyValue>,
    ) -> Result<(Self, Vec<String>), Error> {
        let (mut options, mut warnings) = (Self::default(), Vec::new());
        let node = match std::fs::read_to_string(file) {
            Ok(text) => Some(layer::Layer::parse(&text, &file.display().to_string())?),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(source) => return Err(Error::Read { path: file.into(), source }),
        };
        let given = given.into_iter().map(decode::layer);
        for layer in node.map(Ok).into_iter().chain(given) {
            let layer = layer?;
            warnings.extend(layer.unknown());
            layer.apply(&mut options)?;
        }
        Ok((options, warnings))
    }
}

fn node_file() -> PathBuf {
    env::var_os("MOORING_CONFIG").map_or_else(|| CONFIG.into(), PathBuf::from)
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::{
        decode::{GenericOptions, RuncOptions},
        *,
    };

    fn generic(body: &str) -> AnyValue {
        let options = GenericOptions { config_body: body.into(), ..GenericOptions::default() };
        AnyValue { type_url: "runtimeoptions.v1.Options".into(), value: options.encode_to_vec() }
    }

    fn load(handler: &AnyValue) -> Result<(Options, Vec<String>), Error> {
        Options::load_from(Path::new("/nonexistent/config.toml"), Some(handler))
    }

    #[test]
    fn nothing_given_is_the_defaults() {
        let nothing = Options::load_from(Path::new("/nonexistent"), None).unwrap();
        assert_eq!(nothing, (Options::default(), vec![]));
        assert_eq!(load(&AnyValue::default()).unwrap().0, Options::default());
        assert_eq!(load(&generic("")).unwrap().0, Options::default());
    }

    #[test]
    fn the_table_of_a_handler_is_read() {
        let table = r#"
            TypeUrl = ""
            BinaryName = "/usr/sbin/runc"
            SystemdCgroup = true
            IoUid = 1000
            NetworkOwner = "shim"
            CniBinDirs = ["/a", "/b"]
            CniTimeout = "1m30s"
            RuntimeTimeout = 5
            Surprise = 1
            [Other]
            Key = 2
        "#;
        let (options, warnings) = load(&generic(table)).unwrap();
        assert_eq!(options.runtime.binary_name, "/usr/sbin/runc");
        assert!(options.runtime.systemd_cgroup);
        assert_eq!(options.runtime.io_uid, 1000);
        assert_eq!(options.network.owner, NetworkOwner::Shim);
        assert_eq!(options.network.bin_dirs, [PathBuf::from("/a"), PathBuf::from("/b")]);
        assert_eq!(options.network.timeout, Duration::from_secs(90));
        assert_eq!(options.deadlines.runtime, Duration::from_secs(5));
        assert_eq!(warnings.len(), 2, "{warnings:?}");
        assert!(warnings[0].contains("\"Other\"") && warnings[1].contains("\"Surprise\""));
    }

    #[test]
    fn the_example_shows_known_keys_at_their_defaults() {
        let example = include_str!("../../examples/config.toml");
        let values = example.lines().filter_map(|line| line.strip_prefix('#'));
        let values: Vec<_> = values.filter(|line| !line.starts_with(' ')).collect();
        assert!(values.len() > 15, "{values:?}");
        let shown = load(&generic(&values.join("\n"))).unwrap();
        assert_eq!(shown, (Options::default(), vec![]));
        for key in values.iter().filter_map(|line| line.split(' ').next()) {
            let known = include_str!("mod.rs").contains(&format!("(`{key}`)"));
            assert!(known, "{key} is not documented");
        }
    }

    #[test]
    fn options_of_runc_are_read() {
        let options = RuncOptions {
            binary_name: "crun".into(),
            no_pivot_root: true,
            io_gid: 7,
            ..RuncOptions::default()
        };
        let any = AnyValue {
            type_url: "type.googleapis.com/containerd.runc.v1.Options".into(),
            value: options.encode_to_vec(),
        };
        let (options, warnings) = load(&any).unwrap();
        assert_eq!(options.runtime.binary_name, "crun");
        assert!(options.runtime.no_pivot_root);
        assert_eq!(options.runtime.io_gid, 7);
        assert_eq!(options.runtime.root, RuntimeOptions::default().root);
        assert!(warnings.is_empty());
    }

    #[test]
    fn a_container_keeps_what_its_sandbox_was_given() {
        // What containerd 2.1 and 2.2 pass with a container: task_api_address and task_api_version.
        let value = b"\x62\x0bunix:///run\x68\x03".to_vec();
        let own = AnyValue { type_url: "containerd.runc.v1.Options".into(), value };
        let sandbox = generic("BinaryName = 'crun'");
        let file = Path::new("/nonexistent");
        let (options, warnings) = Options::load_layers(file, [&sandbox, &own]).unwrap();
        assert_eq!(options.runtime.binary_name, "crun");
        assert!(warnings.is_empty());
    }

    #[test]
    fn the_handler_overrides_the_node_and_the_node_the_defaults() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("config.toml");
        std::fs::write(&file, "BinaryName = 'node'\nStateRoot = '/srv/mooring'\n").unwrap();
        let (options, _) = Options::load_from(&file, Some(&generic("BinaryName = 'pod'"))).unwrap();
        assert_eq!(options.runtime.binary_name, "pod");
        assert_eq!(options.state_root, PathBuf::from("/srv/mooring"));
        assert_eq!(options.run_root, PathBuf::from("/run/mooring"));
    }

    #[test]
    fn a_configuration_may_lie_in_a_file_that_the_handler_names() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("handler.toml");
        std::fs::write(&file, "NoNewKeyring = true\nOdd = 1").unwrap();
        let options =
            GenericOptions { config_path: file.display().to_string(), ..GenericOptions::default() };
        let any = AnyValue {
            type_url: "runtimeoptions.v1.Options".into(),
            value: options.encode_to_vec(),
        };
        let (options, warnings) = load(&any).unwrap();
        assert!(options.runtime.no_new_keyring);
        assert!(warnings[0].contains("handler.toml"), "{warnings:?}");
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        let message = |any: &AnyValue| {
            let error = load(any).unwrap_err();
            assert_eq!(error.code(), Code::InvalidArgument);
            error.to_string()
        };
        let other = AnyValue { type_url: "some.Type".into(), value: vec![1] };
        assert!(message(&other).contains("\"some.Type\""));
        let torn = AnyValue { type_url: "containerd.runc.v1.Options".into(), value: vec![0x32] };
        assert!(message(&torn).contains("containerd.runc.v1.Options"));
        assert!(message(&generic("IoUid = 'me'")).contains("IoUid"));
        assert!(message(&generic("= 3")).contains("configuration in"));
        assert!(message(&generic("StateRoot = 'var'")).contains("StateRoot"));
        assert!(message(&generic("NetworkOwner = 'me'")).contains("NetworkOwner"));
        assert!(message(&generic("CniTimeout = '3 days'")).contains("CniTimeout"));
        assert!(message(&generic("CniIfName = 'a/b'")).contains("CniIfName"));
    }

    proptest::proptest! {
        #[test]
        fn no_input_makes_decoding_panic(
            url in "(containerd.runc.v1.Options|runtimeoptions.v1.Options|.*)",
            value in proptest::collection::vec(proptest::num::u8::ANY, 0..64),
        ) {
            let _ = load(&AnyValue { type_url: url, value });
        }

        #[test]
        fn no_configuration_makes_parsing_panic(text in ".*") {
            let _ = load(&generic(&text));
        }
    }
}
