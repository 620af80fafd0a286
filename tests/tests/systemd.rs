//! On a machine whose first process is systemd: containerd is a unit, pods lie in slices as the kubelet names them,
//! AppArmor confines containers.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use k8s_cri::v1 as cri;
use mooring_e2e::cri::{Container, ContainerSpec, Pod, PodSpec};
use mooring_e2e::faults::kill_shim;
use mooring_e2e::node::Settings;
use mooring_e2e::suite::{Case, Handler, Suite};
use mooring_e2e::systemd::{pod_slice, property, systemctl};

/// The cgroup of a process.
fn cgroup(pid: i32) -> Result<String> {
    let table = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    Ok(table.trim().strip_prefix("0::").context("not cgroup v2 alone")?.to_owned())
}

fn slice(pod: &PodSpec) -> String {
    let metadata = pod.config.metadata.as_ref();
    pod_slice(metadata.map_or("", |one| one.name.as_str()))
}

fn folder(slice: &str) -> PathBuf {
    Path::new("/sys/fs/cgroup/kubepods.slice/kubepods-burstable.slice").join(slice)
}

/// The container's scope: it is where systemd says, and so is the container.
async fn scope(container: &Container, slice: &str) -> Result<String> {
    let scope = format!("cri-containerd-{}.scope", container.id);
    ensure!(property(&scope, "ActiveState")? == "active", "{scope} is not active");
    ensure!(property(&scope, "Slice")? == slice, "{scope} is in {}", property(&scope, "Slice")?);
    let found = cgroup(container.pid().await?)?;
    ensure!(found.ends_with(&format!("/{slice}/{scope}")), "the container is in {found}");
    Ok(scope)
}

/// What the kubelet does once a pod is gone, and what must then be true.
fn slice_goes(slice: &str) -> Result<()> {
    systemctl(&["stop", slice])?;
    ensure!(!folder(slice).exists(), "{} stays", folder(slice).display());
    Ok(())
}

async fn containers_are_scopes_of_the_pods_slice(case: Case) -> Result<()> {
    let spec = PodSpec::new(&case);
    let slice = slice(&spec);
    let pod = spec.run().await?;
    let one = pod.start(&ContainerSpec::idle("one")).await?;
    let two = pod.start(&ContainerSpec::idle("two")).await?;
    let scopes = [scope(&one, &slice).await?, scope(&two, &slice).await?];
    one.stop(0).await?;
    one.remove().await?;
    pod.end().await?;
    for scope in scopes {
        ensure!(property(&scope, "LoadState")? == "not-found", "{scope} stays");
    }
    slice_goes(&slice)
}

async fn a_pod_with_shared_pids_leaves_its_slice_empty(case: Case) -> Result<()> {
    let spec = PodSpec::new(&case).pid(cri::NamespaceMode::Pod);
    let slice = slice(&spec);
    let pod = spec.run().await?;
    let container = pod.start(&ContainerSpec::idle("main")).await?;
    scope(&container, &slice).await?;
    pod.end().await?;
    slice_goes(&slice)
}

/// crictl and its like hand over the bare name.
async fn a_slice_may_be_named_without_its_path(case: Case) -> Result<()> {
    let mut spec = PodSpec::new(&case).pid(cri::NamespaceMode::Pod);
    let slice = slice(&spec);
    spec.linux().cgroup_parent.clone_from(&slice);
    let pod = spec.run().await?;
    let container = pod.start(&ContainerSpec::idle("main")).await?;
    scope(&container, &slice).await?;
    let stray = Path::new("/sys/fs/cgroup").join(&slice);
    ensure!(!stray.exists(), "{} is outside of systemd's tree", stray.display());
    pod.end().await?;
    slice_goes(&slice)
}

