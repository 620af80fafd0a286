//! `delete`, as containerd calls it when it believes a shim to be gone: in time, for what it is called for and nothing
//! else, and whatever has become of the node's configuration.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use mooring_e2e::cri::{ContainerSpec, PodSpec};
use mooring_e2e::faults::{
    daemons, delete, delete_in, kill_shim, lives, nobody_works_for, shim_of, shims_of, state_dir,
    until,
};
use mooring_e2e::life::{Kind, Life};
use mooring_e2e::node::{Configuration, Settings};
use mooring_e2e::plugins::Plugins;
use mooring_e2e::services::{Client, NAMESPACE, Task, container_spec};
use mooring_e2e::suite;
use mooring_e2e::suite::Case;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

/// containerd kills a `delete` that takes longer.
const LIMIT: Duration = Duration::from_secs(5);

async fn running(case: &Case, kind: Kind) -> Result<Life> {
    let mut life = Life::new(case, kind);
    life.run().await?;
    life.container().await?;
    Ok(life)
}

/// Two containers without sandbox, the first of which has its shim serve the second one too.
struct Group {
    client: Client,
    first: Task,
    second: Task,
    shim: Pid,
    bundle: PathBuf,
}

impl Group {
    async fn start(case: &Case) -> Result<Self> {
        let client = Client::new(case);
        let name = case.unique("group");
        let mut tasks = Vec::new();
        for number in ["1", "2"] {
            let id = format!("{name}-{number}");
            let mut spec = container_spec(&id, &["/bin/sleep", "100000"], None);
            let labels = json!({ "io.containerd.runc.v2.group": name });
            if let Some(spec) = spec.as_object_mut() {
                spec.insert("annotations".to_owned(), labels);
            }
            let task = client.plain_container(&id, &spec).await?;
            task.create().await.context("create")?;
            task.start().await.context("start")?;
            tasks.push(task);
        }
        let (Some(second), Some(first)) = (tasks.pop(), tasks.pop()) else { bail!("no tasks") };
        let shims: Vec<_> =
            daemons().into_iter().filter(|one| one.command.contains(&name)).collect();
        ensure!(shims.len() == 1, "{shims:?}");
        let shim = Pid::from_raw(shims.first().context("no shim")?.pid);
        let state = case.node.folder().join("state/io.containerd.runtime.v2.task/default");
        let bundle = state.join(&first.id);
        Ok(Self { client, first, second, shim, bundle })
    }

    /// The second container is as it was, and can be ended as any other.
    async fn end(self) -> Result<()> {
        ensure!(kill(self.shim, None).is_ok(), "the shim of the other container is dead");
        ensure!(self.second.exec("probe", &["/bin/true"]).await? == 0, "it takes no exec");
        self.second.kill(9).await.context("kill")?;
        ensure!(self.second.wait().await? == 137);
        self.second.delete().await.context("delete")?;
        self.second.forget().await?;
        let _ = self.first.delete().await;
        self.first.forget().await?;
        let gone = || kill(self.shim, None).is_err();
        until(Duration::from_secs(5), "the shim stays without containers", gone).await?;
        drop(self.client);
        Ok(())
    }
}

/// containerd runs `delete` after every deletion, also of the container whose name the shim of a group has.
async fn a_container_that_leaves_its_group_leaves_the_shim_to_the_others(case: Case) -> Result<()> {
    let group = Group::start(&case).await?;
    group.first.kill(9).await.context("kill the first")?;
    group.first.wait().await?;
    group.first.delete().await.context("delete the first")?;
    tokio::time::sleep(Duration::from_millis(300)).await;
    group.end().await
}

/// Called for one that runs, it ends that one alone, whichever of the two it is.
async fn delete_of_one_container_of_a_group_ends_that_one_alone(case: Case) -> Result<()> {
    let group = Group::start(&case).await?;
    let pids = group.first.pids().await?;
    let took = delete_in(&case.node, NAMESPACE, &group.first.id, &group.bundle).await?;
    ensure!(took < LIMIT, "it took {took:?}");
    nobody_deletes(&group.first.id).await?;
    ensure!(pids.iter().all(|pid| !lives(*pid)), "the container goes on");
    group.end().await?;

    let group = Group::start(&case).await?;
    let pids = group.second.pids().await?;
    delete_in(&case.node, NAMESPACE, &group.second.id, &group.bundle).await?;
    nobody_deletes(&group.second.id).await?;
    ensure!(pids.iter().all(|pid| !lives(*pid)), "the container goes on");
    let Group { client, first, second, shim, bundle } = group;
    Group { client, first: second, second: first, shim, bundle }.end().await
}

