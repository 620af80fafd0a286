//! What can go wrong with a pod's network.

use std::{io, path::PathBuf};

use thiserror::Error;

use super::{CacheProblem, Operation, PluginError, netns};
use crate::error::{Code, Coded};

/// A failure of the network.
#[derive(Debug, Error)]
pub enum Error {
    /// The conf dir holds no usable configuration.
    #[error("no valid CNI configuration in {}{}", dir.display(), skipped_note(skipped))]
    NoNetworks {
        dir: PathBuf,
        /// The files that were not usable, each with its reason.
        skipped: Vec<String>,
    },
    /// The conf dir cannot be read.
    #[error("read CNI configurations in {}: {source}", dir.display())]
    ConfDir { dir: PathBuf, source: io::Error },
    /// What was asked for cannot be handed to a plugin.
    #[error("CNI {what} {value:?} is not valid")]
    Invalid {
        /// What it is: a container id, an interface name …
        what: &'static str,
        value: String,
    },
    /// The record's own copy of a configuration is damaged.
    #[error("recorded CNI configuration of network {network:?}: {problem}")]
    Record { network: String, problem: super::ConfProblem },
    #[error("CNI {operation} of plugin {plugin:?} in network {network:?}: {source}")]
    Plugin {
        /// What it was asked to do.
        operation: Operation,
        plugin: String,
        network: String,
        source: Box<PluginError>,
    },
    /// A cached result cannot be read or written.
    #[error("CNI result {}: {source}", path.display())]
    Cache { path: PathBuf, source: CacheProblem },
    /// The loopback interface did not come up.
    #[error("bring lo up: {0}")]
    Loopback(#[from] netns::Error),
    /// The thread that did the work was lost.
    #[error("{action}: the thread was lost")]
    Lost { action: &'static str },
}

impl Coded for Error {
    fn code(&self) -> Code {
        match self {
            Self::NoNetworks { .. } => Code::FailedPrecondition,
            Self::Invalid { .. } => Code::InvalidArgument,
            Self::Plugin { source, .. } => source.code(),
            Self::Loopback(error) => error.code(),
            Self::ConfDir { .. } | Self::Record { .. } | Self::Cache { .. } | Self::Lost { .. } => {
                Code::Unknown
            }
        }
    }
}

fn skipped_note(skipped: &[String]) -> String {
    if skipped.is_empty() {
        String::new()
    } else {
        format!(" (not usable: {})", skipped.join("; "))
    }
}
