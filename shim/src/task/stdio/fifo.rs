//! Opening what a client names, without waiting for anybody.
//!
//! A path is looked at before it is opened (`O_PATH`), since opening a fifo for one direction waits for the other; then
//! what was found is opened, whatever its name means by now.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::OpenOptionsExt,
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{FileType, Mode, OFlags, fstat, open},
    io::Errno,
};

use super::super::Error;

pub(super) enum Output {
    /// A writing end, and a reading one that keeps a vanished client from ending the process. Whether the client had
    /// opened it, or waits in its opening.
    Fifo { writer: OwnedFd, kept: OwnedFd, met: bool },
    /// A file that is appended to.
    File(File),
}

/// Something that is there, not opened yet.
struct Found<'a> {
    at: OwnedFd,
    kind: FileType,
    path: &'a Path,
}

impl<'a> Found<'a> {
    fn new(path: &'a Path) -> Result<Option<Self>, Error> {
        let at = match open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()) {
            Ok(at) => at,
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
            Err(error) => return Err(Error::at("look at", path)(error.into())),
        };
        let known = fstat(&at).map_err(|error| Error::at("look at", path)(error.into()))?;
        Ok(Some(Self { at, kind: FileType::from_raw_mode(known.st_mode), path }))
    }

    fn at(path: &'a Path) -> Result<Self, Error> {
        Self::new(path)?.ok_or_else(|| refused(path, "is not there"))
    }

    fn open(&self, options: &OpenOptions) -> Result<OwnedFd, Error> {
        let again = PathBuf::from(format!("/proc/self/fd/{}", self.at.as_raw_fd()));
        options.open(again).map(Into::into).map_err(Error::at("open", self.path))
    }

    fn appended(&self) -> Result<File, Error> {
        match self.kind {
            FileType::RegularFile | FileType::CharacterDevice => {}
            _ => return Err(refused(self.path, "is no file that output can be appended to")),
        }
        let file = self.open(File::options().append(true).custom_flags(nix::libc::O_NOCTTY))?;
        Ok(file.into())
    }
}

fn refused(path: &Path, what: &str) -> Error {
    Error::Invalid(format!("stream {}: it {what}", path.display()))
}

/// Opens a client's path for output: a fifo, or a file that is there.
pub(super) fn output(path: &Path) -> Result<Output, Error> {
    let found = Found::at(path)?;
    if found.kind != FileType::Fifo {
        return found.appended().map(Output::File);
    }
    // This fails where nobody reads. Where it does not it stays until there is another writer: the client, let in by it,
    // would read an end.
    let first = found.open(File::options().write(true).custom_flags(nix::libc::O_NONBLOCK));
    // Opened for both, a fifo never makes the opener wait, nor does it while this is open.
    let _both = found.open(File::options().read(true).write(true))?;
    let writer = found.open(File::options().write(true))?;
    let kept = found.open(File::options().read(true).custom_flags(nix::libc::O_NONBLOCK))?;
    Ok(Output::Fifo { writer, kept, met: first.is_ok() })
}

/// Opens the file of a `file://`, for appending; it and its parents are made. May sleep where the disk does.
pub(super) fn file(path: &Path) -> Result<File, Error> {
    if let Some(found) = Found::new(path)? {
        return found.appended();
    }
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(Error::at("make", parent))?;
    }
    // Should it have become a fifo meanwhile, that is an error and no wait.
    let mut options = File::options();
    options.append(true).create(true).mode(0o644).custom_flags(nix::libc::O_NONBLOCK);
    options.open(path).map_err(|error| match error.kind() {
        io::ErrorKind::IsADirectory => refused(path, "is a folder"),
        _ => Error::at("open", path)(error),
    })
}

/// A reading end for the process, and a writing one that is kept until standard input is closed. What is no fifo is
/// simply read.
pub(super) fn input(path: &Path) -> Result<(OwnedFd, Option<OwnedFd>), Error> {
    let found = Found::at(path)?;
    let read = || found.open(File::options().read(true).custom_flags(nix::libc::O_NOCTTY));
    match found.kind {
        FileType::Fifo => {}
        FileType::RegularFile | FileType::CharacterDevice => return Ok((read()?, None)),
        _ => return Err(refused(path, "is no fifo")),
    }
    let _both = found.open(File::options().read(true).write(true))?;
    let writer = found.open(File::options().write(true))?;
    Ok((read()?, Some(writer)))
}
