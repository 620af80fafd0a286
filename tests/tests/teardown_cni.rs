//! The network of a pod when its plugins fail, hang, are slow or gone: an error that says so, and a retry that goes on.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use mooring_e2e::audit::all_processes;
use mooring_e2e::faults::{
    delete, done, kill_shim, logged_steps, no_step_twice, nobody_works_for, shims_of, until,
};
use mooring_e2e::life::{Kind, Life};
use mooring_e2e::node::Settings;
use mooring_e2e::plugins::{NETWORK, Plugins};
use mooring_e2e::suite;
use mooring_e2e::suite::Case;
use mooring_e2e::vm::is_emulated;

/// The steps before the network's.
const BEFORE: [&str; 3] = ["door", "containers", "keeper"];

async fn running(case: &Case) -> Result<Life> {
    let mut life = Life::new(case, Kind::OwnNetwork);
    life.run().await?;
    life.container().await?;
    Ok(life)
}

/// A stop that fails because of the plugin, with everything an operator has to know in its error.
async fn fails_naming(life: &Life, plugin: &str, more: &[&str]) -> Result<()> {
    let Err(error) = life.stop().await else { bail!("the stop succeeds") };
    let text = format!("{error:#}");
    // Go quotes the message once more.
    let text = text.replace("\\\"", "\"");
    let (plugin, network) = (format!("plugin \"{plugin}\""), format!("network \"{NETWORK}\""));
    for name in [life.id(), "network: ", "CNI DEL", &plugin, &network] {
        ensure!(text.contains(name), "{name} is not named in: {text}");
    }
    for name in more {
        ensure!(text.contains(name), "{name} is not named in: {text}");
    }
    Ok(())
}

/// What holds for every failure of a DEL that was mended: the second stop goes on where the first ended.
async fn resumes(case: &Case, life: &Life) -> Result<()> {
    ensure!(
        done(life.namespace(), life.id())? == BEFORE,
        "{:?}",
        done(life.namespace(), life.id())
    );
    life.stop().await.context("the second stop")?;
    let steps = logged_steps(&case.node, life.id());
    no_step_twice(&steps)?;
    let failed = |(step, outcome): &&(String, String)| step == "network" && outcome == "failed";
    ensure!(steps.iter().any(|one| failed(&one)), "no failure in the log: {steps:?}");
    life.end().await
}

async fn mended(case: &Case, name: &str, plugin: &str, fault: &str, more: &[&str]) -> Result<()> {
    let plugins = Plugins::install(&case.node, name, "CniTimeout = '1s'")?;
    let life = running(case).await?;
    plugins.fault(plugin, "DEL", fault)?;
    fails_naming(&life, plugin, more).await?;
    plugins.mend(plugin, "DEL");
    resumes(case, &life).await?;
    ensure!(plugins.reservations().is_empty(), "{:?}", plugins.reservations());
    // Reverse order, and the one that failed again.
    let dels = plugins.dels(life.id());
    ensure!(dels.first().is_some_and(|one| one == "tuning"), "{dels:?}");
    ensure!(dels.last().is_some_and(|one| one == "ptp"), "{dels:?}");
    Ok(())
}

async fn a_plugin_that_fails_is_named_with_its_own_words(case: Case) -> Result<()> {
    mended(&case, "fails", "ptp", "fail 1000", &["117", "told to fail", "by the test"]).await
}

async fn a_plugin_that_dies_is_named_with_its_last_words(case: Case) -> Result<()> {
    mended(&case, "dies", "tuning", "die 1000", &["dying of it"]).await
}

async fn a_plugin_that_prints_garbage_is_named(case: Case) -> Result<()> {
    mended(&case, "garbage", "ptp", "garbage 1000", &["this is no JSON"]).await
}

async fn a_plugin_that_hangs_is_killed_and_named(case: Case) -> Result<()> {
    mended(&case, "hangs", "ptp", "hang", &[]).await
}

async fn a_plugin_that_was_deleted_is_named(case: Case) -> Result<()> {
    let plugins = Plugins::install(&case.node, "deleted", "")?;
    let life = running(&case).await?;
    let (program, aside) = (plugins.program("ptp"), plugins.program("ptp.aside"));
    fs::rename(&program, &aside)?;
    fails_naming(&life, "ptp", &[]).await?;
    fs::rename(&aside, &program)?;
    resumes(&case, &life).await
}

