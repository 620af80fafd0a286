//! The pod's files in a container's OCI specification, where the client did not put them there itself.

use std::path::{Component, Path, PathBuf};

use serde_json::{Map, Value, json};

use super::{Error, files::FilesRecord, shm::ShmRecord};

/// The node's own shm, which pods in the node's IPC namespace use.
pub const NODE_SHM: &str = "/dev/shm";

/// The files of a pod that its containers see. What is absent is not added.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodFiles {
    /// Seen as `/etc/hosts`.
    pub hosts: Option<PathBuf>,
    /// Seen as `/etc/hostname`.
    pub hostname: Option<PathBuf>,
    /// Seen as `/etc/resolv.conf`.
    pub resolv_conf: Option<PathBuf>,
    /// Seen as `/dev/shm` by containers that do not have an IPC namespace of their own.
    pub shm: Option<PathBuf>,
}

impl PodFiles {
    /// The files of a pod; without a shm of its own (in the node's IPC namespace) the shm is the node's.
    pub fn of(files: &FilesRecord, shm: Option<&ShmRecord>) -> Self {
        Self {
            hosts: Some(files.hosts()),
            hostname: Some(files.hostname()),
            resolv_conf: Some(files.resolv_conf()),
            shm: Some(shm.map_or_else(|| NODE_SHM.into(), |shm| shm.path.clone())),
        }
    }
}

/// Adds the pod's files to `spec` as bind mounts, each unless the client has a mount there; a private tmpfs at
/// `/dev/shm` gives way to the pod's. Says which files the container sees now, in the node's paths.
///
/// Files are read-only where the root file system is. Their ids are not mapped: they belong to the pod's root already
/// ([`super::files::FilesRequest::owner`]), which needs neither a runtime nor a file system that can map.
pub fn add_pod_files(spec: &mut Value, files: &PodFiles) -> Result<Vec<PathBuf>, Error> {
    let read_only = spec.pointer("/root/readonly").and_then(Value::as_bool).unwrap_or_default();
    let shm = files.shm.as_deref().filter(|_| !has_own_ipc(spec));
    let mounts = mounts_of(spec)?;
    let mut added = Vec::new();
    for (destination, source) in [
        ("/etc/hosts", &files.hosts),
        ("/etc/hostname", &files.hostname),
        ("/etc/resolv.conf", &files.resolv_conf),
    ] {
        let Some(source) = source else { continue };
        if !mounts.iter().any(|mount| is_at(mount, destination)) {
            mounts.push(bind(destination, source, read_only)?);
            added.push(source.clone());
        }
    }
    if let Some(source) = shm {
        let mount = bind(NODE_SHM, source, false)?;
        if put_shm(mounts, mount) {
            added.push(source.to_path_buf());
        }
    }
    Ok(added)
}

/// Puts the pod's shm where the private one is, or before whatever is mounted in it, or at the end.
fn put_shm(mounts: &mut Vec<Value>, mount: Value) -> bool {
    let at_shm = |mount: &Value| is_at(mount, NODE_SHM);
    if mounts.iter().any(|other| at_shm(other) && !is_tmpfs(other)) {
        return false;
    }
    let first = mounts.iter().position(at_shm);
    mounts.retain(|other| !at_shm(other));
    let within = || {
        mounts
            .iter()
            .position(|other| destination(other).is_some_and(|path| path.starts_with(NODE_SHM)))
    };
    let place = first.or_else(within).unwrap_or(mounts.len());
    mounts.insert(place.min(mounts.len()), mount);
    true
}

/// The mounts of a specification, which are made if it has none.
pub(crate) fn mounts_of(spec: &mut Value) -> Result<&mut Vec<Value>, Error> {
    let wrong = |reason| Error::invalid("OCI specification", reason);
    let mounts = spec
        .as_object_mut()
        .ok_or_else(|| wrong("it is no object"))?
        .entry("mounts")
        .or_insert_with(|| json!([]));
    if mounts.is_null() {
        *mounts = json!([]);
    }
    mounts.as_array_mut().ok_or_else(|| wrong("its mounts are no list"))
}

/// Whether the container gets a new IPC namespace, so that nothing of the pod's shm is for it.
fn has_own_ipc(spec: &Value) -> bool {
    let namespaces = spec.pointer("/linux/namespaces").and_then(Value::as_array);
    namespaces.into_iter().flatten().any(|namespace| {
        let text = |key| namespace.get(key).and_then(Value::as_str).unwrap_or_default();
        text("type") == "ipc" && text("path").is_empty()
    })
}

fn destination(mount: &Value) -> Option<PathBuf> {
    mount.get("destination").and_then(Value::as_str).map(clean)
}

/// A destination without what does not matter in it. OCI runtimes take it from the root, also without a slash.
pub(super) fn clean(path: &str) -> PathBuf {
    let mut clean = PathBuf::from("/");
    for component in Path::new(path).components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => {
                clean.pop();
            }
            _ => {}
        }
    }
    clean
}

fn is_at(mount: &Value, place: &str) -> bool {
    destination(mount).is_some_and(|path| path == Path::new(place))
}

fn is_tmpfs(mount: &Value) -> bool {
    mount.get("type").and_then(Value::as_str) == Some("tmpfs")
}

fn is_bind(mount: &Value) -> bool {
    let by_option = || {
        let options = mount.get("options").and_then(Value::as_array);
        options
            .into_iter()
            .flatten()
            .any(|option| matches!(option.as_str(), Some("bind" | "rbind")))
    };
    mount.get("type").and_then(Value::as_str) == Some("bind") || by_option()
}

/// The id mapping that the client gave its bind mounts.
pub(crate) fn mapping(mounts: &[Value]) -> Map<String, Value> {
    let given = |mount: &&Value| mount.get("uidMappings").is_some_and(|list| !list.is_null());
    let Some(mount) = mounts.iter().filter(|mount| is_bind(mount)).find(given) else {
        return Map::new();
    };
    ["uidMappings", "gidMappings"]
        .into_iter()
        .filter_map(|key| Some((key.to_owned(), mount.get(key)?.clone())))
        .collect()
}

fn bind(destination: &str, source: &Path, read_only: bool) -> Result<Value, Error> {
    let source = source.to_str().ok_or_else(|| {
        Error::invalid(source.display().to_string(), "the path cannot be written as JSON")
    })?;
    let mut mount = Map::new();
    mount.insert("destination".to_owned(), json!(destination));
    mount.insert("type".to_owned(), json!("bind"));
    mount.insert("source".to_owned(), json!(source));
    let access = if read_only { "ro" } else { "rw" };
    mount.insert("options".to_owned(), json!(["rbind", "rprivate", access]));
    Ok(Value::Object(mount))
}
