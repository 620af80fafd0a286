//! From gRPC's statuses, and from the failures of connections, to errors.

use tonic::{Code, Status};

use super::Error;

/// A failed call that does not know its name yet.
pub(super) enum Failure {
    Status(Box<Status>),
    Unavailable(String),
    NotFound(String),
    Invalid(String),
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        Self::Status(Box::new(status))
    }
}

impl Failure {
    /// The error of the call that is named `call`.
    pub(super) fn of(self, call: String) -> Error {
        let status = match self {
            Self::Unavailable(message) => return Error::Unavailable { call, message },
            Self::NotFound(message) => return Error::NotFound { call, message },
            Self::Invalid(message) => return Error::Invalid { call, message },
            Self::Status(status) => status,
        };
        let message = status.message().to_owned();
        // A status that containerd sent has no cause here; one that has was made of the connection's failure.
        if let Some(cause) = std::error::Error::source(&*status) {
            return Error::Unavailable { call, message: with_causes(cause) };
        }
        match status.code() {
            Code::NotFound => Error::NotFound { call, message },
            Code::AlreadyExists => Error::AlreadyExists { call, message },
            Code::FailedPrecondition => Error::FailedPrecondition { call, message },
            Code::InvalidArgument => Error::Invalid { call, message },
            Code::DeadlineExceeded => Error::DeadlineExceeded { call },
            Code::Unavailable => Error::Unavailable { call, message },
            // containerd's own connection to a shim broke in mid-call.
            _ if message.contains("ttrpc: closed") => Error::Unavailable { call, message },
            code => Error::Other { call, code: format!("{code:?}"), message },
        }
    }
}

/// An error with everything that led to it.
pub(super) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        // Some errors tell their cause themselves.
        let words = error.to_string();
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_of_containerd_keep_their_kind_and_words() {
        let of = |code, text: &str| Failure::from(Status::new(code, text)).of("call".to_owned());
        assert!(of(Code::NotFound, "no such task").is_not_found());
        assert!(matches!(of(Code::AlreadyExists, ""), Error::AlreadyExists { .. }));
        assert!(matches!(of(Code::FailedPrecondition, ""), Error::FailedPrecondition { .. }));
        assert!(of(Code::Unavailable, "").is_retryable());
        assert!(of(Code::Unknown, "ttrpc: closed: unknown").is_retryable());
        let other = of(Code::Unknown, "disk on fire");
        assert!(!other.is_retryable());
        assert_eq!(other.to_string(), "call: Unknown: disk on fire");
    }
}