async fn a_del_that_fails_twice_succeeds_the_third_time(case: Case) -> Result<()> {
    let plugins = Plugins::install(&case.node, "twice", "")?;
    let life = running(&case).await?;
    plugins.fault("ptp", "DEL", "fail 2")?;
    fails_naming(&life, "ptp", &[]).await?;
    fails_naming(&life, "ptp", &[]).await?;
    resumes(&case, &life).await?;
    let dels = plugins.dels(life.id());
    ensure!(dels.iter().filter(|one| *one == "ptp").count() == 3, "{dels:?}");
    Ok(())
}

async fn a_removed_configuration_keeps_no_pod(case: Case) -> Result<()> {
    let plugins = Plugins::install(&case.node, "removed", "")?;
    let life = running(&case).await?;
    fs::remove_file(plugins.configuration())?;
    life.stop().await?;
    life.end().await?;
    ensure!(plugins.dels(life.id()) == ["tuning", "ptp"], "{:?}", plugins.dels(life.id()));
    ensure!(plugins.reservations().is_empty());
    Ok(())
}

async fn a_removed_configuration_keeps_no_pod_of_a_killed_shim(case: Case) -> Result<()> {
    let plugins = Plugins::install(&case.node, "gone", "")?;
    let life = running(&case).await?;
    fs::remove_file(plugins.configuration())?;
    kill_shim(life.id())?;
    life.end().await?;
    ensure!(plugins.dels(life.id()) == ["tuning", "ptp"], "{:?}", plugins.dels(life.id()));
    Ok(())
}

async fn a_missing_configuration_fails_the_start_and_leaves_nothing(case: Case) -> Result<()> {
    let plugins = Plugins::install(&case.node, "missing", "")?;
    fs::remove_file(plugins.configuration())?;
    let mut life = Life::new(&case, Kind::OwnNetwork);
    let Err(error) = life.run().await else { bail!("the sandbox starts without a network") };
    let text = format!("{error:#}");
    ensure!(text.contains("net.d"), "{text}");
    life.end().await
}

/// An ADD that fails is taken back in StartSandbox, and its DEL's failure is only logged.
async fn a_failed_add_is_taken_back(case: Case) -> Result<()> {
    let plugins = Plugins::install(&case.node, "add", "CniTimeout = '1s'")?;
    for fault in ["fail 1", "die 1", "trash 1", "garbage 1", "hang"] {
        plugins.fault("tuning", "ADD", fault)?;
        plugins.fault("tuning", "DEL", "fail 1000")?;
        let mut life = Life::new(&case, Kind::OwnNetwork);
        let Err(error) = life.run().await else { bail!("{fault}: the sandbox starts") };
        let text = format!("{error:#}");
        ensure!(text.contains("tuning") && text.contains("CNI ADD"), "{fault}: {text}");
        life.end().await.context(fault)?;
        plugins.mend("tuning", "ADD");
        plugins.mend("tuning", "DEL");
        ensure!(plugins.dels(life.id()).contains(&"ptp".to_owned()), "{fault}: no DEL of ptp");
        ensure!(plugins.reservations().is_empty(), "{fault}: {:?}", plugins.reservations());
    }
    Ok(())
}

/// The plugin of a killed shim goes on; what it reserved after its DEL would be reserved for ever.
async fn an_add_does_not_outlive_its_shim(case: Case) -> Result<()> {
    let plugins = Plugins::install(&case.node, "orphan", "")?;
    for plugin in ["ptp", "tuning"] {
        let mut life = Life::new(&case, Kind::OwnNetwork);
        let id = life.id().to_owned();
        plugins.fault(plugin, "ADD", "slow 30")?;
        let (run, killed) = tokio::join!(life.run(), async {
            let add = || plugins.calls(&id).iter().any(|call| call.plugin == plugin);
            until(Duration::from_secs(10), "the ADD does not begin", add).await?;
            kill_shim(&id)
        });
        killed?;
        ensure!(run.is_err(), "the start succeeds");
        nobody_works_for(&id, Duration::from_secs(10)).await?;
        let left = all_processes().into_iter().find(|one| one.command.contains(plugin));
        ensure!(left.is_none(), "{left:?} goes on");
        plugins.mend(plugin, "ADD");
        life.end().await?;
        ensure!(plugins.reservations().is_empty(), "{:?}", plugins.reservations());
    }
    Ok(())
}

