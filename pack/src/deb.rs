//! The Debian package: what is installed, laid out in a folder, and `dpkg-deb`, which checks and packs it.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::tree::{self, CONFIG, Entry, MAINTAINER, Sources, What};

/// Debian's own part of the version.
const REVISION: u32 = 1;

/// Makes the package in the folder `out` and answers where.
pub fn make(from: &Sources, version: &str, out: &Path) -> Result<PathBuf> {
    let version = format!("{version}-{REVISION}");
    let architecture = tree::run(Command::new("dpkg").arg("--print-architecture"))?;
    let architecture = architecture.trim();
    let mut all = tree::installed(from)?;
    all.extend(tree::of_debian(&version, from.time)?);
    let folder = tempfile::tempdir()?;
    let root = folder.path().join("root");
    lay(&all, &root)?;
    let control = root.join("DEBIAN");
    fs::create_dir(&control)?;
    let write = |name: &str, mode: u32, content: &[u8]| -> Result<()> {
        fs::write(control.join(name), content)?;
        Ok(fs::set_permissions(control.join(name), Permissions::from_mode(mode))?)
    };
    write("control", 0o644, describe(&version, architecture, &all).as_bytes())?;
    write("conffiles", 0o644, format!("/{CONFIG}\n").as_bytes())?;
    write("prerm", 0o755, include_bytes!("../files/prerm"))?;
    write("postrm", 0o755, include_bytes!("../files/postrm"))?;
    write("md5sums", 0o644, sums(&all, &root)?.as_bytes())?;
    for entry in fs::read_dir(out)? {
        let earlier = entry?.path();
        if earlier.extension().is_some_and(|extension| extension == "deb") {
            fs::remove_file(earlier)?;
        }
    }
    let to = out.join(format!("mooring_{version}_{architecture}.deb"));
    tree::run(
        Command::new("dpkg-deb")
            .args(["--root-owner-group", "-Zxz", "--build"])
            .arg(&root)
            .arg(&to)
            .env("SOURCE_DATE_EPOCH", from.time.to_string()),
    )?;
    Ok(to)
}

fn describe(version: &str, architecture: &str, all: &[Entry]) -> String {
    // In KiB, each file by itself, as dpkg-gencontrol counts.
    let size: usize = all
        .iter()
        .map(|entry| match &entry.what {
            What::File { content, .. } => content.len().div_ceil(1024),
            What::Link(_) => 1,
        })
        .sum();
    format!(
        "Package: mooring\n\
         Version: {version}\n\
         Architecture: {architecture}\n\
         Maintainer: {MAINTAINER}\n\
         Installed-Size: {size}\n\
         Recommends: runc | crun\n\
         Suggests: containerd (>= 2.1), containernetworking-plugins\n\
         Section: admin\n\
         Priority: optional\n\
         Description: containerd runtime shim that is a sandbox controller\n \
         One process per pod serves containerd's Sandbox API and Task API, holds the\n \
         pod's namespaces without a pause container, and takes the pod down\n \
         completely: in a fixed order, and also after a crash. Containers are run by\n \
         runc or crun. For containerd 2.x.\n \
         .\n \
         This package has the shim and the operator's tool \"mooring\", which also adds\n \
         the runtime handler to containerd's configuration (mooring install).\n"
    )
}

/// `md5sums` as dpkg has it: for `dpkg --verify`, a matter of broken disks and not of safety.
fn sums(all: &[Entry], root: &Path) -> Result<String> {
    let files =
        all.iter().filter(|one| matches!(one.what, What::File { .. }) && one.path != CONFIG);
    let paths: Vec<&str> = files.map(|one| one.path.as_str()).collect();
    tree::run(Command::new("md5sum").args(paths).current_dir(root))
}

/// The entries as files below `root`.
pub fn lay(all: &[Entry], root: &Path) -> Result<()> {
    for entry in all {
        let to = root.join(&entry.path);
        let folder = to.parent().context("an entry without a folder")?;
        fs::create_dir_all(folder)?;
        match &entry.what {
            What::File { mode, content } => {
                fs::write(&to, content)?;
                fs::set_permissions(&to, Permissions::from_mode(*mode))?;
            }
            What::Link(target) => symlink(target, &to)?,
        }
    }
    // Whatever this process's mask is.
    for folder in tree::folders(all) {
        fs::set_permissions(root.join(folder), Permissions::from_mode(0o755))?;
    }
    Ok(())
}
