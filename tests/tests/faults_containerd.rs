//! A containerd that answers every second call with Unavailable, or takes seconds: teardowns complete, and events arrive
//! in order and once.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mooring_e2e::between::Between;
use mooring_e2e::faults::{kill_shim, logged_steps, no_step_twice, nobody_works_for, until};
use mooring_e2e::life::{Kind, Life};
use mooring_e2e::node::Settings;
use mooring_e2e::patience;
use mooring_e2e::plugins::Plugins;
use mooring_e2e::suite;
use mooring_e2e::suite::Case;

const WHOLE_LIFE: [&str; 4] = ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"];

async fn running(case: &Case, kind: Kind) -> Result<Life> {
    let mut life = Life::new(case, kind);
    life.run().await?;
    life.container().await?;
    Ok(life)
}

/// All four events of a container, once each and in order.
async fn all_is_told(between: &Between, container: &str) -> Result<()> {
    let complete = || between.events_of(container).len() >= WHOLE_LIFE.len();
    let told = until(Duration::from_secs(20), "events are missing", complete).await;
    ensure!(between.events_of(container) == WHOLE_LIFE, "{:?}", between.events_of(container));
    told
}

async fn every_second_call_unavailable_keeps_no_pod(case: Case) -> Result<()> {
    let plugins = Plugins::install(&case.node, "unavailable", "ContainerdTimeout = '5s'")?;
    let between = Between::install(&case.node).await?;
    for (kind, killed) in [
        (Kind::OwnNetwork, false),
        (Kind::ImageVolume, false),
        (Kind::Cri, false),
        (Kind::OwnNetwork, true),
        (Kind::ImageVolume, true),
        (Kind::Cri, true),
    ] {
        let one = async {
            let life = running(&case, kind).await?;
            let (_, before) = between.calls();
            between.refuse(true);
            if killed {
                kill_shim(life.id())?;
            } else if let Err(error) = life.stop().await {
                // It says at which step, and the next one goes on there.
                let said = format!("{error:#}");
                ensure!(said.contains("navailable"), "{said}");
            }
            life.end().await?;
            nobody_works_for(life.id(), Duration::from_mins(1)).await?;
            between.refuse(false);
            let (calls, refused) = between.calls();
            ensure!(refused > before, "nothing was refused, of {calls} calls");
            no_step_twice(&logged_steps(&case.node, life.id()))?;
            ensure!(!life.is_remembered(), "it is not forgotten");
            if let (Some(task), false) = (life.task(), killed) {
                all_is_told(&between, &task.id).await?;
            }
            Ok(())
        };
        one.await.with_context(|| format!("{kind:?}, the shim killed: {killed}"))?;
    }
    ensure!(plugins.reservations().is_empty(), "{:?}", plugins.reservations());
    Ok(())
}

/// Slower than anything should be, and quicker than what the shim calls silent.
async fn a_containerd_that_takes_seconds_keeps_no_pod(case: Case) -> Result<()> {
    let plugins = Plugins::install(&case.node, "slow", "")?;
    let between = Between::install(&case.node).await?;
    let life = running(&case, Kind::ImageVolume).await?;
    between.delay(Duration::from_secs(2));
    let begun = Instant::now();
    life.client().stop_within(40).await.context("stop")?;
    ensure!(begun.elapsed() < patience(Duration::from_secs(30)), "it took {:?}", begun.elapsed());
    between.delay(Duration::from_millis(500));
    let container = life.task().context("no task")?.id.clone();
    life.end().await?;
    all_is_told(&between, &container).await?;
    no_step_twice(&logged_steps(&case.node, life.id()))?;
    ensure!(plugins.reservations().is_empty(), "{:?}", plugins.reservations());
    Ok(())
}

suite!(Settings::default();
    both: ;
    mooring: every_second_call_unavailable_keeps_no_pod,
        a_containerd_that_takes_seconds_keeps_no_pod);
