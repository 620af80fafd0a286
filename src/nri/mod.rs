//! The runtime's side of NRI, the Node Resource Interface: plugins are told what becomes of a pod and its containers, and
//! may adjust a container that is being created.
//!
//! containerd's CRI tells plugins of its own pods. For those of other clients the shim does, with plugins that the options
//! name: it starts them, or connects to their sockets, when a pod starts, and keeps them for as long as it lives
//! ([`Announcer`]). What the journal remembers ([`NriRecord`]) lets a pod's end be told without the shim, too.

mod adjust;
mod announcer;
mod api;
mod claims;
mod container;
mod create;
mod error;
mod mux;
mod plugin;
mod pod;
mod record;
mod register;
mod resources;
#[cfg(test)]
mod tests;

use std::{path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};

pub use adjust::Refused;
pub use announcer::Announcer;
pub use claims::Taken;
pub use error::{Error, Failure};
pub use pod::Pod;
pub use record::{NriRecord, mark};

/// Which plugins there are, and how long they may take.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// Programs, and sockets at which plugins listen. None: nobody is told anything.
    pub plugins: Vec<PathBuf>,
    /// Where the plugins' own configurations lie.
    pub conf_dir: PathBuf,
    /// How long one call may take.
    pub timeout: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            plugins: Vec::new(),
            conf_dir: "/etc/nri/conf.d".into(),
            timeout: Duration::from_secs(2),
        }
    }
}

impl Settings {
    /// How long a plugin may take to be there: more than a call, as in NRI itself, since a program has to start.
    fn registration(&self) -> Duration {
        self.timeout.saturating_mul(5) / 2
    }
}

/// What plugins can be told, with NRI's number for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    RunPodSandbox = 1,
    StopPodSandbox = 2,
    RemovePodSandbox = 3,
    CreateContainer = 4,
    PostCreateContainer = 5,
    StartContainer = 6,
    PostStartContainer = 7,
    StopContainer = 10,
    RemoveContainer = 11,
    ValidateContainerAdjustment = 14,
}

impl Event {
    /// All that NRI has, those that Mooring never tells of too: 14 of them.
    const ALL: i32 = (1 << 14) - 1;

    fn bit(self) -> i32 {
        1 << (self as i32 - 1)
    }

    /// The call that tells of it.
    fn method(self) -> &'static str {
        match self {
            Self::RunPodSandbox => "RunPodSandbox",
            Self::StopPodSandbox => "StopPodSandbox",
            Self::RemovePodSandbox => "RemovePodSandbox",
            Self::CreateContainer => "CreateContainer",
            Self::PostCreateContainer => "PostCreateContainer",
            Self::StartContainer => "StartContainer",
            Self::PostStartContainer => "PostStartContainer",
            Self::StopContainer => "StopContainer",
            Self::RemoveContainer => "RemoveContainer",
            Self::ValidateContainerAdjustment => "ValidateContainerAdjustment",
        }
    }

    /// Whether a plugin that says no keeps it from happening. Nothing keeps an end.
    fn may_be_refused(self) -> bool {
        matches!(self, Self::RunPodSandbox | Self::StartContainer)
    }
}
