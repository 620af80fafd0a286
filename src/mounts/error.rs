//! What can go wrong with a mount or with the pod's files.

use std::{io, path::Path};

use thiserror::Error;

use crate::error::{Code, Coded, code_of_io};

/// Why mounting, unmounting or preparing the pod's files failed.
#[derive(Debug, Error)]
pub enum Error {
    /// The request cannot be meant.
    #[error("{what}: {reason}")]
    Invalid {
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Mooring, or this kernel, has no way to do it.
    #[error("{what}: {reason}")]
    Unimplemented { what: String, reason: String },
    #[error("{action}: {source}")]
    System {
        /// What was being done, to what.
        action: String,
        source: io::Error,
    },
    /// The file system had more to say than a number.
    #[error("{action}: {source}: {messages}")]
    Explained {
        /// What was being done, to what.
        action: String,
        source: io::Error,
        messages: String,
    },
}

impl Error {
    /// A system call's failure in doing `action`.
    pub(crate) fn system(action: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::System { action: action.into(), source: source.into() }
    }

    /// A system call's failure in doing `action` to `path`.
    pub(crate) fn at(action: &str, path: &Path, source: impl Into<io::Error>) -> Self {
        Self::system(format!("{action} {}", path.display()), source)
    }

    pub(crate) fn invalid(what: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Invalid { what: what.into(), reason: reason.into() }
    }

    pub(crate) fn unimplemented(what: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Unimplemented { what: what.into(), reason: reason.into() }
    }
}

impl Coded for Error {
    fn code(&self) -> Code {
        match self {
            Self::Invalid { .. } => Code::InvalidArgument,
            Self::Unimplemented { .. } => Code::Unimplemented,
            Self::System { source, .. } | Self::Explained { source, .. } => code_of_io(source),
        }
    }
}
