//! Sandboxes and tasks through containerd's own services, without CRI.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use containerd_client::tonic::Code;
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::{cgroups, cgroups_v2};
use mooring_e2e::node::Settings;
use mooring_e2e::services::{Client, Task, container_spec, sandbox_spec};
use mooring_e2e::suite;
use mooring_e2e::suite::{Case, Handler};
use prost_types::Any;
use serde_json::json;

/// A sandbox that runs, on the node's network so that nothing of it needs CNI.
async fn running(case: &Case) -> Result<(Client, u32)> {
    started(case, true).await
}

async fn started(case: &Case, host_network: bool) -> Result<(Client, u32)> {
    let client = Client::new(case);
    let mut spec = sandbox_spec("inside", host_network);
    spec["linux"]["cgroupsPath"] = json!(format!("/default/{}", client.id));
    client.record(&spec).await.context("record")?;
    client.create(&spec, None, "").await.context("create")?;
    let started = client.start().await.context("start")?;
    Ok((client, started.pid))
}

async fn end(client: &Client) -> Result<()> {
    client.stop().await.context("stop")?;
    client.shutdown().await.context("shutdown")?;
    client.forget().await.context("forget")?;
    Ok(())
}

async fn a_sandbox_lives_from_create_to_shutdown(case: Case) -> Result<()> {
    let (client, pid) = running(&case).await?;
    assert!(pid > 0);
    let status = client.status().await?;
    assert_eq!(status.state, "SANDBOX_READY");
    assert_eq!(status.pid, pid);
    let info = status.info.get("info").context("no verbose info")?;
    assert!(serde_json::from_str::<serde_json::Value>(info)?.is_object());
    match client.platform().await {
        Ok(platform) => assert_eq!(platform.context("no platform")?.os, "linux"),
        // containerd 2.1 asks it of shims, but lets no client ask.
        Err(error) => assert_eq!(error.message(), "method Platform not implemented"),
    }
    let waiter = tokio::spawn({
        let client = client.with_id(&client.id);
        async move { client.wait().await }
    });
    used(&client).await?;
    client.stop().await?;
    let end_of_wait = tokio::time::timeout(Duration::from_secs(5), waiter).await???;
    assert!(end_of_wait.exited_at.is_some());
    assert_eq!(client.status().await?.state, "SANDBOX_NOTREADY");
    end(&client).await
}

/// What the pod has used: nanoseconds of the processor and bytes of memory, in the message of the machine's version.
async fn used(client: &Client) -> Result<(u64, u64)> {
    let data = client.metrics().await?.and_then(|one| one.data).context("no metrics")?;
    // Whoever mounts the unified hierarchy there has no other.
    if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        assert_eq!(data.type_url, "io.containerd.cgroups.v2.Metrics");
        let metrics = cgroups_v2::metrics::Metrics::parse_from_bytes(&data.value)?;
        return Ok((metrics.cpu.usage_usec.saturating_mul(1000), metrics.memory.usage));
    }
    assert_eq!(data.type_url, "io.containerd.cgroups.v1.Metrics");
    let metrics = cgroups::metrics::Metrics::parse_from_bytes(&data.value)?;
    Ok((metrics.cpu.usage.total, metrics.memory.usage.usage))
}

/// Has containers in a sandbox use a processor and 8 MB each, and looks at the sandbox's metrics with none of them, with
/// one and with two.
async fn metrics_grow_with_the_containers(case: &Case, group: Option<&str>) -> Result<()> {
    let client = Client::new(case);
    let mut spec = sandbox_spec("inside", true);
    if let Some(group) = group {
        spec["linux"]["cgroupsPath"] = json!(format!("{group}/{}", client.id));
    }
    client.record(&spec).await.context("record")?;
    client.create(&spec, None, "").await.context("create")?;
    let pid = client.start().await.context("start")?.pid;
    let (mut cpu, mut memory) = used(&client).await?;
    let mut tasks = Vec::new();
    for _ in 0..2 {
        let id = case.unique("container");
        let script = "head -c 8000000 /dev/zero > /dev/file; i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; : > /dev/ready; sleep 1000";
        let mut spec = container_spec(&id, &["/bin/sh", "-c", script], Some(pid));
        if let Some(group) = group {
            spec["linux"]["cgroupsPath"] = json!(format!("{group}/{}/{id}", client.id));
        }
        let task = client.container(&id, &spec).await?;
        task.create().await.context("create")?;
        task.start().await.context("start")?;
        while task.exec(&case.unique("look"), &["/bin/sh", "-c", "[ -e /dev/ready ]"]).await? != 0 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let before = (cpu, memory);
        (cpu, memory) = used(&client).await?;
        assert!(cpu > before.0 + 1_000_000, "{before:?}, then {cpu} ns");
        assert!(memory > before.1 + 7_000_000, "{before:?}, then {memory} bytes");
        tasks.push(task);
    }
    client.stop().await.context("stop")?;
    for task in tasks {
        task.wait().await?;
        task.delete().await?;
        task.forget().await?;
    }
    end(&client).await
}

