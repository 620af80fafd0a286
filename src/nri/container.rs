//! A container as plugins are told of it: its specification in NRI's words.

use std::time::SystemTime;

use protobuf::well_known_types::timestamp::Timestamp;
use serde_json::Value;

use super::api::{
    Container, Hook, Hooks, LinuxContainer, LinuxDevice, Mount, OptionalInt64, OptionalUInt64,
    POSIXRlimit, User,
};
use super::{
    pod::{namespace, namespaces, table},
    resources,
};

/// Where CRI's clients say what a container is called; others have the id for it.
const NAME: &str = "io.kubernetes.cri.container-name";

pub(super) const CREATED: i32 = 1;
pub(super) const RUNNING: i32 = 3;
pub(super) const STOPPED: i32 = 4;

/// The container `id` of `pod`, of which nothing is there but the specification.
pub(super) fn message(id: &str, pod: &str, spec: &Value) -> Container {
    let annotations = table(spec.get("annotations"));
    let name = annotations.get(NAME).cloned().unwrap_or_else(|| id.to_owned());
    let process = spec.get("process").unwrap_or(&Value::Null);
    let rlimits = each(process, "rlimits").map(|limit| POSIXRlimit {
        type_: text(limit, "type"),
        hard: number(limit, "hard"),
        soft: number(limit, "soft"),
        ..POSIXRlimit::default()
    });
    let mounts = each(spec, "mounts").map(|mount| Mount {
        destination: text(mount, "destination"),
        type_: text(mount, "type"),
        source: text(mount, "source"),
        options: texts(mount, "options"),
        ..Mount::default()
    });
    Container {
        id: id.to_owned(),
        pod_sandbox_id: pod.to_owned(),
        name,
        annotations,
        args: texts(process, "args"),
        env: texts(process, "env"),
        mounts: mounts.collect(),
        hooks: spec.get("hooks").filter(|hooks| hooks.is_object()).map(hooks).into(),
        linux: Some(linux(spec, process)).into(),
        rlimits: rlimits.collect(),
        user: process.get("user").map(user).into(),
        ..Container::default()
    }
}

fn linux(spec: &Value, process: &Value) -> LinuxContainer {
    let linux = spec.get("linux").unwrap_or(&Value::Null);
    let score = process.get("oomScoreAdj").and_then(Value::as_i64);
    let optional = |from: &Value, key: &str| {
        let value = from.get(key).and_then(Value::as_u64);
        value.map(|value| OptionalUInt64 { value, ..OptionalUInt64::default() }).into()
    };
    let devices = each(linux, "devices").map(|device| LinuxDevice {
        path: text(device, "path"),
        type_: text(device, "type"),
        major: device.get("major").and_then(Value::as_i64).unwrap_or_default(),
        minor: device.get("minor").and_then(Value::as_i64).unwrap_or_default(),
        file_mode: optional(device, "fileMode"),
        uid: optional(device, "uid"),
        gid: optional(device, "gid"),
        ..LinuxDevice::default()
    });
    LinuxContainer {
        namespaces: namespaces(spec).iter().map(namespace).collect(),
        devices: devices.collect(),
        resources: linux.get("resources").map(resources::message).into(),
        oom_score_adj: score
            .map(|value| OptionalInt64 { value, ..OptionalInt64::default() })
            .into(),
        cgroups_path: text(linux, "cgroupsPath"),
        sysctl: table(linux.get("sysctl")),
        ..LinuxContainer::default()
    }
}

fn user(user: &Value) -> User {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    let named = |key| user.get(key).and_then(id).unwrap_or_default();
    User {
        uid: named("uid"),
        gid: named("gid"),
        additional_gids: each(user, "additionalGids").filter_map(id).collect(),
        ..User::default()
    }
}

