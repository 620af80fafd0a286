//! What can go wrong with an image volume.

use thiserror::Error;

use crate::{
    containerd,
    error::{Code, Coded},
    mounts,
};

/// Why an image volume could not be mounted, found or released.
#[derive(Debug, Error)]
pub enum Error {
    /// A mount, a folder, or what the specification says of the volume.
    #[error(transparent)]
    Mounts(#[from] mounts::Error),
    /// A part of it is not there.
    #[error("image volume {reference:?}: {path:?} does not exist in the image")]
    NoSuchPath {
        /// The image.
        reference: String,
        /// The path within.
        path: String,
    },
    /// containerd did not do its part.
    #[error("image volume {reference:?}: {source}")]
    Image {
        /// The image.
        reference: String,
        /// containerd's answer.
        source: containerd::Error,
    },
}

impl Coded for Error {
    fn code(&self) -> Code {
        match self {
            Self::Mounts(error) => error.code(),
            Self::NoSuchPath { .. } => Code::NotFound,
            Self::Image { source, .. } => source.code(),
        }
    }
}
