//! `mooring uninstall`: takes back what was installed, and nothing else.

use std::{
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

use super::{
    Change, could_not,
    manifest::{self, Manifest},
    open, parse, read, restart,
    rooted::Root,
};
use crate::{
    args::UninstallArgs,
    exit::{CouldNot, Exit},
};

pub fn run(args: &UninstallArgs, out: &mut dyn Write) -> Result<Exit> {
    let root = open(&args.place, "uninstall")?;
    let manifest = Manifest::load(&root)?;
    if manifest.is_empty() {
        writeln!(out, "nothing is installed (no {})", manifest::FILE)?;
        restart::where_owed(&args.place, &root, out)?;
        return Ok(Exit::Clean);
    }
    let pods = pods(&root)?;
    if pods > 0 && !args.force {
        bail!(CouldNot(format!(
            "{pods} sandboxes still have a state folder, and their shims' end needs the program: remove their pods, or free \
             what was left (mooring gc); --force goes on nevertheless"
        )));
    }
    let config = without_import(&root, &manifest)?;
    if let Config::Changes(change) = &config {
        change.show(out)?;
    }
    let mut changed = Vec::new();
    let mut removed = Vec::new();
    if let Config::Goes(path) = &config {
        removed.push(path);
    }
    for made in &manifest.files {
        match read(&root, &made.path)? {
            None => {}
            Some(text) if manifest.made(&made.path, &text) => removed.push(&made.path),
            Some(_) => changed.push(&made.path),
        }
    }
    for path in &removed {
        writeln!(out, "remove {}", path.display())?;
    }
    for path in &changed {
        writeln!(out, "keep {}: it was changed since", path.display())?;
    }
    if args.place.dry_run {
        writeln!(out, "nothing was changed (--dry-run)")?;
        return Ok(Exit::Clean);
    }
    restart::owe(&args.place, &root)?;
    // containerd must never be left with an import of what is gone.
    if let Config::Changes(change) = &config {
        let written = root.write(&change.path, &change.after, change.mode);
        written.with_context(|| format!("write {}", change.path.display()))?;
    }
    for path in removed {
        root.remove(path).with_context(|| format!("remove {}", path.display()))?;
    }
    root.remove(manifest::FILE.as_ref()).context("remove the record of the installation")?;
    for folder in manifest.folders.iter().rev() {
        root.remove_folder(folder).with_context(|| format!("remove {}", folder.display()))?;
    }
    restart::containerd(&args.place, &root, out)?;
    Ok(if changed.is_empty() { Exit::Clean } else { Exit::Findings })
}

/// What becomes of containerd's configuration.
enum Config {
    /// It does not have the import (any more).
    Stays,
    /// It was made, and goes.
    Goes(PathBuf),
    Changes(Change),
}

/// As it was before, where it is as it was written; else the import is taken out of it.
fn without_import(root: &Root, manifest: &Manifest) -> Result<Config> {
    let Some(import) = &manifest.import else { return Ok(Config::Stays) };
    let Some(now) = read(root, &import.config)? else { return Ok(Config::Stays) };
    let after = match (&import.before, import.made(&now)) {
        (None, true) => return Ok(Config::Goes(import.config.clone())),
        (Some(before), true) => before.clone(),
        (_, false) => {
            let config = parse(&import.config, Some(now.clone()))?;
            if !config.imports().map_err(could_not)?.contains(&import.pattern) {
                return Ok(Config::Stays);
            }
            config.without(&import.pattern, import.made_list).map_err(could_not)?
        }
    };
    let (path, before) = (import.config.clone(), Some(now));
    Ok(Config::Changes(Change { path, before, after: after.into_bytes(), mode: 0o644 }))
}

/// How many state folders there are.
fn pods(root: &Root) -> Result<usize> {
    let state = Path::new(manifest::FILE).parent().unwrap_or(Path::new("/"));
    let list =
        |folder: &Path| root.list(folder).with_context(|| format!("list {}", folder.display()));
    let mut count = 0;
    for namespace in list(state)? {
        count += list(&state.join(namespace))?.len();
    }
    Ok(count)
}