async fn metrics_are_those_of_the_pods_cgroup(case: Case) -> Result<()> {
    metrics_grow_with_the_containers(&case, Some("/default")).await
}

async fn metrics_of_a_pod_without_a_cgroup_are_its_containers_together(case: Case) -> Result<()> {
    metrics_grow_with_the_containers(&case, None).await
}

async fn containers_of_a_sandbox_join_its_namespaces(case: Case) -> Result<()> {
    let (client, pid) = started(&case, false).await?;
    let mut tasks = Vec::new();
    for _ in 0..2 {
        let id = case.unique("container");
        let spec = container_spec(&id, &["/bin/sleep", "1000"], Some(pid));
        let task = client.container(&id, &spec).await?;
        task.create().await.context("create")?;
        let pid = task.start().await.context("start")?;
        tasks.push((task, pid));
    }
    for kind in ["ipc", "uts", "net"] {
        let of = |pid| fs::read_link(format!("/proc/{pid}/ns/{kind}"));
        assert_eq!(of(tasks[0].1)?, of(tasks[1].1)?, "{kind}");
        assert_ne!(of(tasks[0].1)?, fs::read_link(format!("/proc/self/ns/{kind}"))?, "{kind}");
    }
    let script = "[ $(hostname) = inside ] || exit 9; exit 5";
    assert_eq!(tasks[0].0.exec("first", &["/bin/sh", "-c", script]).await?, 5);
    let (task, init) = &tasks[0];
    assert_eq!(task.pids().await?, [*init]);
    task.kill(15).await?;
    task.kill(9).await?;
    assert_eq!(task.wait().await?, 137);
    assert_eq!(task.delete().await?, 137);
    task.forget().await?;
    // The other goes with the sandbox, forcibly.
    let (other, _) = &tasks[1];
    client.stop().await?;
    assert_eq!(other.wait().await?, 137);
    other.delete().await?;
    other.forget().await?;
    end(&client).await
}

async fn a_paused_task_is_stopped_with_its_sandbox(case: Case) -> Result<()> {
    let (client, pid) = running(&case).await?;
    let id = case.unique("container");
    let task =
        client.container(&id, &container_spec(&id, &["/bin/sleep", "1000"], Some(pid))).await?;
    task.create().await?;
    task.start().await?;
    task.pause().await?;
    assert_eq!(task.state().await?, 4);
    task.resume().await?;
    assert_eq!(task.state().await?, 2);
    task.pause().await?;
    client.stop().await?;
    assert_eq!(task.wait().await?, 137);
    task.delete().await?;
    task.forget().await?;
    end(&client).await
}

async fn tasks_not_deleted_by_the_client_go_with_shutdown(case: Case) -> Result<()> {
    let (client, pid) = running(&case).await?;
    let id = case.unique("container");
    let task =
        client.container(&id, &container_spec(&id, &["/bin/sleep", "1000"], Some(pid))).await?;
    task.create().await?;
    task.start().await?;
    end(&client).await?;
    // containerd itself may still have an object for the task; its runtime state is gone either way.
    let _ = task.delete().await;
    task.forget().await?;
    Ok(())
}

async fn a_stopped_sandbox_takes_no_more_tasks(case: Case) -> Result<()> {
    let (client, pid) = running(&case).await?;
    client.stop().await?;
    let id = case.unique("container");
    let task = client.container(&id, &container_spec(&id, &["/bin/true"], Some(pid))).await?;
    let error = task.create().await.expect_err("the door is closed");
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    task.forget().await?;
    end(&client).await
}

