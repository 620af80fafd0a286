//! The pod as an OCI specification: what a pause container's would say of it. containerd keeps it with the sandbox (from
//! 2.3 on) and shows it to NRI plugins; nothing is run from it.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::{Error, Pod, Sandbox, config::Scope, start::node_name};
use crate::{
    cgroup,
    id::Id,
    keeper::{IdMapping, Place},
    mounts::{
        files::FilesRecord,
        pod_files::{self, PodFiles},
        shm::ShmRecord,
    },
    network::netns,
};

/// The version of the OCI runtime specification that is written.
const VERSION: &str = "1.2.0";
/// CRI's annotations of a sandbox, as containerd writes them on a pause container.
const KIND: &str = "io.kubernetes.cri.container-type";
const ID: &str = "io.kubernetes.cri.sandbox-id";
const NAME: &str = "io.kubernetes.cri.sandbox-name";
const NAMESPACE: &str = "io.kubernetes.cri.sandbox-namespace";
const UID: &str = "io.kubernetes.cri.sandbox-uid";
const LOGS: &str = "io.kubernetes.cri.sandbox-log-directory";

impl Sandbox {
    /// The pod's specification. Before the start, and after the end, its namespaces are without the paths that are not
    /// there.
    pub fn spec(&self) -> Result<Value, Error> {
        let pod = self.state().pod().cloned().ok_or(Error::NotFound)?;
        self.spec_at(&pod, self.place().as_ref())
    }

    /// The specification of a pod whose namespaces are at `place`.
    pub(super) fn spec_at(&self, pod: &Pod, place: Option<&Place>) -> Result<Value, Error> {
        let config = &pod.config;
        // A client of the Sandbox API gave a specification; the pod has what it says.
        let given = config.is_spec();
        let mut spec = if given { config.original.clone() } else { json!({}) };
        if !spec.is_object() {
            spec = json!({});
        }
        let mut fields = Map::new();
        fields.insert("ociVersion".into(), VERSION.into());
        if config.own_uts {
            let hostname = config.hostname.clone().unwrap_or_else(node_name);
            fields.insert("hostname".into(), hostname.into());
        }
        let mut annotations = json!(pod.annotations);
        if let Some(all) = annotations.as_object_mut() {
            if !given {
                all.extend(cri_annotations(pod, self.id()));
            }
            merge(all, config.original.get("annotations"));
        }
        fields.insert("annotations".into(), annotations);
        let mut linux = spec.get("linux").and_then(Value::as_object).cloned().unwrap_or_default();
        linux.insert("namespaces".into(), namespaces(pod, place, &self.own_netns()).into());
        if let Some(group) = group(pod, self.id())? {
            linux.insert("cgroupsPath".into(), group.into());
        }
        if !given {
            linux.insert("resources".into(), resources(pod));
        }
        linux.insert("sysctl".into(), json!(config.sysctls_with_defaults()));
        if let Some((uids, gids)) = &config.user {
            linux.insert("uidMappings".into(), oci_mappings(uids));
            linux.insert("gidMappings".into(), oci_mappings(gids));
        }
        fields.insert("linux".into(), linux.into());
        if let Some(all) = spec.as_object_mut() {
            all.extend(fields);
        }
        let files = FilesRecord::in_dir(&self.env.run_dir());
        let shm = (config.ipc == Scope::Pod).then(|| ShmRecord::in_dir(&self.env.run_dir()));
        pod_files::add_pod_files(&mut spec, &PodFiles::of(&files, shm.as_ref()))?;
        Ok(spec)
    }

    /// Where the network namespace is that the sandbox makes itself.
    pub(super) fn own_netns(&self) -> PathBuf {
        netns::path_for(netns::DEFAULT_DIR.as_ref(), &self.env.namespace, self.id())
    }
}

/// Adds what is not there yet.
fn merge(all: &mut Map<String, Value>, more: Option<&Value>) {
    for (key, value) in more.and_then(Value::as_object).into_iter().flatten() {
        all.entry(key.clone()).or_insert_with(|| value.clone());
    }
}

