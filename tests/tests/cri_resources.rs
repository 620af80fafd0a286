//! Statistics, limits, out of memory and cgroups over CRI.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use k8s_cri::v1 as cri;
use mooring_e2e::cri::{Container, ContainerSpec, PodSpec};
use mooring_e2e::node::{Settings, version};
use mooring_e2e::suite;
use mooring_e2e::suite::Case;
use mooring_e2e::systemd;

/// The folder of a process's cgroup for a controller, in either version.
fn cgroup(pid: i32, controller: &str) -> Result<PathBuf> {
    let table = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    let (mut v1, mut v2) = (None, None);
    for line in table.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) =
            (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        if controllers.split(',').any(|one| one == controller) {
            v1 = Some(
                Path::new("/sys/fs/cgroup").join(controllers).join(path.trim_start_matches('/')),
            );
        } else if controllers.is_empty() {
            v2 = Some(Path::new("/sys/fs/cgroup").join(path.trim_start_matches('/')));
        }
    }
    v1.or(v2).context("no cgroup")
}

async fn value(container: &Container, controller: &str, v1: &str, v2: &str) -> Result<String> {
    let folder = cgroup(container.pid().await?, controller)?;
    let file = [v1, v2].map(|file| folder.join(file)).into_iter().find(|file| file.exists());
    Ok(fs::read_to_string(file.context("no such limit")?)?.trim().to_owned())
}

async fn container_stats_count_memory_and_cpu(case: Case) -> Result<()> {
    let pod = PodSpec::new(&case).run().await?;
    let script = "head -c 8000000 /dev/zero > /dev/shm/file; i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; echo ready; sleep 1000";
    let container = pod.start(&ContainerSpec::script("main", script)).await?;
    container.logged("stdout", |lines| lines.contains("ready")).await?;
    let stats = container.stats().await?;
    let memory = stats.memory.and_then(|one| one.working_set_bytes).map_or(0, |one| one.value);
    assert!(memory > 8_000_000, "{memory} bytes");
    let cpu = stats.cpu.and_then(|one| one.usage_core_nano_seconds).map_or(0, |one| one.value);
    assert!(cpu > 1_000_000, "{cpu} ns");
    pod.end().await
}

async fn pod_stats_count_the_pod_and_list_its_containers(case: Case) -> Result<()> {
    let pod = PodSpec::new(&case).run().await?;
    pod.start(&ContainerSpec::idle("one")).await?;
    pod.start(&ContainerSpec::idle("two")).await?;
    let stats = pod.stats().await?.linux.context("no Linux stats")?;
    assert_eq!(stats.containers.len(), 2);
    let memory = stats.memory.and_then(|one| one.usage_bytes).map_or(0, |one| one.value);
    assert!(memory > 0, "no memory in the pod's stats");
    let cpu = stats.cpu.and_then(|one| one.usage_core_nano_seconds).map_or(0, |one| one.value);
    assert!(cpu > 0, "no processor time in the pod's stats");
    let network =
        stats.network.and_then(|one| one.default_interface).context("no network stats")?;
    assert_eq!(network.name, "eth0");
    assert!(stats.process.and_then(|one| one.process_count).map_or(0, |one| one.value) >= 2);
    pod.end().await
}

async fn an_empty_pod_has_stats_and_its_cgroup_parent(case: Case) -> Result<()> {
    let pod = PodSpec::new(&case).run().await?;
    let parent = pod.spec.config.linux.as_ref().map(|linux| linux.cgroup_parent.clone());
    let parent = parent.unwrap_or_default();
    assert!(
        ["memory", "unified", ""].iter().any(|top| Path::new("/sys/fs/cgroup")
            .join(top)
            .join(parent.trim_start_matches('/'))
            .exists()),
        "no cgroup {parent}"
    );
    pod.stats().await?.linux.context("no Linux stats")?;
    pod.end().await
}

async fn a_pod_without_a_cgroup_parent_has_its_containers_stats(case: Case) -> Result<()> {
    if systemd::is_first() {
        // Without a parent containerd gives containers no slice, and with systemd's cgroups runc refuses that.
        return Ok(());
    }
    let mut spec = PodSpec::new(&case);
    spec.linux().cgroup_parent.clear();
    let pod = spec.run().await?;
    let script = "head -c 8000000 /dev/zero > /dev/shm/file; echo ready; sleep 1000";
    let container = pod.start(&ContainerSpec::script("main", script)).await?;
    container.logged("stdout", |lines| lines.contains("ready")).await?;
    match pod.stats().await {
        Ok(stats) => {
            let stats = stats.linux.context("no Linux stats")?;
            let memory = stats.memory.and_then(|one| one.usage_bytes).map_or(0, |one| one.value);
            assert!(memory > 8_000_000, "{memory} bytes");
            let cpu =
                stats.cpu.and_then(|one| one.usage_core_nano_seconds).map_or(0, |one| one.value);
            assert!(cpu > 0, "no processor time");
        }
        // Before 2.4 containerd reads the parent's cgroup itself, and has none.
        Err(error) => {
            assert!(version()? < (2, 4), "{error:#}");
            assert!(format!("{error:#}").contains("cgroupPath is empty"), "{error:#}");
        }
    }
    pod.end().await
}

