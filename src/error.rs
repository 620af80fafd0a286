//! How failures are classed for a client, whatever module they come from.

use std::fmt;

/// The class of an error, as containerd's `errdefs` and gRPC know it.
///
/// Every error type of this library has a `code()`; the shim turns it into a ttrpc status in one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// The named thing does not exist.
    NotFound,
    /// The named thing exists and may not be made again.
    AlreadyExists,
    /// The thing is not in a state that allows the call.
    FailedPrecondition,
    /// The request itself is wrong.
    InvalidArgument,
    /// Somebody that had to answer is not there.
    Unavailable,
    /// The time given was not enough.
    DeadlineExceeded,
    /// Mooring does not do this.
    Unimplemented,
    Unknown,
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotFound => "not found",
            Self::AlreadyExists => "already exists",
            Self::FailedPrecondition => "failed precondition",
            Self::InvalidArgument => "invalid argument",
            Self::Unavailable => "unavailable",
            Self::DeadlineExceeded => "deadline exceeded",
            Self::Unimplemented => "not implemented",
            Self::Unknown => "unknown",
        })
    }
}

/// Implemented by every error of this library, so that services map errors in one place.
pub trait Coded {
    /// The class of this error.
    fn code(&self) -> Code;
}

/// The code that stands for an operating-system error where nothing better is known.
pub fn code_of_io(error: &std::io::Error) -> Code {
    match error.kind() {
        std::io::ErrorKind::NotFound => Code::NotFound,
        std::io::ErrorKind::AlreadyExists => Code::AlreadyExists,
        std::io::ErrorKind::InvalidInput | std::io::ErrorKind::InvalidData => Code::InvalidArgument,
        std::io::ErrorKind::TimedOut => Code::DeadlineExceeded,
        _ => Code::Unknown,
    }
}