async fn pods_live_through_a_restart_of_the_unit(case: Case) -> Result<()> {
    for shared in [cri::NamespaceMode::Container, cri::NamespaceMode::Pod] {
        let (pod, slice, container) = idle(&case, shared).await?;
        let pid = container.pid().await?;
        case.node.restart().await?;
        ensure!(pod.is_ready().await?, "the pod is not ready any more");
        ensure!(container.pid().await? == pid, "the container is another one");
        ensure!(container.shell("echo alive").await? == "alive");
        let later = pod.start(&ContainerSpec::idle("later")).await?;
        scope(&later, &slice).await?;
        pod.end().await?;
        slice_goes(&slice)?;
    }
    Ok(())
}

/// A pod with a container that does nothing, and its slice.
async fn idle(case: &Case, pid: cri::NamespaceMode) -> Result<(Pod, String, Container)> {
    let spec = PodSpec::new(case).pid(pid);
    let pod = spec.run().await?;
    let container = pod.start(&ContainerSpec::idle("main")).await?;
    Ok((pod, slice(&spec), container))
}

async fn pods_live_through_a_new_systemd(case: Case) -> Result<()> {
    for shared in [cri::NamespaceMode::Container, cri::NamespaceMode::Pod] {
        let (pod, slice, container) = idle(&case, shared).await?;
        let pid = container.pid().await?;
        systemctl(&["daemon-reexec"])?;
        systemctl(&["daemon-reload"])?;
        scope(&container, &slice).await?;
        ensure!(container.pid().await? == pid, "the container is another one");
        let more =
            cri::LinuxContainerResources { memory_limit_in_bytes: 96 << 20, ..Default::default() };
        update(&case, &container, more).await?;
        let limit = Path::new("/sys/fs/cgroup").join(cgroup(pid)?.trim_start_matches('/'));
        let limit = fs::read_to_string(limit.join("memory.max"))?;
        ensure!(limit.trim() == (96 << 20).to_string(), "memory.max is {limit}");
        pod.end().await?;
        slice_goes(&slice)?;
    }
    Ok(())
}

async fn update(
    case: &Case,
    container: &Container,
    to: cri::LinuxContainerResources,
) -> Result<()> {
    let request = cri::UpdateContainerResourcesRequest {
        container_id: container.id.clone(),
        linux: Some(to),
        ..Default::default()
    };
    case.node.cri().update_container_resources(request).await?;
    Ok(())
}

/// What systemd has of a container's limits is what was asked for: at the next occasion it puts back its own. And what it
/// has none of stays: which devices a container may use.
async fn limits_outlive_systemds_own(case: Case) -> Result<()> {
    let spec = PodSpec::new(&case);
    let slice = slice(&spec);
    let pod = spec.run().await?;
    let mut spec = ContainerSpec::idle("main");
    spec.resources().memory_limit_in_bytes = 64 << 20;
    spec.resources().cpu_shares = 512;
    spec.resources().cpu_quota = 50_000;
    spec.resources().cpu_period = 100_000;
    spec.resources().cpuset_cpus = "0".into();
    let container = pod.start(&spec).await?;
    let scope = scope(&container, &slice).await?;
    let folder = folder(&slice).join(&scope);
    let device = "mknod /tmp/kmsg c 1 11 && ! cat /tmp/kmsg; rm -f /tmp/kmsg; cat /dev/null";
    let holds = |wanted: [(&str, &str, &str, &str); 4]| -> Result<()> {
        for (name, value, file, written) in wanted {
            let found = property(&scope, name)?;
            ensure!(found == value, "{name} is {found}");
            let found = fs::read_to_string(folder.join(file))?;
            ensure!(found.trim() == written, "{file} is {found}");
        }
        Ok(())
    };
    let first = [
        ("MemoryMax", "67108864", "memory.max", "67108864"),
        ("CPUWeight", "20", "cpu.weight", "20"),
        ("CPUQuotaPerSecUSec", "500ms", "cpu.max", "50000 100000"),
        ("AllowedCPUs", "0", "cpuset.cpus", "0"),
    ];
    holds(first)?;
    systemctl(&["daemon-reload"])?;
    holds(first)?;
    let said = container.exec(&["/bin/sh", "-c", device]).await?;
    ensure!(said.code == 0 && said.stderr.contains("not permitted"), "a device: {said:?}");
    let more = cri::LinuxContainerResources {
        memory_limit_in_bytes: 96 << 20,
        cpu_shares: 1024,
        cpu_quota: 70_000,
        cpu_period: 100_000,
        ..Default::default()
    };
    update(&case, &container, more).await?;
    let then = [
        ("MemoryMax", "100663296", "memory.max", "100663296"),
        ("CPUWeight", "39", "cpu.weight", "39"),
        ("CPUQuotaPerSecUSec", "700ms", "cpu.max", "70000 100000"),
        ("AllowedCPUs", "0", "cpuset.cpus", "0"),
    ];
    holds(then)?;
    systemctl(&["daemon-reexec"])?;
    systemctl(&["daemon-reload"])?;
    holds(then)?;
    let said = container.exec(&["/bin/sh", "-c", device]).await?;
    ensure!(said.code == 0 && said.stderr.contains("not permitted"), "a device: {said:?}");
    container.stop(0).await?;
    container.remove().await?;
    ensure!(property(&scope, "LoadState")? == "not-found", "{scope} stays");
    pod.end().await?;
    slice_goes(&slice)
}

