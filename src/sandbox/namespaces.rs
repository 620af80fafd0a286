//! No container gets into a namespace of the node's that its pod did not ask for.
//!
//! Where the keeper is a thread, some namespaces under its number are the node's: whoever builds a path from it, as
//! containerd's CRI plugin does, builds a way to the node. So the paths of a specification are looked at before the OCI
//! runtime sees them. And since a path may lead elsewhere a moment later, the container's first process is looked at
//! again when it exists and nothing of the image runs yet.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{
    Error, Sandbox, State, blocking,
    config::{PodConfig, Scope},
};
use crate::{id::Id, sys::namespaces};

/// A namespace of a container's specification.
struct Wanted {
    /// OCI's name of its kind.
    kind: String,
    file: &'static str,
    /// The one to join; a new one where there is none.
    path: Option<PathBuf>,
}

impl Sandbox {
    /// Refuses a container whose first process, which exists but runs nothing of the image yet, is in a namespace of the
    /// node's that its pod did not ask for.
    pub async fn verify(&self, container: &Id, pid: i32, document: &Value) -> Result<(), Error> {
        let pod = match &*self.state() {
            State::Ready { pod, .. } => std::sync::Arc::clone(pod),
            // It is being stopped, and this container with it.
            _ => return Ok(()),
        };
        let wanted = wanted(document)?;
        let container = container.clone();
        blocking(move || {
            // A runtime may make its own cgroup and time namespaces as late as it runs the image's program.
            let late =
                |one: &Wanted| one.path.is_none() && ["cgroup", "time"].contains(&&*one.kind);
            let own = |one: &&Wanted| !late(one) && !may_be_the_nodes(&pod.config, &one.kind);
            for one in wanted.iter().filter(own) {
                let path = format!("/proc/{pid}/ns/{}", one.file);
                match namespaces::is_the_nodes(path.as_ref(), one.file) {
                    Ok(false) => {}
                    Ok(true) => return Err(nodes(&one.kind, Path::new(&path))),
                    // Whatever killed it, it can do no harm.
                    Err(_) if !is_alive(pid) => return Ok(()),
                    Err(error) => return Err(unknown(&one.kind, Path::new(&path), &error)),
                }
            }
            log::debug!("container {container}: its namespaces are not the node's");
            Ok(())
        })
        .await?
    }
}

/// Refuses a specification that names a namespace of the node's which the pod did not ask for, or one that cannot be
/// looked at. Blocks.
pub fn check(document: &Value, config: &PodConfig) -> Result<(), Error> {
    for one in wanted(document)? {
        let Some(path) = &one.path else { continue };
        if !path.is_absolute() {
            let reason = std::io::Error::other("it is no absolute path");
            return Err(unknown(&one.kind, path, &reason));
        }
        match namespaces::is_the_nodes(path, one.file) {
            Err(error) => return Err(unknown(&one.kind, path, &error)),
            Ok(true) if !may_be_the_nodes(config, &one.kind) => return Err(nodes(&one.kind, path)),
            Ok(_) => {}
        }
    }
    Ok(())
}

/// Whether the pod was created with the node's namespace of this kind (an OCI name).
fn may_be_the_nodes(config: &PodConfig, kind: &str) -> bool {
    match kind {
        "network" => config.host_network,
        "uts" => !config.own_uts,
        "ipc" => config.ipc == Scope::Node,
        "pid" => config.pid == Scope::Node,
        "user" => config.user.is_none(),
        _ => false,
    }
}

fn wanted(document: &Value) -> Result<Vec<Wanted>, Error> {
    let namespaces = match document.pointer("/linux/namespaces") {
        None | Some(Value::Null) => return Ok(vec![]),
        Some(Value::Array(namespaces)) => namespaces,
        Some(_) => return Err(Error::Invalid("the OCI spec's namespaces are no list".into())),
    };
    let one = |namespace: &Value| {
        let text = |key: &str| match namespace.get(key) {
            None | Some(Value::Null) => Ok(String::new()),
            Some(Value::String(text)) => Ok(text.clone()),
            Some(other) => Err(Error::Invalid(format!("a namespace's {key} is no text: {other}"))),
        };
        let (kind, path) = (text("type")?, text("path")?);
        let file = namespaces::file_of(&kind);
        let file = file.ok_or_else(|| Error::Invalid(format!("unknown namespace {kind:?}")))?;
        Ok(Wanted {
            kind,
            file,
            path: Some(path).filter(|path| !path.is_empty()).map(PathBuf::from),
        })
    };
    namespaces.iter().map(one).collect()
}

