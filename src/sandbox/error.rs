//! What can go wrong with a sandbox.

use thiserror::Error;

use super::{NotCleared, config::ConfigError, recover::RecoverError};
use crate::{
    error::{Code, Coded},
    keeper::KeeperError,
    network, options,
    teardown::{Step, TeardownError, journal::JournalError},
};

/// A sandbox could not do what it was asked. The caller adds the verb and the sandbox's id.
#[derive(Debug, Error)]
pub enum Error {
    #[error("it exists already")]
    AlreadyExists,
    /// It is not in a state for this.
    #[error("{0}")]
    Precondition(String),
    /// There is no such sandbox here.
    #[error("not found")]
    NotFound,
    #[error("{0}")]
    Invalid(String),
    #[error("configuration: {0}")]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Options(#[from] options::Error),
    /// The journal could not be kept.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The namespaces could not be made.
    #[error("namespaces: {0}")]
    Keeper(#[from] KeeperError),
    /// The network namespace could not be made or used.
    #[error("network namespace: {0}")]
    Netns(#[from] network::netns::Error),
    /// The pod could not be attached to its networks.
    #[error("network: {0}")]
    Network(#[from] network::Error),
    /// A plugin of NRI says no, or asks for what is not done.
    #[error(transparent)]
    Nri(#[from] crate::nri::Error),
    /// The pod's files or mounts could not be made.
    #[error("{0}")]
    Mounts(#[from] crate::mounts::Error),
    /// An image volume could not be mounted.
    #[error(transparent)]
    Volumes(#[from] crate::volumes::Error),
    /// containerd refused or did not answer.
    #[error("{0}")]
    Containerd(#[from] crate::containerd::Error),
    /// The pod's cgroup could not be made.
    #[error("cgroup: {0}")]
    Cgroup(#[from] crate::cgroup::Error),
    #[error(transparent)]
    Teardown(#[from] TeardownError),
    /// What an earlier sandbox of this name has left could not be finished.
    #[error("an earlier sandbox of this name: {0}")]
    Earlier(RecoverError),
    /// The teardown goes on; the caller's time is over.
    #[error("still at step {} after {seconds:.1} s; the teardown goes on{}", step.map_or("start", Step::name), after(.waits_for))]
    StillStopping {
        /// The step that is under way.
        step: Option<Step>,
        /// How long the caller waited.
        seconds: f64,
        /// The containers that have not ended, and what of each.
        waits_for: Vec<String>,
    },
    /// Containers could not be deleted.
    #[error("containers: {0}")]
    Containers(#[from] NotCleared),
    /// A fault of Mooring's own.
    #[error("internal: {0}")]
    Internal(String),
}

fn after(waits_for: &[String]) -> String {
    waits_for.iter().flat_map(|one| ["; ", one]).collect()
}

impl Coded for Error {
    fn code(&self) -> Code {
        match self {
            Self::AlreadyExists => Code::AlreadyExists,
            Self::Precondition(_) => Code::FailedPrecondition,
            Self::NotFound => Code::NotFound,
            Self::Invalid(_) => Code::InvalidArgument,
            Self::Config(error) => error.code(),
            Self::Options(error) => error.code(),
            Self::Journal(error) => error.code(),
            Self::Keeper(error) => error.code(),
            Self::Netns(error) => error.code(),
            Self::Network(error) => error.code(),
            Self::Nri(error) => error.code(),
            Self::Mounts(error) => error.code(),
            Self::Volumes(error) => error.code(),
            Self::Containerd(error) => error.code(),
            Self::Cgroup(error) => error.code(),
            Self::Teardown(error) => error.code(),
            Self::Earlier(error) => error.code(),
            Self::StillStopping { .. } => Code::DeadlineExceeded,
            Self::Containers(_) | Self::Internal(_) => Code::Unknown,
        }
    }
}
