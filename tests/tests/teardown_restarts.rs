//! containerd dies at every point of a pod's life; shim and containerd die together; the machine reboots; clients give
//! up in mid-call.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use mooring_e2e::audit::{Snapshot, all_processes, leftovers};
use mooring_e2e::faults::{
    Failpoints, delete, journal, kill_shim, lives, nobody_works_for, shim_of, state_dir, until,
};
use mooring_e2e::life::{Kind, Life};
use mooring_e2e::node::Settings;
use mooring_e2e::plugins::Plugins;
use mooring_e2e::random::Random;
use mooring_e2e::services::container_spec;
use mooring_e2e::suite;
use mooring_e2e::suite::Case;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Run,
    Container,
    Stop,
}

async fn points(case: &Case, kind: Kind) -> Result<Vec<(Phase, String)>> {
    let failpoints = Failpoints::of(&case.node);
    let mut life = Life::new(case, kind);
    failpoints.record()?;
    life.run().await?;
    let mut all: Vec<_> = failpoints.passed().into_iter().map(|one| (Phase::Run, one)).collect();
    life.container().await?;
    all.extend(failpoints.passed().into_iter().map(|one| (Phase::Container, one)));
    life.stop().await?;
    all.extend(failpoints.passed().into_iter().map(|one| (Phase::Stop, one)));
    failpoints.disarm();
    life.end().await?;
    let mut seen = BTreeSet::new();
    all.retain(|one| seen.insert(one.clone()));
    ensure!(all.iter().any(|(_, one)| one == "stop:closed"), "no failpoints in the shim: {all:?}");
    Ok(all)
}

/// While the shim waits at a point containerd is killed (and, if `both`, the shim), and started again.
async fn crash_at(case: &Case, kind: Kind, phase: Phase, point: &str, both: bool) -> Result<()> {
    let before = Snapshot::take(&case.node).await?;
    let failpoints = Failpoints::of(&case.node);
    let mut life = Life::new(case, kind);
    if phase != Phase::Run {
        life.run().await?;
    }
    if phase == Phase::Stop {
        life.container().await?;
    }
    failpoints.arm(point, "pause:200")?;
    let id = life.id().to_owned();
    let crash = async {
        failpoints.hit().await?;
        case.node.end(Signal::SIGKILL).await?;
        if both {
            kill_shim(&id)?;
        }
        Ok::<_, anyhow::Error>(())
    };
    let call = async {
        match phase {
            Phase::Run => life.run().await,
            Phase::Container => life.container().await,
            Phase::Stop => life.stop().await,
        }
    };
    let (answer, crashed) = tokio::join!(call, crash);
    crashed?;
    case.node.start().await?;
    if !both && phase != Phase::Run && shim_of(&id).is_err() {
        bail!("the shim is gone");
    }
    let ended = life.end().await;
    let left = leftovers(&case.node, &before).await?;
    if !left.is_empty() {
        case.node.clean_up().await?;
        bail!("left on the machine: {left:#?} (the call said {answer:?}, the end {ended:?})");
    }
    ended
}

async fn crash_everywhere(case: &Case, both: bool) -> Result<()> {
    let kind = Kind::ImageVolume;
    let mut failures = Vec::new();
    for (phase, point) in points(case, kind).await? {
        let begun = Instant::now();
        let crashed = crash_at(case, kind, phase, &point, both).await;
        if std::env::var_os("MOORING_E2E_POINTS").is_some() {
            eprintln!("{point} of {phase:?}: {:?}", begun.elapsed());
        }
        if let Err(error) = crashed {
            failures.push(format!("at {point} of {phase:?}: {error:#}"));
        }
    }
    ensure!(failures.is_empty(), "{}", failures.join("\n"));
    Ok(())
}

async fn a_containerd_killed_anywhere_finds_the_sandbox_again(case: Case) -> Result<()> {
    let _plugins = Plugins::install(&case.node, "crash", "ContainerdTimeout = '1s'")?;
    crash_everywhere(&case, false).await
}

async fn containerd_and_shim_killed_together_anywhere_leave_nothing(case: Case) -> Result<()> {
    let _plugins = Plugins::install(&case.node, "both", "ContainerdTimeout = '1s'")?;
    crash_everywhere(&case, true).await
}

/// Another boot's identity in the place of this one's, until it is dropped.
struct AnotherBoot;

impl AnotherBoot {
    const FILE: &str = "/proc/sys/kernel/random/boot_id";