/// A container that cannot be made leaves no unit.
async fn a_container_that_is_refused_leaves_no_scope(case: Case) -> Result<()> {
    let spec = PodSpec::new(&case);
    let slice = slice(&spec);
    let pod = spec.run().await?;
    let container = pod.create(&ContainerSpec::new("missing", &["no-such-program"])).await?;
    let error = container.start().await.err().context("it has no program")?;
    ensure!(format!("{error:#}").contains("executable file not found"), "{error:#}");
    let scope = format!("cri-containerd-{}.scope", container.id);
    ensure!(property(&scope, "LoadState")? == "not-found", "{scope} stays");
    container.remove().await?;
    pod.end().await?;
    slice_goes(&slice)
}

async fn a_killed_shims_scopes_go(case: Case) -> Result<()> {
    for shared in [cri::NamespaceMode::Container, cri::NamespaceMode::Pod] {
        let (pod, slice, container) = idle(&case, shared).await?;
        let scope = scope(&container, &slice).await?;
        kill_shim(&pod.id)?;
        container.exited().await?;
        pod.end().await?;
        ensure!(property(&scope, "LoadState")? == "not-found", "{scope} stays");
        slice_goes(&slice)?;
    }
    Ok(())
}

async fn containers_are_confined_by_containerds_profile(case: Case) -> Result<()> {
    let pod = PodSpec::new(&case).run().await?;
    let container = pod.start(&ContainerSpec::idle("main")).await?;
    let label = fs::read_to_string(format!("/proc/{}/attr/current", container.pid().await?))?;
    ensure!(label.trim() == "cri-containerd.apparmor.d (enforce)", "the container is {label:?}");
    // The profile denies what the mode of the file and root's capabilities would allow.
    let ran = container.exec(&["/bin/sh", "-c", "cat /proc/sysrq-trigger"]).await?;
    ensure!(ran.code != 0, "AppArmor does not deny it: {ran:?}");
    let inside = container.shell("cat /proc/self/attr/current").await?;
    ensure!(inside == "cri-containerd.apparmor.d (enforce)", "an exec is {inside:?}");
    pod.end().await
}

/// A profile under which nobody's signals arrive.
const DEAF: &str = "mooring-e2e-deaf";

fn load_deaf_profile(folder: &Path) -> Result<()> {
    let file = folder.join(DEAF);
    let rules =
        "file, capability, network, mount, umount, pivot_root, ptrace, unix, dbus, deny signal,";
    let text = format!(
        "abi <abi/3.0>,\nprofile {DEAF} flags=(attach_disconnected,mediate_deleted) {{ {} }}\n",
        rules.replace(", ", ",\n")
    );
    fs::write(&file, text)?;
    let loaded =
        std::process::Command::new("apparmor_parser").arg("--replace").arg(&file).status()?;
    ensure!(loaded.success(), "apparmor_parser refuses the profile");
    Ok(())
}

