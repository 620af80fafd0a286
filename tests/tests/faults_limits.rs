//! A disk that fails at fsync, and a living shim without a free descriptor: no pod is kept.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mooring_e2e::faults::{Failpoints, kill_shim, nobody_works_for, shim_of};
use mooring_e2e::fuse::Fuse;
use mooring_e2e::life::{Kind, Life};
use mooring_e2e::node::Settings;
use mooring_e2e::patience;
use mooring_e2e::plugins::Plugins;
use mooring_e2e::suite;
use mooring_e2e::suite::Case;

/// A stop that fails for want of something fails at once.
const STOP: Duration = Duration::from_secs(3);
async fn running(case: &Case, kind: Kind) -> Result<Life> {
    let mut life = Life::new(case, kind);
    life.run().await?;
    life.container().await?;
    Ok(life)
}

/// Everything can be written, and nothing is safe.
async fn a_disk_that_fails_at_fsync_keeps_no_pod(case: Case) -> Result<()> {
    let plugins = Plugins::install(&case.node, "fsync", "")?;
    let cases = [
        (Kind::SharedPid, false),
        (Kind::Cri, true),
        (Kind::OwnNetwork, false),
        (Kind::OwnNetwork, true),
        (Kind::ImageVolume, false),
    ];
    for (kind, killed) in cases {
        let what = || format!("{kind:?}, the shim killed: {killed}");
        let disk = Fuse::mount(Path::new("/var/lib/mooring"))?;
        let life = running(&case, kind).await.with_context(what)?;
        let id = life.id().to_owned();
        disk.fail_syncs(true);
        if killed {
            kill_shim(&id)?;
        } else {
            life.stop().await.with_context(what)?;
        }
        life.end().await.with_context(what)?;
        nobody_works_for(&id, Duration::from_secs(20)).await.with_context(what)?;
        ensure!(plugins.reservations().is_empty(), "{}: {:?}", what(), plugins.reservations());
        // Only what outlives the machine has to be on the disk; a pod that holds such a thing is refused.
        let before = disk.refused();
        let mut next = Life::new(&case, kind);
        let started = next.run().await;
        next.end().await.with_context(what)?;
        if matches!(kind, Kind::OwnNetwork | Kind::ImageVolume) {
            let error = started.err().with_context(|| format!("{}: a pod starts", what()))?;
            ensure!(format!("{error:#}").contains("Input/output error"), "{error:#}");
            ensure!(disk.refused() > before);
        }
        nobody_works_for(next.id(), Duration::from_secs(20)).await.with_context(what)?;
        ensure!(plugins.reservations().is_empty(), "{}: {:?}", what(), plugins.reservations());
    }
    Ok(())
}

/// What a process may have too little of.
#[derive(Clone, Copy, Debug)]
enum Want {
    Descriptors,
    Memory,
}

impl Want {
    /// As prlimit(1) has it, and as the kernel does in `/proc/PID/limits`.
    fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Descriptors => ("nofile", "Max open files"),
            Self::Memory => ("data", "Max data size"),
        }
    }
}

/// Sets the soft limit of a living process; the hard one stays, so that it can be lifted again.
fn limit(pid: i32, want: Want, value: &str) -> Result<()> {
    let what = want.names().0;
    let output = Command::new("prlimit")
        .args(["--pid", &pid.to_string(), &format!("--{what}={value}:")])
        .output()
        .context("run prlimit")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "prlimit {what}={value}: {said}");
    Ok(())
}

/// A pod whose shim is in want while it is stopped. The stop may fail, or end the shim; it does not hang, and when the
/// want is over nothing is left.
async fn goes_in_want(
    case: &Case,
    want: Want,
    kinds: &[Kind],
    value: impl Fn(i32) -> Result<String>,
) -> Result<()> {
    let plugins = Plugins::install(&case.node, "want", "ContainerdTimeout = '3s'")?;
    for kind in kinds.iter().copied() {
        let one = async {
            let life = running(case, kind).await?;
            let shim = shim_of(life.id())?;
            let hard = hard_limit(shim.pid, want)?;
            limit(shim.pid, want, &value(shim.pid)?)?;
            let stopped = tokio::time::timeout(patience(STOP), life.stop()).await;
            // CRI itself waits until it could delete the task, which may fail for want of what is missing.
            let by_cri = matches!(kind, Kind::Cri | Kind::SharedPid);
            ensure!(stopped.is_ok() || by_cri, "the stop hangs");
            let lifted = limit(shim.pid, want, &hard);
            // It may have ended meanwhile.
            ensure!(lifted.is_ok() || !is_serving(shim.pid), "{lifted:?}");
            life.end().await?;
            nobody_works_for(life.id(), Duration::from_secs(20)).await?;
            ensure!(!life.is_remembered(), "it is not forgotten");
            Ok(())
        };
        one.await.with_context(|| format!("{want:?}: {kind:?}"))?;
        ensure!(plugins.reservations().is_empty(), "{:?}", plugins.reservations());
    }
    Ok(())
}

fn is_serving(pid: i32) -> bool {
    fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|command| !command.is_empty())
}

fn hard_limit(pid: i32, want: Want) -> Result<String> {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits"))?;
    let name = want.names().1;
    let line = limits.lines().find_map(|line| line.strip_prefix(name)).context("no such limit")?;
    Ok(line.split_whitespace().nth(1).context("no hard limit")?.to_owned())
}

async fn a_shim_without_a_free_descriptor_keeps_no_pod(case: Case) -> Result<()> {
    goes_in_want(
        &case,
        Want::Descriptors,
        &[Kind::Cri, Kind::SharedPid, Kind::ImageVolume],
        |pid| {
            // The next one that is opened is one too many.
            Ok(fs::read_dir(format!("/proc/{pid}/fd"))?.count().to_string())
        },
    )
    .await
}

/// What cannot be allocated ends the shim, as a panic does, and `delete` finishes for it.
async fn a_shim_without_memory_keeps_no_pod(case: Case) -> Result<()> {
    goes_in_want(&case, Want::Memory, &[Kind::Cri, Kind::SharedPid, Kind::ImageVolume], |pid| {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmData:"));
        let kib = line.and_then(|line| line.split_whitespace().next()).context("no VmData")?;
        Ok((kib.parse::<u64>()? << 10).to_string())
    })
    .await
}

async fn a_shim_that_panics_says_why_and_keeps_no_pod(case: Case) -> Result<()> {
    let (failpoints, plugins) =
        (Failpoints::of(&case.node), Plugins::install(&case.node, "panic", "")?);
    for kind in [Kind::Cri, Kind::SharedPid, Kind::OwnNetwork] {
        let life = running(&case, kind).await?;
        failpoints.arm("stop:keeper:begin", "panic")?;
        // It may fail, or succeed on behalf of `delete`.
        let _ = life.stop().await;
        failpoints.hit().await?;
        life.end().await?;
        ensure!(!life.is_remembered() && plugins.reservations().is_empty(), "{kind:?}");
        ensure!(case.node.log().contains("failpoint stop:keeper:begin"), "nothing is said of it");
    }
    Ok(())
}

suite!(Settings::default();
    both: ;
    mooring: a_disk_that_fails_at_fsync_keeps_no_pod,
        a_shim_without_a_free_descriptor_keeps_no_pod,
        a_shim_without_memory_keeps_no_pod,
        a_shim_that_panics_says_why_and_keeps_no_pod);
