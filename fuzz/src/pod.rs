//! What must hold of a pod's configuration, whichever way a client wrote it.

use std::path::{Component, Path};

use mooring::{
    cgroup::{Hierarchies, pod::parent_path},
    mounts::files::{self, FilesRequest},
    sandbox::config::{PodConfig, Scope},
};

use crate::scratch;

/// Panics where the node would not be safe from a pod that is configured so.
pub fn is_safe(config: &PodConfig) {
    assert!(config.own_uts || config.hostname.is_none(), "the hostname would be the node's");
    if let Some((uids, gids)) = &config.user {
        assert!(!uids.is_empty() && !gids.is_empty(), "a user namespace without mappings");
        assert!(uids.iter().chain(gids).all(|mapping| mapping.length > 0));
    }
    for name in config.sysctls_with_defaults().keys() {
        assert!(is_the_pods(config, &file_of(name)), "sysctl {name:?} would be the node's");
    }
    cgroup_stays_inside(&config.cgroup_parent);
    files_come_and_go(config);
}

/// The file of a kernel parameter, from /proc/sys on.
fn file_of(name: &str) -> String {
    let exchanged = name.chars().map(|c| match c {
        '.' => '/',
        '/' => '.',
        other => other,
    });
    exchanged.collect()
}

fn is_the_pods(config: &PodConfig, file: &str) -> bool {
    let plain = |part: Component| matches!(part, Component::Normal(_));
    if !Path::new(file).components().all(plain) || file.contains("//") {
        return false;
    }
    if file.starts_with("net/") {
        return !config.host_network;
    }
    match file {
        "kernel/domainname" => config.own_uts,
        "kernel/shm_next_id" | "kernel/msg_next_id" | "kernel/sem_next_id" => false,
        _ => {
            let of_ipc = ["kernel/msg", "kernel/sem", "kernel/shm", "fs/mqueue/"];
            config.ipc == Scope::Pod && of_ipc.iter().any(|start| file.starts_with(start))
        }
    }
}

/// Whatever a client calls a pod's cgroup, it is a folder below the hierarchies' roots or refused.
pub fn cgroup_stays_inside(name: &str) {
    let Ok(hierarchies) = Hierarchies::read() else { return };
    let Ok(group) = parent_path(name).and_then(|path| hierarchies.group(&path)) else { return };
    for folder in group.folders() {
        let climbs = |part| matches!(part, Component::ParentDir | Component::CurDir);
        assert!(!folder.components().any(climbs), "{}", folder.display());
        assert!(!folder.as_os_str().as_encoded_bytes().contains(&0));
    }
}

fn files_come_and_go(config: &PodConfig) {
    let folder = scratch::folder();
    let request = FilesRequest {
        hostname: config.hostname.clone(),
        dns: config.dns.clone(),
        ..FilesRequest::default()
    };
    let dir = folder.join("ns/pod");
    if let Ok(record) = files::acquire(&dir, &request) {
        let hostname = std::fs::read_to_string(record.hostname()).expect("it was written");
        assert_eq!(hostname.lines().count(), 1);
        files::release(&record).expect("they can be removed");
        assert!(!dir.exists());
    }
    assert!(scratch::files(&folder).is_empty());
}
