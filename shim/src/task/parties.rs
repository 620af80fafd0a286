//! Whom the engine deals with.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    path::PathBuf,
    sync::Arc,
};

use mooring::{cgroup::OomKills, id::Id, process::Reaper, runtime::Runtimes};

use super::Pod;
use crate::events::Events;

/// The surroundings that all containers of an engine share.
pub(super) struct Parties {
    pub(super) namespace: String,
    pub(super) events: Arc<dyn Events>,
    pub(super) pod: Arc<dyn Pod>,
    pub(super) runtimes: Arc<Runtimes>,
    pub(super) reaper: Reaper,
    pub(super) oom_kills: Arc<OomKills>,
    /// Where terminals arrive; a short path.
    pub(super) run_dir: PathBuf,
}

impl Parties {
    /// The folder of the sockets over which a container's terminals arrive. A socket's path may have 107 bytes, which
    /// an id alone can have: a hash stands for it. Two containers that met in one folder would still have sockets of
    /// their own in it.
    pub(super) fn consoles(&self, container: &Id) -> PathBuf {
        let mut hasher = DefaultHasher::new();
        (&self.namespace, container.as_str()).hash(&mut hasher);
        self.run_dir.join(format!("tty-{:016x}", hasher.finish()))
    }

    /// Where criu's configuration for a container lies while it is called. No id begins with a dot.
    pub(super) fn criu_config(&self, container: &Id) -> PathBuf {
        self.pod.tasks_dir().join(format!(".{container}.criu"))
    }
}
