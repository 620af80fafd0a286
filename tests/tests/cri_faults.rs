//! Killed shims, missing and misbehaving OCI runtimes, bad requests, over CRI.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use k8s_cri::v1 as cri;
use mooring_e2e::audit::{Process, all_processes};
use mooring_e2e::cri::{ContainerSpec, Pod, PodSpec, remove_all_pods};
use mooring_e2e::faults::{nobody_works_for, state_dir};
use mooring_e2e::node::{Configuration, Extra, Settings, deps};
use mooring_e2e::suite;
use mooring_e2e::suite::Case;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

fn shim_of(pod: &Pod) -> Result<Process> {
    let ours = |one: &Process| {
        one.command.contains("containerd-shim")
            && one.command.contains(&pod.id)
            && !one.command.ends_with("delete")
    };
    all_processes().into_iter().find(ours).context("the pod has no shim")
}

fn kill_shim(pod: &Pod) -> Result<()> {
    kill(Pid::from_raw(shim_of(pod)?.pid), Signal::SIGKILL).context("kill the shim")
}

async fn containers_of_a_killed_shim_are_exited_within_ten_seconds(case: Case) -> Result<()> {
    let pod = PodSpec::new(&case).run().await?;
    let one = pod.start(&ContainerSpec::idle("one")).await?;
    let two = pod.start(&ContainerSpec::script("two", "sleep 88888 & sleep 99999")).await?;
    let since = Instant::now();
    kill_shim(&pod)?;
    for container in [&one, &two] {
        let rest = Duration::from_secs(10).saturating_sub(since.elapsed());
        let status = container.exited_within(rest).await?;
        assert_ne!(status.exit_code, 0);
    }
    pod.wait_ready(false).await?;
    pod.end().await
}

async fn a_shim_killed_with_shared_pids_leaves_nothing(case: Case) -> Result<()> {
    let pod = PodSpec::new(&case).pid(cri::NamespaceMode::Pod).run().await?;
    let one = pod.start(&ContainerSpec::idle("one")).await?;
    kill_shim(&pod)?;
    one.exited().await?;
    pod.end().await
}

async fn a_shim_killed_with_the_nodes_pids_leaves_nothing(case: Case) -> Result<()> {
    let pod = PodSpec::new(&case).pid(cri::NamespaceMode::Node).run().await?;
    let one = pod.start(&ContainerSpec::script("one", "sleep 88888 & sleep 99999")).await?;
    kill_shim(&pod)?;
    one.exited().await?;
    pod.end().await
}

async fn a_shim_killed_in_a_user_namespace_leaves_nothing(case: Case) -> Result<()> {
    let pod = PodSpec::new(&case).users_from(400_000).run().await?;
    let one = pod.start(&ContainerSpec::idle("one")).await?;
    kill_shim(&pod)?;
    one.exited().await?;
    pod.end().await
}

async fn a_shim_killed_while_containerd_is_away_leaves_nothing(case: Case) -> Result<()> {
    let pod = PodSpec::new(&case).run().await?;
    let one = pod.start(&ContainerSpec::idle("one")).await?;
    let shim = shim_of(&pod)?;
    case.node.end(Signal::SIGKILL).await?;
    kill(Pid::from_raw(shim.pid), Signal::SIGKILL)?;
    case.node.start().await?;
    one.exited().await?;
    pod.end().await
}

async fn an_empty_pod_whose_shim_was_killed_is_removed(case: Case) -> Result<()> {
    let pod = PodSpec::new(&case).run().await?;
    kill_shim(&pod)?;
    pod.wait_ready(false).await?;
    pod.end().await
}

async fn many_shims_killed_at_once_leave_nothing(case: Case) -> Result<()> {
    let mut pods = Vec::new();
    for _ in 0..5 {
        let pod = PodSpec::new(&case).run().await?;
        let container = pod.start(&ContainerSpec::idle("main")).await?;
        pods.push((pod, container));
    }
    for (pod, _) in &pods {
        kill_shim(pod)?;
    }
    for (pod, container) in &pods {
        // CRI may try to delete the task while containerd buries the shim; it tries again ten seconds later.
        container.exited_within(Duration::from_secs(15)).await?;
        pod.wait_ready(false).await?;
        pod.end().await?;
    }
    Ok(())
}

