//! What a client asks of a sandbox, whichever way it said so: CRI's `PodSandboxConfig`, or an OCI spec in the bundle.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use k8s_cri::v1 as cri;
use prost::Message;
use thiserror::Error;

use crate::{
    error::{Code, Coded},
    keeper::{
        IdMapping,
        sysctls::{self, Own, Sysctls},
    },
    mounts::files::Dns,
};

/// The type URL of CRI's pod configuration.
pub const CRI_CONFIG_TYPE: &str = "runtime.v1.PodSandboxConfig";

/// An annotation on the sandbox's OCI spec, for clients that have no CRI: the pod's port mappings, as the JSON list
/// that CNI's capability `portMappings` takes.
pub const PORT_MAPPINGS_ANNOTATION: &str = "mooring.dev/port-mappings";
/// An annotation on the sandbox's OCI spec: the pod's bandwidth, as the JSON object of CNI's capability `bandwidth`.
pub const BANDWIDTH_ANNOTATION: &str = "mooring.dev/bandwidth";

/// Which of a kind of namespace a pod's containers live in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    Pod,
    /// One of each container, or another container's (of PID namespaces alone).
    Container,
    Node,
}

/// A sandbox as its client wants it.
#[derive(Clone, Debug, PartialEq)]
pub struct PodConfig {
    /// Kubernetes' name of the pod, empty for other clients.
    pub name: String,
    /// Kubernetes' namespace of the pod, empty for other clients.
    pub namespace: String,
    /// Kubernetes' uid of the pod, empty for other clients.
    pub uid: String,
    /// The hostname asked for; the node's where there is none.
    pub hostname: Option<String>,
    /// Whether the pod lives in the node's network.
    pub host_network: bool,
    /// A network namespace that the spec names.
    pub netns_path: Option<PathBuf>,
    pub ipc: Scope,
    pub pid: Scope,
    /// The pod's own UTS namespace: absent with the node's network.
    pub own_uts: bool,
    /// Id maps of the pod's user namespace, where it has one.
    pub user: Option<(Vec<IdMapping>, Vec<IdMapping>)>,
    /// Kernel parameters, without the defaults.
    pub sysctls: Sysctls,
    /// Name resolution; the node's where there is none.
    pub dns: Option<Dns>,
    /// The cgroup below which the pod's containers live, a path or `slice:prefix:name`; may be empty.
    pub cgroup_parent: String,
    /// Size of /dev/shm in bytes.
    pub shm_size: u64,
    pub capabilities: serde_json::Map<String, serde_json::Value>,
    /// The client's own configuration, for the verbose status.
    pub original: serde_json::Value,
}

