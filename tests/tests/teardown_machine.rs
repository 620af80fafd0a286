//! Teardown on a machine where something is gone, busy, frozen, silent or in a hurry.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use containerd_client::services::v1 as api;
use mooring_e2e::cri::{ContainerSpec, PodSpec};
use mooring_e2e::direct::Direct;
use mooring_e2e::faults::{
    Failpoints, journal, kill_shim, logged_steps, no_step_twice, shim_of, state_dir, until,
};
use mooring_e2e::life::{Kind, Life};
use mooring_e2e::node::Settings;
use mooring_e2e::plugins::Plugins;
use mooring_e2e::services::in_namespace;
use mooring_e2e::suite;
use mooring_e2e::suite::Case;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::Signal;
use serde_json::Value;

async fn running(case: &Case, kind: Kind) -> Result<Life> {
    let mut life = Life::new(case, kind);
    life.run().await?;
    life.container().await?;
    Ok(life)
}

/// What the journal holds of one kind, as its first record says.
fn record(life: &Life, kind: &str) -> Result<Value> {
    let journal = journal(life.namespace(), life.id())?;
    let entries = journal.get("entries").and_then(Value::as_array).context("no entries")?;
    let found = entries.iter().find_map(|entry| entry.pointer(&format!("/resource/{kind}")));
    found.cloned().with_context(|| format!("no {kind} in {journal}"))
}

fn path_in(record: &Value, field: &str) -> Result<PathBuf> {
    let path = record.get(field).and_then(Value::as_str);
    path.map(PathBuf::from).with_context(|| format!("no {field} in {record}"))
}

/// A process that lives until it is dropped.
struct Busy(Child);

