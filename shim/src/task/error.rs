//! Why a request for a task was refused or failed.

use std::{io, path::PathBuf};

use mooring::{
    error::{Code, Coded, code_of_io},
    id::{Id, InvalidId},
    sys::survivor::Survivors,
};
use thiserror::Error;

/// What the pod says against a container.
#[derive(Debug, Error)]
#[error("{message}")]
pub struct PodError {
    pub code: Code,
    pub message: String,
}

/// Why a task's method failed.
#[derive(Debug, Error)]
pub enum Error {
    /// There is no such container here.
    #[error("task \"{0}\" not found")]
    NoTask(String),
    /// There is no such process in the container.
    #[error("process \"{exec}\" of task \"{task}\" not found")]
    NoProcess { task: Id, exec: String },
    /// Its start restores it; until then it has no process.
    #[error("task \"{0}\" is restored when it is started, and has no process yet")]
    Unrestored(Id),
    /// The process has ended, and cannot be signalled.
    #[error("process already finished")]
    Finished,
    /// There is one of this name already.
    #[error("{0} already exists")]
    Exists(String),
    /// The task's state does not allow it.
    #[error("task \"{task}\": {what}")]
    State { task: Id, what: String },
    /// It was killed a while ago, and has not ended.
    #[error("task \"{task}\": killed {seconds} s ago, and not ended: {survivors}")]
    Survives { task: Id, seconds: u64, survivors: Survivors },
    /// All processes of the container have ended; it waits to be deleted.
    #[error("task \"{task}\" has ended and has no processes")]
    Ended {
        task: Id,
        /// What was its init's process id.
        init: u32,
    },
    /// The request makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// An identifier is none.
    #[error(transparent)]
    InvalidId(#[from] InvalidId),
    #[error(transparent)]
    Pod(#[from] PodError),
    #[error(transparent)]
    Runtime(#[from] mooring::runtime::Error),
    /// The container's record or release.
    #[error(transparent)]
    Container(#[from] mooring::container::Error),
    #[error(transparent)]
    Cgroup(#[from] mooring::cgroup::Error),
    /// A file, pipe or socket.
    #[error("{action} {path}: {source}", path = path.display())]
    File { action: &'static str, path: PathBuf, source: io::Error },
    /// The time was not enough.
    #[error("{0} did not come about in time")]
    Late(String),
    /// The work was broken off by a defect of ours.
    #[error("the work on the request was broken off: {0}")]
    Broken(#[from] tokio::task::JoinError),
}

impl Coded for Error {
    fn code(&self) -> Code {
        match self {
            Self::NoTask(_) | Self::NoProcess { .. } | Self::Finished => Code::NotFound,
            Self::Exists(_) => Code::AlreadyExists,
            Self::State { .. } | Self::Ended { .. } | Self::Unrestored(_) => {
                Code::FailedPrecondition
            }
            Self::Invalid(_) | Self::InvalidId(_) => Code::InvalidArgument,
            Self::Pod(error) => error.code,
            Self::Runtime(error) => error.code(),
            Self::Container(error) => error.code(),
            Self::Cgroup(error) => error.code(),
            Self::File { source, .. } => code_of_io(source),
            Self::Survives { .. } | Self::Late(_) => Code::DeadlineExceeded,
            Self::Broken(_) => Code::Unknown,
        }
    }
}

impl Error {
    pub(super) fn at(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { action, path, source }
    }

    /// Whether the kernel refused what was being done.
    pub(super) fn is_denied(&self) -> bool {
        matches!(self, Self::File { source, .. } if source.kind() == io::ErrorKind::PermissionDenied)
    }

    pub(super) fn state(task: &Id, what: impl Into<String>) -> Self {
        Self::State { task: task.clone(), what: what.into() }
    }
}
