//! The shim is killed at every transition of its journal, and at random; `delete` is.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use mooring_e2e::audit::{Snapshot, leftovers};
use mooring_e2e::faults::{Failpoints, daemons, delete, is_known, kill_shim, nobody_works_for};
use mooring_e2e::life::{Kind, Life};
use mooring_e2e::node::Settings;
use mooring_e2e::plugins::Plugins;
use mooring_e2e::random::Random;
use mooring_e2e::suite;
use mooring_e2e::suite::Case;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// What a client was doing when a point was passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Run,
    Container,
    Stop,
}

/// The points that a pod of this kind passes, each with its phase, in order.
async fn points(case: &Case, kind: Kind, starts: bool) -> Result<Vec<(Phase, String)>> {
    let failpoints = Failpoints::of(&case.node);
    let mut life = Life::new(case, kind);
    failpoints.record()?;
    let run = life.run().await;
    let mut all = vec![(Phase::Run, failpoints.passed())];
    if run.is_ok() != starts {
        bail!("the start should {}: {run:?}", if starts { "succeed" } else { "fail" });
    }
    if starts {
        life.container().await?;
        all.push((Phase::Container, failpoints.passed()));
        life.stop().await?;
        all.push((Phase::Stop, failpoints.passed()));
    }
    failpoints.disarm();
    life.end().await?;
    let mut seen = BTreeSet::new();
    let flat =
        all.into_iter().flat_map(|(phase, list)| list.into_iter().map(move |one| (phase, one)));
    let points: Vec<_> = flat.filter(|point| seen.insert(point.clone())).collect();
    for needed in ["create:journal", "acquire:keeper:held", "stop:closed"] {
        if !points.iter().any(|(_, point)| point == needed) {
            bail!(
                "the shim does not pass {needed}: is it built with the feature failpoints? {points:?}"
            );
        }
    }
    if std::env::var_os("MOORING_E2E_POINTS").is_some() {
        eprintln!("{kind:?}: {} points: {points:?}", points.len());
    }
    Ok(points)
}

/// A kill at every point that this kind of pod passes, each in a new pod.
async fn every_point(case: &Case, kind: Kind, starts: bool) -> Result<()> {
    let points = points(case, kind, starts).await.context("learn the points")?;
    each_of(case, kind, &points).await
}

async fn each_of(case: &Case, kind: Kind, points: &[(Phase, String)]) -> Result<()> {
    let mut failures = Vec::new();
    for (phase, point) in points {
        if let Err(error) = one_point(case, kind, *phase, point).await {
            failures.push(format!("killed at {point} of {phase:?}: {error:#}"));
        }
    }
    if failures.is_empty() {
        return Ok(());
    }
    bail!("{} of {} points:\n{}", failures.len(), points.len(), failures.join("\n"))
}

async fn one_point(case: &Case, kind: Kind, phase: Phase, point: &str) -> Result<()> {
    let before = Snapshot::take(&case.node).await?;
    let failpoints = Failpoints::of(&case.node);
    let mut life = Life::new(case, kind);
    if phase != Phase::Run {
        life.run().await?;
    }
    if phase == Phase::Stop {
        life.container().await?;
    }
    failpoints.arm(point, "kill")?;
    // A stop may fail or find another way; what counts is that it answers.
    let answer = match phase {
        Phase::Run => life.run().await,
        Phase::Container => life.container().await,
        Phase::Stop => life.stop().await,
    };
    if !failpoints.was_hit() {
        bail!("the point is not reached; the call said {answer:?}");
    }
    if phase != Phase::Stop && answer.is_ok() {
        bail!("the call succeeded");
    }
    let ended = life.end().await;
    clean_since(case, &before).await.with_context(|| format!("(the end said {ended:?})"))?;
    ended
}

async fn clean_since(case: &Case, before: &Snapshot) -> Result<()> {
    let left = leftovers(&case.node, before).await?;
    if left.is_empty() {
        return Ok(());
    }
    case.node.clean_up().await?;
    bail!("left on the machine: {left:#?}");
}

async fn a_shim_killed_anywhere_in_a_pod_of_cri_leaves_nothing(case: Case) -> Result<()> {
    every_point(&case, Kind::Cri, true).await
}

async fn a_shim_killed_anywhere_in_a_pod_with_a_holder_leaves_nothing(case: Case) -> Result<()> {
    every_point(&case, Kind::SharedPid, true).await
}

async fn a_shim_killed_anywhere_that_owns_the_network_leaves_nothing(case: Case) -> Result<()> {
    let _plugins = Plugins::install(&case.node, "kills", "")?;
    every_point(&case, Kind::OwnNetwork, true).await
}

/// From the intent to pin the pod's namespaces until they are released: they outlive the shim.
async fn a_shim_killed_anywhere_with_pinned_namespaces_leaves_nothing(case: Case) -> Result<()> {
    let _plugins = Plugins::install(&case.node, "pins", "Keeper = 'pinned'")?;
    let all = points(&case, Kind::OwnNetwork, true).await.context("learn the points")?;
    let at = |name: &str| all.iter().position(|(_, point)| point == name).context(name.to_owned());
    let pinned = all
        .get(at("acquire:keeper:intended")?..=at("stop:network:begin")?)
        .context("the points come in another order")?;
    for needed in ["keeper-pinned", "keeper-pinned#2", "keeper-unpinned", "keeper-unpinned#2"] {
        at(needed)?;
    }
    each_of(&case, Kind::OwnNetwork, pinned).await
}