impl Busy {
    fn start(command: &mut Command) -> Result<Self> {
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        Ok(Self(child.context("start a process")?))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn a_namespace_that_was_removed_keeps_no_pod(case: Case) -> Result<()> {
    let plugins = Plugins::install(&case.node, "netns-gone", "")?;
    for killed in [false, true] {
        let life = running(&case, Kind::OwnNetwork).await?;
        let path = path_in(&record(&life, "netns")?, "path")?;
        umount2(&path, MntFlags::MNT_DETACH)?;
        fs::remove_file(&path)?;
        if killed {
            kill_shim(life.id())?;
        } else {
            life.stop().await?;
        }
        life.end().await?;
        until(Duration::from_secs(5), "the finisher goes on", || !life.is_remembered()).await?;
        // CNI's word for a namespace that is no more is no path.
        let calls = plugins.calls(life.id()).into_iter();
        let dels: Vec<_> = calls.filter(|call| call.command == "DEL").collect();
        ensure!(dels.len() == 2 && dels.iter().all(|call| call.netns == "-"), "{dels:?}");
        ensure!(plugins.reservations().is_empty(), "{:?}", plugins.reservations());
    }
    Ok(())
}

async fn a_namespace_that_another_process_holds_is_detached(case: Case) -> Result<()> {
    let _plugins = Plugins::install(&case.node, "netns-busy", "")?;
    let life = running(&case, Kind::OwnNetwork).await?;
    let path = path_in(&record(&life, "netns")?, "path")?;
    // In it, and with its file open.
    let enter = format!("--net={}", path.display());
    let inside = Busy::start(Command::new("nsenter").args([enter.as_str(), "sleep", "1000"]))?;
    let script = format!("exec 3<'{}'; exec sleep 1000", path.display());
    let open = Busy::start(Command::new("sh").args(["-c", &script]))?;
    tokio::time::sleep(Duration::from_millis(100)).await;
    life.stop().await?;
    ensure!(!path.exists(), "{} is still there", path.display());
    life.end().await?;
    drop((inside, open));
    Ok(())
}

async fn an_image_that_is_in_use_is_unmounted(case: Case) -> Result<()> {
    let _plugins = Plugins::install(&case.node, "image-busy", "")?;
    let life = running(&case, Kind::ImageVolume).await?;
    let target = path_in(&record(&life, "image_volume")?, "target")?;
    let user = Busy::start(Command::new("sleep").arg("1000").current_dir(&target))?;
    life.stop().await?;
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    ensure!(!mounts.contains(&target.display().to_string()), "it is still mounted");
    life.end().await?;
    drop(user);
    Ok(())
}

async fn a_snapshot_that_was_removed_keeps_no_pod(case: Case) -> Result<()> {
    let _plugins = Plugins::install(&case.node, "snapshot", "")?;
    for killed in [false, true] {
        let life = running(&case, Kind::ImageVolume).await?;
        let volume = record(&life, "image_volume")?;
        let target = path_in(&volume, "target")?;
        let key = volume.get("key").and_then(Value::as_str).context("no key")?;
        umount2(&target, MntFlags::MNT_DETACH)?;
        let mut snapshots =
            api::snapshots::snapshots_client::SnapshotsClient::new(case.node.channel());
        let request = api::snapshots::RemoveSnapshotRequest {
            snapshotter: "overlayfs".to_owned(),
            key: key.to_owned(),
        };
        snapshots.remove(in_namespace("default", request)).await.context("remove the snapshot")?;
        if killed {
            kill_shim(life.id())?;
        } else {
            life.stop().await?;
        }
        life.end().await?;
    }
    Ok(())
}

async fn a_lease_that_was_deleted_keeps_no_pod(case: Case) -> Result<()> {
    let _plugins = Plugins::install(&case.node, "lease", "")?;
    for killed in [false, true] {
        let life = running(&case, Kind::ImageVolume).await?;
        let lease = record(&life, "lease")?;
        let id = lease.get("id").and_then(Value::as_str).context("no id")?.to_owned();
        let mut leases = api::leases_client::LeasesClient::new(case.node.channel());
        let request = api::DeleteRequest { id, sync: true };
        leases.delete(in_namespace("default", request)).await.context("delete the lease")?;
        if killed {
            kill_shim(life.id())?;
        } else {
            life.stop().await?;
        }
        life.end().await?;
    }
    Ok(())
}

/// While the stop kills one container after the other, their client removes them.
async fn containers_removed_in_mid_stop_are_no_error(case: Case) -> Result<()> {
    let pod = Arc::new(PodSpec::new(&case).run().await?);
    let mut containers = Vec::new();
    for number in 0..4 {
        containers.push(pod.start(&ContainerSpec::idle(&format!("c{number}"))).await?);
    }
    let stop = tokio::spawn({
        let pod = Arc::clone(&pod);
        async move { pod.stop().await }
    });
    for container in &containers {
        let _ = container.stop(0).await;
        container.remove().await?;
    }
    stop.await??;
    pod.remove().await
}

/// The same through the sandbox service, where the shim itself does the killing.
async fn tasks_deleted_in_mid_stop_are_no_error(case: Case) -> Result<()> {
    let _plugins = Plugins::install(&case.node, "deleted-tasks", "")?;
    let failpoints = Failpoints::of(&case.node);
    let life = running(&case, Kind::OwnNetwork).await?;
    failpoints.arm("stop:containers:begin", "pause:500")?;
    let (stop, deleted) = tokio::join!(life.stop(), async {
        failpoints.hit().await?;
        let task = life.task().context("no task")?;
        task.kill(9).await?;
        task.wait().await?;
        task.delete().await?;
        task.forget().await?;
        Ok::<_, anyhow::Error>(())
    });
    deleted?;
    stop?;
    life.end().await
}

/// The file of a container's process by which its cgroup is frozen, what to write, and where it is read that it is.
fn freezer_of(pid: u32) -> Result<(PathBuf, &'static str, PathBuf, &'static str)> {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    let path_in = |controller: &str| {
        let line = groups.lines().find(|line| line.split(':').nth(1) == Some(controller));
        let path = line.and_then(|line| line.splitn(3, ':').nth(2));
        path.map(|path| path.trim_start_matches('/').to_owned())
    };
    if let Some(path) = path_in("freezer") {
        let state = Path::new("/sys/fs/cgroup/freezer").join(path).join("freezer.state");
        return Ok((state.clone(), "FROZEN", state, "FROZEN"));
    }
    let folder = Path::new("/sys/fs/cgroup").join(path_in("").context("no freezer")?);
    Ok((folder.join("cgroup.freeze"), "1", folder.join("cgroup.events"), "frozen 1"))
}

async fn freeze(pid: u32) -> Result<()> {
    let (order, word, state, wanted) = freezer_of(pid)?;
    let is_frozen =
        || fs::read_to_string(&state).is_ok_and(|text| text.lines().any(|line| line == wanted));
    // The older freezer may miss a process for good, and has to begin anew then.
    for _ in 0..20 {
        let _ = fs::write(&order, if word == "FROZEN" { "THAWED" } else { word });
        fs::write(&order, word)?;
        if until(Duration::from_millis(300), "not yet", is_frozen).await.is_ok() {
            return Ok(());
        }
    }
    bail!("it does not freeze")
}

/// Frozen behind everybody's back: no signal reaches it until somebody thaws it.
async fn a_frozen_container_keeps_no_pod(case: Case) -> Result<()> {
    let _plugins = Plugins::install(&case.node, "frozen", "ContainerdTimeout = '2s'")?;
    for killed in [false, true] {
        let life = running(&case, Kind::OwnNetwork).await?;
        let pids = life.task().context("no task")?.pids().await?;
        freeze(*pids.first().context("no process")?).await?;
        if killed {
            kill_shim(life.id())?;
        } else {
            life.stop().await?;
        }
        life.end().await?;
    }
    Ok(())
}

async fn a_frozen_container_keeps_no_pod_of_cri(case: Case) -> Result<()> {
    let pod = PodSpec::new(&case).run().await?;
    let container = pod.start(&ContainerSpec::idle("main")).await?;
    freeze(u32::try_from(container.pid().await?)?).await?;
    tokio::time::timeout(Duration::from_secs(20), pod.end()).await.context("it hangs")?
}

async fn fifty_containers_are_stopped_at_once(case: Case) -> Result<()> {
    let _plugins = Plugins::install(&case.node, "fifty", "")?;
    let mut life = Life::new(&case, Kind::OwnNetwork);
    life.run().await?;
    let mut tasks = Vec::new();
    for number in 0..50 {
        tasks.push(life.another(&format!("c{number}")).await?);
    }
    let begun = Instant::now();
    life.stop().await?;
    let took = begun.elapsed();
    ensure!(took < Duration::from_secs(8), "the stop took {took:?}");
    for task in tasks {
        ensure!(task.wait().await? == 137);
        task.delete().await?;
        task.forget().await?;
    }
    life.end().await
}

async fn twenty_stops_at_once_are_one(case: Case) -> Result<()> {
    let plugins = Plugins::install(&case.node, "twenty", "")?;
    let life = Arc::new(running(&case, Kind::OwnNetwork).await?);
    let waiters: Vec<_> = (0..5)
        .map(|_| {
            let life = Arc::clone(&life);
            tokio::spawn(async move { life.client().wait().await })
        })
        .collect();
    let all: Vec<_> = (0..20)
        .map(|_| {
            let life = Arc::clone(&life);
            tokio::spawn(async move { life.stop().await })
        })
        .collect();
    for one in all {
        one.await??;
    }
    for waiter in waiters {
        let exit = tokio::time::timeout(Duration::from_secs(5), waiter).await???;
        ensure!(exit.exit_status == 0 && exit.exited_at.is_some(), "{exit:?}");
    }
    ensure!(plugins.dels(life.id()) == ["tuning", "ptp"], "{:?}", plugins.dels(life.id()));
    let steps = logged_steps(&case.node, life.id());
    no_step_twice(&steps)?;
    ensure!(steps.iter().filter(|(step, _)| step == "network").count() == 1, "{steps:?}");
    // And one more, when everything is over.
    life.stop().await?;
    life.end().await
}

/// The start gives up at its next step and takes back what it did; the stop succeeds.
async fn a_stop_during_a_start_ends_it(case: Case) -> Result<()> {
    let plugins = Plugins::install(&case.node, "early", "")?;
    let failpoints = Failpoints::of(&case.node);
    let points =
        ["acquire:files:held", "acquire:netns:held", "acquire:keeper:held", "acquire:network:held"];
    for point in points {
        let mut life = Life::new(&case, Kind::OwnNetwork);
        let other = life.client().with_id(life.id());
        failpoints.arm(point, "pause:300")?;
        let (run, stop) = tokio::join!(life.run(), async {
            failpoints.hit().await?;
            other.stop().await.context("stop")
        });
        stop.with_context(|| format!("at {point}"))?;
        // At the last point the start may have been done already.
        ensure!(run.is_err() || point == "acquire:network:held", "at {point} the start succeeds");
        ensure!(!Path::new("/run/netns").join(format!("mooring-default--{}", life.id())).exists());
        life.end().await.with_context(|| format!("at {point}"))?;
    }
    ensure!(plugins.reservations().is_empty(), "{:?}", plugins.reservations());
    Ok(())
}

/// From the first stop on, whatever comes of it, the sandbox takes no containers.
async fn a_sandbox_that_is_being_stopped_takes_no_containers(case: Case) -> Result<()> {
    let plugins = Plugins::install(&case.node, "closed", "")?;
    let mut life = Life::new(&case, Kind::OwnNetwork);
    life.run().await?;
    plugins.fault("ptp", "DEL", "fail 1")?;
    ensure!(life.stop().await.is_err(), "the stop succeeds");
    let Err(error) = life.container().await else { bail!("a container starts after the stop") };
    let text = format!("{error:#}");
    ensure!(text.contains("being stopped"), "{text}");
    life.stop().await?;
    life.end().await
}

/// containerd is there and says nothing: containers die in place, and the rest goes on.
async fn a_silent_containerd_delays_a_stop_no_longer_than_its_budget(case: Case) -> Result<()> {
    let _plugins = Plugins::install(&case.node, "silent", "ContainerdTimeout = '1s'")?;
    let life = running(&case, Kind::OwnNetwork).await?;
    let pid = *life.task().context("no task")?.pids().await?.first().context("no process")?;
    let direct = Direct::to(&case.node, life.namespace(), life.id()).await?;
    case.node.signal(Signal::SIGSTOP)?;
    let begun = Instant::now();
    let stopped = direct.stop(life.id(), Duration::from_secs(15)).await;
    let took = begun.elapsed();
    let alive = Path::new(&format!("/proc/{pid}")).exists();
    let steps = logged_steps(&case.node, life.id());
    case.node.signal(Signal::SIGCONT)?;
    stopped.context("StopSandbox without containerd")?;
    ensure!(!alive, "the container goes on");
    ensure!(took < Duration::from_secs(5), "it took {took:?}");
    drop(steps);
    ensure!(state_dir(life.namespace(), life.id()).exists());
    let journal = journal(life.namespace(), life.id())?;
    ensure!(journal.get("closed") == Some(&Value::Bool(true)), "{journal}");
    life.end().await
}

/// The disk of the state folders, small enough to be filled. What is on it goes with it.
struct StateDisk;

impl StateDisk {
    const PLACE: &str = "/var/lib/mooring";

    fn mount() -> Result<Self> {
        fs::create_dir_all(Self::PLACE)?;
        let (kind, size) = (Some("tmpfs"), Some("size=512k,mode=700"));
        mount(kind, Self::PLACE, kind, MsFlags::empty(), size).context("mount a small disk")?;
        Ok(Self)
    }

    fn fill() -> Result<()> {
        let mut file = fs::File::create(Path::new(Self::PLACE).join("ballast"))?;
        let mut size = 4096;
        while size > 0 {
            if std::io::Write::write_all(&mut file, &vec![0; size]).is_err() {
                size /= 2;
            }
        }
        Ok(())
    }

    fn make_read_only() -> Result<()> {
        let none: Option<&str> = None;
        let flags = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(none, Self::PLACE, none, flags, none).context("make the disk read-only")
    }
}

impl Drop for StateDisk {
    fn drop(&mut self) {
        let _ = umount2(Self::PLACE, MntFlags::MNT_DETACH);
    }
}

async fn is_ended_on(case: &Case, trouble: fn() -> Result<()>) -> Result<()> {
    let plugins = Plugins::install(&case.node, "disk", "")?;
    for (kind, killed) in [
        (Kind::Cri, false),
        (Kind::SharedPid, false),
        (Kind::OwnNetwork, false),
        (Kind::ImageVolume, false),
        (Kind::Cri, true),
        (Kind::OwnNetwork, true),
    ] {
        let what = || format!("{kind:?}, the shim killed: {killed}");
        let _disk = StateDisk::mount()?;
        let life = running(case, kind).await.with_context(what)?;
        let id = life.id().to_owned();
        trouble()?;
        if killed {
            kill_shim(&id)?;
        } else {
            life.stop().await.with_context(what)?;
        }
        life.end().await.with_context(what)?;
        ensure!(plugins.reservations().is_empty(), "{}: {:?}", what(), plugins.reservations());
        // A pod cannot be made there, and nothing is left of the attempt.
        trouble()?;
        let mut next = Life::new(case, kind);
        ensure!(next.run().await.is_err(), "{}: a pod starts without a journal", what());
        next.end().await.with_context(what)?;
        ensure!(plugins.reservations().is_empty(), "{}: {:?}", what(), plugins.reservations());
    }
    Ok(())
}

/// Eviction for disk pressure needs exactly this.
async fn a_full_disk_keeps_no_pod(case: Case) -> Result<()> {
    Box::pin(is_ended_on(&case, StateDisk::fill)).await
}

async fn a_read_only_disk_keeps_no_pod(case: Case) -> Result<()> {
    Box::pin(is_ended_on(&case, StateDisk::make_read_only)).await
}

/// The same with containerd dead; after its start a client finds the sandbox stopped.
async fn a_stop_without_containerd_succeeds(case: Case) -> Result<()> {
    let _plugins = Plugins::install(&case.node, "dead", "ContainerdTimeout = '1s'")?;
    let life = running(&case, Kind::OwnNetwork).await?;
    let direct = Direct::to(&case.node, life.namespace(), life.id()).await?;
    case.node.end(Signal::SIGKILL).await?;
    let stopped = direct.stop(life.id(), Duration::from_secs(15)).await;
    case.node.start().await?;
    stopped.context("StopSandbox without containerd")?;
    ensure!(shim_of(life.id()).is_ok(), "the shim is gone");
    ensure!(life.client().status().await?.state == "SANDBOX_NOTREADY");
    life.stop().await?;
    life.end().await
}

suite!(Settings::default();
    both: ;
    mooring: a_namespace_that_was_removed_keeps_no_pod,
        a_namespace_that_another_process_holds_is_detached,
        an_image_that_is_in_use_is_unmounted,
        a_snapshot_that_was_removed_keeps_no_pod,
        a_lease_that_was_deleted_keeps_no_pod,
        containers_removed_in_mid_stop_are_no_error,
        tasks_deleted_in_mid_stop_are_no_error,
        a_frozen_container_keeps_no_pod,
        a_frozen_container_keeps_no_pod_of_cri,
        fifty_containers_are_stopped_at_once,
        twenty_stops_at_once_are_one,
        a_stop_during_a_start_ends_it,
        a_sandbox_that_is_being_stopped_takes_no_containers,
        a_silent_containerd_delays_a_stop_no_longer_than_its_budget,
        a_full_disk_keeps_no_pod,
        a_read_only_disk_keeps_no_pod,
        a_stop_without_containerd_succeeds);