async fn nobody_deletes(id: &str) -> Result<()> {
    let nobody = || !shims_of(id).iter().any(|one| one.command.ends_with("delete"));
    until(Duration::from_secs(10), "a finisher goes on", nobody).await
}

/// A pod's own `delete` while its shim lives and answers: the shim takes it down itself.
async fn a_living_shim_is_asked_to_take_its_sandbox_down(case: Case) -> Result<()> {
    let plugins = Plugins::install(&case.node, "asked", "")?;
    let life = running(&case, Kind::OwnNetwork).await?;
    let took = delete(&case.node, life.namespace(), life.id()).await?;
    ensure!(took < LIMIT, "it took {took:?}");
    nobody_works_for(life.id(), Duration::from_secs(10)).await?;
    ensure!(!life.is_remembered() && plugins.reservations().is_empty());
    life.end().await
}

/// One that does not answer any more is ended, and its work done without it.
async fn a_shim_that_does_not_answer_is_ended(case: Case) -> Result<()> {
    let plugins = Plugins::install(&case.node, "stopped", "")?;
    let life = running(&case, Kind::OwnNetwork).await?;
    kill(Pid::from_raw(shim_of(life.id())?.pid), Signal::SIGSTOP)?;
    let took = delete(&case.node, life.namespace(), life.id()).await?;
    ensure!(took < LIMIT, "it took {took:?}");
    nobody_works_for(life.id(), Duration::from_secs(10)).await?;
    ensure!(!life.is_remembered() && plugins.reservations().is_empty());
    life.end().await
}

/// What the shim has was decided when it was started.
async fn the_configuration_of_today_does_not_matter(case: Case) -> Result<()> {
    let plugins = Plugins::install(&case.node, "today", "")?;
    let changes: [fn(&str) -> String; 3] = [
        |before| format!("{before}\nStateRoot = \n[["),
        |before| {
            format!("{before}\nStateRoot = '/var/lib/elsewhere'\nRunRoot = '/run/elsewhere'\n")
        },
        |_| "CniConfDir = 7\n".to_owned(),
    ];
    for change in changes {
        let life = running(&case, Kind::OwnNetwork).await?;
        let pids = life.task().context("no task")?.pids().await?;
        let today = Configuration::change(change)?;
        kill_shim(life.id())?;
        life.end().await?;
        drop(today);
        ensure!(pids.iter().all(|pid| !lives(*pid)), "the container goes on");
        ensure!(!life.is_remembered() && plugins.reservations().is_empty());
    }
    Ok(())
}

/// The same when the state is not where the node has it, and when the bundle is gone, too.
async fn the_state_is_found_wherever_it_is(case: Case) -> Result<()> {
    let plugins = Plugins::install(&case.node, "wherever", "")?;
    let elsewhere = "/var/lib/mooring-elsewhere";
    let there = Configuration::change(|before| format!("{before}\nStateRoot = '{elsewhere}'\n"))?;
    let life = running(&case, Kind::OwnNetwork).await?;
    drop(there);
    let remembered = Path::new(elsewhere).join(life.namespace()).join(life.id());
    ensure!(remembered.exists(), "the option is not heeded");
    kill_shim(life.id())?;
    life.end().await?;
    ensure!(!remembered.exists() && plugins.reservations().is_empty());
    fs::remove_dir_all(elsewhere)?;

    let life = running(&case, Kind::OwnNetwork).await?;
    case.node.end(Signal::SIGKILL).await?;
    kill_shim(life.id())?;
    let there = Configuration::change(|before| format!("{before}\nStateRoot = '{elsewhere}'\n"))?;
    let took = delete_in(&case.node, life.namespace(), life.id(), Path::new("/no/bundle")).await;
    drop(there);
    case.node.start().await?;
    ensure!(took? < LIMIT);
    life.end().await?;
    ensure!(!life.is_remembered() && plugins.reservations().is_empty());
    Ok(())
}

