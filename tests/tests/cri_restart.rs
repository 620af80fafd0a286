//! containerd restarts, in order or not, between any two steps of a pod's life.

use std::time::Duration;

use anyhow::Result;
use k8s_cri::v1 as cri;
use mooring_e2e::cri::{ContainerSpec, PodSpec};
use mooring_e2e::node::Settings;
use mooring_e2e::stream::Wish;
use mooring_e2e::suite;
use mooring_e2e::suite::{Case, Handler};
use nix::sys::signal::Signal;

async fn a_pod_lives_through_a_restart_after_every_step(case: Case) -> Result<()> {
    every_step(&case, false).await
}

async fn a_pod_lives_through_a_crash_after_every_step(case: Case) -> Result<()> {
    every_step(&case, true).await
}

async fn every_step(case: &Case, crash: bool) -> Result<()> {
    let again =
        || async { if crash { case.node.crash().await } else { case.node.restart().await } };
    let pod = PodSpec::new(case).run().await?;
    again().await?;
    assert!(pod.is_ready().await?);
    let one = pod.create(&ContainerSpec::idle("one")).await?;
    again().await?;
    one.start().await?;
    again().await?;
    assert_eq!(one.status().await?.state(), cri::ContainerState::ContainerRunning);
    assert_eq!(one.shell("echo alive").await?, "alive");
    assert!(pod.stats().await?.linux.is_some());
    let two = pod.start(&ContainerSpec::idle("two")).await?;
    again().await?;
    one.stop(0).await?;
    again().await?;
    assert_eq!(one.exited().await?.exit_code, 137);
    assert_eq!(two.shell("echo alive").await?, "alive");
    one.remove().await?;
    again().await?;
    assert!(pod.is_listed().await?);
    pod.stop().await?;
    again().await?;
    assert!(!pod.is_ready().await?);
    assert_eq!(two.status().await?.state(), cri::ContainerState::ContainerExited);
    pod.stop().await?;
    pod.remove().await?;
    again().await?;
    assert!(!pod.is_listed().await?);
    Ok(())
}

async fn an_exit_while_containerd_is_away_is_known_afterwards(case: Case) -> Result<()> {
    let pod = PodSpec::new(&case).run().await?;
    let script = "while [ ! -e /dev/shm/go ]; do usleep 20000; done; exit 23";
    let one = pod.start(&ContainerSpec::script("one", script)).await?;
    let two = pod.start(&ContainerSpec::idle("two")).await?;
    let pid = one.pid().await?;
    two.shell("(sleep 1; touch /dev/shm/go) >/dev/null 2>&1 &").await?;
    case.node.end(Signal::SIGKILL).await?;
    let gone = || !std::path::Path::new(&format!("/proc/{pid}")).exists();
    for _ in 0..500 {
        if gone() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(gone(), "the container did not end");
    case.node.start().await?;
    let code = one.exited().await?.exit_code;
    match case.handler {
        Handler::Mooring | Handler::Builtin => assert_eq!(code, 23),
        // The peer's shim names no processes, and containerd deletes the task as one that was never created.
        Handler::Runc => assert!([23, 255].contains(&code), "{code}"),
    }
    pod.end().await
}

/// What a finished Job's pod is asked for until somebody removes it. It is the shim that answers, so it stays: without one
/// `PodSandboxStatus` fails while containerd runs `delete`, and has no time of creation and no information afterwards.
async fn a_stopped_pod_keeps_its_status_until_it_is_removed(case: Case) -> Result<()> {
    let pod = PodSpec::new(&case).run().await?;
    let created_at = pod.status().await?.created_at;
    let job = pod.start(&ContainerSpec::script("job", "exit 3")).await?;
    job.exited().await?;
    pod.stop().await?;
    for restarts in 0..2 {
        if restarts > 0 {
            case.node.restart().await?;
        }
        for _ in 0..50 {
            let (status, info) = pod.verbose_status().await?;
            assert_eq!(status.state(), cri::PodSandboxState::SandboxNotready);
            assert_eq!(status.created_at, created_at);
            let info: serde_json::Value = serde_json::from_str(&info["info"])?;
            assert!(info["runtimeSpec"].is_object(), "{info}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        assert_eq!(job.status().await?.exit_code, 3);
    }
    pod.remove().await?;
    assert!(!pod.is_listed().await?);
    Ok(())
}

async fn output_goes_on_after_a_restart(case: Case) -> Result<()> {
    let pod = PodSpec::new(&case).run().await?;
    let script =
        "echo before; while [ ! -e /dev/shm/go ]; do usleep 20000; done; echo after; sleep 1000";
    let container = pod.start(&ContainerSpec::script("main", script)).await?;
    container.logged("stdout", |lines| lines == "before").await?;
    case.node.crash().await?;
    container.shell("touch /dev/shm/go").await?;
    container.logged("stdout", |lines| lines.ends_with("after")).await?;
    let wish = Wish { tty: true, stdin: true };
    let mut session = container.open_exec(&["/bin/sh"], wish).await?;
    session.send(b"echo al''ive; exit 0\n").await?;
    session.expect("alive").await?;
    session.to_end().await?;
    pod.end().await
}

async fn a_pod_with_shared_pids_lives_through_a_restart(case: Case) -> Result<()> {
    let pod = PodSpec::new(&case).pid(cri::NamespaceMode::Pod).run().await?;
    let one = pod.start(&ContainerSpec::idle("one")).await?;
    case.node.crash().await?;
    let two = pod.start(&ContainerSpec::new("two", &["/bin/sleep", "77777"])).await?;
    let seen = one.shell("ps -o args").await?;
    assert!(seen.contains("77777"), "{seen}");
    two.stop(0).await?;
    pod.end().await
}

async fn a_stop_while_containerd_pauses_is_done_when_it_goes_on(case: Case) -> Result<()> {
    let pod = PodSpec::new(&case).run().await?;
    pod.start(&ContainerSpec::idle("main")).await?;
    case.node.signal(Signal::SIGSTOP)?;
    let stop = pod.stop();
    let (stopped, ()) = tokio::join!(stop, async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let _ = case.node.signal(Signal::SIGCONT);
    });
    stopped?;
    pod.remove().await
}

suite!(Settings::default();
    both: a_pod_lives_through_a_restart_after_every_step,
        a_pod_lives_through_a_crash_after_every_step,
        an_exit_while_containerd_is_away_is_known_afterwards,
        a_stopped_pod_keeps_its_status_until_it_is_removed,
        output_goes_on_after_a_restart,
        a_pod_with_shared_pids_lives_through_a_restart,
        a_stop_while_containerd_pauses_is_done_when_it_goes_on;
    mooring: );