async fn a_sandbox_with_a_network_has_an_address_and_gives_it_back(case: Case) -> Result<()> {
    let client = Client::new(&case);
    let spec = sandbox_spec("networked", false);
    client.record(&spec).await?;
    client.create(&spec, None, "").await?;
    let pid = client.start().await?.pid;
    let links = fs::read_to_string(format!("/proc/{pid}/net/dev"))?;
    assert!(links.contains("eth0"), "{links}");
    let table = fs::read_to_string(format!("/proc/{pid}/net/fib_trie"))?;
    assert!(table.contains("10.88."), "{table}");
    end(&client).await
}

async fn a_second_create_is_refused(case: Case) -> Result<()> {
    let (client, pid) = running(&case).await?;
    let error = client.create(&sandbox_spec("again", true), None, "").await;
    let error = error.expect_err("there is one already");
    assert_eq!(error.code(), Code::AlreadyExists, "{error}");
    let id = case.unique("container");
    let task = client.container(&id, &container_spec(&id, &["/bin/sleep", "9"], Some(pid))).await?;
    task.create().await?;
    let error = task.create().await.expect_err("there is one already");
    assert_eq!(error.code(), Code::AlreadyExists, "{error}");
    task.kill(9).await?;
    task.delete().await?;
    task.forget().await?;
    end(&client).await
}

async fn unknown_ids_are_not_found(case: Case) -> Result<()> {
    let (client, _) = running(&case).await?;
    let nobody = Task::of(&client, "nobody");
    for (action, result) in [
        ("start", nobody.start().await.map(drop)),
        ("kill", nobody.kill(9).await),
        ("wait", nobody.wait().await.map(drop)),
        ("delete", nobody.delete().await.map(drop)),
        ("state", nobody.state().await.map(drop)),
        ("pids", nobody.pids().await.map(drop)),
        ("pause", nobody.pause().await),
    ] {
        let error = result.expect_err(action);
        assert_eq!(error.code(), Code::NotFound, "{action}: {error}");
    }
    let stranger = client.with_id("stranger");
    // containerd's own answer, without a code.
    let error = stranger.start().await.expect_err("there is no such sandbox");
    assert!(error.message().contains("stranger"), "{error}");
    // Stop of the unknown is success in containerd.
    let _ = stranger.stop().await;
    end(&client).await
}

async fn calls_in_the_wrong_order_are_refused(case: Case) -> Result<()> {
    let (client, pid) = running(&case).await?;
    let id = case.unique("container");
    let task = client.container(&id, &container_spec(&id, &["/bin/sleep", "9"], Some(pid))).await?;
    task.create().await?;
    task.start().await?;
    let error = task.delete().await.expect_err("it is running");
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    task.kill(9).await?;
    task.wait().await?;
    let error = task.add_exec("late", &["/bin/true"]).await.expect_err("it has ended");
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    let error = task.kill(9).await.expect_err("it has ended");
    assert_eq!(error.code(), Code::NotFound, "{error}");
    task.delete().await?;
    task.forget().await?;
    end(&client).await
}

async fn the_same_exec_id_twice_is_refused(case: Case) -> Result<()> {
    let (client, pid) = running(&case).await?;
    let id = case.unique("container");
    let task = client.container(&id, &container_spec(&id, &["/bin/sleep", "9"], Some(pid))).await?;
    task.create().await?;
    task.start().await?;
    task.add_exec("twin", &["/bin/true"]).await?;
    let error = task.add_exec("twin", &["/bin/true"]).await.expect_err("the id is taken");
    assert_eq!(error.code(), Code::AlreadyExists, "{error}");
    client.stop().await?;
    task.delete().await?;
    task.forget().await?;
    end(&client).await
}

async fn a_netns_path_that_is_none_is_refused_and_named(case: Case) -> Result<()> {
    for path in ["/etc/passwd", "/no/such/netns", "../../etc", "/proc/self/ns/uts"] {
        let client = Client::new(&case);
        let spec = sandbox_spec("x", false);
        client.record(&spec).await?;
        let error = match client.create(&spec, None, path).await {
            Ok(()) => client.start().await.map(drop),
            error => error,
        };
        let error = error.expect_err(path);
        assert!(error.message().contains(path), "{path}: {error}");
        assert!([Code::InvalidArgument, Code::NotFound].contains(&error.code()), "{path}: {error}");
        let _ = client.shutdown().await;
        client.forget().await?;
    }
    Ok(())
}

