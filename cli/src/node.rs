//! What every command asks of the node first.

use std::path::PathBuf;

use anyhow::Context;
use log::{LevelFilter, Log, Metadata, Record};
use mooring::{
    options,
    sandbox::survey::{Found, survey},
};

use crate::exit::CouldNot;

/// containerd's socket, where nobody says otherwise.
pub const CONTAINERD: &str = "/run/containerd/containerd.sock";

/// Refuses to go on for anybody but root: state folders are root's alone.
pub fn need_root(command: &str) -> Result<(), CouldNot> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    Err(CouldNot(format!("not root: \"mooring {command}\" reads and changes what is root's alone")))
}

/// Where shims keep state.
#[derive(Debug, Default, PartialEq)]
struct StateRoots {
    folders: Vec<PathBuf>,
    /// Why there may be more of them.
    complaint: Option<String>,
}

/// Where shims keep state: as `given`, else as the node's configuration says today, and where it is without one, since
/// it may have been another when a pod was started.
fn state_roots(given: &[PathBuf]) -> StateRoots {
    if !given.is_empty() {
        return StateRoots { folders: given.to_vec(), complaint: None };
    }
    let (mut folders, complaint) = match options::state_roots() {
        Ok(folders) => (folders, None),
        Err(error) => (Vec::new(), Some(error.to_string())),
    };
    let usual = options::Options::default().state_root;
    if !folders.contains(&usual) {
        folders.push(usual);
    }
    StateRoots { folders, complaint }
}

/// What lies in all state folders.
#[derive(Debug)]
pub struct Looked {
    pub found: Vec<Found>,
    /// Why there may be more.
    pub complaint: Option<String>,
}

/// Looks through the state folders, those `given` or the node's. Blocks.
pub fn look(given: &[PathBuf]) -> Result<Looked, CouldNot> {
    let StateRoots { folders, complaint } = state_roots(given);
    let mut found = Vec::new();
    for root in &folders {
        found.extend(survey(root).map_err(|error| CouldNot(error.to_string()))?);
    }
    Ok(Looked { found, complaint })
}

impl Looked {
    /// Whether everything was looked at.
    pub fn all(&self) -> Result<(), CouldNot> {
        let Some(complaint) = &self.complaint else { return Ok(()) };
        Err(CouldNot(format!("{complaint}; looked in the usual state folder alone")))
    }

    /// The sandbox that `id` names, in whole or by a beginning that no other has.
    pub fn sandbox(&self, namespace: Option<&str>, id: &str) -> anyhow::Result<&Found> {
        let wanted = |one: &&Found| namespace.is_none_or(|name| one.namespace.as_str() == name);
        let named: Vec<&Found> = self.found.iter().filter(wanted).collect();
        let with = |fits: &dyn Fn(&str) -> bool| -> Vec<&Found> {
            named.iter().copied().filter(|one| fits(one.id.as_str())).collect()
        };
        let whole = with(&|own| own == id);
        let all = if whole.is_empty() { with(&|own| own.starts_with(id)) } else { whole };
        match all.as_slice() {
            [one] if !id.is_empty() => Ok(one),
            [] => {
                self.all()?;
                anyhow::bail!("no sandbox {id:?}");
            }
            several => {
                let each = several.iter().map(|one| format!("{}/{}", one.namespace, one.id));
                let each: Vec<String> = each.collect();
                anyhow::bail!("{id:?} may be any of {}", each.join(", "))
            }
        }
    }
}

/// The async runtime of a command that needs one.
pub fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("start the async runtime")
}

/// What the library warns of, on standard error.
struct Warnings;

impl Log for Warnings {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::Level::Warn
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            eprintln!("mooring: {}", record.args());
        }
    }

    fn flush(&self) {}
}

/// Shows what the library warns of.
pub fn show_warnings() {
    if log::set_logger(&Warnings).is_ok() {
        log::set_max_level(LevelFilter::Warn);
    }
}
