//! Pods whose namespaces are pinned: no thread and no process stands for them.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use containerd_client::tonic::Code;
use k8s_cri::v1::NamespaceMode;
use mooring_e2e::cri::{ContainerSpec, PodSpec};
use mooring_e2e::direct::Direct;
use mooring_e2e::faults::{kill_shim, nobody_works_for, shim_of, state_dir};
use mooring_e2e::life::{Kind, Life};
use mooring_e2e::node::{IMAGE, Settings};
use mooring_e2e::services::{Client, NAMESPACE, Task, container_spec, sandbox_spec};
use mooring_e2e::suite;
use mooring_e2e::suite::Case;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

/// What tells a namespace, by whatever path it is reached.
fn namespace(path: impl AsRef<Path>) -> Result<u64> {
    use std::os::unix::fs::MetadataExt;
    let path = path.as_ref();
    fs::metadata(path).map(|found| found.ino()).with_context(|| path.display().to_string())
}

/// The pod's namespaces, as the sandbox's specification has them: the kernel's name of the kind, and the path.
fn paths(spec: &Value) -> Result<BTreeMap<&'static str, PathBuf>> {
    let all = spec.pointer("/linux/namespaces").and_then(Value::as_array).context("none")?;
    let mut paths = BTreeMap::new();
    for one in all {
        let kind = match one["type"].as_str() {
            Some("network") => "net",
            Some("ipc") => "ipc",
            Some("uts") => "uts",
            other => bail!("a namespace of type {other:?}"),
        };
        paths.insert(kind, one["path"].as_str().context("no path")?.into());
    }
    Ok(paths)
}

/// A pod of the Sandbox API.
async fn started(case: &Case, host_network: bool) -> Result<Client> {
    let client = Client::new(case);
    let mut spec = sandbox_spec("inside", host_network);
    spec["linux"]["sysctl"] = json!({"kernel.shm_rmid_forced": "1"});
    client.record(&spec).await.context("record")?;
    client.create(&spec, None, "").await.context("create")?;
    assert_eq!(client.start().await.context("start")?.pid, 0);
    Ok(client)
}

async fn end(client: &Client, tasks: &[Task]) -> Result<()> {
    client.stop().await.context("stop")?;
    for task in tasks {
        task.delete().await.context("delete")?;
        task.forget().await?;
    }
    client.shutdown().await.context("shutdown")?;
    client.forget().await?;
    Ok(())
}

/// A container that runs in the namespaces of these paths, or in those that its pod has.
async fn container(
    case: &Case,
    client: &Client,
    paths: Option<&BTreeMap<&'static str, PathBuf>>,
) -> Result<(Task, u32)> {
    let id = case.unique("container");
    let mut spec = container_spec(&id, &["/bin/sleep", "100000"], None);
    for one in spec["linux"]["namespaces"].as_array_mut().context("no namespaces")? {
        let file = one["type"].as_str().map(|kind| if kind == "network" { "net" } else { kind });
        if let Some(path) = paths.and_then(|paths| paths.get(file?)) {
            one["path"] = json!(path);
        }
    }
    let task = client.container(&id, &spec).await?;
    task.create().await.context("create the task")?;
    let pid = task.start().await.context("start the task")?;
    Ok((task, pid))
}

