//! What every command asks of the node first.

use std::path::PathBuf;

use log::{LevelFilter, Log, Metadata, Record};
use mooring::options;

use crate::exit::CouldNot;

/// Refuses to go on for anybody but root: state folders are root's alone.
pub fn need_root(command: &str) -> Result<(), CouldNot> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    Err(CouldNot(format!("not root: \"mooring {command}\" reads and changes what is root's alone")))
}

/// Where shims keep state.
#[derive(Debug, Default, PartialEq)]
pub struct StateRoots {
    pub folders: Vec<PathBuf>,
    /// Why there may be more of them.
    pub complaint: Option<String>,
}

/// Where shims keep state: as `given`, else as the node's configuration says today, and where it is without one, since
/// it may have been another when a pod was started.
pub fn state_roots(given: &[PathBuf]) -> StateRoots {
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