/// `delete` has five seconds; a DEL that takes eight goes on in the finisher.
async fn delete_answers_while_a_slow_plugin_works(case: Case) -> Result<()> {
    let plugins = Plugins::install(&case.node, "slow", "")?;
    let life = running(&case).await?;
    plugins.fault("tuning", "DEL", "slow 8")?;
    let begun = Instant::now();
    kill_shim(life.id())?;
    let del = || !plugins.dels(life.id()).is_empty();
    until(Duration::from_secs(4), "the DEL does not begin", del).await?;
    // Another one comes meanwhile: it answers in time too, and does nothing twice.
    let took = delete(&case.node, life.namespace(), life.id()).await?;
    ensure!(took < Duration::from_secs(5), "delete took {took:?}");
    ensure!(begun.elapsed() < Duration::from_secs(8), "it was not the slow one");
    life.stop().await.context("a stop meanwhile")?;
    nobody_works_for(life.id(), Duration::from_secs(15)).await?;
    ensure!(!life.is_remembered(), "the finisher left the journal");
    ensure!(plugins.dels(life.id()) == ["tuning", "ptp"], "{:?}", plugins.dels(life.id()));
    life.end().await
}

/// The call ends at its deadline; the teardown goes on, and the next call joins it.
async fn a_stop_is_bounded_and_the_next_one_joins(case: Case) -> Result<()> {
    let plugins = Plugins::install(&case.node, "bounded", "")?;
    let life = running(&case).await?;
    plugins.fault("ptp", "DEL", "slow 3")?;
    let begun = Instant::now();
    let Err(error) = life.client().stop_within(1).await else { bail!("it stops in a second") };
    ensure!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    ensure!(error.message().contains("network"), "{error}");
    life.stop().await?;
    ensure!(plugins.dels(life.id()) == ["tuning", "ptp"], "{:?}", plugins.dels(life.id()));
    no_step_twice(&logged_steps(&case.node, life.id()))?;
    life.end().await
}

/// How many cycles, and how many at once: 500 unless `MOORING_CYCLES` says otherwise, and four. On an emulated machine a stop
/// would not end in its time beside three others.
fn cycles() -> (usize, usize) {
    let (usual, at_once) = if is_emulated() { (60, 1) } else { (500, 4) };
    let wanted = std::env::var("MOORING_CYCLES").ok().and_then(|text| text.parse().ok());
    (wanted.unwrap_or(usual), at_once)
}

/// A /24 has 253 addresses for pods: a leak of one in two would end it.
async fn addresses_come_back_after_every_cycle(case: Case) -> Result<()> {
    let plugins = Plugins::install(&case.node, "cycles", "")?;
    let mut all = tokio::task::JoinSet::new();
    let (cycles, at_once) = cycles();
    for _ in 0..at_once {
        let case = case.clone();
        all.spawn(async move {
            for _ in 0..cycles.div_ceil(at_once) {
                let mut life = Life::new(&case, Kind::OwnNetwork);
                life.run().await?;
                life.stop().await?;
                life.end().await?;
            }
            Ok::<_, anyhow::Error>(())
        });
    }
    while let Some(one) = all.join_next().await {
        one??;
    }
    ensure!(plugins.reservations().is_empty(), "{:?}", plugins.reservations());
    ensure!(shims_of("sandbox").is_empty(), "{:?}", shims_of("sandbox"));
    Ok(())
}

suite!(Settings::default();
    both: ;
    mooring: a_plugin_that_fails_is_named_with_its_own_words,
        a_plugin_that_dies_is_named_with_its_last_words,
        a_plugin_that_prints_garbage_is_named,
        a_plugin_that_hangs_is_killed_and_named,
        a_plugin_that_was_deleted_is_named,
        a_del_that_fails_twice_succeeds_the_third_time,
        a_removed_configuration_keeps_no_pod,
        a_removed_configuration_keeps_no_pod_of_a_killed_shim,
        a_missing_configuration_fails_the_start_and_leaves_nothing,
        a_failed_add_is_taken_back,
        an_add_does_not_outlive_its_shim,
        delete_answers_while_a_slow_plugin_works,
        a_stop_is_bounded_and_the_next_one_joins,
        addresses_come_back_after_every_cycle);