async fn options_of_an_unknown_type_are_refused(case: Case) -> Result<()> {
    let client = Client::new(&case);
    let spec = sandbox_spec("x", true);
    client.record(&spec).await?;
    let options = Any { type_url: "example.invalid/Strange".to_owned(), value: vec![1, 2, 3] };
    let error = client.create(&spec, Some(options), "").await.expect_err("strange options");
    assert_eq!(error.code(), Code::InvalidArgument, "{error}");
    assert!(error.message().contains("example.invalid/Strange"), "{error}");
    let _ = client.shutdown().await;
    client.forget().await?;
    Ok(())
}

async fn a_container_with_a_broken_specification_is_refused_and_the_shim_lives(
    case: Case,
) -> Result<()> {
    let (client, pid) = running(&case).await?;
    let mut no_process = container_spec("x", &["/bin/true"], Some(pid));
    no_process["process"] = json!(null);
    let mut bad_namespace = container_spec("x", &["/bin/true"], Some(pid));
    bad_namespace["linux"]["namespaces"][2]["path"] = json!("/proc/1/nonsense");
    for spec in [json!({}), no_process, bad_namespace] {
        let id = case.unique("container");
        let task = client.container(&id, &spec).await?;
        assert!(task.create().await.is_err(), "{spec}");
        task.forget().await?;
    }
    assert_eq!(client.status().await?.state, "SANDBOX_READY");
    end(&client).await
}

/// A task without sandbox that runs.
async fn plain(case: &Case) -> Result<Task> {
    let id = case.unique("plain");
    let spec = container_spec(&id, &["/bin/sleep", "1000"], None);
    let task = Client::new(case).plain_container(&id, &spec).await?;
    task.create().await?;
    task.start().await?;
    Ok(task)
}

async fn plain_tasks_refuse_calls_in_the_wrong_order(case: Case) -> Result<()> {
    let task = plain(&case).await?;
    let error = task.delete().await.expect_err("it is running");
    let refusals = match case.handler {
        // The Go shim gives it no code.
        Handler::Runc => Code::Unknown,
        Handler::Mooring | Handler::Builtin => Code::FailedPrecondition,
    };
    assert_eq!(error.code(), refusals, "{error}");
    let error = task.create().await.expect_err("it is there already");
    assert_eq!(error.code(), Code::AlreadyExists, "{error}");
    task.kill(9).await?;
    assert_eq!(task.wait().await?, 137);
    let error = task.kill(9).await.expect_err("it has ended");
    assert_eq!(error.code(), Code::NotFound, "{error}");
    assert!(task.exec("late", &["/bin/true"]).await.is_err());
    assert_eq!(task.delete().await?, 137);
    let error = task.start().await.expect_err("it is gone");
    assert_eq!(error.code(), Code::NotFound, "{error}");
    task.forget().await?;
    Ok(())
}

async fn plain_tasks_run_further_processes(case: Case) -> Result<()> {
    let task = plain(&case).await?;
    assert_eq!(task.exec("one", &["/bin/sh", "-c", "exit 5"]).await?, 5);
    assert_eq!(task.exec("one", &["/bin/true"]).await?, 0);
    task.add_exec("twin", &["/bin/true"]).await?;
    let error = task.add_exec("twin", &["/bin/true"]).await.expect_err("the id is taken");
    assert_eq!(error.code(), Code::AlreadyExists, "{error}");
    task.pause().await?;
    assert_eq!(task.state().await?, 4);
    task.resume().await?;
    assert_eq!(task.state().await?, 2);
    task.kill(9).await?;
    task.wait().await?;
    task.delete().await?;
    task.forget().await?;
    Ok(())
}

suite!(Settings::default();
    too: builtin;
    both: plain_tasks_refuse_calls_in_the_wrong_order, plain_tasks_run_further_processes;
    mooring: a_sandbox_lives_from_create_to_shutdown,
        metrics_are_those_of_the_pods_cgroup,
        metrics_of_a_pod_without_a_cgroup_are_its_containers_together,
        containers_of_a_sandbox_join_its_namespaces,
        a_paused_task_is_stopped_with_its_sandbox,
        tasks_not_deleted_by_the_client_go_with_shutdown,
        a_stopped_sandbox_takes_no_more_tasks,
        a_sandbox_with_a_network_has_an_address_and_gives_it_back,
        a_second_create_is_refused,
        unknown_ids_are_not_found,
        calls_in_the_wrong_order_are_refused,
        the_same_exec_id_twice_is_refused,
        a_netns_path_that_is_none_is_refused_and_named,
        options_of_an_unknown_type_are_refused,
        a_container_with_a_broken_specification_is_refused_and_the_shim_lives);
