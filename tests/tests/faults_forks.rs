//! Containers that fork for ever: a stop outruns them, whichever PID namespace they are in.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use k8s_cri::v1::NamespaceMode;
use mooring_e2e::cri::{ContainerSpec, PodSpec};
use mooring_e2e::faults::{kill_shim, nobody_works_for, until};
use mooring_e2e::node::Settings;
use mooring_e2e::patience;
use mooring_e2e::suite;
use mooring_e2e::suite::Case;
use tokio::time::timeout;

/// The first process of the container does nothing but fork.
const FORKS: &str = "exec awk 'BEGIN { while (1) system(\"true\") }'";
/// Its children leave their session and their parents, who leave theirs.
const LEAVES: &str = "for one in 1 2 3; do \
     awk 'BEGIN { while (1) system(\"setsid sh -c \\\"sleep 0.1 & sleep 0.1 &\\\" &\") }' & done; wait";
/// How many processes the pod may have at a time.
const MOST: &str = "100";
/// How long a stop may take; on an idle machine it takes milliseconds.
const STOP: Duration = Duration::from_secs(20);

/// The group above the pod's, as a kubelet bounds it: the folder that counts processes.
fn bounded(parent: &str) -> Result<PathBuf> {
    let version1 = Path::new("/sys/fs/cgroup/pids");
    let top = if version1.is_dir() { version1 } else { Path::new("/sys/fs/cgroup") };
    let mut folder = top.to_owned();
    for name in parent.split('/').filter(|name| !name.is_empty()) {
        if top != version1 {
            fs::write(folder.join("cgroup.subtree_control"), "+pids").context("pass on pids")?;
        }
        folder.push(name);
        fs::create_dir_all(&folder)?;
    }
    fs::write(folder.join("pids.max"), MOST).context("bound the pod")?;
    Ok(folder)
}

async fn goes(case: &Case, mode: NamespaceMode, killed: bool) -> Result<()> {
    let mut spec = PodSpec::new(case).pid(mode);
    let folder = bounded(&spec.linux().cgroup_parent)?;
    let pod = spec.run().await?;
    let forks = pod.start(&ContainerSpec::script("forks", FORKS)).await?;
    let leaves = pod.start(&ContainerSpec::script("leaves", LEAVES)).await?;
    let many = || {
        let count = fs::read_to_string(folder.join("pids.current")).unwrap_or_default();
        count.trim().parse::<u32>().is_ok_and(|count| count > 15)
    };
    until(Duration::from_secs(20), "nothing forks", many).await?;
    let begun = Instant::now();
    if killed {
        kill_shim(&pod.id)?;
        for container in [&forks, &leaves] {
            container.exited_within(STOP).await?;
        }
        nobody_works_for(&pod.id, STOP).await?;
    } else {
        timeout(patience(STOP), pod.stop()).await.context("the stop hangs")??;
    }
    eprintln!("{mode:?}, the shim killed: {killed}: {:?}", begun.elapsed());
    let count = fs::read_to_string(folder.join("pids.current"))?;
    // Zombies, whose parents are gone too, take a moment.
    until(Duration::from_secs(5), "processes are left", || {
        fs::read_to_string(folder.join("pids.current")).is_ok_and(|count| count.trim() == "0")
    })
    .await
    .with_context(|| format!("there were {count}"))?;
    timeout(patience(STOP), pod.end()).await.context("the removal hangs")??;
    ensure!(!pod.is_listed().await?);
    Ok(())
}

async fn what_forks_for_ever(case: Case, mode: NamespaceMode) -> Result<()> {
    goes(&case, mode, false).await?;
    if case.handler.is_mooring() {
        goes(&case, mode, true).await.context("with the shim killed")?;
    }
    Ok(())
}

async fn what_forks_for_ever_goes(case: Case) -> Result<()> {
    what_forks_for_ever(case, NamespaceMode::Container).await
}

async fn what_forks_for_ever_in_shared_pids_goes(case: Case) -> Result<()> {
    what_forks_for_ever(case, NamespaceMode::Pod).await
}

async fn what_forks_for_ever_in_the_nodes_pids_goes(case: Case) -> Result<()> {
    what_forks_for_ever(case, NamespaceMode::Node).await
}

suite!(Settings::default();
    too: builtin;
    both: what_forks_for_ever_goes,
        what_forks_for_ever_in_shared_pids_goes;
    // The peer has no bound there: its stop does not always end.
    mooring: what_forks_for_ever_in_the_nodes_pids_goes);
