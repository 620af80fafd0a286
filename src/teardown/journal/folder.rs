//! The folder of a journal and of the records beside it: its lock, and its end.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::Path,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};

use super::format::{FILE, JournalError};
use crate::interleave::{pause, point};

const LOCK: &str = "lock";
/// What a journal that could not be read is called, once it is out of the way.
const ASIDE: &str = "journal.json.foreign";
/// How soon a lock that another process holds is tried again.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// The lock of a state folder: whoever changes what is in it holds this. Let go when it is dropped, and by the kernel
/// when its holder dies.
#[derive(Debug)]
pub struct FolderLock {
    _file: Flock<File>,
}

/// Makes a state folder where it is missing, and takes its lock, which may take `patience` where another process holds
/// it: one that removes the folder of an earlier sandbox, perhaps, and then it is made again. Blocks.
pub fn make_and_lock(folder: &Path, patience: Duration) -> Result<FolderLock, JournalError> {
    loop {
        make(folder).map_err(|source| JournalError::Io {
            action: "make the folder of",
            path: folder.join(FILE),
            source,
        })?;
        if let Some(lock) = lock(folder, patience)? {
            return Ok(lock);
        }
    }
}

/// The namespace's folder goes with its last sandbox, which may be between the making of the one and of the other.
fn make(folder: &Path) -> io::Result<()> {
    let make = |folder: &Path| fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
    loop {
        let parent = folder.parent().filter(|parent| !parent.as_os_str().is_empty());
        parent.map_or(Ok(()), make)?;
        point("make the state folder");
        match fs::DirBuilder::new().mode(0o700).create(folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(_) if folder.is_dir() => return Ok(()),
            other => return other,
        }
    }
}

/// Whether there is a journal in `folder`. What cannot be looked at is taken for one: opening it says why.
pub fn exists(folder: &Path) -> bool {
    point("look for a journal");
    folder.join(FILE).try_exists().unwrap_or(true)
}

/// Takes the lock of a state folder; nothing where there is no folder. Waits for `patience` at most while another
/// process holds it. Blocks.
pub fn lock(folder: &Path, patience: Duration) -> Result<Option<FolderLock>, JournalError> {
    let path = folder.join(FILE);
    let failed = |source| JournalError::Io { action: "lock", path: path.clone(), source };
    let until = Instant::now() + patience;
    loop {
        point("open the lock");
        let file = match open(&folder.join(LOCK)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        point("lock");
        let lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => lock,
            // The kernel has no wait for a lock that ends by itself.
            Err((_, Errno::EWOULDBLOCK)) if Instant::now() < until => {
                pause(LOOK_AGAIN);
                continue;
            }
            Err((_, Errno::EWOULDBLOCK)) => return Err(JournalError::Locked { path }),
            Err((_, errno)) => return Err(failed(errno.into())),
        };
        // Whoever held it may have removed the folder, and another may have made it anew meanwhile: then this is a
        // lock on nothing.
        point("look at the lock");
        match fs::metadata(folder.join(LOCK)) {
            Ok(found) if found.ino() == lock.metadata().map_err(failed)?.ino() => {
                return Ok(Some(FolderLock { _file: lock }));
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
    }
}

/// Whether another process holds the lock of a state folder at this moment. It is asked for with a lock that excludes no
/// reader, and let go at once; nothing is made.
pub fn is_locked(folder: &Path) -> io::Result<bool> {
    let file = match File::open(folder.join(LOCK)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        other => other?,
    };
    match Flock::lock(file, FlockArg::LockSharedNonblock) {
        Ok(_) => Ok(false),
        Err((_, Errno::EWOULDBLOCK)) => Ok(true),
        Err((_, errno)) => Err(errno.into()),
    }
}

/// Opened for reading: a read-only file system is locked as well, and a shim does not keep one from becoming read-only.
fn open(lock: &Path) -> io::Result<File> {
    match File::open(lock) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            point("make the lock");
            let mut making = fs::OpenOptions::new();
            making.write(true).create(true).truncate(false).mode(0o600).open(lock)?;
            point("open the new lock");
            File::open(lock)
        }
        other => other,
    }
}

/// Moves a journal that cannot be read out of the way, for whoever wants to look at it.
pub fn set_aside(folder: &Path) -> Result<(), JournalError> {
    let path = folder.join(FILE);
    fs::rename(&path, folder.join(ASIDE)).map_err(|source| JournalError::Io {
        action: "set aside",
        path,
        source,
    })
}

/// Whether there is a journal that was moved out of the way.
pub fn was_set_aside(folder: &Path) -> bool {
    folder.join(ASIDE).exists()
}

pub fn remove(folder: &Path, _: &FolderLock) -> Result<(), JournalError> {
    for file in [FILE, ".journal.json.new"] {
        let path = folder.join(file);
        point("remove the journal");
        gone(fs::remove_file(&path)).map_err(|source| JournalError::Io {
            action: "remove",
            path,
            source,
        })?;
    }
    Ok(())
}

/// Removes a sandbox's state folder, and the namespace's folder with its last sandbox. The lock goes last: whoever comes
/// anew after that finds nothing that is removed any more.
pub fn remove_folder(folder: &Path, _: &FolderLock) -> Result<(), JournalError> {
    let failed = |source| JournalError::Io { action: "remove", path: folder.to_owned(), source };
    point("list the state folder");
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(failed)?,
    };
    for entry in entries {
        let entry = entry.map_err(failed)?;
        if entry.file_name() == LOCK {
            continue;
        }
        let is_folder = entry.file_type().map_err(failed)?.is_dir();
        let path = entry.path();
        point("empty the state folder");
        gone(if is_folder { fs::remove_dir_all(path) } else { fs::remove_file(path) })
            .map_err(failed)?;
    }
    point("remove the lock");
    gone(fs::remove_file(folder.join(LOCK))).map_err(failed)?;
    point("remove the state folder");
    match gone(fs::remove_dir(folder)) {
        // A new shim of this name was waiting for the lock's end.
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => return Ok(()),
        other => other.map_err(failed)?,
    }
    if let Some(parent) = folder.parent() {
        point("remove the namespace's folder");
        // Any other sandbox's folder keeps it.
        let _ = fs::remove_dir(parent);
    }
    Ok(())
}

/// What is not there any more need not be removed.
fn gone(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
