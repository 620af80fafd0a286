//! The operator's tool on a node with leftovers.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use mooring_e2e::faults::{journal, lives, shim_of, state_dir};
use mooring_e2e::life::{Kind, Life};
use mooring_e2e::node::Settings;
use mooring_e2e::plugins::Plugins;
use mooring_e2e::suite;
use mooring_e2e::suite::Case;
use mooring_e2e::tool::{abandon, listed, run, text, tool};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::Signal;
use serde_json::Value;

async fn running(case: &Case) -> Result<Life> {
    let mut life = Life::new(case, Kind::OwnNetwork);
    life.run().await?;
    life.container().await?;
    Ok(life)
}

async fn process_of(life: &Life) -> Result<u32> {
    let pids = life.task().context("no task")?.pids().await?;
    pids.first().copied().context("no process")
}

fn netns_of(life: &Life) -> Result<PathBuf> {
    let journal = journal(life.namespace(), life.id())?;
    let entries = journal.get("entries").and_then(Value::as_array).context("no entries")?;
    let path = entries.iter().find_map(|entry| entry.pointer("/resource/netns/path")?.as_str());
    path.map(PathBuf::from).context("no network namespace")
}

/// Without containerd: a killed shim's container runs on, and its namespace and address are there. Beside it a pod that
/// lives, one that somebody works on, and one of a later version.
async fn gc_frees_what_a_killed_shim_left_and_nothing_of_others(case: Case) -> Result<()> {
    let plugins = Plugins::install(&case.node, "gc", "")?;
    let (left, living) = (running(&case).await?, running(&case).await?);
    let (process, other) = (process_of(&left).await?, process_of(&living).await?);
    let (netns, other_netns) = (netns_of(&left)?, netns_of(&living)?);
    let (newer, held) = (state_dir("default", "newer"), state_dir("default", "held"));
    for folder in [&newer, &held] {
        fs::create_dir_all(folder)?;
        fs::write(folder.join("lock"), "")?;
    }
    fs::write(newer.join("journal.json"), r#"{"version":99}"#)?;
    let lock = Flock::lock(fs::File::open(held.join("lock"))?, FlockArg::LockExclusive);
    let lock = lock.map_err(|(_, errno)| errno)?;

    let before = listed(left.id())?;
    ensure!(before["state"] == "ready" && before["handler"] == "mooring", "{before}");
    ensure!(before["network"] == "shim" && before["keeper"] == "thread", "{before}");
    ensure!(before["shim"]["pss_bytes"].as_u64().is_some_and(|bytes| bytes > 0), "{before}");
    ensure!(before["containers"][0]["runs"] == true, "{before}");

    case.node.end(Signal::SIGKILL).await?;
    abandon(&left).await?;
    for (id, state) in
        [(left.id(), "left"), (living.id(), "ready"), ("newer", "unsure"), ("held", "finishing")]
    {
        let found = listed(id)?;
        ensure!(found["state"] == state, "{found}");
    }

    // What would be done, and not yet.
    let shown = run(&["gc"])?;
    let said = text(&shown);
    ensure!(shown.status.code() == Some(1), "{said}");
    for part in [&format!("(process {process})"), &*netns.to_string_lossy(), "network \"faults\""] {
        ensure!(said.contains(part), "{part} is not in {said}");
    }
    ensure!(said.contains("has version 99") && said.contains("1 to be freed"), "{said}");
    ensure!(lives(process) && netns.exists() && plugins.reservations().len() == 2, "{said}");

    let freed = run(&["gc", "--yes"])?;
    let said = text(&freed);
    ensure!(freed.status.code() == Some(1), "one is not touched: {said}");
    ensure!(said.contains("1 freed, 1 not touched, 2 in use"), "{said}");
    ensure!(!lives(process) && !netns.exists() && !left.is_remembered(), "{said}");
    ensure!(plugins.reservations().len() == 1, "{:?}", plugins.reservations());
    ensure!(lives(other) && other_netns.exists() && shim_of(living.id()).is_ok(), "{said}");
    ensure!(fs::read_to_string(newer.join("journal.json"))?.contains("99"), "{said}");
    ensure!(held.exists(), "{said}");

    drop(lock);
    fs::remove_dir_all(&newer)?;
    fs::remove_dir_all(&held)?;
    case.node.start().await?;
    // containerd's own `delete` for the killed shim finds nothing.
    left.end().await?;
    living.stop().await?;
    living.end().await?;
    ensure!(plugins.reservations().is_empty(), "{:?}", plugins.reservations());
    let nothing = run(&["gc"])?;
    ensure!(
        nothing.status.success() && text(&nothing) == "nothing is left\n",
        "{}",
        text(&nothing)
    );
    Ok(())
}

/// A plugin that fails is named, and the next run, at boot, goes on where it failed.
async fn gc_goes_on_where_it_failed(case: Case) -> Result<()> {
    let plugins = Plugins::install(&case.node, "gc-fails", "")?;
    let life = running(&case).await?;
    case.node.end(Signal::SIGKILL).await?;
    abandon(&life).await?;
    plugins.fault("ptp", "DEL", "fail 1")?;
    let failed = run(&["gc", "--yes"])?;
    let said = text(&failed);
    ensure!(failed.status.code() == Some(1) && said.contains("told to fail"), "{said}");
    let waiting = listed(life.id())?;
    ensure!(waiting["waits_for"]["step"] == "network", "{waiting}");
    let boot = run(&["gc", "--boot"])?;
    ensure!(boot.status.success() && text(&boot).is_empty(), "{}", text(&boot));
    ensure!(plugins.reservations().is_empty() && !life.is_remembered(), "something is left");
    case.node.start().await?;
    life.end().await
}

async fn whoever_is_not_root_is_told_so_first(_: Case) -> Result<()> {
    for command in ["ls", "gc", "doctor", "inspect x", "stop x", "metrics"] {
        let mut unprivileged = Command::new("unshare");
        let words = command.split(' ');
        unprivileged.args(["--user", "--map-user=1000"]).arg(tool()?).args(words);
        let output = unprivileged.output().context("run mooring")?;
        let said = text(&output);
        ensure!(output.status.code() == Some(2), "{command}: {said}");
        ensure!(said.starts_with("mooring: not root"), "{command}: {said}");
    }
    Ok(())
}

suite!(Settings::default();
    both: ;
    mooring: gc_frees_what_a_killed_shim_left_and_nothing_of_others, gc_goes_on_where_it_failed,
        whoever_is_not_root_is_told_so_first);
