//! Control groups: where a process's lie, how everything in them is killed, how they are made and removed.
//!
//! A machine has one hierarchy per v1 controller, or one unified v2 hierarchy, or both (hybrid: v1 controllers, and
//! v2 without controllers beside them). A [`Cgroup`] holds the folder in each of them, so that nothing here needs to
//! know which kind of machine it is on: what v2 offers is used where a v2 folder is, the rest by v1.

pub(crate) mod changes;
mod expect;
mod group;
mod hierarchy;
mod kill;
mod oom;
pub mod pod;
mod remove;
mod systemd;

use std::{
    io,
    path::{Path, PathBuf},
};

use thiserror::Error;

pub use expect::expect_move;
pub use group::{Cgroup, Created};
pub use hierarchy::{Hierarchies, Mode};
pub use oom::{OomKills, OomWatch};
pub use systemd::from_systemd;

use crate::{
    error::{Code, Coded, code_of_io},
    sys::survivor::Survivors,
};

/// What went wrong with a control group.
#[derive(Debug, Error)]
pub enum Error {
    /// A file of the kernel's could not be read or written.
    #[error("{action} {path}: {source}", path = path.display())]
    File { action: &'static str, path: PathBuf, source: io::Error },
    /// A process of a group could not be held or signalled, and is not known to be gone.
    #[error("signal process {pid}: {source}")]
    Signal { pid: i32, source: io::Error },
    /// A path that would lead out of the hierarchy, or a systemd name without its three parts.
    #[error("cgroup path {path:?} is not valid")]
    InvalidPath {
        /// The path as it was given.
        path: String,
    },
    /// Processes stayed in the group until the deadline.
    #[error("cgroup {path} is still in use: {survivors}", path = path.display())]
    Busy {
        /// The folder that could not be removed.
        path: PathBuf,
        survivors: Survivors,
    },
}

impl Coded for Error {
    fn code(&self) -> Code {
        match self {
            Self::File { source, .. } | Self::Signal { source, .. } => code_of_io(source),
            Self::InvalidPath { .. } => Code::InvalidArgument,
            Self::Busy { .. } => Code::DeadlineExceeded,
        }
    }
}

impl Error {
    fn at(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { action, path, source }
    }
}

/// Whether an error only says that the group is not there any more: its folder is gone, or it went away while one of
/// its files was open.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
        || error.raw_os_error() == Some(nix::errno::Errno::ENODEV as i32)
}
