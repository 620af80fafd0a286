//! What the engine reads of a container's OCI specification.

use std::{fs, io, path::Path};

use mooring::sys::replace;
use serde_json::Value;

use super::Error;

/// Reads `<bundle>/config.json`.
pub(super) fn read(bundle: &Path) -> Result<Value, Error> {
    let path = bundle.join("config.json");
    let text = fs::read(&path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
            Error::Invalid(format!("bundle {} has no config.json", bundle.display()))
        }
        _ => Error::at("read", &path)(error),
    })?;
    let spec: Value = serde_json::from_slice(&text).map_err(|error| {
        Error::Invalid(format!("{} is no OCI specification: {error}", path.display()))
    })?;
    if spec.is_object() {
        return Ok(spec);
    }
    Err(Error::Invalid(format!("{} is no OCI specification: not an object", path.display())))
}

/// Replaces `<bundle>/config.json`, whole or not at all.
pub(super) fn write(bundle: &Path, spec: &Value) -> Result<(), Error> {
    let path = bundle.join("config.json");
    let text = spec.to_string();
    replace::file(&path, text.as_bytes(), 0o644, replace::Sync::Nothing)
        .map_err(Error::at("write", &path))
}

/// The namespaces that the container does not share: those without a path.
fn owns(spec: &Value, kind: &str) -> bool {
    let namespaces = spec.pointer("/linux/namespaces").and_then(Value::as_array);
    namespaces.into_iter().flatten().any(|one| {
        one.get("type").is_some_and(|name| name == kind)
            && one.get("path").and_then(Value::as_str).unwrap_or_default().is_empty()
    })
}

/// Whether the kernel ends all of the container's processes with its init.
pub(super) fn owns_pid_namespace(spec: &Value) -> bool {
    owns(spec, "pid")
}

/// Whether the container sees its own group as the root of all groups.
pub(super) fn owns_cgroup_namespace(spec: &Value) -> bool {
    owns(spec, "cgroup")
}

/// The process (or thread) whose user namespace the container joins.
pub(super) fn user_namespace_owner(spec: &Value) -> Option<u32> {
    let namespaces = spec.pointer("/linux/namespaces").and_then(Value::as_array)?;
    let joined =
        namespaces.iter().find(|one| one.get("type").is_some_and(|kind| kind == "user"))?;
    let path = joined.get("path")?.as_str()?;
    path.strip_prefix("/proc/")?.strip_suffix("/ns/user")?.parse().ok()
}

/// The group that the specification asks for.
pub(super) fn cgroups_path(spec: &Value) -> Option<&str> {
    spec.pointer("/linux/cgroupsPath").and_then(Value::as_str).filter(|path| !path.is_empty())
}

/// The host's ids of the process, where the container has a user namespace.
pub(super) fn mapped_owner(spec: &Value, process: &Value) -> Option<(u32, u32)> {
    let map = |mappings: &str, id: &str| {
        let id = process.pointer(id).and_then(Value::as_u64).unwrap_or(0);
        spec.pointer(mappings)?.as_array()?.iter().find_map(|range| {
            let number = |key| range.get(key).and_then(Value::as_u64);
            let inside = id.checked_sub(number("containerID")?)?;
            if inside >= number("size")? {
                return None;
            }
            u32::try_from(number("hostID")?.checked_add(inside)?).ok()
        })
    };
    Some((map("/linux/uidMappings", "/user/uid")?, map("/linux/gidMappings", "/user/gid")?))
}

/// containerd's own AppArmor profile, which lets a container use any file descriptor it was given.
const OPEN_PROFILE: &str = "cri-containerd.apparmor.d";

/// Whether the process is confined so that an inherited fifo would be judged by its path on the host.
pub(super) fn needs_relay(process: &Value) -> bool {
    let text = |key| process.get(key).and_then(Value::as_str).filter(|text| !text.is_empty());
    let labelled = text("selinuxLabel").is_some() && Path::new("/sys/fs/selinux/enforce").exists();
    let profiled = text("apparmorProfile")
        .is_some_and(|name| name != OPEN_PROFILE && name != "unconfined")
        && fs::read_to_string("/sys/module/apparmor/parameters/enabled")
            .is_ok_and(|on| on.starts_with('Y'));
    labelled || profiled
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_namespace_with_a_path_is_somebody_elses() {
        let spec = json!({"linux": {"namespaces": [{"type": "pid", "path": "/proc/1/ns/pid"}, {"type": "cgroup"}]}});
        assert!(!owns_pid_namespace(&spec));
        assert!(owns_cgroup_namespace(&spec));
        let mapped =
            json!({"linux": {"namespaces": [{"type": "user", "path": "/proc/77/ns/user"}]}});
        assert_eq!((user_namespace_owner(&mapped), user_namespace_owner(&spec)), (Some(77), None));
        assert!(!owns_pid_namespace(&json!({})));
    }

    #[test]
    fn ids_are_mapped_to_the_hosts() {
        let ranges = json!([{"containerID": 0, "hostID": 100_000, "size": 1000}]);
        let spec = json!({"linux": {"uidMappings": ranges, "gidMappings": ranges}});
        assert_eq!(
            mapped_owner(&spec, &json!({"user": {"uid": 7, "gid": 8}})),
            Some((100_007, 100_008))
        );
        assert_eq!(mapped_owner(&spec, &json!({"user": {"uid": 1000, "gid": 8}})), None);
        assert_eq!(mapped_owner(&json!({}), &json!({})), None);
    }
}
