//! An OCI runtime that hangs or is killed in any of its calls, and a holder that somebody else kills.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use k8s_cri::v1::NamespaceMode;
use mooring_e2e::audit::all_processes;
use mooring_e2e::cri::{ContainerSpec, PodSpec};
use mooring_e2e::faults::{kill_shim, until};
use mooring_e2e::life::{Kind, Life, answered};
use mooring_e2e::node::Settings;
use mooring_e2e::oci::{Fault, Oci};
use mooring_e2e::patience;
use mooring_e2e::plugins::Plugins;
use mooring_e2e::services::{Client, Task, container_spec, sandbox_spec};
use mooring_e2e::suite;
use mooring_e2e::suite::Case;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// The calls that a runtime gets. To start and delete, a plain container needs none; one with hooks does. It is never
/// asked to kill: signals are the shim's.
const VERBS: [&str; 4] = ["create", "start", "exec", "delete"];

/// What is left of a container on the node.
fn traces(id: &str) -> Vec<String> {
    let mut found = Vec::new();
    if Path::new("/run/containerd/runc/default").join(id).exists() {
        found.push("the runtime's state".to_owned());
    }
    for hierarchy in std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
        let group = hierarchy.path().join("default").join(id);
        if group.exists() {
            found.push(group.display().to_string());
        }
    }
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    found
        .extend(mounts.lines().filter(|line| line.contains(&format!("/{id}/"))).map(str::to_owned));
    found
}

