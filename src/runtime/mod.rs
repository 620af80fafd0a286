//! The OCI runtime: runc, or one with its command line (crun).
//!
//! The runtime is a program, and each of its calls costs tens of milliseconds. What it would do by a system call or
//! two is done here directly, where the state folder shows that it is runc's and nothing unusual is asked for:
//! [`quick::start`] and [`quick::delete`].

pub mod checkpoint;
mod complaint;
pub mod criu;
mod launch;
pub mod quick;
mod runc;
mod settings;
#[cfg(test)]
mod tests;

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use thiserror::Error;

pub use checkpoint::{Checkpoint, Restore};
pub use launch::{Stdio, program};
pub use runc::Runc;
pub use settings::RuntimeSettings;

use crate::{
    error::{Code, Coded},
    id::Id,
    process,
};

/// The name of the runtime that is in the shim's own program.
pub const BUILTIN: &str = "builtin";
/// The variable in a creation's environment that names the container: what outlives its shim is known by it.
pub const CREATES: &str = "MOORING_CREATES";

/// What a container is created with, beside its bundle.
pub struct Create {
    /// Its init's input and output.
    pub stdio: Stdio,
    /// Where the runtime sends the terminal's descriptor, for a process with a terminal.
    pub console: Option<PathBuf>,
}

/// What a further process of a container is started with.
pub struct Exec {
    /// The process, as in an OCI specification.
    pub process: serde_json::Value,
    pub stdio: Stdio,
    /// Where the runtime sends the terminal's descriptor, for a process with a terminal.
    pub console: Option<PathBuf>,
}

/// Why a call of the runtime failed.
#[derive(Debug, Error)]
pub enum Error {
    /// The program could not be run.
    #[error("OCI runtime {verb} failed: {source}")]
    Run { verb: &'static str, source: process::Failure },
    /// The program is not there.
    #[error("OCI runtime {verb} failed: no program {program:?}{place}", place = if program.contains('/') { "" } else { " in PATH" })]
    Missing {
        verb: &'static str,
        /// The program as it was asked for.
        program: String,
    },
    /// It did not end in time, and was killed with everything that it had started.
    #[error("OCI runtime {verb} of container \"{id}\" did not end within {limit:?} and was killed")]
    Late {
        verb: &'static str,
        id: Id,
        /// How long it was given, in whole milliseconds.
        limit: Duration,
    },
    #[error("OCI runtime {verb} failed: {complaint}")]
    Refused { verb: &'static str, complaint: String },
    /// It ran, said that all was well, and left or printed something that makes no sense.
    #[error("OCI runtime {verb}: {what}")]
    Garbage { verb: &'static str, what: String },
    /// criu is not there.
    #[error("OCI runtime {verb} failed: no program {program:?}{place}, which it needs (option CriuPath)", place = if program.contains('/') { "" } else { " in PATH" })]
    NoCriu {
        verb: &'static str,
        /// The program as it was asked for.
        program: String,
    },
    /// The runtime cannot do it.
    #[error("OCI runtime {verb} failed: {binary} was built without checkpoint and restore", binary = binary.display())]
    NoCheckpoints { verb: &'static str, binary: PathBuf },
    /// The container's init ended before it could be started.
    #[error("OCI runtime start failed: the container's process has ended")]
    Ended,
    /// A file that the runtime reads or writes.
    #[error("OCI runtime {verb}: {action} {path}: {source}", path = path.display())]
    File { verb: &'static str, action: &'static str, path: PathBuf, source: io::Error },
    #[error("OCI runtime delete: {0}")]
    Cgroup(#[from] crate::cgroup::Error),
}

impl Error {
    pub(crate) fn late(verb: &'static str, id: &Id, limit: Duration) -> Self {
        let beyond = Duration::from_nanos(u64::from(limit.subsec_nanos()) % 1_000_000);
        Self::Late { verb, id: id.clone(), limit: limit.saturating_sub(beyond) }
    }
}

impl Coded for Error {
    fn code(&self) -> Code {
        match self {
            Self::Late { .. } => Code::DeadlineExceeded,
            Self::Missing { .. } => Code::InvalidArgument,
            Self::NoCheckpoints { .. } => Code::Unimplemented,
            Self::Refused { complaint, .. } if complaint.contains("does not exist") => {
                Code::NotFound
            }
            Self::NoCriu { .. } | Self::Ended => Code::FailedPrecondition,
            Self::Cgroup(error) => error.code(),
            _ => Code::Unknown,
        }
    }
}

/// Gives the OCI runtime that is called as settings say.
pub type Runtimes = dyn Fn(RuntimeSettings) -> Arc<dyn OciRuntime> + Send + Sync;

/// What is asked of an OCI runtime, in its own words. Calls end when their future is dropped, and fail with
/// [`Error::Late`] when they take longer than [`RuntimeSettings::timeout`].
#[async_trait]
pub trait OciRuntime: Send + Sync {
    /// Creates container `id` from `bundle`; answers the process id of its init, which waits to be started.
    async fn create(&self, id: &Id, bundle: &Path, create: Create) -> Result<i32, Error>;
    async fn start(&self, id: &Id, bundle: &Path) -> Result<(), Error>;
    /// Writes the container's processes into a folder, and then ends them or lets them go on.
    async fn checkpoint(
        &self,
        id: &Id,
        bundle: &Path,
        checkpoint: &Checkpoint,
    ) -> Result<(), Error>;
    /// Makes container `id` from `bundle` with the processes of a checkpoint, which go on at once; answers the process
    /// id of its init.
    async fn restore(&self, id: &Id, bundle: &Path, restore: Restore) -> Result<i32, Error>;
    /// Sends `signal` to the container's init, or to all its processes.
    async fn kill(&self, id: &Id, bundle: &Path, signal: i32, all: bool) -> Result<(), Error>;
    /// Removes what the runtime holds of the container, killing what is left of it.
    async fn delete(&self, id: &Id, bundle: &Path) -> Result<(), Error>;
    /// Starts a further process in the container; answers its process id.
    async fn exec(&self, id: &Id, exec_id: &Id, bundle: &Path, exec: Exec) -> Result<i32, Error>;
    async fn pause(&self, id: &Id, bundle: &Path) -> Result<(), Error>;
    /// Lets a frozen container go on.
    async fn resume(&self, id: &Id, bundle: &Path) -> Result<(), Error>;
    /// Sets the container's resources (JSON, as `linux.resources` of an OCI specification).
    async fn update(&self, id: &Id, bundle: &Path, resources: &[u8]) -> Result<(), Error>;
}
