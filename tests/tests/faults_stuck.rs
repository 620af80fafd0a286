//! Processes that SIGKILL does not end: a stop is bounded and names them, the rest of the node goes on, and once they can
//! end the next stop leaves nothing.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use k8s_cri::v1::NamespaceMode;
use mooring_e2e::cri::{Container, ContainerSpec, Pod, PodSpec};
use mooring_e2e::direct::Direct;
use mooring_e2e::faults::{kill_shim, nobody_works_for, until};
use mooring_e2e::fuse::{Fuse, NOWHERE, SILENT};
use mooring_e2e::node::Settings;
use mooring_e2e::patience;
use mooring_e2e::plugins::Plugins;
use mooring_e2e::services::{Client, container_spec, sandbox_spec};
use mooring_e2e::suite;
use mooring_e2e::suite::Case;
use serde_json::json;
use tokio::time::timeout;

const PLACE: &str = "/run/trouble";
/// How long the callers of these stops wait.
const STOP: Duration = Duration::from_secs(4);

/// A container with a script in which `STUCK` opens a file that nobody answers for.
fn stuck(script: &str) -> ContainerSpec {
    ContainerSpec::script("main", &script.replace("STUCK", &format!("cat /trouble/{SILENT}")))
        .mount(PLACE, "/trouble", false)
}

/// What the kernel calls the state of a process.
fn state_of(pid: i32) -> String {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let rest = stat.rsplit(')').next().unwrap_or_default();
    rest.split_whitespace().next().unwrap_or_default().to_owned()
}

async fn wait_for(fuse: &Fuse, many: usize) -> Result<()> {
    let enough = || fuse.unanswered() >= many;
    until(Duration::from_secs(20), "nobody waits for the server", enough).await
}

/// Over CRI, on either handler: CRI itself kills, and waits. What else there is on the node is not concerned.
async fn a_process_in_state_d_keeps_its_pod_and_no_other(case: Case) -> Result<()> {
    let fuse = Fuse::mount(Path::new(PLACE))?;
    let pod = PodSpec::new(&case).run().await?;
    let container = pod.start(&stuck("exec STUCK")).await?;
    wait_for(&fuse, 1).await?;
    let pid = container.pid().await?;
    ensure!(timeout(STOP, pod.stop()).await.is_err(), "a stop succeeds while a process lives");
    ensure!(state_of(pid) == "D", "it is in state {}", state_of(pid));
    // Another pod's whole life.
    let other = PodSpec::new(&case).run().await?;
    let quick = other.start(&ContainerSpec::idle("main")).await?;
    ensure!(quick.shell("echo well").await? == "well");
    other.end().await?;
    fuse.abort();
    timeout(patience(Duration::from_secs(20)), pod.end()).await.context("it hangs")?
}

/// The container's first process: in the stop's answer, in the status, in the log, in the answer to the next kill.
async fn first_process(case: &Case, pod: &Pod, container: &Container) -> Result<()> {
    let pid = container.pid().await?;
    let named = format!("process {pid} (cat) in state D");
    let direct = Direct::to(&case.node, "k8s.io", &pod.id).await?;
    let begun = Instant::now();
    let error = direct.stop(&pod.id, STOP).await.err().context("the stop succeeds")?.to_string();
    ensure!(begun.elapsed() < patience(STOP * 2), "it took {:?}", begun.elapsed());
    ensure!(error.contains("still at step containers") && error.contains(&named), "{error}");
    let place = fs::read_to_string(format!("/proc/{pid}/wchan")).unwrap_or_default();
    ensure!(place == "0" || error.contains(&format!("waiting in {place}")), "{place}: {error}");
    if mooring_e2e::node::version()? < (2, 3) {
        let (_, info) = pod.verbose_status().await?;
        let info: serde_json::Value = serde_json::from_str(info.get("info").context("no info")?)?;
        let waits = info.pointer("/teardown/current/waits_for").context("nothing is said")?;
        ensure!(waits.to_string().contains(&named), "{waits}");
    }
    let said = || {
        let log = case.node.log();
        let ours = log.lines().filter(|line| {
            line.contains(&format!("task \\\"{}\\\": killed 10 s ago", container.id))
        });
        let lines: Vec<&str> = ours.collect();
        lines.len() == 1 && lines.iter().all(|line| line.contains(&named))
    };
    until(Duration::from_secs(20), "the log does not name it, or names it twice", said).await?;
    let again = timeout(patience(Duration::from_secs(5)), container.stop(0)).await;
    let error = again.context("the next kill gets no answer")?.err().context("it succeeds")?;
    let error = format!("{error:#}");
    ensure!(error.contains("and not ended") && error.contains(&named), "{error}");
    ensure!(state_of(pid) == "D");
    Ok(())
}