fn nodes(kind: &str, path: &Path) -> Error {
    let more = if kind == "pid" {
        " (containers that share the PID namespace of their pod need a pod of PID mode POD)"
    } else {
        ""
    };
    Error::Invalid(format!(
        "{kind} namespace {} is the node's, which the pod was not created with{more}",
        path.display()
    ))
}

fn unknown(kind: &str, path: &Path, error: &std::io::Error) -> Error {
    let path = path.display();
    Error::Invalid(format!("{kind} namespace {path} cannot be told from the node's: {error}"))
}

/// Whether a process runs: a dead one that is not reaped has left its namespaces.
fn is_alive(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().next());
    !matches!(state, None | Some("Z" | "X"))
}

#[cfg(test)]
mod tests {
    use k8s_cri::v1::{
        LinuxPodSandboxConfig, LinuxSandboxSecurityContext, NamespaceOption, PodSandboxConfig,
    };
    use serde_json::json;

    use super::*;
    use crate::error::{Code, Coded};

    fn config(options: NamespaceOption) -> PodConfig {
        let security =
            LinuxSandboxSecurityContext { namespace_options: Some(options), ..Default::default() };
        let linux =
            LinuxPodSandboxConfig { security_context: Some(security), ..Default::default() };
        PodConfig::from_cri(&PodSandboxConfig { linux: Some(linux), ..Default::default() }).unwrap()
    }

    fn refusal(kind: &str, path: &str, options: NamespaceOption) -> Option<String> {
        let document = json!({"linux": {"namespaces": [{"type": kind, "path": path}]}});
        let error = check(&document, &config(options)).err()?;
        assert_eq!(error.code(), Code::InvalidArgument, "{error}");
        Some(error.to_string())
    }

    #[test]
    fn the_nodes_namespaces_are_for_pods_that_were_created_with_them() {
        const NODE: i32 = 2;
        for (kind, file, node) in [
            ("network", "net", NamespaceOption { network: NODE, ..Default::default() }),
            ("uts", "uts", NamespaceOption { network: NODE, ..Default::default() }),
            ("ipc", "ipc", NamespaceOption { ipc: NODE, ..Default::default() }),
            ("pid", "pid", NamespaceOption { pid: NODE, ..Default::default() }),
        ] {
            let path = format!("/proc/self/ns/{file}");
            assert_eq!(refusal(kind, &path, node), None, "{kind}");
            for mode in [0, 1, 3] {
                let others =
                    NamespaceOption { network: mode, pid: mode, ipc: mode, ..Default::default() };
                let refused = refusal(kind, &path, others).unwrap();
                assert!(refused.contains(kind) && refused.contains(&path), "{refused}");
            }
        }
        for (kind, file) in [("mount", "mnt"), ("cgroup", "cgroup")] {
            let all = NamespaceOption { network: NODE, pid: NODE, ipc: NODE, ..Default::default() };
            assert!(refusal(kind, &format!("/proc/1/ns/{file}"), all).is_some(), "{kind}");
        }
    }

    #[test]
    fn what_cannot_be_looked_at_is_refused() {
        for (kind, path) in [
            ("network", "/proc/self/ns/nothing"),
            ("pid", "/proc/0/ns/pid"),
            ("ipc", "proc/self/ns/ipc"),
            ("strange", "/proc/self/ns/net"),
        ] {
            assert!(refusal(kind, path, NamespaceOption::default()).is_some(), "{kind} {path}");
        }
        for odd in [
            json!({}),
            json!("x"),
            json!([{"type": 7}]),
            json!([{"type": "pid", "path": []}]),
            json!([3]),
        ] {
            let document = json!({"linux": {"namespaces": odd}});
            assert!(check(&document, &config(NamespaceOption::default())).is_err(), "{document}");
        }
    }
}
