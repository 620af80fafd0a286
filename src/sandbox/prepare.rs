//! What a pod gives to each of its containers' specs: its namespaces, its files, its image volumes.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{
    Error, Pod, Sandbox, State, blocking, config::Scope, namespaces, pod_spec::oci_mappings,
};
use crate::{
    id::Id,
    keeper::Place,
    mounts::{
        files::FilesRecord,
        label,
        pod_files::{self, NODE_SHM, PodFiles},
        shm::ShmRecord,
    },
};

impl Sandbox {
    /// Completes the spec of a container that is about to be created. Says whether it changed.
    pub async fn prepare(&self, container: &Id, document: &mut Value) -> Result<bool, Error> {
        let (pod, place) = match &*self.state() {
            State::Ready { pod, keeper: Some(keeper), .. } => {
                (std::sync::Arc::clone(pod), keeper.place())
            }
            _ => {
                return Err(Error::Precondition(format!(
                    "container {:?} wants into a sandbox that is not ready",
                    container.as_str()
                )));
            }
        };
        let before = document.clone();
        join_namespaces(document, &pod, &place, &self.own_netns());
        let (wanted, of) = (document.clone(), std::sync::Arc::clone(&pod));
        blocking(move || namespaces::check(&wanted, &of.config)).await??;
        let files = FilesRecord::in_dir(&self.env.run_dir());
        let shm = (pod.config.ipc == Scope::Pod).then(|| ShmRecord::in_dir(&self.env.run_dir()));
        let added = pod_files::add_pod_files(document, &PodFiles::of(&files, shm.as_ref()))?;
        if let Some(adjusted) = self.adjusted(container, document).await? {
            *document = adjusted;
            // What a plugin asks for is no more the node's than what the client did.
            let (wanted, of) = (document.clone(), std::sync::Arc::clone(&pod));
            blocking(move || namespaces::check(&wanted, &of.config)).await??;
        }
        self.mount_images(&pod, document).await?;
        if let Some(wanted) = label::mount_label(document)
            && label::is_enabled()
        {
            let wanted = wanted.to_owned();
            let own: Vec<PathBuf> =
                added.into_iter().filter(|path| path.as_path() != Path::new(NODE_SHM)).collect();
            blocking(move || label::relabel(&own, &wanted)).await??;
        }
        Ok(*document != before)
    }
}

/// Lets a spec that names no namespaces of the pod join them. CRI's specs name them by path already; other clients
/// ask for new ones, and in a sandbox that means the sandbox's.
fn join_namespaces(document: &mut Value, pod: &Pod, place: &Place, own_netns: &Path) {
    let Some(namespaces) = document.pointer_mut("/linux/namespaces").and_then(Value::as_array_mut)
    else {
        return;
    };
    let mut shared = vec![("network", "net"), ("uts", "uts"), ("ipc", "ipc")];
    // A CRI client says by the path whether a container shares the pod's PID namespace.
    if pod.config.name.is_empty() && pod.config.pid == Scope::Pod {
        shared.push(("pid", "pid"));
    }
    if pod.config.user.is_some() {
        shared.push(("user", "user"));
    }
    let mut numbered = shared.clone();
    if pod.config.pid == Scope::Node {
        numbered.push(("pid", "pid"));
    }
    let mut joined_uts = false;
    namespaces.retain_mut(|namespace| {
        let text = |key: &str| namespace.get(key).and_then(Value::as_str).unwrap_or_default();
        let (kind, path) = (text("type").to_owned(), text("path"));
        // No process has the number 0. A client that builds paths from the number that it was given means the pod's.
        let by_number = matches!(place, Place::Pins(_)) && path.starts_with("/proc/0/ns/");
        let kinds = match path {
            "" => &shared,
            _ if by_number => &numbered,
            _ => return true,
        };
        let Some((_, file)) = kinds.iter().find(|(name, file)| {
            *name == kind && (path.is_empty() || path == format!("/proc/0/ns/{file}"))
        }) else {
            return true;
        };
        joined_uts |= kind == "uts";
        let path = path_of(file, pod, place, own_netns);
        if let Some(path) = &path {
            *namespace = json!({"type": kind, "path": path});
        }
        path.is_some()
    });
    if let Some((uids, gids)) = &pod.config.user {
        if !namespaces.iter().any(|namespace| namespace.get("type") == Some(&json!("user"))) {
            namespaces.push(json!({"type": "user", "path": place.path("user")}));
        }
        if let Some(linux) = document.pointer_mut("/linux").and_then(Value::as_object_mut) {
            linux.entry("uidMappings").or_insert_with(|| oci_mappings(uids));
            linux.entry("gidMappings").or_insert_with(|| oci_mappings(gids));
        }
    }
    if joined_uts && let Some(spec) = document.as_object_mut() {
        // The runtime would set it in the pod's namespace, for all containers.
        spec.remove("hostname");
    }
}

/// Where the pod's namespace is that the kernel calls `file`. None: it is the node's, which a container is in that asks
/// for no other.
fn path_of(file: &str, pod: &Pod, place: &Place, own_netns: &Path) -> Option<PathBuf> {
    let is_pinned = match (place, file) {
        (Place::Process(_), _) => true,
        (Place::Pins(_), "net") => return pod.network.path(own_netns).map(Path::to_owned),
        (Place::Pins(_), "ipc") => pod.config.ipc == Scope::Pod,
        (Place::Pins(_), "uts") => pod.config.own_uts,
        // A pod with one of these has a holder.
        (Place::Pins(_), _) => false,
    };
    is_pinned.then(|| place.path(file))
}
