//! Programs that a machine has not, for a while: within its own mounts.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// They are gone until this is dropped.
pub struct Hidden {
    covered: Vec<PathBuf>,
}

impl Hidden {
    /// Takes programs of these names out of every folder of `path`. What this needs lies below `folder`, which is the
    /// machine's own.
    pub fn programs(names: &[&str], path: &str, folder: &Path) -> Result<Self> {
        let mut hidden = Self { covered: Vec::new() };
        for at in path.split(':').filter(|one| one.starts_with('/')) {
            let has = |name: &&&str| Path::new(at).join(name).symlink_metadata().is_ok();
            let found: Vec<_> = names.iter().filter(has).collect();
            if found.is_empty() {
                continue;
            }
            let at = Path::new(at).canonicalize()?;
            hidden.cover(&at, folder).with_context(|| format!("cover {}", at.display()))?;
            for name in found {
                fs::remove_file(at.join(name)).with_context(|| format!("hide {name}"))?;
            }
        }
        Ok(hidden)
    }

    /// What is removed from now on is removed from what lies above alone.
    fn cover(&mut self, at: &Path, folder: &Path) -> Result<()> {
        let layer = folder.join("hidden").join(self.covered.len().to_string());
        let (upper, work) = (layer.join("upper"), layer.join("work"));
        fs::create_dir_all(&upper)?;
        fs::create_dir_all(&work)?;
        let [lower, upper, work] = [at, &upper, &work].map(Path::display);
        let options = format!("lowerdir={lower},upperdir={upper},workdir={work}");
        let flags = MsFlags::empty();
        mount(Some("overlay"), at, Some("overlay"), flags, Some(options.as_str()))?;
        self.covered.push(at.to_owned());
        Ok(())
    }

    /// That a program cannot be run by its name.
    pub fn lacks(&self, name: &str, path: &str) -> Result<()> {
        let run = Command::new(name).arg("--version").env("PATH", path).output();
        let missing = run.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound);
        ensure!(missing, "{name} is there: {run:?}");
        Ok(())
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        for at in self.covered.drain(..).rev() {
            let _ = umount2(&at, MntFlags::MNT_DETACH);
        }
    }
}