async fn a_shim_killed_anywhere_in_a_user_namespace_leaves_nothing(case: Case) -> Result<()> {
    let _plugins = Plugins::install(&case.node, "users", "")?;
    every_point(&case, Kind::UserNamespace, true).await
}

async fn a_shim_killed_anywhere_with_an_image_volume_leaves_nothing(case: Case) -> Result<()> {
    let _plugins = Plugins::install(&case.node, "images", "")?;
    every_point(&case, Kind::ImageVolume, true).await
}

async fn a_shim_killed_anywhere_in_a_start_that_fails_leaves_nothing(case: Case) -> Result<()> {
    let plugins = Plugins::install(&case.node, "rollback", "")?;
    plugins.fault("tuning", "ADD", "fail")?;
    every_point(&case, Kind::OwnNetwork, false).await
}

/// The cleaner dies too, at every point that it passes; the next one goes on from there.
async fn a_delete_killed_anywhere_is_completed_by_the_next_one(case: Case) -> Result<()> {
    let _plugins = Plugins::install(&case.node, "deletes", "")?;
    let failpoints = Failpoints::of(&case.node);
    let all = points(&case, Kind::ImageVolume, true).await?;
    let mut failures = Vec::new();
    // Without the shim nobody can come through its door.
    let passed = |one: &&(Phase, String)| one.0 == Phase::Stop && one.1 != "stop:door:begin";
    for (_, point) in all.iter().filter(passed) {
        let one = async {
            let before = Snapshot::take(&case.node).await?;
            let mut life = Life::new(&case, Kind::ImageVolume);
            life.run().await?;
            life.container().await?;
            failpoints.arm(point, "kill")?;
            kill_shim(life.id())?;
            failpoints.hit().await?;
            nobody_works_for(life.id(), Duration::from_secs(10)).await?;
            if !life.is_remembered() {
                bail!("the journal is gone");
            }
            let took = delete(&case.node, life.namespace(), life.id()).await?;
            if took > Duration::from_secs(5) {
                bail!("delete took {took:?}");
            }
            life.end().await?;
            clean_since(&case, &before).await
        };
        if let Err(error) = one.await {
            failures.push(format!("killed at {point}: {error:#}"));
        }
    }
    if failures.is_empty() {
        return Ok(());
    }
    bail!("{}", failures.join("\n"))
}

/// Eight pods at a time come and go while shims are killed at random moments.
async fn shims_killed_at_random_leave_nothing(case: Case) -> Result<()> {
    let mut random = Random::from_environment();
    let before = Snapshot::take(&case.node).await?;
    let plugins = Plugins::install(&case.node, "churn", "")?;
    let kinds = [Kind::Cri, Kind::SharedPid, Kind::OwnNetwork, Kind::ImageVolume];
    let mut all = tokio::task::JoinSet::new();
    for kind in kinds.into_iter().cycle().take(8) {
        let case = case.clone();
        all.spawn(async move {
            for _ in 0..3 {
                let mut life = Life::new(&case, kind);
                let _ = async {
                    life.run().await?;
                    life.container().await?;
                    life.stop().await
                }
                .await;
                life.end().await?;
            }
            Ok::<_, anyhow::Error>(())
        });
    }
    let (mut failures, mut kills) = (Vec::new(), 0);
    while !all.is_empty() {
        let moment = Duration::from_millis(random.below(100));
        if let Ok(Some(one)) = tokio::time::timeout(moment, all.join_next()).await {
            failures.extend(one?.err().map(|error| format!("{error:#}")));
            continue;
        }
        let shims: Vec<_> = daemons().into_iter().filter(is_known).collect();
        if let Some(shim) = shims.get(usize::try_from(random.below(shims.len() as u64))?) {
            kills += i32::from(kill(Pid::from_raw(shim.pid), Signal::SIGKILL).is_ok());
        }
    }
    if !failures.is_empty() || kills < 8 {
        bail!("seed {}, {kills} kills: {}", random.seed(), failures.join("\n"));
    }
    // A bundle of a task that died between its creation and its start is containerd's, which drops it at its next start.
    let mut left = leftovers(&case.node, &before).await?;
    left.retain(|one| !one.contains("/io.containerd.runtime.v2.task/"));
    drop(plugins);
    if !left.is_empty() {
        bail!("seed {}: left on the machine: {left:#?}", random.seed());
    }
    case.node.restart().await
}

suite!(Settings::default();
    both: ;
    mooring: a_shim_killed_anywhere_in_a_pod_of_cri_leaves_nothing,
        a_shim_killed_anywhere_in_a_pod_with_a_holder_leaves_nothing,
        a_shim_killed_anywhere_that_owns_the_network_leaves_nothing,
        a_shim_killed_anywhere_with_pinned_namespaces_leaves_nothing,
        a_shim_killed_anywhere_in_a_user_namespace_leaves_nothing,
        a_shim_killed_anywhere_with_an_image_volume_leaves_nothing,
        a_shim_killed_anywhere_in_a_start_that_fails_leaves_nothing,
        a_delete_killed_anywhere_is_completed_by_the_next_one,
        shims_killed_at_random_leave_nothing);
