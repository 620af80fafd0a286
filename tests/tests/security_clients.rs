//! What a client of containerd's Sandbox API may ask for by mistake, and what a shim refuses it. See docs/security.md.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use containerd_client::tonic::{Code, Status};
use k8s_cri::v1::{self as cri, NamespaceMode};
use mooring_e2e::node::Settings;
use mooring_e2e::services::{Client, container_spec, sandbox_spec};
use mooring_e2e::suite;
use mooring_e2e::suite::Case;
use prost::Message;
use prost_types::Any;
use serde_json::{Value, json};

/// The creation of a sandbox must be refused as a wrong argument that is named.
async fn refused(
    case: &Case,
    spec: &Value,
    options: Option<Any>,
    netns: &str,
    word: &str,
) -> Result<()> {
    let client = Client::new(case);
    client.record(spec).await?;
    let outcome = client.create(spec, options, netns).await;
    let Err(error) = outcome else {
        let _ = client.stop().await;
        let _ = client.shutdown().await;
        client.forget().await?;
        panic!("it was created: {spec}");
    };
    assert_eq!(error.code(), Code::InvalidArgument, "{error}");
    assert!(error.message().contains(word), "{word} in {error}");
    let _ = client.shutdown().await;
    client.forget().await?;
    Ok(())
}

/// CRI's configuration, as its plugin passes it.
fn cri_options(change: impl FnOnce(&mut cri::PodSandboxConfig)) -> Any {
    let mut config = cri::PodSandboxConfig {
        metadata: Some(cri::PodSandboxMetadata { name: "pod".into(), ..Default::default() }),
        ..Default::default()
    };
    change(&mut config);
    Any { type_url: "runtime.v1.PodSandboxConfig".into(), value: config.encode_to_vec() }
}

fn host_network(config: &mut cri::PodSandboxConfig) {
    let linux = config.linux.get_or_insert_default();
    let security = linux.security_context.get_or_insert_default();
    security.namespace_options.get_or_insert_default().network = NamespaceMode::Node as i32;
}

