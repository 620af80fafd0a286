//! The set-up: whether Mooring can do its work on this node, part by part.

mod capabilities;
mod cgroups;
mod cni;
mod handler;
mod kernel;
mod limits;
mod runtime;

use std::{
    env, fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use mooring::options::{self, Options};
use serde::Serialize;

use super::world::{World, processes::Process};
use crate::containerd_config::ContainerdConfig;

/// What it means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Good,
    /// Good to know; nothing has to be done.
    Note,
    /// Something will not work.
    Problem,
}

impl Level {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Note => "note",
            Self::Problem => "problem",
        }
    }
}

/// What was seen of one part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Remark {
    pub part: &'static str,
    pub level: Level,
    pub what: String,
    /// What to do.
    pub remedy: Option<String>,
}

impl Remark {
    fn new(part: &'static str, level: Level, what: impl Into<String>) -> Self {
        Self { part, level, what: what.into(), remedy: None }
    }

    fn good(part: &'static str, what: impl Into<String>) -> Self {
        Self::new(part, Level::Good, what)
    }

    fn note(part: &'static str, what: impl Into<String>) -> Self {
        Self::new(part, Level::Note, what)
    }

    fn problem(part: &'static str, what: impl Into<String>) -> Self {
        Self::new(part, Level::Problem, what)
    }

    #[must_use]
    fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }
}

/// What is asked of the node once for all parts.
pub struct Setup<'a> {
    pub world: &'a World,
    pub config: &'a ContainerdConfig,
    /// Of each of the node's handlers, as its configuration says.
    pub options: Vec<Options>,
    /// containerd's process, where it runs.
    pub containerd: Option<&'a Process>,
    /// Where containerd, and so a shim, looks for programs.
    path: Vec<PathBuf>,
}

impl<'a> Setup<'a> {
    fn of(world: &'a World, config: &'a ContainerdConfig) -> Self {
        let containerd = world.processes.values().find(|one| one.program() == "containerd");
        let environment = containerd
            .and_then(|one| fs::read(format!("/proc/{}/environ", one.pid)).ok())
            .unwrap_or_default();
        let theirs = environment.split(|byte| *byte == 0).find_map(|word| {
            Some(String::from_utf8_lossy(word.strip_prefix(b"PATH=")?).into_owned())
        });
        let path = theirs.or_else(|| env::var("PATH").ok()).unwrap_or_default();
        let path = env::split_paths(&path).collect();
        let options = options::of_node().unwrap_or_default();
        Self { world, config, options, containerd, path }
    }

    /// A program as containerd would find it: a path, or a name in its PATH.
    fn program(&self, name: &Path) -> Option<PathBuf> {
        if name.components().count() > 1 {
            return is_program(name).then(|| name.to_owned());
        }
        self.path.iter().map(|folder| folder.join(name)).find(|path| is_program(path))
    }
}

fn is_program(path: &Path) -> bool {
    path.metadata().is_ok_and(|about| about.is_file() && about.permissions().mode() & 0o111 != 0)
}

/// Looks at every part.
pub fn remarks(world: &World, config: &ContainerdConfig) -> Vec<Remark> {
    let setup = Setup::of(world, config);
    let parts = [
        limits::remarks(&setup),
        handler::remarks(&setup),
        runtime::remarks(&setup),
        cni::remarks(&setup),
        cgroups::remarks(&setup),
        capabilities::remarks(&setup),
        kernel::remarks(),
    ];
    parts.into_iter().flatten().collect()
}
