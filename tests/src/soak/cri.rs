//! Random pods of CRI.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use k8s_cri::v1::{self as cri, NamespaceMode};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::guest::{Cut, Guest};
use crate::audit::all_processes;
use crate::cri::{Container, ContainerSpec, Pod, PodSpec};
use crate::faults::{kill_shim, until};
use crate::life::Life;
use crate::node::{DATA_IMAGE, version};
use crate::random::Random;
use crate::stream::Wish;
use crate::suite::Case;

/// What a container does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Deed {
    Idles,
    Ends,
    IgnoresTerm,
    Talks,
    Listens,
    HasTerminal,
    IsKilled,
    EatsMemory,
}

/// A pod, and how people call its kind.
pub fn spec(case: &Case, number: u64, random: &mut Random) -> (PodSpec, String) {
    let mut spec = PodSpec::new(case);
    let mut kind = match random.below(10) {
        0..5 => "own PIDs",
        5..7 => {
            spec = spec.pid(NamespaceMode::Pod);
            "shared PIDs"
        }
        7 => {
            spec = spec.pid(NamespaceMode::Node);
            "the node's PIDs"
        }
        8 => {
            spec = spec.users_from(400_000);
            "user namespace"
        }
        _ => {
            spec = spec.users_from(500_000).pid(NamespaceMode::Pod);
            "user namespace, shared PIDs"
        }
    }
    .to_owned();
    // Before 2.2 CRI itself crashes at a pod on the node's network whose sandbox is a shim's.
    if random.percent(10) && kind == "own PIDs" && version().is_ok_and(|one| one >= (2, 2)) {
        spec = spec.host_network();
        kind.push_str(", the node's network");
    } else {
        if random.percent(25) {
            spec = spec.port(80, 20_000 + i32::try_from(number % 10_000).unwrap_or(0));
            kind.push_str(", a port");
        }
        if random.percent(20) {
            spec = spec.sysctl("net.ipv4.ip_unprivileged_port_start", "0");
            kind.push_str(", a sysctl");
        }
    }
    (spec, format!("over CRI, {kind}"))
}

/// Its life up to where it shall end.
pub async fn live(
    case: &Case,
    life: &mut Life,
    guest: &mut Guest,
    random: &mut Random,
) -> Result<(), Cut> {
    guest.call("RunPodSandbox", life.run()).await?;
    let Some(pod) = life.pod() else { return Err(Cut) };
    let mut containers = Vec::new();
    for number in 0..random.below(4) {
        let deed = deed(random);
        let spec = container(&format!("c{number}"), deed, random);
        let container = guest.call("CreateContainer", pod.create(&spec)).await?;
        if random.percent(4) {
            guest.hurt("OCI runtime killed");
            let (started, _) = tokio::join!(container.start(), kill_runtime(&container.id));
            let _ = guest.call("StartContainer", async { started }).await;
            return Ok(());
        }
        guest.call("StartContainer", container.start()).await?;
        containers.push((container, deed));
    }
    for _ in 0..random.below(6) {
        if containers.is_empty() {
            guest.call("PodSandboxStatus", pod.status()).await?;
        } else {
            let at = usize::try_from(random.below(containers.len() as u64)).unwrap_or(0);
            if let Some((container, deed)) = containers.get(at) {
                act(case, pod, container, *deed, guest, random).await?;
            }
        }
    }
    if random.percent(20) {
        return fault(pod, containers.first().map(|one| &one.0), guest, random).await;
    }
    for (container, deed) in &containers {
        see_off(container, *deed, guest, random).await?;
    }
    if random.percent(50) {
        guest.call("StopPodSandbox", pod.stop()).await?;
    }
    Ok(())
}

fn deed(random: &mut Random) -> Deed {
    match random.below(20) {
        0..8 => Deed::Idles,
        8..11 => Deed::Ends,
        11..13 => Deed::IgnoresTerm,
        13..15 => Deed::Talks,
        15..17 => Deed::Listens,
        17 => Deed::HasTerminal,
        18 => Deed::IsKilled,
        _ => Deed::EatsMemory,
    }
}

