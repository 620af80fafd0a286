//! A pod as plugins are told of it, and as the journal keeps it for whoever tells them of its end.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::api::{LinuxNamespace, LinuxPodSandbox, PodSandbox};

/// What is said of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Pod {
    pub id: String,
    pub name: String,
    pub uid: String,
    pub namespace: String,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    /// The runtime's type.
    pub runtime: String,
    pub cgroup_parent: String,
    pub cgroups_path: String,
    /// Type and path of each namespace.
    pub namespaces: Vec<(String, String)>,
    /// What stands for the pod under /proc; 0 where nothing does.
    pub pid: u32,
    pub ips: Vec<String>,
}

impl Pod {
    /// Adds what the pod's OCI specification says.
    #[must_use]
    pub fn with_spec(mut self, spec: &Value) -> Self {
        self.annotations = table(spec.get("annotations"));
        let path = spec.pointer("/linux/cgroupsPath").and_then(Value::as_str);
        path.unwrap_or_default().clone_into(&mut self.cgroups_path);
        self.namespaces = namespaces(spec);
        self
    }

    pub(super) fn message(&self) -> PodSandbox {
        let linux = LinuxPodSandbox {
            cgroup_parent: self.cgroup_parent.clone(),
            cgroups_path: self.cgroups_path.clone(),
            namespaces: self.namespaces.iter().map(namespace).collect(),
            ..LinuxPodSandbox::default()
        };
        PodSandbox {
            id: self.id.clone(),
            name: self.name.clone(),
            uid: self.uid.clone(),
            namespace: self.namespace.clone(),
            labels: self.labels.clone(),
            annotations: self.annotations.clone(),
            runtime_handler: self.runtime.clone(),
            linux: Some(linux).into(),
            pid: self.pid,
            ips: self.ips.clone(),
            ..PodSandbox::default()
        }
    }
}

/// The texts of a JSON object.
pub(super) fn table(value: Option<&Value>) -> BTreeMap<String, String> {
    let entries = value.and_then(Value::as_object).into_iter().flatten();
    entries.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
}

/// Type and path of each of a specification's namespaces.
pub(super) fn namespaces(spec: &Value) -> Vec<(String, String)> {
    let all = spec.pointer("/linux/namespaces").and_then(Value::as_array).into_iter().flatten();
    let text =
        |one: &Value, key| one.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    all.map(|one| (text(one, "type"), text(one, "path"))).collect()
}

pub(super) fn namespace((kind, path): &(String, String)) -> LinuxNamespace {
    LinuxNamespace { type_: kind.clone(), path: path.clone(), ..LinuxNamespace::default() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pod_is_what_its_specification_says_and_the_journal_keeps_it() {
        let spec = json!({
            "annotations": {"a": "1", "no": 2},
            "linux": {"cgroupsPath": "/pods/x", "namespaces": [{"type": "ipc"}, {"type": "network", "path": "/run/netns/x"}]},
        });
        let pod = Pod { id: "x".into(), pid: 7, ..Pod::default() }.with_spec(&spec);
        let text = serde_json::to_string(&pod).unwrap();
        let message = serde_json::from_str::<Pod>(&text).unwrap().message();
        assert_eq!((message.id.as_str(), message.pid), ("x", 7));
        assert_eq!(message.annotations, [("a".to_owned(), "1".to_owned())].into());
        assert_eq!(message.linux.cgroups_path, "/pods/x");
        assert_eq!(message.linux.namespaces[1].path, "/run/netns/x");
    }

    #[test]
    fn what_an_earlier_version_did_not_write_is_empty() {
        let pod: Pod = serde_json::from_str(r#"{"id": "x"}"#).unwrap();
        assert_eq!(pod, Pod { id: "x".into(), ..Pod::default() });
    }
}
