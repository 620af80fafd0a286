//! Shims that hang, and shims that nobody owns: neither may keep a pod.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mooring_e2e::direct::Direct;
use mooring_e2e::faults::{Failpoints, kill_shim, nobody_works_for, shim_of, shims_of, until};
use mooring_e2e::life::{Kind, Life};
use mooring_e2e::node::Settings;
use mooring_e2e::plugins::Plugins;
use mooring_e2e::services::{Client, sandbox_spec};
use mooring_e2e::suite;
use mooring_e2e::suite::Case;
use nix::sys::signal::Signal;

/// A shim's thread may hang for 20 s while a stop is wanted.
const HANGS: Duration = Duration::from_secs(45);

/// From here on the shim's one thread hangs, for a minute.
async fn hang(case: &Case, life: &Life) -> Result<()> {
    let failpoints = Failpoints::of(&case.node);
    let direct = Direct::to(&case.node, life.namespace(), life.id()).await?;
    failpoints.arm("ping", "pause:60000")?;
    let id = life.id().to_owned();
    tokio::spawn(async move { direct.ping(&id, Duration::from_secs(80)).await });
    failpoints.hit().await
}

async fn ends_and_says_why(case: &Case, life: &Life, shim: i32) -> Result<()> {
    let begun = Instant::now();
    let gone = || !Path::new(&format!("/proc/{shim}")).exists();
    until(HANGS, "the shim hangs for ever", gone).await?;
    eprintln!("ended after {:?}", begun.elapsed());
    let said = || {
        let log = case.node.log();
        log.lines().any(|line| line.contains("the shim hangs") && line.contains(life.id()))
    };
    until(Duration::from_secs(5), "nothing is said of it", said).await
}

/// The stop comes while the thread hangs, so nobody reads it.
async fn a_shim_that_hangs_ends_once_a_stop_is_wanted(case: Case) -> Result<()> {
    let plugins = Plugins::install(&case.node, "hangs", "")?;
    let mut life = Life::new(&case, Kind::OwnNetwork);
    life.run().await?;
    life.container().await?;
    let shim = shim_of(life.id())?.pid;
    hang(&case, &life).await?;
    let (_, ended) =
        tokio::join!(life.client().stop_within(60), ends_and_says_why(&case, &life, shim));
    ended?;
    life.end().await?;
    ensure!(!life.is_remembered() && plugins.reservations().is_empty());
    Ok(())
}

/// It hangs while the stop is under way.
async fn a_shim_that_hangs_in_a_stop_ends(case: Case) -> Result<()> {
    let plugins = Plugins::install(&case.node, "hangs-in-stop", "")?;
    let mut life = Life::new(&case, Kind::OwnNetwork);
    life.run().await?;
    life.container().await?;
    let shim = shim_of(life.id())?.pid;
    plugins.fault("ptp", "DEL", "slow 4")?;
    let (_, ended) = tokio::join!(life.client().stop_within(60), async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        hang(&case, &life).await?;
        plugins.mend("ptp", "DEL");
        ends_and_says_why(&case, &life, shim).await
    });
    ended?;
    life.end().await?;
    ensure!(!life.is_remembered() && plugins.reservations().is_empty());
    Ok(())
}

/// A pod that nobody wants to end has its containers for as long as they run.
async fn a_shim_that_hangs_and_is_not_to_stop_is_left_alone(case: Case) -> Result<()> {
    let _plugins = Plugins::install(&case.node, "hangs-alone", "")?;
    let mut life = Life::new(&case, Kind::OwnNetwork);
    life.run().await?;
    life.container().await?;
    let shim = shim_of(life.id())?.pid;
    hang(&case, &life).await?;
    tokio::time::sleep(Duration::from_secs(35)).await;
    ensure!(Path::new(&format!("/proc/{shim}")).exists(), "the shim is gone");
    kill_shim(life.id())?;
    life.end().await
}

/// As containerd 2.3's CRI does when it cannot pull the pause image: created, and its record removed.
async fn a_sandbox_that_is_forgotten_before_its_start_ends(case: Case) -> Result<()> {
    let client = Client::new(&case);
    let spec = sandbox_spec("forgotten", false);
    client.record(&spec).await?;
    client.create(&spec, None, "").await?;
    client.forget().await?;
    let begun = Instant::now();
    ensure!(!shims_of(&client.id).is_empty());
    let gone = || shims_of(&client.id).is_empty();
    until(Duration::from_secs(80), "the shim stays", gone).await?;
    ensure!(begun.elapsed() > Duration::from_secs(50), "it did not wait for its start");
    Ok(())
}

/// Its bundle and its record are gone while containerd is down: nobody will ask for this shim again.
async fn a_shim_without_bundle_and_record_ends(case: Case) -> Result<()> {
    let plugins = Plugins::install(&case.node, "nobodys", "")?;
    let mut life = Life::new(&case, Kind::OwnNetwork);
    life.run().await?;
    life.container().await?;
    let pids = life.task().context("no task")?.pids().await?;
    life.client().forget().await?;
    life.task().context("no task")?.forget().await?;
    case.node.end(Signal::SIGKILL).await?;
    let state = case.node.folder().join("state/io.containerd.sandbox.controller.v1.shim");
    fs::remove_dir_all(state.join(life.namespace()).join(life.id()))
        .context("remove the bundle")?;
    let gone = nobody_works_for(life.id(), Duration::from_secs(30)).await;
    case.node.start().await?;
    gone?;
    ensure!(pids.iter().all(|pid| !Path::new(&format!("/proc/{pid}")).exists()));
    ensure!(!life.is_remembered() && plugins.reservations().is_empty());
    Ok(())
}

suite!(Settings::default();
    both: ;
    mooring: a_shim_that_hangs_ends_once_a_stop_is_wanted,
        a_shim_that_hangs_in_a_stop_ends,
        a_shim_that_hangs_and_is_not_to_stop_is_left_alone,
        a_sandbox_that_is_forgotten_before_its_start_ends,
        a_shim_without_bundle_and_record_ends);
