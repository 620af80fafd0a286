//! The options of one shim and of the containers in it.

use std::path::Path;

use super::{AnyValue, Error, Options, Profile, node_file};
use crate::{id::Id, runtime::RuntimeSettings};

/// The options as a shim was started with them. The node's configuration is read once: what becomes of the file later
/// is for pods that start later.
#[derive(Debug)]
pub struct HandlerOptions {
    node: Options,
    given: Option<AnyValue>,
    shim: Options,
}

impl HandlerOptions {
    /// Those of a shim that containerd passed `given` with, and whose name stands for `profile`. The texts name every
    /// key that Mooring does not know.
    pub fn load(
        profile: Option<&Profile>,
        given: Option<AnyValue>,
    ) -> Result<(Self, Vec<String>), Error> {
        Self::load_from(&node_file(), profile, given)
    }

    /// The same, with the node's configuration in `file`.
    pub fn load_from(
        file: &Path,
        profile: Option<&Profile>,
        given: Option<AnyValue>,
    ) -> Result<(Self, Vec<String>), Error> {
        let (node, mut warnings) = Options::of_node(file, profile)?;
        let shim = match &given {
            Some(given) => {
                let (shim, more) = node.overridden(given)?;
                warnings.extend(more);
                shim
            }
            None => node.clone(),
        };
        Ok((Self { node, given, shim }, warnings))
    }

    /// The options of the shim itself.
    pub fn shim(&self) -> &Options {
        &self.shim
    }

    /// How the OCI runtime is called for a container that containerd passed `own` with.
    ///
    /// In a sandbox that is over what it passed with the sandbox: it may pass no more than the shim's address with a
    /// container. A container without sandbox that shares this shim has nothing of the one that started it.
    pub fn runtime(
        &self,
        namespace: &Id,
        own: Option<&AnyValue>,
        in_sandbox: bool,
    ) -> Result<(RuntimeSettings, Vec<String>), Error> {
        let own =
            own.filter(|own| **own != AnyValue::default() && Some(*own) != self.given.as_ref());
        let Some(own) = own else {
            return Ok((self.shim.runtime.in_namespace(namespace), Vec::new()));
        };
        let under = if in_sandbox { &self.shim } else { &self.node };
        let (options, warnings) = under.overridden(own)?;
        Ok((options.runtime.in_namespace(namespace), warnings))
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use prost::Message;

    use super::{super::tests::generic, *};
    use crate::options::decode::RuncOptions;

    fn options(given: AnyValue) -> HandlerOptions {
        HandlerOptions::load_from(Path::new("/nonexistent"), None, Some(given)).unwrap().0
    }

    #[test]
    fn a_container_keeps_what_its_sandbox_was_given() {
        // What containerd 2.1 and 2.2 pass with a container: task_api_address and task_api_version.
        let value = b"\x62\x0bunix:///run\x68\x03".to_vec();
        let own = AnyValue { type_url: "containerd.runc.v1.Options".into(), value };
        let id = Id::new("k8s.io").unwrap();
        let options = options(generic("BinaryName = 'crun'"));
        let (runtime, warnings) = options.runtime(&id, Some(&own), true).unwrap();
        assert_eq!(runtime.binary, PathBuf::from("crun"));
        assert_eq!(runtime.root, PathBuf::from("/run/containerd/runc/k8s.io"));
        assert!(warnings.is_empty());
    }

    #[test]
    fn a_container_that_shares_a_shim_has_options_of_its_own() {
        let id = Id::new("default").unwrap();
        let options = options(generic("BinaryName = 'crun'"));
        let own = RuncOptions { root: "/r".into(), ..RuncOptions::default() };
        let own =
            AnyValue { type_url: "containerd.runc.v1.Options".into(), value: own.encode_to_vec() };
        let (runtime, _) = options.runtime(&id, Some(&own), false).unwrap();
        assert_eq!((runtime.binary, runtime.root), ("runc".into(), "/r/default".into()));
        let (runtime, _) = options.runtime(&id, None, false).unwrap();
        assert_eq!(runtime.binary, PathBuf::from("crun"));
    }
}