    fn begin(case: &Case) -> Result<Self> {
        let other = case.node.folder().join("boot_id");
        fs::write(&other, format!("{}\n", case.unique("11111111-2222-3333-4444")))?;
        mount(Some(&other), Self::FILE, None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .context("name another boot")?;
        Ok(Self)
    }
}

impl Drop for AnotherBoot {
    fn drop(&mut self) {
        let _ = umount2(Self::FILE, MntFlags::MNT_DETACH);
    }
}

/// All processes end, all mounts and namespaces and all of /run vanish; /var stays.
async fn reboot(case: &Case, life: &Life) -> Result<AnotherBoot> {
    let shim = shim_of(life.id())?;
    let netns = journal(life.namespace(), life.id())?;
    let netns = netns.get("entries").and_then(|all| all.as_array()).and_then(|all| {
        let mut paths = all.iter().filter_map(|one| one.pointer("/resource/netns/path"));
        paths.next().and_then(|path| path.as_str()).map(str::to_owned)
    });
    // Asked of the shim: a container that has just been started may not have come to its own program yet.
    let containers = life.task().context("no container")?.pids().await?;
    case.node.end(Signal::SIGKILL).await?;
    kill(Pid::from_raw(shim.pid), Signal::SIGKILL)?;
    for pid in &containers {
        kill(Pid::from_raw(i32::try_from(*pid)?), Signal::SIGKILL)?;
    }
    let dead = || !containers.iter().any(|pid| lives(*pid));
    until(Duration::from_secs(5), "a container lives through the reboot", dead).await?;
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let targets: Vec<&str> = mounts.lines().filter_map(|line| line.split(' ').nth(4)).collect();
    for target in targets.iter().rev() {
        if target.contains(life.id()) || Some(*target) == netns.as_deref() {
            umount2(*target, MntFlags::MNT_DETACH)?;
        }
    }
    if let Some(netns) = netns {
        fs::remove_file(netns)?;
    }
    for folder in ["/run/mooring", "/run/containerd", "/run/netns"] {
        let _ = fs::remove_dir_all(folder);
    }
    let state = case.node.folder().join("state");
    fs::remove_dir_all(&state).context("empty containerd's state")?;
    // containerd forgets these itself, but only where its state still has the namespace's folder.
    for plugin in ["io.containerd.runtime.v2.task", "io.containerd.sandbox.controller.v1.shim"] {
        let folder = case.node.folder().join("root").join(plugin).join(life.namespace());
        for entry in fs::read_dir(folder)?.flatten() {
            if entry.file_name().to_string_lossy().starts_with(life.id()) {
                fs::remove_dir_all(entry.path())?;
            }
        }
    }
    remove_groups(Path::new("/sys/fs/cgroup"), life.id());
    AnotherBoot::begin(case)
}

fn remove_groups(at: &Path, id: &str) {
    for entry in fs::read_dir(at).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_groups(&entry.path(), id);
            if entry.file_name().to_string_lossy().contains(id) {
                let _ = fs::remove_dir(entry.path());
            }
        }
    }
}

/// The address outlives a reboot, the namespace does not: the DEL gets no path and gives the address back.
async fn after_a_reboot_delete_releases_what_remains(case: Case) -> Result<()> {
    let plugins = Plugins::install(&case.node, "reboot", "")?;
    for volume in [false, true] {
        let kind = if volume { Kind::ImageVolume } else { Kind::OwnNetwork };
        let mut life = Life::new(&case, kind);
        life.run().await?;
        life.container().await?;
        let _boot = reboot(&case, &life).await?;
        case.node.start().await?;
        ensure!(plugins.reservations().len() == 1, "{:?}", plugins.reservations());
        ensure!(state_dir(life.namespace(), life.id()).exists(), "the journal did not survive");
        delete(&case.node, life.namespace(), life.id()).await?;
        nobody_works_for(life.id(), Duration::from_secs(10)).await?;
        ensure!(plugins.reservations().is_empty(), "{:?}", plugins.reservations());
        ensure!(!life.is_remembered(), "the journal is still there");
        let calls = plugins.calls(life.id()).into_iter();
        let dels: Vec<_> = calls.filter(|call| call.command == "DEL").collect();
        ensure!(dels.iter().all(|call| call.netns == "-"), "{dels:?}");
        life.end().await?;
    }
    Ok(())
}

