//! The machine's clock jumps by hours, forward and back, while pods live and are stopped. Whoever bounds a wait by it would
//! give up at once, or wait for hours.
//!
//! The clock is the whole machine's, so that this is for an emulated one (`make test-vm`).

use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use mooring_e2e::cri::{ContainerSpec, PodSpec};
use mooring_e2e::faults::{kill_shim, nobody_works_for};
use mooring_e2e::life::{Kind, Life};
use mooring_e2e::node::Settings;
use mooring_e2e::patience;
use mooring_e2e::plugins::Plugins;
use mooring_e2e::suite::{Case, Handler, Suite};

const HOURS: i64 = 3600;

#[expect(clippy::disallowed_methods, reason = "the clock that this is about")]
fn now() -> Result<i64> {
    Ok(i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())?)
}

/// Sets the clock by so much.
fn jump(by: i64) -> Result<()> {
    let to = format!("@{}", now()? + by);
    // It prints the time, which is not for the reader of the tests' own words.
    let set = Command::new("date").args(["-s", &to]).output().context("run date")?;
    ensure!(set.status.success(), "the clock cannot be set");
    Ok(())
}

/// The clock as it was, once this is dropped.
struct Restored(i64, Instant);

impl Drop for Restored {
    fn drop(&mut self) {
        let passed = i64::try_from(self.1.elapsed().as_secs()).unwrap_or(0);
        let _ = jump(self.0 + passed - now().unwrap_or(self.0 + passed));
    }
}

async fn a_clock_that_jumps_while_a_pod_lives_changes_nothing(case: Case) -> Result<()> {
    let _restored = Restored(now()?, Instant::now());
    for by in [7 * HOURS, -13 * HOURS] {
        let pod = PodSpec::new(&case).run().await?;
        let main = pod.start(&ContainerSpec::idle("main")).await?;
        jump(by)?;
        ensure!(main.shell("echo well").await? == "well");
        let brief = pod.start(&ContainerSpec::script("brief", "sleep 1; exit 7")).await?;
        let status = brief.exited().await?;
        ensure!(status.exit_code == 7, "{status:?}");
        pod.end().await.with_context(|| format!("after a jump by {by} s"))?;
    }
    Ok(())
}

async fn a_clock_that_jumps_in_a_stop_neither_ends_nor_delays_it(case: Case) -> Result<()> {
    let plugins = Plugins::install(&case.node, "clock", "")?;
    let _restored = Restored(now()?, Instant::now());
    for (by, killed) in
        [(7 * HOURS, false), (-13 * HOURS, false), (7 * HOURS, true), (-13 * HOURS, true)]
    {
        let mut life = Life::new(&case, Kind::OwnNetwork);
        life.run().await?;
        life.container().await?;
        plugins.fault("ptp", "DEL", "slow 3")?;
        let begun = Instant::now();
        if killed {
            kill_shim(life.id())?;
        }
        let (stopped, jumped) = tokio::join!(life.stop(), async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            jump(by)
        });
        jumped?;
        // Of a killed shim containerd may have to learn first that it is gone.
        ensure!(killed || stopped.is_ok(), "after a jump by {by} s: {stopped:?}");
        plugins.mend("ptp", "DEL");
        life.end().await?;
        nobody_works_for(life.id(), Duration::from_secs(20)).await?;
        ensure!(begun.elapsed() < patience(Duration::from_secs(30)), "{:?}", begun.elapsed());
        ensure!(plugins.reservations().is_empty(), "{:?}", plugins.reservations());
    }
    Ok(())
}

fn main() {
    let mut suite = Suite::begin(Settings::default());
    for handler in Handler::ALL {
        let name = "a_clock_that_jumps_while_a_pod_lives_changes_nothing";
        suite.on_emulated(handler, name, a_clock_that_jumps_while_a_pod_lives_changes_nothing);
    }
    let name = "a_clock_that_jumps_in_a_stop_neither_ends_nor_delays_it";
    for handler in [Handler::Mooring, Handler::Builtin] {
        suite.on_emulated(handler, name, a_clock_that_jumps_in_a_stop_neither_ends_nor_delays_it);
    }
    suite.run();
}