fn cri_annotations(pod: &Pod, id: &Id) -> Map<String, Value> {
    let config = &pod.config;
    let logs = config.original.get("log_directory").and_then(Value::as_str).unwrap_or_default();
    let all = [
        (KIND, "sandbox"),
        (ID, id.as_str()),
        (NAME, &config.name),
        (NAMESPACE, &config.namespace),
        (UID, &config.uid),
        (LOGS, logs),
    ];
    all.into_iter().map(|(key, value)| (key.to_owned(), value.into())).collect()
}

/// The pod's namespaces, by path as far as something keeps them. The network's is its mount, which lives as long as the
/// namespace is the pod's.
fn namespaces(pod: &Pod, place: Option<&Place>, own: &Path) -> Vec<Value> {
    let config = &pod.config;
    let kept = |kind: &str| match place {
        Some(place) => json!({"type": kind, "path": place.path(kind)}),
        None => json!({"type": kind}),
    };
    let mut all = Vec::new();
    if let Some(path) = pod.network.path(own) {
        all.push(json!({"type": "network", "path": path}));
    }
    if config.ipc == Scope::Pod {
        all.push(kept("ipc"));
    }
    if config.own_uts {
        all.push(kept("uts"));
    }
    if config.pid == Scope::Pod {
        all.push(kept("pid"));
    }
    if config.user.is_some() {
        all.push(kept("user"));
    }
    all
}

/// The cgroup that is the pod's: the holder's own below its parent, else the parent, in which the containers' are.
fn group(pod: &Pod, id: &Id) -> Result<Option<String>, Error> {
    let config = &pod.config;
    if config.cgroup_parent.is_empty() {
        return Ok(None);
    }
    let parent = cgroup::pod::parent_path(&config.cgroup_parent)?;
    Ok(Some(if has_holder(pod) { format!("{parent}/{id}") } else { parent }))
}

/// What a client of CRI asks for the whole pod; a holder has the least share of the processor.
fn resources(pod: &Pod) -> Value {
    let asked = pod.config.original.pointer("/linux/resources");
    let number = |key: &str| {
        let number = asked?.get(key)?.as_i64()?;
        (number != 0).then(|| Value::from(number))
    };
    let text = |key: &str| {
        asked?.get(key).filter(|text| text.as_str().is_some_and(|text| !text.is_empty())).cloned()
    };
    let all = |fields: Vec<(&str, Option<Value>)>| -> Map<String, Value> {
        let given = fields.into_iter();
        given.filter_map(|(key, value)| Some((key.to_owned(), value?))).collect()
    };
    let mut cpu = all(vec![
        ("shares", number("cpu_shares")),
        ("quota", number("cpu_quota")),
        ("period", number("cpu_period")),
        ("cpus", text("cpuset_cpus")),
        ("mems", text("cpuset_mems")),
    ]);
    if has_holder(pod) {
        cpu.entry("shares").or_insert_with(|| 2.into());
    }
    let memory = all(vec![
        ("limit", number("memory_limit_in_bytes")),
        ("swap", number("memory_swap_limit_in_bytes")),
    ]);
    let unified = asked.and_then(|asked| asked.get("unified")).and_then(Value::as_object);
    let parts = [("cpu", Some(cpu)), ("memory", Some(memory)), ("unified", unified.cloned())];
    let parts = parts.into_iter().filter_map(|(key, part)| Some((key, part?)));
    parts
        .filter(|(_, part)| !part.is_empty())
        .map(|(key, part)| (key.to_owned(), Value::from(part)))
        .collect::<Map<_, _>>()
        .into()
}

/// Id mappings in the words of an OCI specification.
pub(super) fn oci_mappings(all: &[IdMapping]) -> Value {
    all.iter()
        .map(|m| json!({"containerID": m.container_id, "hostID": m.host_id, "size": m.length}))
        .collect()
}

fn has_holder(pod: &Pod) -> bool {
    pod.config.pid == Scope::Pod || pod.config.user.is_some()
}