fn container(name: &str, deed: Deed, random: &mut Random) -> ContainerSpec {
    let mut spec = match deed {
        Deed::Idles | Deed::IsKilled => ContainerSpec::idle(name),
        Deed::Ends => ContainerSpec::script(name, "usleep 300000; exit 7"),
        Deed::IgnoresTerm => {
            ContainerSpec::script(name, "trap '' TERM; echo deaf; while :; do sleep 1; done")
        }
        Deed::Talks => {
            let script = "for i in $(seq 3000); do echo line $i; done; echo last; sleep 100000";
            ContainerSpec::script(name, script)
        }
        Deed::Listens => ContainerSpec::script(name, "while read line; do echo heard $line; done"),
        Deed::HasTerminal => ContainerSpec::new(name, &["/bin/sh"]),
        Deed::EatsMemory => ContainerSpec::new(name, &["/bin/tail", "/dev/zero"]),
    };
    spec.config.stdin = matches!(deed, Deed::Listens | Deed::HasTerminal);
    spec.config.tty = deed == Deed::HasTerminal;
    if deed == Deed::EatsMemory {
        spec.resources().memory_limit_in_bytes = 16 << 20;
    } else if random.percent(25) {
        spec.resources().memory_limit_in_bytes = 64 << 20;
        spec.resources().cpu_shares = 512;
    }
    if random.percent(20) { spec.image_volume(DATA_IMAGE, "/data") } else { spec }
}

/// Something that is done with a container while it runs.
async fn act(
    case: &Case,
    pod: &Pod,
    container: &Container,
    deed: Deed,
    guest: &mut Guest,
    random: &mut Random,
) -> Result<(), Cut> {
    if matches!(deed, Deed::Ends | Deed::EatsMemory) {
        return guest.call("ContainerStatus", container.status()).await.map(drop);
    }
    match random.below(9) {
        0 | 1 => exec(container, guest).await,
        2 => {
            let script = "head -c 1000000 /dev/zero | tr '\\0' x";
            let ran = async {
                let ran = container.exec(&["/bin/sh", "-c", script]).await?;
                ensure!(
                    (ran.code, ran.stdout.len()) == (0, 1_000_000),
                    "{} bytes",
                    ran.stdout.len()
                );
                Ok(())
            };
            guest.call("ExecSync", ran).await
        }
        3 => {
            let ran = async {
                let ran = container.exec(&["/bin/sh", "-c", "echo out; kill -9 $$"]).await?;
                ensure!((ran.code, &*ran.stdout) == (137, "out\n"), "a killed exec says {ran:?}");
                Ok(())
            };
            guest.call("ExecSync", ran).await
        }
        4 => {
            let ran = async {
                match container.exec_for(&["/bin/sleep", "4321"], 1).await {
                    Ok(ran) => bail!("an exec of 4321 s is done: {ran:?}"),
                    Err(error) if format!("{error:#}").contains("timeout") => Ok(()),
                    Err(error) => Err(error),
                }
            };
            guest.call("ExecSync", ran).await
        }
        5 => guest.call("Exec", terminal(container)).await,
        6 => guest.call("ContainerStats", container.stats()).await.map(drop),
        7 if random.percent(50) => guest.call("PodSandboxStats", pod.stats()).await.map(drop),
        7 => {
            let megabytes = 64 + i64::try_from(random.below(64)).unwrap_or(0);
            let resources = cri::LinuxContainerResources {
                memory_limit_in_bytes: megabytes << 20,
                cpu_shares: 256,
                ..Default::default()
            };
            let request = cri::UpdateContainerResourcesRequest {
                container_id: container.id.clone(),
                linux: Some(resources),
                ..Default::default()
            };
            let update = async { Ok(case.node.cri().update_container_resources(request).await?) };
            guest.call("UpdateContainerResources", update).await.map(drop)
        }
        _ if deed == Deed::Listens => guest.call("Attach", attach(container)).await,
        _ if deed == Deed::HasTerminal => guest.call("Attach", attach_terminal(container)).await,
        _ => exec(container, guest).await,
    }
}

/// A short exec with both streams.
pub async fn exec(container: &Container, guest: &mut Guest) -> Result<(), Cut> {
    let ran = async {
        let ran = container.exec(&["/bin/sh", "-c", "echo out; echo err >&2; exit 42"]).await?;
        let all = (ran.code, &*ran.stdout, &*ran.stderr);
        ensure!(all == (42, "out\n", "err\n"), "an exec says {all:?}");
        Ok(())
    };
    guest.call("ExecSync", ran).await
}

async fn terminal(container: &Container) -> Result<()> {
    let mut session = container.open_exec(&["/bin/sh"], Wish { tty: true, stdin: true }).await?;
    session.send(b"echo al''ive\n").await?;
    session.expect("alive").await?;
    session.send(b"exit 7\n").await?;
    session.to_end().await?;
    let status = session.status.unwrap_or_default();
    ensure!(status.contains("\"7\""), "the status of an exec is {status:?}");
    Ok(())
}