async fn a_pod_without_a_pid_is_joined_by_its_paths(case: Case) -> Result<()> {
    let client = started(&case, false).await?;
    let status = client.status().await?;
    assert_eq!((status.state.as_str(), status.pid), ("SANDBOX_READY", 0));
    // What StartSandbox said, and what the status says.
    let info: Value = serde_json::from_str(status.info.get("info").context("no info")?)?;
    let pins = paths(&info["runtimeSpec"])?;
    assert_eq!(pins.keys().copied().collect::<Vec<_>>(), ["ipc", "net", "uts"]);
    let shim = shim_of(&client.id)?;
    for thread in fs::read_dir(format!("/proc/{}/task", shim.pid))? {
        // One that ends meanwhile holds nothing.
        let name = fs::read_to_string(thread?.path().join("comm")).unwrap_or_default();
        assert!(!["pod\n", "pins\n"].contains(&name.as_str()), "thread {name:?}");
    }
    let tasks =
        [container(&case, &client, Some(&pins)).await?, container(&case, &client, None).await?];
    for (kind, pin) in &pins {
        assert_ne!(namespace(pin)?, namespace(format!("/proc/self/ns/{kind}"))?, "{kind}");
        for (_, pid) in &tasks {
            assert_eq!(namespace(format!("/proc/{pid}/ns/{kind}"))?, namespace(pin)?, "{kind}");
        }
    }
    let script = "[ $(hostname) = inside ] || exit 9
        read -r forced < /proc/sys/kernel/shm_rmid_forced; exit $((forced + 4))";
    assert_eq!(tasks[0].0.exec("look", &["/bin/sh", "-c", script]).await?, 5);
    // containerd looks at the pod's processes after its restart, of which there are none.
    case.node.crash().await?;
    assert_eq!(client.status().await?.state, "SANDBOX_READY");
    let third = container(&case, &client, Some(&pins)).await?;
    assert_eq!(namespace(format!("/proc/{}/ns/ipc", third.1))?, namespace(&pins["ipc"])?);
    let inside = case.unique("inside");
    let run = ["run", "--runtime", case.handler.runtime(), "--rm", "--sandbox", &client.id];
    let run = [&run[..], &[IMAGE, &inside, "/bin/hostname"]].concat();
    assert_eq!(case.node.ctr(&run).await?, "inside\n");
    let [first, second] = tasks;
    end(&client, &[first.0, second.0, third.0]).await?;
    for pin in pins.values() {
        assert!(!pin.exists(), "{}", pin.display());
    }
    Ok(())
}

async fn start_answers_the_paths(case: Case) -> Result<()> {
    let client = Client::new(&case);
    let spec = sandbox_spec("inside", false);
    client.record(&spec).await?;
    client.create(&spec, None, "").await?;
    let direct = Direct::to(&case.node, NAMESPACE, &client.id).await?;
    let (pid, spec) = direct.start(&client.id, Duration::from_secs(10)).await?;
    assert_eq!(pid, 0);
    for (kind, pin) in paths(&spec)? {
        assert_ne!(namespace(pin)?, namespace(format!("/proc/self/ns/{kind}"))?, "{kind}");
    }
    end(&client, &[]).await
}

/// With the node's network: nothing of the node's is pinned, and nothing else of it can be joined.
async fn no_path_leads_to_the_nodes_namespaces(case: Case) -> Result<()> {
    let client = started(&case, true).await?;
    let status = client.status().await?;
    let info: Value = serde_json::from_str(status.info.get("info").context("no info")?)?;
    let pins = paths(&info["runtimeSpec"])?;
    assert_eq!(pins.keys().copied().collect::<Vec<_>>(), ["ipc", "uts"]);
    let (task, pid) = container(&case, &client, None).await?;
    assert_eq!(namespace(format!("/proc/{pid}/ns/net"))?, namespace("/proc/self/ns/net")?);
    assert_eq!(namespace(format!("/proc/{pid}/ns/uts"))?, namespace(&pins["uts"])?);
    let shim = shim_of(&client.id)?.pid;
    for (kind, path) in [
        ("uts", "/proc/1/ns/uts".to_owned()),
        ("ipc", format!("/proc/{shim}/ns/ipc")),
        ("pid", "/proc/0/ns/pid".to_owned()),
        ("mount", "/proc/0/ns/mnt".to_owned()),
    ] {
        let id = case.unique("container");
        let mut spec = container_spec(&id, &["/bin/true"], None);
        let all = spec["linux"]["namespaces"].as_array_mut().context("no namespaces")?;
        all.retain(|one| one["type"] != kind);
        all.push(json!({"type": kind, "path": path}));
        let task = client.container(&id, &spec).await?;
        let error = task.create().await.expect_err("it leads to the node");
        assert_eq!(error.code(), Code::InvalidArgument, "{error}");
        assert!(error.message().contains(&path), "{error}");
        task.forget().await?;
    }
    end(&client, &[task]).await
}