fn deaf(name: &str) -> ContainerSpec {
    let mut spec = ContainerSpec::idle(name);
    spec.security().apparmor = Some(cri::SecurityProfile {
        profile_type: cri::security_profile::ProfileType::Localhost as i32,
        localhost_ref: DEAF.to_owned(),
    });
    spec
}

/// The profile works: a signal of the node's root does not arrive.
async fn is_deaf(container: &Container) -> Result<()> {
    let pid = container.pid().await?;
    let signal =
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
    ensure!(signal == Err(nix::errno::Errno::EACCES), "a signal is answered {signal:?}");
    Ok(())
}

async fn a_profile_that_denies_signals_keeps_no_pod(case: Case) -> Result<()> {
    load_deaf_profile(case.node.folder())?;
    for shared in [cri::NamespaceMode::Container, cri::NamespaceMode::Pod] {
        let pod = PodSpec::new(&case).pid(shared).run().await?;
        let container = pod.start(&deaf("main")).await?;
        is_deaf(&container).await?;
        pod.end().await?;
    }
    Ok(())
}

async fn a_profile_that_denies_signals_keeps_no_container(case: Case) -> Result<()> {
    load_deaf_profile(case.node.folder())?;
    let pod = PodSpec::new(&case).run().await?;
    let container = pod.start(&deaf("main")).await?;
    is_deaf(&container).await?;
    container.stop(0).await?;
    ensure!(container.exited().await?.exit_code == 137);
    container.remove().await?;
    pod.end().await
}

async fn a_profile_that_denies_signals_keeps_no_pod_of_a_killed_shim(case: Case) -> Result<()> {
    load_deaf_profile(case.node.folder())?;
    let pod = PodSpec::new(&case).run().await?;
    let container = pod.start(&deaf("main")).await?;
    is_deaf(&container).await?;
    kill_shim(&pod.id)?;
    container.exited().await?;
    pod.end().await
}

fn main() {
    let mut suite = Suite::begin(Settings::default());
    suite.needs_systemd();
    suite.both("containers_are_scopes_of_the_pods_slice", containers_are_scopes_of_the_pods_slice);
    suite.both(
        "a_pod_with_shared_pids_leaves_its_slice_empty",
        a_pod_with_shared_pids_leaves_its_slice_empty,
    );
    suite.both("a_slice_may_be_named_without_its_path", a_slice_may_be_named_without_its_path);
    suite.both("pods_live_through_a_restart_of_the_unit", pods_live_through_a_restart_of_the_unit);
    suite.both("pods_live_through_a_new_systemd", pods_live_through_a_new_systemd);
    suite.both(
        "containers_are_confined_by_containerds_profile",
        containers_are_confined_by_containerds_profile,
    );
    suite.on(Handler::Mooring, "a_killed_shims_scopes_go", a_killed_shims_scopes_go);
    suite.on(
        Handler::Mooring,
        "a_profile_that_denies_signals_keeps_no_pod",
        a_profile_that_denies_signals_keeps_no_pod,
    );
    suite.on(
        Handler::Mooring,
        "a_profile_that_denies_signals_keeps_no_container",
        a_profile_that_denies_signals_keeps_no_container,
    );
    suite.on(
        Handler::Mooring,
        "a_profile_that_denies_signals_keeps_no_pod_of_a_killed_shim",
        a_profile_that_denies_signals_keeps_no_pod_of_a_killed_shim,
    );
    // With the OCI runtime in the shim, what it does with systemd and AppArmor itself.
    let on = Handler::Builtin;
    suite.on(on, "limits_outlive_systemds_own", limits_outlive_systemds_own);
    suite.on(
        on,
        "a_container_that_is_refused_leaves_no_scope",
        a_container_that_is_refused_leaves_no_scope,
    );
    suite.on(on, "a_killed_shims_scopes_go", a_killed_shims_scopes_go);
    suite.on(
        on,
        "containers_are_confined_by_containerds_profile",
        containers_are_confined_by_containerds_profile,
    );
    suite.run();
}
