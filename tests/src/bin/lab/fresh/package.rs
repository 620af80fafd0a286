//! The Debian package in the bare root: looked at, installed, used, removed, purged; nothing is left.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::Fresh;

/// Where `make deb` puts it.
const MADE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/pack");
/// Where it lies in the root, without the leading slash.
pub const CARRIED: &str = "root/mooring.deb";
const PACKAGE: &str = "/root/mooring.deb";
const CONFIG: &str = "/etc/mooring/config.toml";
const STATE: &str = "/var/lib/mooring";
const UNIT: &str = "/usr/lib/systemd/system/mooring-gc.service";
/// What looks at it.
const TOOLS: [&str; 2] = ["lintian", "systemd"];
/// What is not the package's: other file systems, and what dpkg and apt write about every package.
const OTHERS: [&str; 4] = ["/var/lib/dpkg", "/var/lib/apt", "/var/log", "/var/cache"];

/// The package that was made.
pub fn made() -> Result<PathBuf> {
    let found = fs::read_dir(MADE).with_context(|| format!("no folder {MADE}: run make deb"))?;
    let paths = found.flatten().map(|entry| entry.path());
    let mut packages = paths.filter(|path| path.extension().is_some_and(|name| name == "deb"));
    let package = packages.next().with_context(|| format!("no package in {MADE}: run make deb"))?;
    ensure!(packages.next().is_none(), "{MADE} has more than one package");
    Ok(package)
}

pub fn check(fresh: &Fresh) -> Result<()> {
    fresh.say(&format!("apt-get install {}", TOOLS.join(" ")));
    fresh.ask("apt-get", &["-q", "update"])?;
    let install = ["-q", "install", "-y", "--no-install-recommends"];
    fresh.ask("apt-get", &[&install[..], &TOOLS].concat())?;

    fresh.say("the package before its installation");
    fresh
        .call("lintian", &["--allow-root", "--display-info", "--fail-on=error,warning", PACKAGE])?;
    let before = files()?;

    fresh.say("installed");
    fresh.ask("dpkg", &["--install", PACKAGE])?;
    fresh.ask("dpkg", &["--verify", "mooring"])?;
    for path in fresh.ask("dpkg", &["--listfiles", "mooring"])?.lines() {
        ensure!(Path::new(path).symlink_metadata().is_ok(), "{path} was not installed");
    }
    let version = env!("CARGO_PKG_VERSION");
    for (program, argument) in [("containerd-shim-mooring-v1", "-v"), ("mooring", "version")] {
        let words = fresh.ask(program, &[argument])?;
        ensure!(words.contains(version), "{program} {argument} says {words:?}, not {version}");
    }
    for page in ["man1/mooring.1.gz", "man8/containerd-shim-mooring-v1.8.gz"] {
        fresh.ask("man", &["--warnings", "-l", &format!("/usr/share/man/{page}")])?;
    }
    fresh.ask("bash", &["-n", "/usr/share/bash-completion/completions/mooring"])?;
    fresh.ask("systemd-analyze", &["verify", "--man=no", UNIT])?;
    let wanted = fresh.ask("systemctl", &["--root=/", "is-enabled", "mooring-gc.service"])?;
    ensure!(wanted.trim() == "static", "systemd takes the unit for {wanted:?}");

    fresh.say("the node's own configuration is kept");
    let own = format!("{}\nSystemdCgroup = true\n", fs::read_to_string(CONFIG)?);
    fs::write(CONFIG, &own)?;
    fresh.ask("dpkg", &["--install", PACKAGE])?;
    ensure!(fs::read_to_string(CONFIG)? == own, "{CONFIG} was overwritten");

    fresh.say("not removed while a pod is held");
    let held = Path::new(STATE).join("k8s.io/pod");
    let journal = held.join("journal.json");
    fs::create_dir_all(&held)?;
    fs::write(&journal, "{}")?;
    let refused = fresh.ask("dpkg", &["--remove", "mooring"]);
    let words = refused.err().map(|error| format!("{error:#}"));
    let words = words.context("the package was removed although a pod is held")?;
    ensure!(words.contains(&journal.display().to_string()), "the pod is not named: {words}");
    fresh.ask("mooring", &["version"])?;
    let state =
        fresh.ask("dpkg-query", &["--show", "--showformat=${db:Status-Status}", "mooring"])?;
    ensure!(state == "installed", "a removal that was refused left the package {state}");
    fs::remove_file(&journal)?;

    fresh.say("removed and purged");
    fresh.ask("dpkg", &["--remove", "mooring"])?;
    ensure!(fs::read_to_string(CONFIG)? == own, "the removal took {CONFIG}");
    ensure!(!Path::new(UNIT).exists(), "the removal left {UNIT}");
    fresh.ask("dpkg", &["--purge", "mooring"])?;
    let after = files()?;
    let left: Vec<_> = after.difference(&before).collect();
    let lost: Vec<_> = before.difference(&after).collect();
    ensure!(left.is_empty() && lost.is_empty(), "the purge left {left:?} and took {lost:?}");
    Ok(())
}

/// What lies on the root's own file system.
fn files() -> Result<BTreeSet<PathBuf>> {
    let device = fs::metadata("/")?.dev();
    let mut found = BTreeSet::new();
    let mut folders = vec![PathBuf::from("/")];
    while let Some(folder) = folders.pop() {
        for entry in
            fs::read_dir(&folder).with_context(|| format!("look into {}", folder.display()))?
        {
            let path = entry?.path();
            let about = path.symlink_metadata()?;
            if about.dev() != device || OTHERS.iter().any(|other| path == Path::new(other)) {
                continue;
            }
            if about.is_dir() {
                folders.push(path.clone());
            }
            found.insert(path);
        }
    }
    Ok(found)
}
