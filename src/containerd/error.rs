//! How containerd's answers are classed.

use thiserror::Error;

use crate::error::{Code, Coded};

/// A call to containerd that failed; `call` names the call and its object.
#[derive(Clone, Debug, Error)]
pub enum Error {
    /// The named thing does not exist.
    #[error("{call}: not found: {message}")]
    NotFound { call: String, message: String },
    /// The named thing is there already.
    #[error("{call}: already exists: {message}")]
    AlreadyExists { call: String, message: String },
    /// The state of things does not allow it.
    #[error("{call}: failed precondition: {message}")]
    FailedPrecondition { call: String, message: String },
    /// containerd is not there, or went away in mid-call: the same call may succeed later.
    #[error("{call}: containerd is unavailable: {message}")]
    Unavailable { call: String, message: String },
    /// containerd did not answer in the time that was given.
    #[error("{call}: no answer from containerd in time")]
    DeadlineExceeded { call: String },
    /// The request names something that cannot be.
    #[error("{call}: invalid: {message}")]
    Invalid { call: String, message: String },
    #[error("{call}: {code}: {message}")]
    Other { call: String, code: String, message: String },
}

impl Error {
    /// Whether the same call may succeed later, on a new connection.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }

    /// Whether containerd does not know the thing (any more), which is what a release wants to hear.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }
}

impl Coded for Error {
    fn code(&self) -> Code {
        match self {
            Self::NotFound { .. } => Code::NotFound,
            Self::AlreadyExists { .. } => Code::AlreadyExists,
            Self::FailedPrecondition { .. } => Code::FailedPrecondition,
            Self::Unavailable { .. } => Code::Unavailable,
            Self::DeadlineExceeded { .. } => Code::DeadlineExceeded,
            Self::Invalid { .. } => Code::InvalidArgument,
            Self::Other { .. } => Code::Unknown,
        }
    }
}