fn hooks(hooks: &Value) -> Hooks {
    let of = |moment| -> Vec<Hook> {
        let hook = |hook: &Value| {
            let timeout = hook.get("timeout").and_then(Value::as_i64);
            Hook {
                path: text(hook, "path"),
                args: texts(hook, "args"),
                env: texts(hook, "env"),
                timeout: timeout
                    .map(|value| OptionalInt64 { value, ..OptionalInt64::default() })
                    .into(),
                ..Hook::default()
            }
        };
        each(hooks, moment).map(hook).collect()
    };
    Hooks {
        prestart: of("prestart"),
        create_runtime: of("createRuntime"),
        create_container: of("createContainer"),
        start_container: of("startContainer"),
        poststart: of("poststart"),
        poststop: of("poststop"),
        ..Hooks::default()
    }
}

fn each<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> + use<'a> {
    value.get(key).and_then(Value::as_array).into_iter().flatten()
}

fn text(value: &Value, key: &str) -> String {
    value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn texts(value: &Value, key: &str) -> Vec<String> {
    each(value, key).filter_map(|one| one.as_str().map(str::to_owned)).collect()
}

fn number(value: &Value, key: &str) -> u64 {
    value.get(key).and_then(Value::as_u64).unwrap_or_default()
}

/// Nanoseconds since 1970, of now.
pub(super) fn now() -> i64 {
    let now = Timestamp::from(SystemTime::now());
    now.seconds.saturating_mul(1_000_000_000).saturating_add(now.nanos.into())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_container_is_its_specification() {
        let spec = json!({
            "annotations": {"io.kubernetes.cri.container-name": "web"},
            "process": {
                "args": ["/bin/web"], "env": ["A=1"], "oomScoreAdj": -5,
                "user": {"uid": 7, "gid": 8, "additionalGids": [9]},
                "rlimits": [{"type": "RLIMIT_CORE", "hard": 2, "soft": 1}],
            },
            "mounts": [{"destination": "/data", "type": "bind", "source": "/s", "options": ["ro"]}],
            "hooks": {"poststop": [{"path": "/hook", "timeout": 3}]},
            "linux": {
                "namespaces": [{"type": "mount"}], "cgroupsPath": "/x", "sysctl": {"a.b": "1"},
                "devices": [{"path": "/dev/x", "type": "c", "major": 1, "minor": 2, "fileMode": 438}],
                "resources": {"cpu": {"shares": 9}},
            },
        });
        let it = message("c", "p", &spec);
        assert_eq!(
            (it.id.as_str(), it.pod_sandbox_id.as_str(), it.name.as_str()),
            ("c", "p", "web")
        );
        assert_eq!((it.args, it.env), (vec!["/bin/web".to_owned()], vec!["A=1".to_owned()]));
        assert_eq!((it.user.uid, it.user.gid, &it.user.additional_gids[..]), (7, 8, &[9][..]));
        assert_eq!((it.rlimits[0].type_.as_str(), it.rlimits[0].hard), ("RLIMIT_CORE", 2));
        assert_eq!(
            (it.mounts[0].destination.as_str(), &it.mounts[0].options[..]),
            ("/data", &["ro".to_owned()][..])
        );
        assert_eq!(
            (it.hooks.poststop[0].path.as_str(), it.hooks.poststop[0].timeout.value),
            ("/hook", 3)
        );
        assert_eq!(
            (it.linux.namespaces[0].type_.as_str(), it.linux.cgroups_path.as_str()),
            ("mount", "/x")
        );
        assert_eq!((it.linux.devices[0].minor, it.linux.devices[0].file_mode.value), (2, 438));
        assert_eq!((it.linux.resources.cpu.shares.value, it.linux.oom_score_adj.value), (9, -5));
        assert_eq!(it.linux.sysctl["a.b"], "1");
    }

    #[test]
    fn what_a_specification_does_not_say_is_empty() {
        for spec in [json!({}), json!(3), json!({"linux": 4, "process": [], "mounts": {}})] {
            let it = message("c", "p", &spec);
            assert_eq!(it.name, "c");
            assert!(it.args.is_empty() && it.mounts.is_empty() && it.hooks.is_none());
        }
    }
}