/// A sandbox of the same name may come before anybody has cleaned up after the reboot.
async fn after_a_reboot_the_same_name_serves_again(case: Case) -> Result<()> {
    let plugins = Plugins::install(&case.node, "again", "")?;
    let mut life = Life::new(&case, Kind::OwnNetwork);
    life.run().await?;
    life.container().await?;
    let _boot = reboot(&case, &life).await?;
    case.node.start().await?;
    life.end_for_client().await?;
    let mut second = Life::named(&case, Kind::OwnNetwork, life.id());
    second.run().await.context("the second sandbox of the name")?;
    second.stop().await?;
    second.end().await?;
    ensure!(plugins.reservations().is_empty(), "{:?}", plugins.reservations());
    Ok(())
}

/// A torn journal is reported; whoever is asked answers, and nothing panics.
async fn a_torn_journal_is_reported(case: Case) -> Result<()> {
    let _plugins = Plugins::install(&case.node, "torn", "")?;
    let mut life = Life::new(&case, Kind::OwnNetwork);
    life.run().await?;
    let file = state_dir(life.namespace(), life.id()).join("journal.json");
    let whole = fs::read(&file)?;
    fs::write(&file, whole.get(..whole.len() / 2).unwrap_or_default())?;
    kill_shim(life.id())?;
    let torn = || case.node.log().contains("torn or not Mooring's");
    until(Duration::from_secs(15), "nobody complains of the torn journal", torn).await?;
    fs::write(&file, whole)?;
    let took = delete(&case.node, life.namespace(), life.id()).await?;
    ensure!(took < Duration::from_secs(5), "delete took {took:?}");
    nobody_works_for(life.id(), Duration::from_secs(40)).await?;
    ensure!(!life.is_remembered());
    life.end().await
}

/// Clients whose patience ends in mid-call, at random moments; then they clean up as if nothing had been.
async fn clients_that_give_up_in_mid_call_leave_nothing(case: Case) -> Result<()> {
    let mut random = Random::from_environment();
    let plugins = Plugins::install(&case.node, "impatient", "")?;
    let before = Snapshot::take(&case.node).await?;
    for _ in 0..12 {
        let mut life = Life::new(&case, Kind::OwnNetwork);
        let moment = Duration::from_millis(random.below(120));
        let _ = tokio::time::timeout(moment, life.run()).await;
        life.end().await.with_context(|| format!("seed {}", random.seed()))?;
    }
    // A shim that containerd forgot takes itself down, and needs the plugins for it.
    let left = leftovers(&case.node, &before).await?;
    drop(plugins);
    ensure!(left.is_empty(), "seed {}: left on the machine: {left:#?}", random.seed());
    Ok(())
}

/// Whose client gives up, or who ends, has a task deleted that is not there yet, and then unmounts the root file system
/// and removes the bundle: containerd does. An OCI runtime that is at work in them meanwhile makes its mount points in
/// the bundle itself, and nobody can remove that.
async fn a_deletion_in_mid_creation_is_answered_once_the_runtime_is_done(case: Case) -> Result<()> {
    let plugins = Plugins::install(&case.node, "given-up", "")?;
    let mut life = Life::new(&case, Kind::OwnNetwork);
    life.run().await?;
    let id = format!("{}-given-up", life.id());
    let mut spec = container_spec(&id, &["/bin/sleep", "1000"], Some(life.pid()));
    let slow = json!({ "createRuntime": [{ "path": "/bin/sleep", "args": ["sleep", "2"] }] });
    spec.as_object_mut().context("a specification")?.insert("hooks".to_owned(), slow);
    let works = || all_processes().iter().any(|one| one.command == "sleep 2");
    let task = life.client().container(&id, &spec).await?;
    let deletion = async {
        until(Duration::from_secs(10), "the OCI runtime does not get to its hook", works).await?;
        let deleted = task.delete().await;
        ensure!(!works(), "answered in mid-creation: {deleted:?}");
        Ok(deleted?)
    };
    let (_, deleted) = tokio::join!(task.create(), deletion);
    ensure!(deleted? == 137);
    let bundle = case.node.folder().join("state/io.containerd.runtime.v2.task/default").join(&id);
    until(Duration::from_secs(5), "the bundle stays", || !bundle.exists()).await?;
    task.forget().await?;
    life.end().await?;
    drop(plugins);
    Ok(())
}

suite!(Settings::default();
    both: ;
    mooring: a_containerd_killed_anywhere_finds_the_sandbox_again,
        containerd_and_shim_killed_together_anywhere_leave_nothing,
        after_a_reboot_delete_releases_what_remains,
        after_a_reboot_the_same_name_serves_again,
        a_torn_journal_is_reported,
        clients_that_give_up_in_mid_call_leave_nothing,
        a_deletion_in_mid_creation_is_answered_once_the_runtime_is_done);