/// What the first process has left, in the PID namespace that the pod's containers share: it keeps the holder.
async fn orphan(case: &Case, pod: &Pod) -> Result<()> {
    let direct = Direct::to(&case.node, "k8s.io", &pod.id).await?;
    let stopped = direct.stop(&pod.id, Duration::from_secs(40)).await;
    let error = stopped.err().context("the stop succeeds")?.to_string();
    ensure!(error.contains("keeper: holder") && error.contains("(cat) in state D"), "{error}");
    Ok(())
}

/// The shim is gone: `delete` says what goes on, and the finisher waits for it.
async fn without_a_shim(case: &Case, pod: &Pod, container: &Container) -> Result<()> {
    let pid = container.pid().await?;
    kill_shim(&pod.id)?;
    let named = format!("process {pid} (cat) in state D");
    let said = || {
        let log = case.node.log();
        log.lines().any(|line| line.contains("delete: container") && line.contains(&named))
    };
    until(Duration::from_secs(15), "nobody names it", said).await
}

/// A mount whose server is silent, in a container's specification: the OCI runtime hangs in its creation.
async fn creation(case: &Case, client: &Client, pid: u32) -> Result<()> {
    let id = format!("{}-main", client.id);
    let mut spec = container_spec(&id, &["/bin/sleep", "1000"], Some(pid));
    let mounts = spec.get_mut("mounts").and_then(|all| all.as_array_mut()).context("no mounts")?;
    mounts.push(json!({
        "destination": "/data", "type": "bind", "source": format!("{PLACE}/{NOWHERE}"), "options": ["rbind"],
    }));
    let task = client.container(&id, &spec).await?;
    let error = task.create().await.err().context("it is created")?;
    ensure!(error.message().contains("did not end within"), "{error}");
    task.forget().await?;
    let said = || {
        let log = case.node.log();
        let undo = format!("undo the creation of task {id}");
        log.lines().any(|line| line.contains(&undo) && line.contains("in state D"))
    };
    until(Duration::from_secs(15), "what could not be taken back is not named", said).await?;
    // A stop does not forget it.
    let error = client.stop_within(3).await.err().context("the stop succeeds")?;
    let said = error.message();
    ensure!(said.contains("step containers") && said.contains("in state D"), "{said}");
    Ok(())
}

/// The removal that a kubelet asks for until it has come about: CRI handles an exit again some seconds after a task could
/// not be deleted.
async fn gone(pod: &Pod) -> Result<()> {
    let until = Instant::now() + patience(Duration::from_secs(30));
    loop {
        let ended = timeout(patience(Duration::from_secs(20)), pod.end()).await;
        match ended.context("it hangs")? {
            Err(error) if Instant::now() > until => return Err(error.context("once it can end")),
            Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
            Ok(()) => return Ok(()),
        }
    }
}

async fn what_cannot_be_killed_is_named_wherever_it_is_waited_for(case: Case) -> Result<()> {
    let plugins = Plugins::install(&case.node, "stuck", "RuntimeTimeout = '3s'")?;
    let fuse = Fuse::mount(Path::new(PLACE))?;
    let first = PodSpec::new(&case).run().await?;
    let container = first.start(&stuck("exec STUCK")).await?;
    let shared = PodSpec::new(&case).pid(NamespaceMode::Pod).run().await?;
    shared.start(&stuck("STUCK & sleep 1; exit 0")).await?;
    let killed = PodSpec::new(&case).run().await?;
    let of_killed = killed.start(&stuck("exec STUCK")).await?;
    wait_for(&fuse, 3).await?;
    let client = Client::new(&case);
    let spec = sandbox_spec("stuck", false);
    client.record(&spec).await?;
    client.create(&spec, None, "").await?;
    let pid = client.start().await?.pid;
    let named = tokio::join!(
        first_process(&case, &first, &container),
        orphan(&case, &shared),
        without_a_shim(&case, &killed, &of_killed),
        creation(&case, &client, pid)
    );
    fuse.abort();
    named.0.context("a first process")?;
    named.1.context("an orphan")?;
    named.2.context("without a shim")?;
    named.3.context("a creation")?;
    for pod in [&first, &shared, &killed] {
        gone(pod).await?;
        nobody_works_for(&pod.id, Duration::from_secs(20)).await?;
    }
    client.stop().await.context("once it can end")?;
    client.shutdown().await?;
    client.forget().await?;
    drop(fuse);
    drop(plugins);
    // The bundle of a task whose creation failed and whose root file system was busy then is containerd's, which drops it
    // at its next start.
    case.node.restart().await
}

suite!(Settings::default();
    too: builtin;
    both: a_process_in_state_d_keeps_its_pod_and_no_other;
    mooring: what_cannot_be_killed_is_named_wherever_it_is_waited_for);
