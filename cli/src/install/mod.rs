//! `mooring install` and `mooring uninstall`: the programs, and the handler in containerd's configuration.
//!
//! Everything is looked at and planned before anything is changed: what cannot be understood ends it there. The record of
//! what is made is written first, so that an installation that was cut short can be taken back as well.

pub mod config;
mod manifest;
mod remove;
mod restart;
mod rooted;

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use similar::TextDiff;

use crate::{
    args::{InstallArgs, PlaceArgs},
    exit::{CouldNot, Exit},
    node,
};
use config::{Config, Handler};
use manifest::{Import, Manifest};
pub use remove::run as uninstall;
use rooted::Root;

const PROGRAMS: [&str; 2] = ["containerd-shim-mooring-v1", "mooring"];
const BIN_DIR: &str = "/usr/local/bin";
/// Where programs are that something else has installed: containerd finds the shim there, too.
const PACKAGED: [&str; 2] = ["/usr/bin", "/usr/local/bin"];
const RUNTIME_CLASS: &str = include_str!("../../../examples/runtimeclass.yaml");

/// One file to be written.
struct Change {
    path: PathBuf,
    before: Option<Vec<u8>>,
    after: Vec<u8>,
    mode: u32,
}

impl Change {
    fn is_needed(&self) -> bool {
        self.before.as_ref() != Some(&self.after)
    }

    /// A difference of texts; of programs, that they are copied.
    fn show(&self, out: &mut dyn Write) -> Result<()> {
        let path = self.path.display();
        let old = match &self.before {
            Some(before) => std::str::from_utf8(before).ok(),
            None => Some(""),
        };
        let (Some(old), Ok(new)) = (old, std::str::from_utf8(&self.after)) else {
            let verb = if self.before.is_some() { "replace" } else { "write" };
            writeln!(out, "{verb} {path} ({} bytes)", self.after.len())?;
            return Ok(());
        };
        let from = if self.before.is_some() { path.to_string() } else { "/dev/null".to_owned() };
        let diff = TextDiff::from_lines(old, new);
        write!(out, "{}", diff.unified_diff().header(&from, &path.to_string()))?;
        Ok(())
    }
}

/// What an installation comes to.
struct Plan {
    /// In the order in which they are written: what is named comes before what names it.
    changes: Vec<Change>,
    import: Option<Import>,
    notes: Vec<String>,
}

pub fn run(args: &InstallArgs, out: &mut dyn Write) -> Result<Exit> {
    let root = open(&args.place, "install")?;
    let mut manifest = Manifest::load(&root)?;
    let plan = plan(args, &root, &manifest)?;
    let needed: Vec<&Change> = plan.changes.iter().filter(|change| change.is_needed()).collect();
    for change in &needed {
        change.show(out)?;
    }
    for note in &plan.notes {
        writeln!(out, "note: {note}")?;
    }
    if needed.is_empty() {
        writeln!(out, "everything is installed already")?;
        restart::where_owed(&args.place, &root, out)?;
        return Ok(Exit::Clean);
    }
    if args.place.dry_run {
        writeln!(out, "nothing was changed (--dry-run)")?;
        return Ok(Exit::Clean);
    }
    for change in &needed {
        let is_config = plan.import.as_ref().is_some_and(|import| import.config == change.path);
        if !is_config {
            manifest.note(&change.path, &change.after);
        }
    }
    if plan.import.is_some() {
        manifest.import.clone_from(&plan.import);
    }
    for change in &needed {
        let folder = change.path.parent().unwrap_or(Path::new("/"));
        let made =
            root.make_folder(folder).with_context(|| format!("make {}", folder.display()))?;
        manifest.folders.extend(made);
    }
    restart::owe(&args.place, &root)?;
    manifest.save(&root)?;
    for change in &needed {
        let written = root.write(&change.path, &change.after, change.mode);
        written.with_context(|| format!("write {}", change.path.display()))?;
    }
    writeln!(out, "\nFor Kubernetes (kubectl apply -f -):\n\n{}", RUNTIME_CLASS.trim_end())?;
    restart::containerd(&args.place, &root, out)?;
    Ok(Exit::Clean)
}

/// The root to install into. A node's own is changed by root alone.
fn open(args: &PlaceArgs, command: &str) -> Result<Root> {
    if args.root == Path::new("/") && !args.dry_run {
        node::need_root(command)?;
    }
    let opened = Root::open(&args.root);
    Ok(opened.map_err(|error| CouldNot(format!("open {}: {error}", args.root.display())))?)
}