async fn a_missing_oci_runtime_is_named_and_the_pod_can_go(case: Case) -> Result<()> {
    misbehaving(&case, "missing", &["no-such-runtime"]).await
}

async fn an_oci_runtime_that_prints_garbage_is_named_and_the_pod_can_go(case: Case) -> Result<()> {
    misbehaving(&case, "garbage", &["OCI runtime create"]).await
}

async fn an_oci_runtime_that_fails_is_named_and_the_pod_can_go(case: Case) -> Result<()> {
    misbehaving(&case, "failing", &["OCI runtime create", "exit status 1"]).await
}

/// With an OCI runtime that does not work: the container fails with a message, the shim lives, nothing is left.
async fn misbehaving(case: &Case, handler: &str, words: &[&str]) -> Result<()> {
    let mut spec = PodSpec::new(case);
    handler.clone_into(&mut spec.handler);
    let pod = spec.run().await?;
    let container = pod.create(&ContainerSpec::idle("main")).await?;
    let error = container.start().await.expect_err("there is no runtime that could start it");
    let message = format!("{error:#}");
    for word in words {
        assert!(message.contains(word), "{word:?} is not in: {message}");
    }
    shim_of(&pod)?;
    assert!(pod.is_ready().await?);
    pod.end().await
}

async fn a_container_that_cannot_start_leaves_the_pod_well(case: Case) -> Result<()> {
    let pod = PodSpec::new(&case).run().await?;
    let bad = pod.create(&ContainerSpec::new("bad", &["/no/such/program"])).await?;
    let message = format!("{:#}", bad.start().await.expect_err("there is no such program"));
    assert!(message.contains("no such file or directory"), "{message}");
    assert_eq!(bad.exited().await?.reason, "StartError");
    let good = pod.start(&ContainerSpec::idle("good")).await?;
    assert_eq!(good.shell("echo alive").await?, "alive");
    pod.end().await
}

async fn a_refused_sysctl_fails_the_pod_and_leaves_nothing(case: Case) -> Result<()> {
    let result = PodSpec::new(&case).sysctl("net.ipv4.no_such_thing", "1").run().await;
    let error = result.err().context("the pod runs with a sysctl that does not exist")?;
    let message = format!("{error:#}");
    assert!(message.contains("no_such_thing"), "{message}");
    // A failed sandbox is kept by CRI's podsandbox for its records: whatever is listed must go as usual.
    remove_all_pods(&case).await
}

async fn unknown_objects_are_answered_as_cri_wants(case: Case) -> Result<()> {
    let mut cri = case.node.cri();
    let id = || "no-such-id".to_owned();
    cri.stop_pod_sandbox(cri::StopPodSandboxRequest { pod_sandbox_id: id() }).await?;
    cri.remove_pod_sandbox(cri::RemovePodSandboxRequest { pod_sandbox_id: id() }).await?;
    let request = cri::PodSandboxStatusRequest { pod_sandbox_id: id(), verbose: false };
    let error = cri.pod_sandbox_status(request).await.expect_err("there is no such pod");
    assert_eq!(error.code(), tonic::Code::NotFound);
    Ok(())
}

async fn exec_in_an_ended_container_is_refused(case: Case) -> Result<()> {
    let pod = PodSpec::new(&case).run().await?;
    let container = pod.start(&ContainerSpec::script("main", "exit 0")).await?;
    container.exited().await?;
    assert!(container.exec(&["/bin/true"]).await.is_err());
    pod.end().await
}

async fn stop_and_remove_may_be_repeated(case: Case) -> Result<()> {
    let pod = PodSpec::new(&case).run().await?;
    let container = pod.start(&ContainerSpec::idle("main")).await?;
    container.stop(0).await?;
    container.stop(0).await?;
    container.remove().await?;
    container.remove().await?;
    pod.stop().await?;
    pod.stop().await?;
    pod.remove().await?;
    pod.remove().await
}