/// The client's wish is not understood.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The options are of a type that a sandbox does not know.
    #[error("options of type {0:?} are not a sandbox's: {CRI_CONFIG_TYPE} is")]
    UnknownType(String),
    /// The options do not decode.
    #[error("decode PodSandboxConfig: {0}")]
    Garbled(#[from] prost::DecodeError),
    /// There is neither a configuration nor a spec.
    #[error("neither a PodSandboxConfig was given nor is there an OCI spec at {0}")]
    Nothing(PathBuf),
    /// An annotation is not understood.
    #[error(transparent)]
    Annotation(#[from] BadAnnotation),
    /// A kernel parameter that is not the pod's to set.
    #[error(transparent)]
    Sysctl(#[from] sysctls::Refused),
    /// The user namespace is none that a pod can have.
    #[error("user namespace: {0}")]
    UserNamespace(String),
    /// The hostname or domain name would be the node's.
    #[error("{kind} {name:?} needs a UTS namespace, and the pod has none of its own")]
    NodesName { kind: &'static str, name: String },
    /// The spec cannot be read.
    #[error("read OCI spec {path}: {source}")]
    Unreadable { path: PathBuf, source: std::io::Error },
    /// The spec is no OCI spec.
    #[error("OCI spec {path}: {reason}")]
    BadSpec { path: PathBuf, reason: SpecProblem },
}

/// The value of an annotation of Mooring's own is no JSON.
#[derive(Debug, Error)]
#[error("annotation {annotation}: {source}")]
pub struct BadAnnotation {
    annotation: &'static str,
    source: serde_json::Error,
}

/// What is wrong with the OCI spec of a sandbox.
#[derive(Debug, Error)]
pub enum SpecProblem {
    /// It is no JSON, or says what no OCI spec says.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    #[error("it is no JSON object")]
    NoObject,
    #[error(transparent)]
    Annotation(#[from] BadAnnotation),
    #[error("it maps ids and has no user namespace")]
    Mappings,
    /// Only a network is made elsewhere and joined.
    #[error("a sandbox joins no {kind} namespace by its path ({path})", path = path.display())]
    Joins { kind: oci_spec::runtime::LinuxNamespaceType, path: PathBuf },
}

impl Coded for ConfigError {
    fn code(&self) -> Code {
        match self {
            Self::Unreadable { .. } => Code::Unknown,
            _ => Code::InvalidArgument,
        }
    }
}

const SHM_SIZE: u64 = 64 << 20;

impl PodConfig {
    /// Reads the configuration of a sandbox from its creation request: `options` (type URL and bytes) where there
    /// are any, else the spec in `bundle`.
    pub fn read(options: Option<(&str, &[u8])>, bundle: &Path) -> Result<Self, ConfigError> {
        match options {
            Some((url, bytes)) if !url.is_empty() || !bytes.is_empty() => {
                // Some clients write the URL with a host before the last slash.
                if url.rsplit('/').next() != Some(CRI_CONFIG_TYPE) {
                    return Err(ConfigError::UnknownType(url.to_owned()));
                }
                Self::from_cri(&cri::PodSandboxConfig::decode(bytes)?)
            }
            _ => Self::from_bundle(bundle),
        }
    }

    fn from_bundle(bundle: &Path) -> Result<Self, ConfigError> {
        let path = bundle.join("config.json");
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(ConfigError::Nothing(path));
            }
            Err(source) => return Err(ConfigError::Unreadable { path, source }),
        };
        let read = || -> Result<(Self, Option<String>), SpecProblem> {
            let original: serde_json::Value = serde_json::from_slice(&text)?;
            if !original.is_object() {
                return Err(SpecProblem::NoObject);
            }
            let spec: oci_spec::runtime::Spec = serde_json::from_value(original.clone())?;
            Ok((Self::from_spec(&spec, original)?, spec.domainname().clone()))
        };
        let (config, domainname) =
            read().map_err(|reason| ConfigError::BadSpec { path: path.clone(), reason })?;
        config.checked(domainname)
    }

    /// Refuses what would be the node's: an OCI runtime did it when the pod was a container.
    fn checked(mut self, domainname: Option<String>) -> Result<Self, ConfigError> {
        let domainname = domainname.filter(|name| !name.is_empty());
        for (kind, name) in [("hostname", &self.hostname), ("domain name", &domainname)] {
            if let (Some(name), false) = (name, self.own_uts) {
                return Err(ConfigError::NodesName { kind, name: name.clone() });
            }
        }
        let own = Own { net: !self.host_network, ipc: self.ipc == Scope::Pod, uts: self.own_uts };
        self.sysctls = sysctls::check(std::mem::take(&mut self.sysctls), own)?;
        if let Some(name) = domainname {
            self.sysctls.insert("kernel.domainname".into(), name);
        }
        if let Some((uids, gids)) = &self.user {
            for (kind, mappings) in [("UID", uids), ("GID", gids)] {
                if mappings.is_empty() {
                    return Err(ConfigError::UserNamespace(format!("it has no {kind} mappings")));
                }
                if mappings.iter().any(|mapping| mapping.length == 0) {
                    let reason = format!("a {kind} mapping has no length");
                    return Err(ConfigError::UserNamespace(reason));
                }
            }
        }
        Ok(self)
    }

    fn from_spec(
        spec: &oci_spec::runtime::Spec,
        original: serde_json::Value,
    ) -> Result<Self, SpecProblem> {
        use oci_spec::runtime::LinuxNamespaceType as Kind;
        let linux = spec.linux().as_ref();
        let namespaces = linux.and_then(|l| l.namespaces().as_ref());
        let find = |kind: Kind| namespaces.and_then(|all| all.iter().find(|n| n.typ() == kind));
        // A spec that says nothing of namespaces leaves them to the sandbox; one that lists them means the list.
        let unsaid = namespaces.is_none();
        let annotations = spec.annotations().clone().unwrap_or_default();
        let annotations = annotations.into_iter().collect();
        let capabilities = capabilities_in(&annotations)?;
        let mappings = |of: Option<&Vec<oci_spec::runtime::LinuxIdMapping>>| -> Vec<IdMapping> {
            let one = |m: &oci_spec::runtime::LinuxIdMapping| IdMapping {
                container_id: m.container_id(),
                host_id: m.host_id(),
                length: m.size(),
            };
            of.into_iter().flatten().map(one).collect()
        };
        let uids = mappings(linux.and_then(|l| l.uid_mappings().as_ref()));
        let gids = mappings(linux.and_then(|l| l.gid_mappings().as_ref()));
        if find(Kind::User).is_none() && !(uids.is_empty() && gids.is_empty()) {
            return Err(SpecProblem::Mappings);
        }
        let user = find(Kind::User).map(|_| (uids, gids));
        for namespace in namespaces.into_iter().flatten() {
            if let (true, Some(path)) = (namespace.typ() != Kind::Network, namespace.path()) {
                return Err(SpecProblem::Joins { kind: namespace.typ(), path: path.clone() });
            }
        }
        let network = find(Kind::Network);
        let host_network = !unsaid && network.is_none();
        let scope = |kind| if unsaid || find(kind).is_some() { Scope::Pod } else { Scope::Node };
        let cgroups_path = linux.and_then(|l| l.cgroups_path().as_ref());
        Ok(Self {
            name: String::new(),
            namespace: String::new(),
            uid: String::new(),
            hostname: spec.hostname().clone().filter(|name| !name.is_empty()),
            host_network,
            netns_path: network.and_then(|n| n.path().clone()),
            ipc: scope(Kind::Ipc),
            // Containers of an OCI client bring PID namespaces of their own unless the sandbox shares one.
            pid: if find(Kind::Pid).is_some() { Scope::Pod } else { Scope::Container },
            own_uts: unsaid || find(Kind::Uts).is_some(),
            user,
            sysctls: linux
                .and_then(|l| l.sysctl().clone())
                .map(|all| all.into_iter().collect())
                .unwrap_or_default(),
            dns: None,
            cgroup_parent: cgroups_path.map(|path| path.display().to_string()).unwrap_or_default(),
            shm_size: SHM_SIZE,
            capabilities,
            original,
        })
    }

    pub fn from_cri(config: &cri::PodSandboxConfig) -> Result<Self, ConfigError> {
        let metadata = config.metadata.clone().unwrap_or_default();
        let linux = config.linux.clone().unwrap_or_default();
        let security = linux.security_context.unwrap_or_default();
        let namespaces = security.namespace_options.unwrap_or_default();
        let scope = |mode: i32| match cri::NamespaceMode::try_from(mode) {
            Ok(cri::NamespaceMode::Node) => Scope::Node,
            Ok(cri::NamespaceMode::Container | cri::NamespaceMode::Target) => Scope::Container,
            _ => Scope::Pod,
        };
        let host_network = scope(namespaces.network) == Scope::Node;
        let ids = |all: &[cri::IdMapping]| -> Vec<IdMapping> {
            let one = |m: &cri::IdMapping| IdMapping {
                container_id: m.container_id,
                host_id: m.host_id,
                length: m.length,
            };
            all.iter().map(one).collect()
        };
        let user = match &namespaces.userns_options {
            None => None,
            Some(options) => {
                let refused = |reason: String| Err(ConfigError::UserNamespace(reason));
                let (uids, gids) = (ids(&options.uids), ids(&options.gids));
                match cri::NamespaceMode::try_from(options.mode) {
                    Ok(cri::NamespaceMode::Pod) if uids.len() > 1 || gids.len() > 1 => {
                        return refused("more than one mapping of a kind".into());
                    }
                    Ok(cri::NamespaceMode::Pod) => Some((uids, gids)),
                    Ok(cri::NamespaceMode::Node) if uids.is_empty() && gids.is_empty() => None,
                    Ok(cri::NamespaceMode::Node) => {
                        return refused("the node's (mode NODE) takes no mappings".into());
                    }
                    Ok(mode) => return refused(format!("mode {} is none", mode.as_str_name())),
                    Err(_) => return refused(format!("mode {} is none", options.mode)),
                }
            }
        };
        // What a container may have for itself, a pod still has one of: its containers choose.
        let ipc = if scope(namespaces.ipc) == Scope::Node { Scope::Node } else { Scope::Pod };
        let read = Self {
            name: metadata.name,
            namespace: metadata.namespace,
            uid: metadata.uid,
            hostname: Some(config.hostname.clone()).filter(|name| !name.is_empty()),
            host_network,
            netns_path: None,
            ipc,
            pid: scope(namespaces.pid),
            own_uts: !host_network,
            user,
            sysctls: linux.sysctls.into_iter().collect(),
            dns: config.dns_config.as_ref().map(|dns| Dns {
                servers: dns.servers.clone(),
                searches: dns.searches.clone(),
                options: dns.options.clone(),
            }),
            cgroup_parent: linux.cgroup_parent,
            shm_size: SHM_SIZE,
            capabilities: capabilities_of(config),
            original: original_of(config),
        };
        read.checked(None)
    }

    /// Whether the client described the sandbox by an OCI specification.
    pub fn is_spec(&self) -> bool {
        self.original.get("ociVersion").is_some()
    }

    /// Adds what annotations of the creation request say of CNI's capabilities; the configuration itself goes before.
    pub fn add_capabilities_of(
        &mut self,
        annotations: &BTreeMap<String, String>,
    ) -> Result<(), ConfigError> {
        for (capability, value) in capabilities_in(annotations)? {
            self.capabilities.entry(capability).or_insert(value);
        }
        Ok(())
    }

    /// The ids on the node of the pod's root, where the pod has a user namespace.
    pub fn root_on_node(&self) -> Option<(u32, u32)> {
        let zero = |maps: &[IdMapping]| {
            maps.iter().find(|map| map.container_id == 0).map(|map| map.host_id)
        };
        let (uids, gids) = self.user.as_ref()?;
        Some((zero(uids)?, zero(gids)?))
    }

    /// All kernel parameters of the pod: its own, and the defaults that containerd's pods have.
    pub fn sysctls_with_defaults(&self) -> Sysctls {
        let mut all = self.sysctls.clone();
        if !self.host_network {
            all.entry("net.ipv4.ip_unprivileged_port_start".into()).or_insert_with(|| "0".into());
            if self.user.is_none() {
                all.entry("net.ipv4.ping_group_range".into())
                    .or_insert_with(|| "0 2147483647".into());
            }
        }
        all
    }
}

/// CNI's capability values that annotations of Mooring's own give.
fn capabilities_in(
    annotations: &BTreeMap<String, String>,
) -> Result<serde_json::Map<String, serde_json::Value>, BadAnnotation> {
    let mut capabilities = serde_json::Map::new();
    for (annotation, capability) in
        [(PORT_MAPPINGS_ANNOTATION, "portMappings"), (BANDWIDTH_ANNOTATION, "bandwidth")]
    {
        if let Some(text) = annotations.get(annotation) {
            let value = serde_json::from_str(text)
                .map_err(|source| BadAnnotation { annotation, source })?;
            capabilities.insert(capability.into(), value);
        }
    }
    Ok(capabilities)
}

/// CNI's capability values from a CRI configuration.
fn capabilities_of(config: &cri::PodSandboxConfig) -> serde_json::Map<String, serde_json::Value> {
    let mut capabilities = serde_json::Map::new();
    let ports: Vec<_> = config
        .port_mappings
        .iter()
        .filter(|mapping| mapping.host_port > 0)
        .map(|mapping| {
            let protocol = match cri::Protocol::try_from(mapping.protocol) {
                Ok(cri::Protocol::Udp) => "udp",
                Ok(cri::Protocol::Sctp) => "sctp",
                _ => "tcp",
            };
            serde_json::json!({
                "hostPort": mapping.host_port,
                "containerPort": mapping.container_port,
                "protocol": protocol,
                "hostIP": mapping.host_ip,
            })
        })
        .collect();
    if !ports.is_empty() {
        capabilities.insert("portMappings".into(), ports.into());
    }
    let rate = |name: &str| config.annotations.get(name).and_then(|text| quantity(text));
    let ingress = rate("kubernetes.io/ingress-bandwidth");
    let egress = rate("kubernetes.io/egress-bandwidth");
    if ingress.is_some() || egress.is_some() {
        let mut bandwidth = serde_json::Map::new();
        // The burst is what the plugin takes as "no limit of its own": the largest 32-bit number.
        for (direction, rate) in [("ingress", ingress), ("egress", egress)] {
            if let Some(rate) = rate {
                bandwidth.insert(format!("{direction}Rate"), rate.into());
                bandwidth.insert(format!("{direction}Burst"), u32::MAX.into());
            }
        }
        capabilities.insert("bandwidth".into(), bandwidth.into());
    }
    if let Some(dns) = &config.dns_config {
        capabilities.insert(
            "dns".into(),
            serde_json::json!({"servers": dns.servers, "searches": dns.searches, "options": dns.options}),
        );
    }
    if !config.annotations.is_empty() {
        capabilities.insert(
            "io.kubernetes.cri.pod-annotations".into(),
            serde_json::json!(config.annotations),
        );
    }
    if let Some(linux) = &config.linux
        && !linux.cgroup_parent.is_empty()
    {
        capabilities.insert("cgroupPath".into(), linux.cgroup_parent.clone().into());
    }
    capabilities
}

/// A Kubernetes quantity (`10M`, `1Gi`, `500k`) as a whole number; nothing for what is none.
fn quantity(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor: f64 = match text.get(digits.len()..)? {
        "" => 1.0,
        "m" => 1e-3,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "Ki" => 1024.0,
        "Mi" => 1_048_576.0,
        "Gi" => 1_073_741_824.0,
        "Ti" => 1_099_511_627_776.0,
        _ => return None,
    };
    let value = digits.parse::<f64>().ok().filter(|v| v.is_finite() && *v >= 0.0)? * factor;
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    // saturates, and is not negative
    Some(value.ceil() as u64)
}

fn resources(all: &cri::LinuxContainerResources) -> serde_json::Value {
    serde_json::json!({
        "cpu_period": all.cpu_period,
        "cpu_quota": all.cpu_quota,
        "cpu_shares": all.cpu_shares,
        "cpuset_cpus": all.cpuset_cpus,
        "cpuset_mems": all.cpuset_mems,
        "memory_limit_in_bytes": all.memory_limit_in_bytes,
        "memory_swap_limit_in_bytes": all.memory_swap_limit_in_bytes,
        "oom_score_adj": all.oom_score_adj,
        "unified": all.unified,
    })
}

/// What the verbose status shows of a CRI configuration, in CRI's own JSON names.
fn original_of(config: &cri::PodSandboxConfig) -> serde_json::Value {
    let metadata = config.metadata.clone().unwrap_or_default();
    serde_json::json!({
        "metadata": {
            "name": metadata.name, "uid": metadata.uid,
            "namespace": metadata.namespace, "attempt": metadata.attempt,
        },
        "hostname": config.hostname,
        "log_directory": config.log_directory,
        "labels": config.labels,
        "annotations": config.annotations,
        "linux": {
            "cgroup_parent": config.linux.as_ref().map(|l| l.cgroup_parent.clone()).unwrap_or_default(),
            "sysctls": config.linux.as_ref().map(|l| l.sysctls.clone()).unwrap_or_default(),
            "resources": config.linux.as_ref().and_then(|l| l.resources.as_ref()).map(resources),
            "overhead": config.linux.as_ref().and_then(|l| l.overhead.as_ref()).map(resources),
        },
    })
}

#[cfg(test)]
mod tests;
