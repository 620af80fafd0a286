//! Many pods at once, and faults at random: killed shims, holders and OCI runtimes, failing plugins, a crash of
//! containerd. Afterwards nothing is left.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use mooring_e2e::audit::{Process, Snapshot, all_processes};
use mooring_e2e::faults::{daemons, is_known, nobody_works_for};
use mooring_e2e::life::{Kind, Life};
use mooring_e2e::node::Settings;
use mooring_e2e::patience;
use mooring_e2e::plugins::Plugins;
use mooring_e2e::random::Random;
use mooring_e2e::remains;
use mooring_e2e::suite;
use mooring_e2e::suite::Case;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::task::JoinSet;

/// Environment variable: how many pods, where the usual number is not meant.
const PODS: &str = "MOORING_STORM";
const USUAL: usize = 40;
const KINDS: [Kind; 4] = [Kind::Cri, Kind::SharedPid, Kind::OwnNetwork, Kind::ImageVolume];
/// How long a client goes on trying to be rid of one pod while everything else happens.
const STUBBORN: Duration = Duration::from_mins(1);

/// One pod: run, used, stopped, and ended however often it takes.
async fn pod(case: Case, kind: Kind) -> Result<String> {
    let mut life = Life::new(&case, kind);
    let went_well = async {
        life.run().await?;
        life.container().await?;
        life.stop().await
    }
    .await
    .is_ok();
    let until = Instant::now() + patience(STUBBORN);
    loop {
        match life.end().await {
            Ok(()) => break,
            Err(error) if Instant::now() > until => return Err(error),
            // A containerd that is away, mostly.
            Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
        }
    }
    nobody_works_for(life.id(), STUBBORN).await?;
    Ok(format!("{kind:?} {}", if went_well { "undisturbed" } else { "disturbed" }))
}

/// The fault of this moment; its name, where it struck.
fn strike(plugins: &Plugins, random: &mut Random) -> Result<Option<&'static str>> {
    let runs = |name: &str| -> Vec<Process> {
        all_processes().into_iter().filter(|one| one.name == name).collect()
    };
    let (name, victims) = match random.below(4) {
        0 => ("shims", daemons().into_iter().filter(is_known).collect()),
        1 => ("holders", runs("mooring-pod")),
        2 => ("runtimes", runs("runc")),
        _ => {
            let plugin = ["ptp", "tuning"][usize::try_from(random.below(2))?];
            // No DEL that fails: of an ADD that failed, or that a killed shim did not see the end of, it is an attempt, and
            // what it answers ends the matter (docs/network.md). Those that are owed are in teardown_cni.rs.
            let (command, how) = [("ADD", "fail 1"), ("ADD", "die 1"), ("DEL", "slow 0.3")]
                [usize::try_from(random.below(3))?];
            plugins.fault(plugin, command, how)?;
            return Ok(Some("plugins"));
        }
    };
    let chosen = victims.get(usize::try_from(random.below(victims.len() as u64))?);
    let struck = chosen.is_some_and(|one| kill(Pid::from_raw(one.pid), Signal::SIGKILL).is_ok());
    Ok(struck.then_some(name))
}

async fn many_pods_and_faults_at_random_leave_nothing(case: Case) -> Result<()> {
    let count = std::env::var(PODS).ok().and_then(|text| text.parse().ok()).unwrap_or(USUAL);
    let mut random = Random::from_environment();
    let before = Snapshot::take(&case.node).await?;
    let plugins = Plugins::install(&case.node, "storm", "")?;
    let begun = Instant::now();
    let mut all = JoinSet::new();
    for kind in KINDS.into_iter().cycle().take(count) {
        all.spawn(pod(case.clone(), kind));
    }
    let mut told: BTreeMap<String, u32> = BTreeMap::new();
    let mut failures = Vec::new();
    let mut crashed = false;
    while !all.is_empty() {
        let moment = Duration::from_millis(20 + random.below(100));
        if let Ok(Some(one)) = tokio::time::timeout(moment, all.join_next()).await {
            match one? {
                Ok(what) => *told.entry(what).or_default() += 1,
                Err(error) => failures.push(format!("{error:#}")),
            }
            continue;
        }
        if let Some(what) = strike(&plugins, &mut random)? {
            *told.entry(format!("struck: {what}")).or_default() += 1;
        }
        // Once, with half of them gone.
        if !crashed && all.len() <= count / 2 {
            crashed = true;
            case.node.crash().await.context("containerd does not come back")?;
        }
    }
    eprintln!("{count} pods in {:?}: {told:?}", begun.elapsed());
    if !failures.is_empty() {
        bail!("seed {}: {}", random.seed(), failures.join("\n"));
    }
    // A bundle of a task that died between its creation and its start is containerd's, which drops it at its next start.
    let mut left = remains::others(&case.node, &before, crashed).await?;
    left.retain(|one| !one.contains("/io.containerd.runtime.v2.task/"));
    if !left.is_empty() || !plugins.reservations().is_empty() {
        let reserved = plugins.reservations();
        bail!("seed {}: left on the machine: {left:#?} {reserved:?}", random.seed());
    }
    drop(plugins);
    case.node.restart().await
}

suite!(Settings::default();
    both: ;
    mooring: many_pods_and_faults_at_random_leave_nothing);
