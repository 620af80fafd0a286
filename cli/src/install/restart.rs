//! containerd reads its configuration only when it starts, and no signal makes it read it again. With `--restart` the
//! systemd of the system is asked to restart it; without, or where there is none, whoever installs is told to.

use std::{io::Write, path::Path, process::Command};

use anyhow::{Context, Result, bail};

use super::rooted::Root;
use crate::args::PlaceArgs;

/// There as long as a restart was asked for and not made since something was changed, so that the next call makes good for
/// one that was cut short. A reboot, which takes it away, restarts containerd as well.
const OWED: &str = "/run/mooring-install.restart";
const UNIT: &str = "containerd.service";
/// systemctl's exit status where it knows no such unit.
const NO_UNIT: i32 = 5;

/// To be called before anything is changed.
pub fn owe(place: &PlaceArgs, root: &Root) -> Result<()> {
    if !place.restart {
        return Ok(());
    }
    root.make_folder(Path::new("/run")).context("make /run")?;
    root.write(Path::new(OWED), b"", 0o600).with_context(|| format!("write {OWED}"))
}

/// Restarts it if an earlier call should have.
pub fn where_owed(place: &PlaceArgs, root: &Root, out: &mut dyn Write) -> Result<()> {
    let is_owed = root.read(Path::new(OWED)).with_context(|| format!("read {OWED}"))?.is_some();
    if is_owed && !place.dry_run { containerd(place, root, out) } else { Ok(()) }
}

/// Restarts it, or says that it has to be. To be called last: it makes the system's root this process's own, since
/// systemctl is the system's.
pub fn containerd(place: &PlaceArgs, root: &Root, out: &mut dyn Write) -> Result<()> {
    if !place.restart {
        let how = "for example by: systemctl restart containerd (running pods stay)";
        writeln!(out, "\nRestart containerd, {how}.")?;
        return Ok(());
    }
    let told = |out: &mut dyn Write, why: &str| {
        writeln!(out, "\n{why}: restart what runs containerd yourself (running pods stay).")
    };
    // How systemd lets everybody see that it runs the system.
    let marks = root.list(Path::new("/run/systemd")).context("list /run/systemd")?;
    if marks.iter().any(|name| name == "system") {
        out.flush()?;
        if place.root != Path::new("/") {
            let path = &place.root;
            rustix::process::chroot(path).with_context(|| format!("enter {}", path.display()))?;
            std::env::set_current_dir("/")?;
        }
        let status = Command::new("systemctl")
            .args(["restart", UNIT])
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            // The root is the system's own, and so is the systemd that is reached through it.
            .env("SYSTEMD_IGNORE_CHROOT", "1")
            .status()
            .context("run systemctl")?;
        match status.code() {
            Some(0) => writeln!(out, "\n{UNIT} was restarted (running pods stay).")?,
            Some(NO_UNIT) => told(out, &format!("systemd has no {UNIT}"))?,
            _ => bail!("systemctl restart {UNIT}: {status}"),
        }
    } else {
        told(out, "systemd does not run this system")?;
    }
    root.remove(Path::new(OWED)).with_context(|| format!("remove {OWED}"))
}
