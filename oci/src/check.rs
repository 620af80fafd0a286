//! What is refused before anything is made: what this runtime does not do, and what no runtime should.

use std::path::{Component, Path};

use crate::{
    error::{Error, Result},
    namespaces::Namespaces,
    process,
    rootfs::options::Options,
    spec::{Linux, Process, Spec},
};

/// Checks a whole specification.
pub fn spec(spec: &Spec, namespaces: &Namespaces) -> Result<()> {
    if !spec.oci_version.starts_with("1.") {
        return Err(Error::unsupported(format!("ociVersion {:?}", spec.oci_version)));
    }
    if spec.root.path.as_os_str().is_empty() {
        return Err(Error::invalid("root.path is empty"));
    }
    if !namespaces.makes(libc::CLONE_NEWNS) {
        return Err(Error::unsupported("a container without a new mount namespace"));
    }
    let process =
        spec.process.as_ref().ok_or_else(|| Error::unsupported("a container without process"))?;
    self::process(process)?;
    linux(&spec.linux)?;
    users(spec, namespaces)?;
    names(spec, namespaces)?;
    sysctls(&spec.linux, namespaces)?;
    for mount in &spec.mounts {
        if !mount.destination.is_absolute() {
            // As older specifications have them: taken from the root.
            let relative = mount.destination.display();
            return Err(Error::invalid(format!("mount destination {relative} is not absolute")));
        }
        Options::of(mount)?;
    }
    Ok(())
}

/// Checks what the container's own process and an exec have in common.
pub fn process(process: &Process) -> Result<()> {
    if process.args.is_empty() {
        return Err(Error::invalid("process.args is empty"));
    }
    if !process.cwd.is_empty() && !Path::new(&process.cwd).is_absolute() {
        return Err(Error::invalid(format!("process.cwd {:?} is not absolute", process.cwd)));
    }
    if process.exec_cpu_affinity.is_some() {
        return Err(Error::unsupported("process.execCPUAffinity"));
    }
    for limit in &process.rlimits {
        crate::limits::number(&limit.kind)?;
    }
    process::check_labels(process)?;
    process::check_scheduling(process)
}

fn linux(linux: &Linux) -> Result<()> {
    for (there, name) in [
        (linux.intel_rdt.is_some(), "linux.intelRdt"),
        (linux.memory_policy.is_some(), "linux.memoryPolicy"),
        (!linux.net_devices.is_empty(), "linux.netDevices"),
    ] {
        if there {
            return Err(Error::unsupported(name));
        }
    }
    if !linux.mount_label.is_empty() && !mooring::mounts::label::is_enabled() {
        return Err(Error::unsupported("linux.mountLabel on a node without SELinux"));
    }
    if let Some(personality) = &linux.personality {
        process::persona(personality)?;
    }
    for device in &linux.devices {
        if !matches!(device.kind.as_str(), "b" | "c" | "u" | "p") {
            return Err(Error::invalid(format!("device type {:?}", device.kind)));
        }
    }
    Ok(())
}

/// Mappings go with a new user namespace, and only with one.
fn users(spec: &Spec, namespaces: &Namespaces) -> Result<()> {
    let linux = &spec.linux;
    let given = !linux.uid_mappings.is_empty() || !linux.gid_mappings.is_empty();
    if namespaces.makes(libc::CLONE_NEWUSER) {
        if linux.uid_mappings.is_empty() || linux.gid_mappings.is_empty() {
            return Err(Error::invalid("a new user namespace without mappings of uids and gids"));
        }
    } else if given && !namespaces.has(libc::CLONE_NEWUSER) {
        return Err(Error::invalid("mappings of ids without a user namespace"));
    }
    if !linux.time_offsets.is_empty() && !namespaces.makes(libc::CLONE_NEWTIME) {
        return Err(Error::invalid("linux.timeOffsets without a new time namespace"));
    }
    if let Some(clock) =
        linux.time_offsets.keys().find(|one| !matches!(one.as_str(), "monotonic" | "boottime"))
    {
        return Err(Error::invalid(format!("linux.timeOffsets of clock {clock:?}")));
    }
    Ok(())
}

/// The node keeps its name.
fn names(spec: &Spec, namespaces: &Namespaces) -> Result<()> {
    let named = !spec.hostname.is_empty() || !spec.domainname.is_empty();
    if named && !namespaces.has(libc::CLONE_NEWUTS) {
        return Err(Error::invalid("a host name without a UTS namespace"));
    }
    Ok(())
}

/// A sysctl that is not a namespace's of the container would be the node's.
fn sysctls(linux: &Linux, namespaces: &Namespaces) -> Result<()> {
    for name in linux.sysctl.keys() {
        let dotted = name.replace('/', ".");
        let safe = !name.starts_with('/')
            && Path::new(name).components().all(|part| matches!(part, Component::Normal(_)))
            && !dotted.split('.').any(str::is_empty);
        if !safe {
            return Err(Error::invalid(format!("sysctl {name:?}")));
        }
        let own = match dotted.split('.').collect::<Vec<_>>()[..] {
            ["net", ..] => namespaces.has(libc::CLONE_NEWNET),
            ["fs", "mqueue", ..] => namespaces.has(libc::CLONE_NEWIPC),
            ["kernel", last] if IPC.contains(&last) => namespaces.has(libc::CLONE_NEWIPC),
            ["kernel", "domainname"] => namespaces.has(libc::CLONE_NEWUTS),
            ["user", ..] => namespaces.has(libc::CLONE_NEWUSER),
            _ => false,
        };
        if !own {
            return Err(Error::invalid(format!(
                "sysctl {name:?} is not of a namespace that the container has"
            )));
        }
    }
    Ok(())
}