async fn sysctls_of_a_specification_are_the_nodes_or_the_pods(case: Case) -> Result<()> {
    let before = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range")?;
    for (host_network, name) in [
        (false, "kernel.core_pattern"),
        (false, "vm.swappiness"),
        (false, "net/../kernel/panic"),
        (true, "net.ipv4.ip_local_port_range"),
        (true, "net/ipv4/ip_local_port_range"),
    ] {
        let mut spec = sandbox_spec("x", host_network);
        spec["linux"]["sysctl"] = json!({ name: "20000 30000" });
        refused(&case, &spec, None, "", name).await.context(name)?;
        // The same by CRI's configuration; CRI of containerd 2.1 cannot be asked for such a pod.
        let options = cri_options(|config| {
            if host_network {
                self::host_network(config);
            }
            config.linux.get_or_insert_default().sysctls.insert(name.into(), "20000 30000".into());
        });
        refused(&case, &sandbox_spec("x", host_network), Some(options), "", name)
            .await
            .context(name)?;
    }
    assert_eq!(fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range")?, before);
    Ok(())
}

async fn a_hostname_without_a_uts_namespace_is_refused(case: Case) -> Result<()> {
    let options = cri_options(|config| {
        host_network(config);
        config.hostname = "attacked".into();
    });
    refused(&case, &sandbox_spec("x", true), Some(options), "", "attacked").await?;
    for key in ["hostname", "domainname"] {
        let spec = json!({"ociVersion": "1.2.0", key: "attacked", "linux": {"namespaces": [{"type": "ipc"}]}});
        refused(&case, &spec, None, "", "attacked").await.context(key)?;
    }
    Ok(())
}

async fn a_network_namespace_that_is_the_nodes_is_refused(case: Case) -> Result<()> {
    let name = "/proc/sys/net/ipv4/ip_unprivileged_port_start";
    let before = fs::read_to_string(name)?;
    let link = case.node.folder().join(case.unique("netns"));
    std::os::unix::fs::symlink("/proc/1/ns/net", &link)?;
    let link = link.display().to_string();
    for path in ["/proc/1/ns/net", "/proc/self/ns/net", &link] {
        refused(&case, &sandbox_spec("x", false), None, path, path)
            .await
            .context("as an argument")?;
        let mut spec = sandbox_spec("x", false);
        spec["linux"]["namespaces"][2]["path"] = json!(path);
        refused(&case, &spec, None, "", path).await.context("in the specification")?;
    }
    // Not even the defaults were set on it.
    assert_eq!(fs::read_to_string(name)?, before);
    Ok(())
}

async fn namespaces_that_a_sandbox_cannot_join_by_path_are_refused(case: Case) -> Result<()> {
    for (kind, file) in
        [("ipc", "ipc"), ("uts", "uts"), ("pid", "pid"), ("mount", "mnt"), ("cgroup", "cgroup")]
    {
        let mut spec = sandbox_spec("x", false);
        let path = format!("/proc/1/ns/{file}");
        spec["linux"]["namespaces"] =
            json!([{"type": "network"}, {"type": "uts"}, {"type": kind, "path": path}]);
        refused(&case, &spec, None, "", &path).await.context(kind)?;
    }
    Ok(())
}

/// A container's task must be refused, and leave nothing.
async fn refused_task(client: &Client, case: &Case, spec: &Value) -> Result<Status> {
    let id = case.unique("container");
    let task = client.container(&id, spec).await?;
    let error = task.create().await.expect_err("it was created");
    assert_eq!(error.code(), Code::InvalidArgument, "{error}");
    task.forget().await?;
    assert!(!Path::new("/run/containerd/runc/default").join(&id).exists());
    Ok(error)
}

async fn a_container_reaches_the_nodes_namespaces_by_no_path(case: Case) -> Result<()> {
    let client = Client::new(&case);
    let spec = sandbox_spec("x", false);
    client.record(&spec).await?;
    client.create(&spec, None, "").await?;
    let pid = client.start().await?.pid;
    let folder = case.node.folder().join(case.unique("links"));
    fs::create_dir_all(&folder)?;
    for (kind, file) in [
        ("network", "net"),
        ("ipc", "ipc"),
        ("uts", "uts"),
        ("pid", "pid"),
        ("mount", "mnt"),
        ("cgroup", "cgroup"),
    ] {
        let link = folder.join(file);
        std::os::unix::fs::symlink(format!("/proc/1/ns/{file}"), &link)?;
        let mut paths = vec![
            format!("/proc/1/ns/{file}"),
            format!("/proc/self/ns/{file}"),
            format!("/proc/{pid}/../1/ns/{file}"),
            format!("/proc/1/task/1/ns/{file}"),
            link.display().to_string(),
            format!("/proc/0/ns/{file}"),
            format!("/proc/1/ns/nothing-{file}"),
            "relative".to_owned(),
        ];
        if ["pid", "mount", "cgroup"].contains(&kind) {
            // The keeper is a thread of the shim, with the node's.
            paths.push(format!("/proc/{pid}/ns/{file}"));
        }
        for path in paths {
            let mut spec = container_spec("x", &["/bin/sleep", "9"], Some(pid));
            let namespaces = spec["linux"]["namespaces"].as_array_mut().context("no namespaces")?;
            namespaces.retain(|one| one["type"] != kind);
            namespaces.push(json!({"type": kind, "path": path}));
            let error = refused_task(&client, &case, &spec).await.context(path.clone())?;
            assert!(error.message().contains(&path) && error.message().contains(kind), "{error}");
        }
    }
    // With what is the pod's, it runs.
    let id = case.unique("container");
    let task =
        client.container(&id, &container_spec(&id, &["/bin/sleep", "1000"], Some(pid))).await?;
    task.create().await?;
    task.start().await?;
    client.stop().await?;
    task.delete().await?;
    task.forget().await?;
    client.shutdown().await?;
    client.forget().await?;
    Ok(())
}

/// A client of plain tasks names what it likes, as with the peer (`ctr run --with-ns`).
async fn a_task_without_sandbox_joins_what_its_client_names(case: Case) -> Result<()> {
    let id = case.unique("plain");
    let mut spec = container_spec(&id, &["/bin/sleep", "1000"], None);
    spec["linux"]["namespaces"][2]["path"] = json!("/proc/1/ns/net");
    let task = Client::new(&case).plain_container(&id, &spec).await?;
    task.create().await?;
    let pid = task.start().await?;
    assert_eq!(fs::read_link(format!("/proc/{pid}/ns/net"))?, fs::read_link("/proc/1/ns/net")?);
    task.kill(9).await?;
    task.wait().await?;
    task.delete().await?;
    task.forget().await?;
    Ok(())
}

/// Whoever stops and forgets the sandbox at once leaves its tasks to the shim, and with them the groups below the pod's.
async fn the_pods_cgroup_goes_with_the_last_of_the_containers_below_it(case: Case) -> Result<()> {
    let client = Client::new(&case);
    let mut spec = sandbox_spec("x", true);
    let parent = format!("/default/{}", client.id);
    spec["linux"]["cgroupsPath"] = json!(parent);
    client.record(&spec).await?;
    client.create(&spec, None, "").await?;
    let pid = client.start().await?.pid;
    let id = case.unique("container");
    let mut spec = container_spec(&id, &["/bin/sleep", "1000"], Some(pid));
    spec["linux"]["cgroupsPath"] = json!(format!("{parent}/{id}"));
    let task = client.container(&id, &spec).await?;
    task.create().await?;
    task.start().await?;
    client.stop().await?;
    client.shutdown().await?;
    client.forget().await?;
    // containerd itself may still have an object for the task; its runtime state is gone either way.
    let _ = task.delete().await;
    task.forget().await?;
    for hierarchy in fs::read_dir("/sys/fs/cgroup")?.flatten() {
        let left = hierarchy.path().join(parent.trim_start_matches('/'));
        assert!(!left.exists(), "{}", left.display());
    }
    Ok(())
}

/// Where the shim makes the network too, the holder makes the user namespace and leaves the node's files inside it.
async fn a_holder_in_a_user_namespace_of_its_making_sees_nothing_of_the_node(
    case: Case,
) -> Result<()> {
    for networked in [false, true] {
        let client = Client::new(&case);
        let mut spec = sandbox_spec("x", !networked);
        let mappings = json!([{"containerID": 0, "hostID": 1_100_000, "size": 65_536}]);
        spec["linux"]["uidMappings"] = mappings.clone();
        spec["linux"]["gidMappings"] = mappings;
        let namespaces = spec["linux"]["namespaces"].as_array_mut().context("no namespaces")?;
        namespaces.push(json!({"type": "user"}));
        namespaces.push(json!({"type": "pid"}));
        client.record(&spec).await?;
        client.create(&spec, None, "").await?;
        let holder = client.start().await?.pid;
        let read = |file: &str| fs::read_to_string(format!("/proc/{holder}/{file}"));
        assert_eq!(read("mountinfo")?.lines().count(), 1);
        assert_eq!(fs::read_dir(format!("/proc/{holder}/root/"))?.count(), 0);
        assert!(read("status")?.contains("\nUid:\t1100000\t"));
        assert_eq!(read("environ")? + &read("cmdline")?, "mooring-pod\0");
        client.stop().await?;
        client.shutdown().await?;
        client.forget().await?;
    }
    Ok(())
}

suite!(Settings::default();
    too: builtin;
    both: a_task_without_sandbox_joins_what_its_client_names;
    mooring: sysctls_of_a_specification_are_the_nodes_or_the_pods,
        a_hostname_without_a_uts_namespace_is_refused,
        a_network_namespace_that_is_the_nodes_is_refused,
        namespaces_that_a_sandbox_cannot_join_by_path_are_refused,
        a_container_reaches_the_nodes_namespaces_by_no_path,
        a_holder_in_a_user_namespace_of_its_making_sees_nothing_of_the_node,
        the_pods_cgroup_goes_with_the_last_of_the_containers_below_it);