async fn attach(container: &Container) -> Result<()> {
    let mut session = container.open_attach(Wish { tty: false, stdin: true }).await?;
    session.send(b"word\n").await?;
    session.expect("heard word").await?;
    session.close().await;
    Ok(())
}

async fn attach_terminal(container: &Container) -> Result<()> {
    let mut session = container.open_attach(Wish { tty: true, stdin: true }).await?;
    session.send(b"echo al''ive\n").await?;
    session.expect("alive").await?;
    session.close().await;
    Ok(())
}

/// The end of a container, as it must be, or left to the pod's.
async fn see_off(
    container: &Container,
    deed: Deed,
    guest: &mut Guest,
    random: &mut Random,
) -> Result<(), Cut> {
    let ends_with = |code: i32| async move {
        let status = container.exited_within(Duration::from_secs(20)).await?;
        ensure!(status.exit_code == code, "it ended with {}, not {code}", status.exit_code);
        Ok(())
    };
    match deed {
        Deed::Ends => guest.call("exit", ends_with(7)).await?,
        Deed::EatsMemory => guest.call("exit", ends_with(137)).await?,
        Deed::IsKilled => {
            let killed = async {
                kill(Pid::from_raw(container.pid().await?), Signal::SIGKILL).context("kill")?;
                ends_with(137).await
            };
            guest.call("exit", killed).await?;
        }
        Deed::IgnoresTerm => {
            let deaf = container.logged("stdout", |lines| lines.starts_with("deaf"));
            guest.call("log", deaf).await?;
            guest.call("StopContainer", container.stop(1)).await?;
            guest.call("exit", ends_with(137)).await?;
        }
        Deed::Talks => {
            let all = container.logged("stdout", |lines| lines.ends_with("last"));
            guest.call("log", all).await?;
        }
        _ if random.percent(50) => guest.call("StopContainer", container.stop(0)).await?,
        _ => return Ok(()),
    }
    if random.percent(50) {
        guest.call("RemoveContainer", container.remove()).await?;
    }
    Ok(())
}

/// Something bad that is done to the pod.
async fn fault(
    pod: &Pod,
    container: Option<&Container>,
    guest: &mut Guest,
    random: &mut Random,
) -> Result<(), Cut> {
    match (random.below(3), container) {
        (0, Some(container)) => {
            guest.hurt("OCI runtime killed");
            let exec = container.exec(&["/bin/sleep", "1"]);
            let (ran, _) = tokio::join!(exec, kill_runtime(&container.id));
            let _ = guest.call("ExecSync", async { ran }).await;
        }
        (1, _) if pod.spec.config.linux.as_ref().is_some_and(has_holder) => {
            let holder = guest.call("PodSandboxStatus", keeper(pod)).await?;
            guest.hurt("holder killed");
            let _ = kill(Pid::from_raw(holder), Signal::SIGKILL);
            guest.call("not ready", pod.wait_ready(false)).await?;
        }
        _ => {
            guest.hurt("shim killed");
            let _ = kill_shim(&pod.id);
            guest.call("not ready", pod.wait_ready(false)).await?;
            if let Some(container) = container {
                guest.call("exit", container.exited_within(Duration::from_secs(15))).await?;
            }
        }
    }
    Ok(())
}

/// Whether a process of its own stands for the pod.
fn has_holder(linux: &cri::LinuxPodSandboxConfig) -> bool {
    let namespaces = linux.security_context.as_ref().and_then(|one| one.namespace_options.as_ref());
    namespaces
        .is_some_and(|one| one.pid == NamespaceMode::Pod as i32 || one.userns_options.is_some())
}

/// What stands for the pod.
async fn keeper(pod: &Pod) -> Result<i32> {
    let (_, info) = pod.verbose_status().await?;
    let info: serde_json::Value = serde_json::from_str(info.get("info").context("no info")?)?;
    Ok(i32::try_from(info.get("pid").and_then(serde_json::Value::as_i64).context("no pid")?)?)
}

/// Kills the OCI runtime that works for a container, should one be seen.
async fn kill_runtime(id: &str) -> Result<()> {
    let find = || {
        let works = |command: &str| {
            command.contains("/runc ") && command.contains(id) && !command.contains("shim")
        };
        all_processes().into_iter().find(|one| works(&one.command))
    };
    until(Duration::from_secs(2), "no OCI runtime is seen", || match find() {
        Some(one) => kill(Pid::from_raw(one.pid), Signal::SIGKILL).is_ok(),
        None => false,
    })
    .await
}