/// The pins, and with them the namespaces, are there until somebody takes the pod down; the containers too.
async fn namespaces_outlive_a_killed_shim_until_its_delete(case: Case) -> Result<()> {
    let client = started(&case, false).await?;
    let (task, pid) = container(&case, &client, None).await?;
    let folder = Path::new("/run/mooring").join(NAMESPACE).join(&client.id).join("ns");
    let pins = [folder.join("ipc"), folder.join("uts")];
    let before = [namespace(&pins[0])?, namespace(&pins[1])?];
    // Nobody is there to run `delete`.
    case.node.end(Signal::SIGKILL).await?;
    kill_shim(&client.id)?;
    nobody_works_for(&client.id, Duration::from_secs(10)).await?;
    assert_eq!([namespace(&pins[0])?, namespace(&pins[1])?], before);
    assert!(Path::new(&format!("/proc/{pid}")).exists(), "the container has ended");
    case.node.start().await?;
    nobody_works_for(&client.id, Duration::from_secs(20)).await?;
    assert!(!folder.exists() && !Path::new(&format!("/proc/{pid}")).exists());
    assert!(!state_dir(NAMESPACE, &client.id).exists());
    let _ = task.delete().await;
    task.forget().await?;
    let _ = client.shutdown().await;
    client.forget().await?;
    Ok(())
}

/// Today's CRI builds paths from the number that stands for the pod, and here it is 0.
async fn a_pod_of_todays_cri_runs(case: Case) -> Result<()> {
    let pod = PodSpec::new(&case).sysctl("net.ipv4.ip_unprivileged_port_start", "7").run().await?;
    let one = pod.start(&ContainerSpec::idle("one")).await?;
    let two = pod.start(&ContainerSpec::idle("two")).await?;
    for kind in ["net", "ipc", "uts"] {
        let of = |pid: i32| namespace(format!("/proc/{pid}/ns/{kind}"));
        assert_eq!(of(one.pid().await?)?, of(two.pid().await?)?, "{kind}");
        assert_ne!(of(one.pid().await?)?, namespace(format!("/proc/self/ns/{kind}"))?, "{kind}");
    }
    assert_eq!(one.shell("hostname").await?, pod.spec.config.hostname);
    assert_eq!(one.shell("cat /proc/sys/net/ipv4/ip_unprivileged_port_start").await?, "7");
    one.shell("echo shared > /dev/shm/file").await?;
    assert_eq!(two.shell("cat /dev/shm/file").await?, "shared");
    case.node.restart().await?;
    ensure!(pod.is_ready().await?);
    let three = pod.start(&ContainerSpec::idle("three")).await?;
    assert_eq!(three.shell("cat /dev/shm/file").await?, "shared");
    assert_eq!(pod.stats().await?.attributes.context("no attributes")?.id, pod.id);
    pod.end().await
}

/// Of a pod in the node's PID namespace CRI builds that path from the number too.
async fn a_pod_of_cri_among_the_nodes_processes_runs(case: Case) -> Result<()> {
    let pod = PodSpec::new(&case).pid(NamespaceMode::Node).run().await?;
    let one = pod.start(&ContainerSpec::idle("one")).await?;
    let pid = one.pid().await?;
    assert_eq!(namespace(format!("/proc/{pid}/ns/pid"))?, namespace("/proc/self/ns/pid")?);
    assert_ne!(namespace(format!("/proc/{pid}/ns/ipc"))?, namespace("/proc/self/ns/ipc")?);
    pod.end().await
}

/// A shared PID namespace needs its first process, and a user namespace one to be joined.
async fn what_needs_a_process_has_one(case: Case) -> Result<()> {
    let pod = PodSpec::new(&case).pid(NamespaceMode::Pod).run().await?;
    let one = pod.start(&ContainerSpec::idle("one")).await?;
    assert!(one.shell("ps").await?.contains("mooring-pod"));
    pod.end().await?;
    let mut life = Life::new(&case, Kind::UserNamespace);
    life.run().await?;
    assert_ne!(life.pid(), 0);
    assert!(Path::new(&format!("/proc/{}/ns/user", life.pid())).exists());
    life.end().await
}

suite!(Settings { options: "Keeper = 'pinned'".to_owned(), ..Settings::default() };
    both: ;
    mooring: a_pod_without_a_pid_is_joined_by_its_paths,
        start_answers_the_paths,
        no_path_leads_to_the_nodes_namespaces,
        namespaces_outlive_a_killed_shim_until_its_delete,
        a_pod_of_todays_cri_runs,
        a_pod_of_cri_among_the_nodes_processes_runs,
        what_needs_a_process_has_one);