const IPC: [&str; 9] = [
    "msgmax",
    "msgmnb",
    "msgmni",
    "sem",
    "shmall",
    "shmmax",
    "shmmni",
    "shm_rmid_forced",
    "sem_next_id",
];

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::load;

    fn usual() -> Value {
        json!({
            "ociVersion": "1.2.0",
            "root": {"path": "rootfs"},
            "process": {"args": ["sh"], "cwd": "/"},
            "linux": {"namespaces": [{"type": "mount"}, {"type": "pid"}]},
        })
    }

    /// What is said of the usual specification with `part` at `pointer`.
    fn said(pointer: &str, part: Value) -> String {
        let mut all = usual();
        let (above, name) = pointer.rsplit_once('/').unwrap();
        all.pointer_mut(above).unwrap().as_object_mut().unwrap().insert(name.into(), part);
        let checked = load::parse(all.to_string().as_bytes())
            .and_then(|read| spec(&read, &Namespaces::of(&read.linux)?));
        checked.map_or_else(|error| error.to_string(), |()| "accepted".into())
    }

    #[test]
    fn the_usual_is_accepted() {
        assert_eq!(said("/process/cwd", json!("/tmp")), "accepted");
        assert_eq!(said("/annotations", json!({"a": "b"})), "accepted");
        assert_eq!(said("/linux/rootfsPropagation", Value::Null), "accepted");
    }

    #[test]
    fn what_is_not_done_is_refused_by_its_name() {
        for (pointer, part, name) in [
            ("/linux/intelRdt", json!({"closID": "x"}), "linux.intelRdt"),
            ("/linux/memoryPolicy", json!({"mode": "MPOL_BIND"}), "linux.memoryPolicy"),
            ("/linux/netDevices", json!({"eth0": {}}), "linux.netDevices"),
            ("/linux/fromTheFuture", json!(1), "fromTheFuture"),
            ("/process/fromTheFuture", json!(1), "fromTheFuture"),
            ("/linux/namespaces", json!([{"type": "pid"}]), "without a new mount namespace"),
            ("/linux/personality", json!({"domain": "LINUX", "flags": ["X"]}), "personality"),
            ("/process/execCPUAffinity", json!({"initial": "0"}), "execCPUAffinity"),
            ("/process/rlimits", json!([{"type": "RLIMIT_X", "hard": 1, "soft": 1}]), "RLIMIT_X"),
            ("/process/scheduler", json!({"policy": "SCHED_X"}), "SCHED_X"),
            ("/process/ioPriority", json!({"class": "X", "priority": 1}), "ioPriority"),
            ("/ociVersion", json!("2.0.0"), "ociVersion"),
            ("/process/args", json!([]), "process.args"),
            ("/process/cwd", json!("tmp"), "process.cwd"),
            ("/mounts", json!([{"destination": "x", "type": "tmpfs"}]), "not absolute"),
            (
                "/mounts",
                json!([{"destination": "/x", "type": "tmpfs", "options": ["remount"]}]),
                "remount",
            ),
            ("/linux/devices", json!([{"path": "/dev/x", "type": "z"}]), "device type"),
            ("/process", Value::Null, "a container without process"),
            (
                "/linux/seccomp",
                json!({"defaultAction": "SCMP_ACT_ALLOW", "fromTheFuture": 1}),
                "fromTheFuture",
            ),
            (
                "/mounts",
                json!([{"destination": "/x", "type": "tmpfs", "fromTheFuture": 1}]),
                "fromTheFuture",
            ),
        ] {
            let said = said(pointer, part);
            assert!(said.contains(name), "{pointer}: {said}");
        }
    }

    #[test]
    fn a_label_of_mounts_is_refused_where_the_node_has_none() {
        let said = said("/linux/mountLabel", json!("system_u:object_r:container_file_t:s0"));
        if mooring::mounts::label::is_enabled() {
            assert_eq!(said, "accepted");
        } else {
            assert!(said.contains("linux.mountLabel"), "{said}");
        }
    }

    #[test]
    fn what_would_be_the_nodes_is_refused() {
        for (pointer, part, name) in [
            ("/hostname", json!("x"), "UTS"),
            ("/linux/sysctl", json!({"net.ipv4.ip_forward": "1"}), "net.ipv4.ip_forward"),
            ("/linux/sysctl", json!({"kernel.core_pattern": "|/x"}), "core_pattern"),
            ("/linux/sysctl", json!({"kernel/../../self/mem": "1"}), "sysctl"),
            (
                "/linux/uidMappings",
                json!([{"containerID": 0, "hostID": 1, "size": 1}]),
                "user namespace",
            ),
            ("/linux/timeOffsets", json!({"boottime": {"secs": 1}}), "timeOffsets"),
            ("/linux/namespaces", json!([{"type": "mount"}, {"type": "user"}]), "without mappings"),
        ] {
            let said = said(pointer, part);
            assert!(said.contains(name), "{pointer}: {said}");
        }
    }
}
