//! Opening a client's fifos without waiting for the client.

use std::{
    fs::{File, OpenOptions},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::OpenOptionsExt,
    },
    path::Path,
};

use super::{super::Error, is_fifo};

/// A writing end for the process, and a reading one that keeps a vanished client from ending it.
pub(super) fn output(path: &Path) -> Result<(OwnedFd, OwnedFd), Error> {
    let both = both(path)?;
    let again = reopen(&both);
    let writer =
        OpenOptions::new().write(true).open(&again).map_err(Error::at("open for writing", path))?;
    let reader = OpenOptions::new()
        .read(true)
        .custom_flags(nix::libc::O_NONBLOCK)
        .open(&again)
        .map_err(Error::at("open for reading", path))?;
    Ok((writer.into(), reader.into()))
}

/// A reading end for the process, and a writing one that is kept until standard input is closed. What is no fifo is
/// simply read.
pub(super) fn input(path: &Path) -> Result<(OwnedFd, Option<OwnedFd>), Error> {
    let read = |from: &Path| {
        OpenOptions::new().read(true).open(from).map_err(Error::at("open for reading", path))
    };
    if !is_fifo(path) {
        return Ok((read(path)?.into(), None));
    }
    let both = both(path)?;
    let again = reopen(&both);
    let writer =
        OpenOptions::new().write(true).open(&again).map_err(Error::at("open for writing", path))?;
    Ok((read(&again)?.into(), Some(writer.into())))
}

/// Opened for both, a fifo never makes the opener wait.
fn both(path: &Path) -> Result<File, Error> {
    OpenOptions::new().read(true).write(true).open(path).map_err(Error::at("open", path))
}

/// The same fifo again, even if its name now means something else.
fn reopen(file: &File) -> std::path::PathBuf {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}
