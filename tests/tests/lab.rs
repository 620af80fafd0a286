//! The containerd that stays up (`make lab`): it is reached from outside by the paths that it prints, and goes.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use mooring_e2e::machine::STAGE;
use mooring_e2e::node::Settings;
use mooring_e2e::suite::{Case, Suite};

async fn lab(dir: &Path, words: &[&str]) -> Result<String> {
    let mut lab = tokio::process::Command::new(env!("CARGO_BIN_EXE_lab"));
    // Not as a part of the machine that the tests run in, but with one of its own.
    lab.arg("--dir").arg(dir).args(words).env_remove(STAGE);
    let output = lab.output().await.context("run lab")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "lab {}: {text}{errors}", words.join(" "));
    Ok(text)
}

async fn a_containerd_stays_up_and_goes(_: Case) -> Result<()> {
    // In /tmp is where it lies by default, and where machines have a folder of their own.
    for parent in ["/tmp", "/var/tmp"] {
        let dir = Path::new(parent).join(format!("lab-{}", std::process::id()));
        let up = lab(&dir, &["up"]).await?;
        let said = |name: &str| {
            let line = up.lines().find_map(|line| line.strip_prefix(name));
            line.map(str::trim).with_context(|| format!("no {name} in {up}"))
        };
        ensure!(Path::new(said("socket")?).exists() && Path::new(said("log")?).exists(), "{up}");
        let version = lab(&dir, &["cri", "Version"]).await?;
        ensure!(version.contains("containerd"), "{version}");
        let ran = lab(&dir, &["exec", "ctr", "version"]).await?;
        ensure!(ran.contains("Server:"), "{ran}");
        lab(&dir, &["down"]).await?;
        ensure!(!dir.exists(), "{} is left", dir.display());
    }
    Ok(())
}

fn main() {
    let mut suite = Suite::begin(Settings::default());
    suite.but_on_emulated(|suite| {
        suite.mooring("a_containerd_stays_up_and_goes", a_containerd_stays_up_and_goes);
    });
    suite.run();
}
