//! Why a container cannot be as it was asked to be.

use std::{io, path::Path};

use thiserror::Error;

#[derive(Debug, Error)]
pub enum Error {
    /// The specification asks for something that this runtime does not do.
    #[error("the built-in OCI runtime does not support {0}")]
    Unsupported(String),
    /// The specification contradicts itself or the kernel's rules.
    #[error("{0}")]
    Invalid(String),
    #[error("container {id:?} does not exist")]
    Missing { id: String },
    #[error("container with the ID {id:?} already exists")]
    Exists { id: String },
    /// The kernel has refused something.
    #[error("{deed}: {source}")]
    System { deed: String, source: io::Error },
    /// systemd has refused something, or does not answer.
    #[error("systemd: {deed}: {why}")]
    Systemd { deed: String, why: String },
    /// As it was told by another process of this runtime.
    #[error("{0}")]
    Told(String),
    #[error(transparent)]
    Cgroup(#[from] mooring::cgroup::Error),
}

pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub fn unsupported(what: impl Into<String>) -> Self {
        Self::Unsupported(what.into())
    }

    pub fn invalid(what: impl Into<String>) -> Self {
        Self::Invalid(what.into())
    }
}

/// Says what was being done when a call failed.
pub trait Doing<T> {
    fn doing(self, deed: &str) -> Result<T>;
    fn doing_at(self, deed: &str, path: impl AsRef<Path>) -> Result<T>;
}

impl<T, E: Into<io::Error>> Doing<T> for std::result::Result<T, E> {
    fn doing(self, deed: &str) -> Result<T> {
        self.map_err(|source| Error::System { deed: deed.into(), source: source.into() })
    }

    fn doing_at(self, deed: &str, path: impl AsRef<Path>) -> Result<T> {
        self.map_err(|source| Error::System {
            deed: format!("{deed} {}", path.as_ref().display()),
            source: source.into(),
        })
    }
}