async fn twenty_stops_at_once_end_in_a_stopped_pod(case: Case) -> Result<()> {
    let pod = std::sync::Arc::new(PodSpec::new(&case).run().await?);
    pod.start(&ContainerSpec::idle("one")).await?;
    pod.start(&ContainerSpec::idle("two")).await?;
    let all: Vec<_> = (0..20)
        .map(|_| {
            let pod = pod.clone();
            tokio::spawn(async move { pod.stop().await })
        })
        .collect();
    for one in all {
        if let Err(error) = one.await? {
            // Two ways of CRI's own stops to get in each other's way, on either handler: calls of its plugins, and the
            // deletion of a task, with which containerd closes the connection that another stop's kill is still on.
            let message = format!("{error:#}");
            let closed =
                message.contains("failed to kill container") && message.contains("ttrpc: closed");
            assert!(closed || message.contains("failed to destroy network"), "{message}");
        }
    }
    pod.stop().await?;
    pod.remove().await
}

async fn ten_pods_at_once_come_and_go(case: Case) -> Result<()> {
    let all: Vec<_> = (0..10)
        .map(|_| {
            let case = case.clone();
            tokio::spawn(async move {
                let pod = PodSpec::new(&case).run().await?;
                let container = pod.start(&ContainerSpec::idle("main")).await?;
                assert_eq!(container.shell("hostname").await?, pod.spec.config.hostname);
                pod.end().await
            })
        })
        .collect();
    for one in all {
        one.await??;
    }
    Ok(())
}

/// A handler whose options the shim's name stands for: they hold, and a teardown does not need them any more.
async fn a_profile_gives_a_handler_options_of_its_own(case: Case) -> Result<()> {
    for killed in [false, true] {
        let mut spec = PodSpec::new(&case);
        "crun".clone_into(&mut spec.handler);
        let pod = spec.run().await?;
        let container = pod.start(&ContainerSpec::idle("main")).await?;
        ensure!(container.shell("hostname").await? == pod.spec.config.hostname);
        // Of the verbose status every containerd shows other keys; the container's record says what creates and ends it.
        let record =
            state_dir("k8s.io", &pod.id).join("tasks").join(format!("{}.json", container.id));
        let record: Value = serde_json::from_str(&fs::read_to_string(record)?)?;
        let runtime = record.pointer("/runtime/binary").and_then(Value::as_str).unwrap_or_default();
        ensure!(runtime.ends_with("/crun"), "{record}");
        let today = Configuration::change(|text| text.replace("[profile.crun]", "[profile.none]"))?;
        if killed {
            kill_shim(&pod)?;
            container.exited().await?;
        } else {
            pod.stop().await?;
        }
        pod.end().await?;
        nobody_works_for(&pod.id, Duration::from_secs(20)).await?;
        let refused =
            spec.run().await.err().context("a pod runs on a profile that is not there")?;
        drop(today);
        let message = format!("{refused:#}");
        ensure!(message.contains("there is no [profile.crun]"), "{message}");
        remove_all_pods(&case).await?;
    }
    Ok(())
}

fn settings() -> Settings {
    let extra = [
        ("missing", "/usr/bin/no-such-runtime"),
        ("garbage", "/bin/echo"),
        ("failing", "/bin/false"),
    ];
    let extra = extra.map(|(name, runtime)| Extra::with_runtime(name, Path::new(runtime)));
    let mut extra = Vec::from(extra);
    extra.push(Extra::with_runtime("crun", &deps().unwrap_or_default().join("bin/crun")));
    Settings { extra, ..Settings::default() }
}

suite!(settings();
    both: a_container_that_cannot_start_leaves_the_pod_well,
        a_refused_sysctl_fails_the_pod_and_leaves_nothing,
        unknown_objects_are_answered_as_cri_wants,
        exec_in_an_ended_container_is_refused,
        stop_and_remove_may_be_repeated,
        twenty_stops_at_once_end_in_a_stopped_pod,
        ten_pods_at_once_come_and_go;
    mooring: containers_of_a_killed_shim_are_exited_within_ten_seconds,
        a_shim_killed_with_shared_pids_leaves_nothing,
        a_shim_killed_with_the_nodes_pids_leaves_nothing,
        a_shim_killed_in_a_user_namespace_leaves_nothing,
        a_shim_killed_while_containerd_is_away_leaves_nothing,
        an_empty_pod_whose_shim_was_killed_is_removed,
        many_shims_killed_at_once_leave_nothing,
        a_missing_oci_runtime_is_named_and_the_pod_can_go,
        an_oci_runtime_that_prints_garbage_is_named_and_the_pod_can_go,
        an_oci_runtime_that_fails_is_named_and_the_pod_can_go,
        a_profile_gives_a_handler_options_of_its_own);