/// A slow plugin holds nobody up: once the containers are dead containerd has its answer.
async fn delete_answers_as_soon_as_the_containers_are_dead(case: Case) -> Result<()> {
    let plugins = Plugins::install(&case.node, "answers", "")?;
    let life = running(&case, Kind::OwnNetwork).await?;
    let pids = life.task().context("no task")?.pids().await?;
    plugins.fault("ptp", "DEL", "slow 4")?;
    case.node.end(Signal::SIGKILL).await?;
    kill_shim(life.id())?;
    let took = delete(&case.node, life.namespace(), life.id()).await;
    let (dead, remembered) = (pids.iter().all(|pid| !lives(*pid)), life.is_remembered());
    // A second one has to wait for the first, and answers in time all the same.
    let second = delete(&case.node, life.namespace(), life.id()).await;
    case.node.start().await?;
    let (took, second) = (took?, second?);
    eprintln!("delete answered after {took:?}, a second one after {second:?}");
    ensure!(dead, "a container goes on after the answer");
    ensure!(remembered, "the DEL was not waited for");
    ensure!(took < Duration::from_secs(2) && second < LIMIT, "{took:?}, {second:?}");
    life.end().await?;
    ensure!(!life.is_remembered() && plugins.reservations().is_empty());
    Ok(())
}

/// How long CRI cannot say how a pod is whose shim was killed.
async fn a_pod_whose_shim_was_killed_is_soon_known_as_not_ready(case: Case) -> Result<()> {
    let mut gaps = Vec::new();
    for _ in 0..5 {
        let pod = PodSpec::new(&case).run().await?;
        pod.start(&ContainerSpec::idle("main")).await?;
        kill_shim(&pod.id)?;
        let begun = Instant::now();
        while pod.status().await.is_err() {
            ensure!(begun.elapsed() < LIMIT, "no status after {:?}", begun.elapsed());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        gaps.push(begun.elapsed());
        // CRI learns a moment later of the containers.
        while let Err(error) = pod.end().await {
            ensure!(begun.elapsed() < LIMIT, "{error:#}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    gaps.sort();
    eprintln!("PodSandboxStatus failed for {gaps:?} after the kill");
    Ok(())
}

/// A new sandbox of the name comes while the finisher is still busy with the old one.
async fn a_new_shim_of_the_name_keeps_its_record(case: Case) -> Result<()> {
    let plugins = Plugins::install(&case.node, "newer", "")?;
    let life = running(&case, Kind::OwnNetwork).await?;
    plugins.fault("ptp", "DEL", "slow 3")?;
    kill_shim(life.id())?;
    life.end_for_client().await?;
    ensure!(life.is_remembered(), "the finisher was too quick for this test");
    let mut second = Life::named(&case, Kind::OwnNetwork, life.id());
    second.run().await.context("the second of the name")?;
    plugins.mend("ptp", "DEL");
    let nobody = || shims_of(life.id()).iter().all(|one| !one.command.ends_with("delete"));
    until(Duration::from_secs(40), "the finisher goes on", nobody).await?;
    let record = state_dir(second.namespace(), second.id()).join("shim.json");
    let record: Value = serde_json::from_slice(&fs::read(record).context("its record is gone")?)?;
    let shim = shim_of(second.id())?;
    ensure!(record.get("pid") == Some(&json!(shim.pid)), "{record}, {shim:?}");
    kill_shim(second.id())?;
    second.end().await?;
    ensure!(!second.is_remembered() && plugins.reservations().is_empty());
    Ok(())
}

suite!(Settings::default();
    both: ;
    mooring: a_container_that_leaves_its_group_leaves_the_shim_to_the_others,
        delete_of_one_container_of_a_group_ends_that_one_alone,
        a_living_shim_is_asked_to_take_its_sandbox_down,
        a_shim_that_does_not_answer_is_ended,
        the_configuration_of_today_does_not_matter,
        the_state_is_found_wherever_it_is,
        delete_answers_as_soon_as_the_containers_are_dead,
        a_pod_whose_shim_was_killed_is_soon_known_as_not_ready,
        a_new_shim_of_the_name_keeps_its_record);