/// One container's life, in which one call of the runtime goes wrong.
async fn goes_wrong(case: Case, oci: Arc<Oci>, verb: &'static str, fault: Fault) -> Result<()> {
    let client = Client::new(&case);
    let sandbox = sandbox_spec("runtime", true);
    client.record(&sandbox).await?;
    client.create(&sandbox, None, "").await?;
    let pid = client.start().await?.pid;
    let id = format!("{}-main", client.id);
    let mut spec = container_spec(&id, &["/bin/sleep", "1000"], Some(pid));
    if let Some(namespaces) =
        spec.pointer_mut("/linux/namespaces").and_then(|all| all.as_array_mut())
    {
        namespaces.retain(|one| one.get("type") != Some(&json!("network")));
    }
    let hook = json!([{ "path": "/bin/true" }]);
    if let Some(spec) = spec.as_object_mut() {
        spec.insert("hooks".to_owned(), json!({ "poststart": hook, "poststop": hook }));
    }
    let task = client.container(&id, &spec).await?;
    oci.fault(verb, &id, fault)?;
    let failed = call(&task, verb).await?;
    ensure!(failed.contains(&format!("OCI runtime {verb}")), "{failed}");
    oci.mend(verb, &id);
    match verb {
        "create" => {
            ensure!(traces(&id).is_empty(), "{:?}", traces(&id));
            // The name is free again.
            task.create().await.context("create it again")?;
            task.start().await.context("start it")?;
        }
        "exec" => {
            let alone = async {
                while task.pids().await.map_err(|error| anyhow!(error))?.len() != 1 {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Ok(())
            };
            answered("the exec's process to go", alone).await?;
        }
        _ => {}
    }
    answered("stop", async { client.stop().await.context("stop") }).await?;
    answered("delete", async { task.delete().await.context("delete") }).await?;
    ensure!(traces(&id).is_empty(), "{:?}", traces(&id));
    task.forget().await?;
    answered("shut down", async { client.shutdown().await.context("shut down") }).await?;
    client.forget().await?;
    Ok(())
}

/// Goes on to the call that fails; what is said of it.
async fn call(task: &Task, verb: &str) -> Result<String> {
    let failure = async {
        if verb == "create" {
            return Ok(task.create().await.err());
        }
        task.create().await?;
        if verb == "start" {
            return Ok(task.start().await.err());
        }
        task.start().await?;
        if verb == "exec" {
            return Ok(task.exec("more", &["/bin/sleep", "1000"]).await.err());
        }
        task.kill(9).await?;
        task.wait().await?;
        Ok::<_, anyhow::Error>(task.delete().await.err())
    };
    let failure = answered(verb, failure).await?;
    Ok(failure.context("it succeeds")?.message().to_owned())
}

async fn a_runtime_that_hangs_or_is_killed_is_named_and_leaves_nothing(case: Case) -> Result<()> {
    // What hangs must end before a deletion is given up (10 s), and what does not must not take so long: on an emulated
    // machine fewer at once.
    let (limit, at_once) =
        if patience(Duration::from_secs(1)).as_secs() > 1 { (8, 3) } else { (5, 16) };
    let oci = Oci::install(&case.node, "faults", &format!("RuntimeTimeout = '{limit}s'"))?;
    let (oci, turns) = (Arc::new(oci), Arc::new(Semaphore::new(at_once)));
    let mut all = JoinSet::new();
    for verb in VERBS {
        for fault in Fault::ALL {
            let (case, oci, turns) = (case.clone(), Arc::clone(&oci), Arc::clone(&turns));
            all.spawn(async move {
                let _turn = turns.acquire().await?;
                let one = goes_wrong(case, oci, verb, fault).await;
                one.with_context(|| format!("{verb} {fault:?}"))
            });
        }
    }
    let mut failures = Vec::new();
    while let Some(one) = all.join_next().await {
        failures.extend(one?.err().map(|error| format!("{error:#}")));
    }
    ensure!(failures.is_empty(), "{}", failures.join("\n"));
    Ok(())
}

/// A deletion is given up before a runtime that may take long: what is named is the runtime and not the container's
/// processes, of which there are none.
async fn a_deletion_that_hangs_is_named_before_its_runtime_is_given_up(case: Case) -> Result<()> {
    let oci = Oci::install(&case.node, "patient", "RuntimeTimeout = '10m'")?;
    goes_wrong(case, Arc::new(oci), "delete", Fault::Hangs).await
}

/// The holders that there are.
fn holders() -> Vec<i32> {
    let all = all_processes().into_iter();
    all.filter(|one| one.command == "mooring-pod").map(|one| one.pid).collect()
}

/// Its namespaces go with it: the pod is not ready, its containers have exited, and it takes no more.
async fn a_holder_that_is_killed_takes_its_pod_down(case: Case) -> Result<()> {
    for busy in [true, false] {
        let before = holders();
        let pod = PodSpec::new(&case).pid(NamespaceMode::Pod).run().await?;
        let mut containers = Vec::new();
        if busy {
            for name in ["one", "two"] {
                containers.push(pod.start(&ContainerSpec::idle(name)).await?);
            }
        }
        let holder = holders().into_iter().find(|pid| !before.contains(pid));
        kill(Pid::from_raw(holder.context("no holder")?), Signal::SIGKILL)?;
        pod.wait_ready(false).await?;
        for container in &containers {
            ensure!(container.exited().await?.exit_code == 137);
        }
        let late = async {
            let late = pod.create(&ContainerSpec::idle("late")).await?;
            late.start().await
        };
        ensure!(late.await.is_err(), "a container starts in a pod that has ended");
        pod.end().await?;
    }
    Ok(())
}

/// The same through the sandbox service, where a wait for the sandbox ends.
async fn a_holder_that_is_killed_ends_the_wait_for_its_sandbox(case: Case) -> Result<()> {
    let _plugins = Plugins::install(&case.node, "holder", "")?;
    let mut life = mooring_e2e::life::Life::new(&case, mooring_e2e::life::Kind::UserNamespace);
    life.run().await?;
    let waiter = life.client().with_id(life.id());
    let waiter = tokio::spawn(async move { waiter.wait().await });
    let holder = i32::try_from(life.pid())?;
    ensure!(holders().contains(&holder), "{holder} is no holder");
    kill(Pid::from_raw(holder), Signal::SIGKILL)?;
    let exit = answered("wait", async { Ok(waiter.await??) }).await?;
    ensure!(exit.exit_status == 137, "{exit:?}");
    until(Duration::from_secs(5), "it stays", || !holders().contains(&holder)).await?;
    ensure!(life.client().status().await?.state == "SANDBOX_NOTREADY");
    life.end().await
}

/// Nobody waits for it any more; did it go on, it would make a container that nobody knows.
async fn a_creation_under_way_ends_with_its_shim(case: Case) -> Result<()> {
    let oci = Oci::install(&case.node, "creation", "")?;
    let id = case.unique("creation");
    let mut life = Life::named(&case, Kind::OwnNetwork, &id);
    oci.fault("create", &format!("{id}-main"), Fault::Hangs)?;
    life.run().await?;
    let killed = async {
        let hangs = || all_processes().iter().any(|one| one.command == "sleep 1000");
        until(Duration::from_secs(10), "the runtime is not called", hangs).await?;
        kill_shim(&id)
    };
    let (created, killed) = tokio::join!(life.container(), killed);
    killed?;
    ensure!(created.is_err(), "it is created");
    // The audit looks for the runtime's process.
    life.end().await
}

suite!(Settings::default();
    both: ;
    mooring: a_creation_under_way_ends_with_its_shim,
        a_runtime_that_hangs_or_is_killed_is_named_and_leaves_nothing,
        a_deletion_that_hangs_is_named_before_its_runtime_is_given_up,
        a_holder_that_is_killed_takes_its_pod_down,
        a_holder_that_is_killed_ends_the_wait_for_its_sandbox);