fn plan(args: &InstallArgs, root: &Root, manifest: &Manifest) -> Result<Plan> {
    let mut plan = Plan { changes: Vec::new(), import: None, notes: Vec::new() };
    programs(args, root, &mut plan)?;
    handler(args, root, manifest, &mut plan)?;
    Ok(plan)
}

/// Both programs, from beside this one.
fn programs(args: &InstallArgs, root: &Root, plan: &mut Plan) -> Result<()> {
    let from = if let Some(folder) = &args.from {
        folder.clone()
    } else {
        let this = std::env::current_exe().context("find out which program this is")?;
        this.parent().unwrap_or(Path::new("/")).to_owned()
    };
    let usual = || {
        let is_installed =
            args.place.root == Path::new("/") && PACKAGED.iter().any(|it| from == Path::new(it));
        if is_installed { from.clone() } else { PathBuf::from(BIN_DIR) }
    };
    let bin_dir = args.bin_dir.clone().unwrap_or_else(usual);
    if !bin_dir.is_absolute() {
        bail!(CouldNot(format!("{} is not an absolute path", bin_dir.display())));
    }
    for name in PROGRAMS {
        let (source, path) = (from.join(name), bin_dir.join(name));
        let after = fs::read(&source)
            .map_err(|error| CouldNot(format!("read {}: {error}", source.display())))?;
        let before = read(root, &path)?;
        plan.changes.push(Change { path, before, after, mode: 0o755 });
    }
    Ok(())
}

fn handler(args: &InstallArgs, root: &Root, manifest: &Manifest, plan: &mut Plan) -> Result<()> {
    let path = &args.containerd_config;
    let text = read(root, path)?;
    let config = parse(path, text.clone())?;
    let version = config.version().map_err(could_not)?;
    let (file, import) = config.place().map_err(could_not)?;
    // Every file of the configuration is looked at: another one may have the handler, or be broken.
    let mut all = vec![(path.clone(), config)];
    let imported = imported(root, path, &all[0].1)?;
    for path in imported.into_iter().filter(|path| *path != file) {
        let parsed = parse(&path, read(root, &path)?)?;
        all.push((path, parsed));
    }
    for (path, config) in &all {
        if let Some(name) = config.disabled_cri() {
            let path = path.display();
            plan.notes.push(format!(
                "{path} disables CRI ({name}), without which Kubernetes and crictl cannot use containerd"
            ));
        }
        if config.handler().map_err(could_not)? == Handler::Ours {
            plan.notes.push(format!("{} has the handler already", path.display()));
            return Ok(());
        }
    }
    let after = config::drop_in(version).into_bytes();
    let before = read(root, &file)?;
    if let Some(before) = &before
        && *before != after
        && !manifest.made(&file, before)
    {
        bail!(CouldNot(format!(
            "{} is there already and not as \"mooring install\" made it: move it away first",
            file.display()
        )));
    }
    plan.changes.push(Change { path: file, before, after, mode: 0o644 });
    if let Some(pattern) = import {
        let config = &all[0].1;
        let after = config.importing(pattern).map_err(could_not)?.into_bytes();
        plan.import = Some(Import {
            config: path.clone(),
            pattern: pattern.to_owned(),
            before: text.is_some().then(|| config.text().to_owned()),
            sha256: manifest::digest(&after),
            made_list: !config.has_imports(),
        });
        plan.changes.push(Change { path: path.clone(), before: text, after, mode: 0o644 });
    }
    Ok(())
}

/// The files that a configuration imports and that are there.
fn imported(root: &Root, path: &Path, config: &Config) -> Result<Vec<PathBuf>> {
    let beside = path.parent().unwrap_or(Path::new("/"));
    let mut found = Vec::new();
    for import in config.imports().map_err(could_not)? {
        let pattern = beside.join(import);
        let folder = pattern.parent().unwrap_or(Path::new("/"));
        let names = root.list(folder).with_context(|| format!("list {}", folder.display()))?;
        let files = names.into_iter().map(|name| folder.join(name));
        found.extend(files.filter(|file| config::matches(&pattern, file)));
    }
    Ok(found)
}

fn parse(path: &Path, text: Option<Vec<u8>>) -> Result<Config> {
    Ok(Config::parse(path, text).map_err(could_not)?)
}

#[expect(clippy::needless_pass_by_value, reason = "the signature of map_err")]
fn could_not(error: config::Unusable) -> CouldNot {
    CouldNot(format!("{error}; nothing was changed"))
}

fn read(root: &Root, path: &Path) -> Result<Option<Vec<u8>>> {
    let text = root.read(path);
    Ok(text.map_err(|error| CouldNot(format!("read {}: {error}", path.display())))?)
}
