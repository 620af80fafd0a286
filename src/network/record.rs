//! The record of an attachment: everything that a DEL needs, written down before the first ADD.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{
    Error, Settings,
    cache::Slot,
    conf::{self, NetworkList, is_ifname, is_name},
};

/// What a pod asks of its networks.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AttachRequest {
    pub container_id: String,
    pub netns: PathBuf,
    /// `CNI_ARGS`; see [`kubernetes_args`].
    pub args: Vec<(String, String)>,
    /// What plugins that declare the capability are told (`runtimeConfig`), by capability.
    pub capabilities: Map<String, Value>,
}

/// What has become of one network's ADD.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// It is about to run, or was cut short: nobody knows how far it came.
    Intended,
    /// It succeeded. A DEL is owed.
    Added,
    /// It failed, and what it left may still be there. A DEL is tried.
    Failed,
    /// It never ran or was taken back. Nothing is owed.
    Removed,
}

/// One network of an attachment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NetworkRecord {
    pub name: String,
    /// The pod's interface in it.
    pub ifname: String,
    /// The configuration list as it was loaded.
    pub config: Value,
    /// What has become of the ADD.
    pub outcome: Outcome,
    /// What the ADD gave, should the cached result be lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Value>,
}

/// A pod's attachment to its networks, for the journal.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AttachmentRecord {
    pub container_id: String,
    pub netns: PathBuf,
    /// `CNI_ARGS`.
    #[serde(default)]
    pub args: Vec<(String, String)>,
    /// What plugins that declare the capability are told.
    #[serde(default)]
    pub capabilities: Map<String, Value>,
    /// Where plugins and cached results are.
    #[serde(default)]
    pub settings: Settings,
    /// The networks in the order of ADD.
    pub networks: Vec<NetworkRecord>,
}

impl AttachmentRecord {
    /// Whether a DEL would have something to do.
    pub fn owes_del(&self) -> bool {
        self.networks.iter().any(|network| network.outcome != Outcome::Removed)
    }
}

/// Loads the configurations and writes down what [`super::attach`] is going to do. Nothing is changed yet: the
/// caller stores the record first. Reads files, so not for the async thread.
pub fn plan(settings: &Settings, request: AttachRequest) -> Result<AttachmentRecord, Error> {
    let AttachRequest { container_id, netns, args, capabilities } = request;
    if !is_name(&container_id) {
        return Err(Error::Invalid { what: "container id", value: container_id });
    }
    for (key, value) in &args {
        if key.is_empty() || key.contains(['=', ';', '\0']) || value.contains([';', '\0']) {
            return Err(Error::Invalid { what: "argument", value: format!("{key}={value}") });
        }
    }
    let networks = conf::load(settings)?
        .iter()
        .enumerate()
        .map(|(index, list)| network_record(list, settings.ifname_of(index)))
        .collect::<Result<Vec<_>, _>>()?;
    for network in &networks {
        // The result of an ADD must find room before it runs.
        let slot = Slot::new(&settings.cache_dir, &network.name, &container_id, &network.ifname)?;
        if !slot.fits() {
            return Err(Error::Invalid { what: "network name", value: network.name.clone() });
        }
    }
    Ok(AttachmentRecord {
        container_id,
        netns,
        args,
        capabilities,
        settings: settings.clone(),
        networks,
    })
}

fn network_record(list: &NetworkList, ifname: String) -> Result<NetworkRecord, Error> {
    if !is_ifname(&ifname) {
        return Err(Error::Invalid { what: "interface name", value: ifname });
    }
    Ok(NetworkRecord {
        name: list.name().to_owned(),
        ifname,
        config: list.document().clone(),
        outcome: Outcome::Intended,
        result: None,
    })
}

/// The `CNI_ARGS` that plugins for Kubernetes expect, as containerd's CRI gives them.
pub fn kubernetes_args(
    namespace: &str,
    name: &str,
    uid: &str,
    sandbox_id: &str,
) -> Vec<(String, String)> {
    [
        ("IgnoreUnknown", "1"),
        ("K8S_POD_NAMESPACE", namespace),
        ("K8S_POD_NAME", name),
        ("K8S_POD_INFRA_CONTAINER_ID", sandbox_id),
        ("K8S_POD_UID", uid),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_argument_that_would_smuggle_another_is_refused() {
        let request = AttachRequest {
            container_id: "c".to_owned(),
            args: vec![("A".to_owned(), "1;B=2".to_owned())],
            ..AttachRequest::default()
        };
        let error = plan(&Settings::default(), request).unwrap_err();
        assert!(matches!(error, Error::Invalid { what: "argument", .. }), "{error}");
    }

    #[test]
    fn a_network_whose_result_would_find_no_room_is_refused_before_its_add() {
        let folder = tempfile::tempdir().unwrap();
        let settings = Settings { conf_dir: folder.path().to_owned(), ..Settings::default() };
        let planned = |length: usize| {
            let name = "n".repeat(length);
            let list = format!(
                r#"{{"cniVersion": "1.0.0", "name": "{name}", "plugins": [{{"type": "a"}}]}}"#
            );
            std::fs::write(folder.path().join("a.conflist"), list).unwrap();
            let container_id = "c".repeat(64);
            plan(&settings, AttachRequest { container_id, ..AttachRequest::default() })
        };
        assert!(planned(180).is_ok());
        let error = planned(181).unwrap_err();
        assert!(matches!(error, Error::Invalid { what: "network name", .. }), "{error}");
    }

    #[test]
    fn a_container_id_with_path_tricks_is_refused() {
        let request = AttachRequest { container_id: "../x".to_owned(), ..AttachRequest::default() };
        let error = plan(&Settings::default(), request).unwrap_err();
        assert!(matches!(error, Error::Invalid { what: "container id", .. }), "{error}");
    }
}
