//! Mooring is replaced by another release while pods live: each release ends what the other began.
//!
//! The other release's shim is named by `MOORING_PREVIOUS` (`make test-upgrade PREVIOUS=REVISION` builds it); without it
//! these tests are shown as ignored. What the first release wrote is read by `journals_of_the_first_version_are_understood`.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use mooring_e2e::cri::remove_all_pods;
use mooring_e2e::faults::{kill_shim, nobody_works_for, shim_of};
use mooring_e2e::life::{Kind, Life};
use mooring_e2e::node::{Settings, shim};
use mooring_e2e::suite::{Case, Handler, Suite};
use nix::sys::signal::Signal;

/// Environment variable: the shim of another release.
const PREVIOUS: &str = "MOORING_PREVIOUS";

const KINDS: [Kind; 4] = [Kind::Cri, Kind::SharedPid, Kind::OwnNetwork, Kind::ImageVolume];
/// How long `delete` may take to finish for a killed shim.
const FINISHER: std::time::Duration = std::time::Duration::from_secs(20);

fn previous() -> Result<PathBuf> {
    Ok(std::env::var_os(PREVIOUS).context(PREVIOUS)?.into())
}

/// From now on the node's Mooring is this program.
fn install(case: &Case, program: &Path) -> Result<()> {
    let installed = case.node.folder().join("bin/containerd-shim-mooring-v1");
    fs::remove_file(&installed)?;
    symlink(program, installed).context("install a release")
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// Its shim lives, and is asked.
    Asked,
    /// Its shim is killed while containerd runs, which calls `delete`.
    Killed,
    /// Its shim and containerd are killed; containerd calls `delete` when it is back.
    KilledWhileAway,
}

/// Pods that `first` began end under `second`.
async fn one_ends_what_the_other_began(case: &Case, first: &Path, second: &Path) -> Result<()> {
    for end in [End::Asked, End::Killed, End::KilledWhileAway] {
        for kind in KINDS {
            install(case, first)?;
            let mut life = Life::new(case, kind);
            life.run().await?;
            life.container().await?;
            let began = fs::read_link(format!("/proc/{}/exe", shim_of(life.id())?.pid))?;
            assert_eq!(began, first.canonicalize()?, "the wrong release began");
            install(case, second)?;
            match end {
                End::Asked => case.node.restart().await?,
                End::Killed => kill_shim(life.id())?,
                End::KilledWhileAway => {
                    case.node.end(Signal::SIGKILL).await?;
                    kill_shim(life.id())?;
                    case.node.start().await?;
                }
            }
            life.end().await?;
            nobody_works_for(life.id(), FINISHER).await?;
            assert!(!life.is_remembered(), "{kind:?}: something of it is still written down");
        }
    }
    // One pod of each release beside the other.
    let (mut one, mut two) = (Life::new(case, Kind::Cri), Life::new(case, Kind::Cri));
    install(case, first)?;
    one.run().await?;
    one.container().await?;
    install(case, second)?;
    two.run().await?;
    two.container().await?;
    one.stop().await?;
    assert!(two.pod().context("no pod")?.is_ready().await?);
    two.stop().await?;
    remove_all_pods(case).await
}

async fn this_release_ends_what_the_previous_one_began(case: Case) -> Result<()> {
    let ended = Box::pin(one_ends_what_the_other_began(&case, &previous()?, &shim()?)).await;
    install(&case, &shim()?)?;
    ended
}

async fn the_previous_release_ends_what_this_one_began(case: Case) -> Result<()> {
    let ended = Box::pin(one_ends_what_the_other_began(&case, &shim()?, &previous()?)).await;
    install(&case, &shim()?)?;
    ended
}

fn main() {
    let mut suite = Suite::begin(Settings::default());
    let missing = std::env::var_os(PREVIOUS).is_none();
    suite.ignored_where(missing, |suite| {
        let on = Handler::Mooring;
        let name = "this_release_ends_what_the_previous_one_began";
        suite.on(on, name, this_release_ends_what_the_previous_one_began);
        let name = "the_previous_release_ends_what_this_one_began";
        suite.on(on, name, the_previous_release_ends_what_this_one_began);
    });
    suite.run();
}
