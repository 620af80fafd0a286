//! A container as a resource: how it is acquired, the record of what it holds, and how all of it is released, by the shim
//! that made it or by whoever finds the record after that shim is gone.

mod acquire;
mod record;
mod release;

use std::{io, path::PathBuf};

use thiserror::Error;

pub use crate::sys::identity::{Pinned, is_alive, start_time};
pub use acquire::Acquisition;
pub use record::{Init, Record, find, load_all};
pub use release::{end, kill_in_place, release, survivors};

use crate::{
    error::{Code, Coded, code_of_io},
    sys::survivor::Survivors,
};

/// Why a container could not be recorded or released.
#[derive(Debug, Error)]
pub enum Error {
    /// A file of ours or of the kernel's.
    #[error("container: {action} {path}: {source}", path = path.display())]
    File { action: &'static str, path: PathBuf, source: io::Error },
    /// The record is torn, or not ours.
    #[error("container record {path}: {what}", path = path.display())]
    Foreign {
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// Its init could not be looked at or held, and is not known to be gone.
    #[error("container \"{id}\": process {pid}: {source}")]
    Process { id: String, pid: i32, source: io::Error },
    /// Processes outlived SIGKILL until the deadline.
    #[error("container \"{id}\": killed, and not ended: {survivors}")]
    Alive { id: String, survivors: Survivors },
    #[error("container \"{id}\": {source}")]
    Cgroup { id: String, source: crate::cgroup::Error },
    #[error("container \"{id}\": {source}")]
    Runtime { id: String, source: crate::runtime::Error },
    #[error("container \"{id}\": {source}")]
    Mounts { id: String, source: crate::mounts::Error },
}

impl Coded for Error {
    fn code(&self) -> Code {
        match self {
            Self::File { source, .. } | Self::Process { source, .. } => code_of_io(source),
            Self::Foreign { .. } => Code::Unknown,
            Self::Alive { .. } => Code::DeadlineExceeded,
            Self::Cgroup { source, .. } => source.code(),
            Self::Runtime { source, .. } => source.code(),
            Self::Mounts { source, .. } => source.code(),
        }
    }
}