async fn stats_of_all_pods_have_this_one(case: Case) -> Result<()> {
    let pod = PodSpec::new(&case).run().await?;
    let container = pod.start(&ContainerSpec::idle("main")).await?;
    let all = case
        .node
        .cri()
        .list_pod_sandbox_stats(cri::ListPodSandboxStatsRequest { filter: None })
        .await?;
    let ids: Vec<_> = all
        .into_inner()
        .stats
        .into_iter()
        .filter_map(|one| one.attributes)
        .map(|one| one.id)
        .collect();
    assert_eq!(ids, [pod.id.as_str()]);
    let all = case
        .node
        .cri()
        .list_container_stats(cri::ListContainerStatsRequest { filter: None })
        .await?;
    let ids: Vec<_> = all
        .into_inner()
        .stats
        .into_iter()
        .filter_map(|one| one.attributes)
        .map(|one| one.id)
        .collect();
    assert_eq!(ids, [container.id.as_str()]);
    pod.end().await
}

async fn limits_are_set_and_updated(case: Case) -> Result<()> {
    let pod = PodSpec::new(&case).run().await?;
    let mut spec = ContainerSpec::idle("main");
    spec.resources().memory_limit_in_bytes = 64 << 20;
    spec.resources().cpu_shares = 512;
    spec.resources().cpu_quota = 50_000;
    spec.resources().cpu_period = 100_000;
    let container = pod.start(&spec).await?;
    let memory = || value(&container, "memory", "memory.limit_in_bytes", "memory.max");
    assert_eq!(memory().await?, (64 << 20).to_string());
    let quota = value(&container, "cpu", "cpu.cfs_quota_us", "cpu.max").await?;
    assert!(quota.starts_with("50000"), "{quota}");
    let resources = cri::LinuxContainerResources {
        memory_limit_in_bytes: 96 << 20,
        cpu_quota: 70_000,
        cpu_period: 100_000,
        ..Default::default()
    };
    let request = cri::UpdateContainerResourcesRequest {
        container_id: container.id.clone(),
        linux: Some(resources),
        ..Default::default()
    };
    case.node.cri().update_container_resources(request).await?;
    assert_eq!(memory().await?, (96 << 20).to_string());
    let quota = value(&container, "cpu", "cpu.cfs_quota_us", "cpu.max").await?;
    assert!(quota.starts_with("70000"), "{quota}");
    pod.end().await
}

async fn a_container_without_memory_is_reported_as_oom_killed(case: Case) -> Result<()> {
    let pod = PodSpec::new(&case).run().await?;
    let mut spec = ContainerSpec::script("main", "tail /dev/zero");
    spec.resources().memory_limit_in_bytes = 16 << 20;
    // The shell must not survive its child.
    spec.config.command = vec!["/bin/tail".into(), "/dev/zero".into()];
    for name in ["first", "second", "third"] {
        if let Some(metadata) = &mut spec.config.metadata {
            metadata.name = name.into();
        }
        let container = pod.start(&spec).await?;
        let status = container.exited_within(std::time::Duration::from_secs(20)).await?;
        assert_eq!(status.exit_code, 137, "{name}");
        // systemd removes a scope as soon as it is empty: the peer, who reads there, misses one such kill in five.
        if case.handler.is_mooring() || !systemd::is_first() {
            assert_eq!(status.reason, "OOMKilled", "{name}");
        }
    }
    pod.end().await
}

async fn an_ended_container_tells_its_exit_code(case: Case) -> Result<()> {
    let pod = PodSpec::new(&case).run().await?;
    for (script, code, reason) in
        [("exit 0", 0, "Completed"), ("exit 17", 17, "Error"), ("kill -15 $$; sleep 9", 0, "")]
    {
        let container = pod.start(&ContainerSpec::script(&case.unique("c"), script)).await?;
        // Process 1 has no default handlers: its own SIGTERM is ignored, so it is ended from outside.
        if reason.is_empty() {
            container.stop(0).await?;
            assert_eq!(container.exited().await?.exit_code, 137);
        } else {
            let status = container.exited().await?;
            assert_eq!((status.exit_code, status.reason.as_str()), (code, reason));
        }
    }
    pod.end().await
}

async fn a_stop_with_grace_lets_the_container_end_itself(case: Case) -> Result<()> {
    let pod = PodSpec::new(&case).run().await?;
    let script = "trap 'exit 21' TERM; echo ready; while true; do sleep 0.02; done";
    let container = pod.start(&ContainerSpec::script("main", script)).await?;
    container.logged("stdout", |lines| lines == "ready").await?;
    container.stop(10).await?;
    assert_eq!(container.exited().await?.exit_code, 21);
    pod.end().await
}

async fn a_stop_kills_what_ignores_its_grace(case: Case) -> Result<()> {
    let pod = PodSpec::new(&case).run().await?;
    let script = "trap '' TERM; echo ready; while true; do sleep 0.02; done";
    let container = pod.start(&ContainerSpec::script("main", script)).await?;
    // Before its program runs, a signal would meet the OCI runtime.
    container.logged("stdout", |lines| lines == "ready").await?;
    container.stop(1).await?;
    assert_eq!(container.exited().await?.exit_code, 137);
    pod.end().await
}

suite!(Settings::default();
    too: builtin;
    both: container_stats_count_memory_and_cpu,
        pod_stats_count_the_pod_and_list_its_containers,
        an_empty_pod_has_stats_and_its_cgroup_parent,
        stats_of_all_pods_have_this_one,
        limits_are_set_and_updated,
        a_container_without_memory_is_reported_as_oom_killed,
        an_ended_container_tells_its_exit_code,
        a_stop_with_grace_lets_the_container_end_itself,
        a_stop_kills_what_ignores_its_grace;
    mooring: a_pod_without_a_cgroup_parent_has_its_containers_stats);
