//! The folder of a journal and of the records beside it: its lock, and its end.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::Path,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};

use super::format::{FILE, JournalError};

const LOCK: &str = "lock";
/// How soon a lock that another process holds is tried again.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// The lock of a state folder: whoever changes what is in it holds this. Let go when it is dropped, and by the kernel
/// when its holder dies.
#[derive(Debug)]
pub struct FolderLock {
    _file: Flock<File>,
}

/// Whether there is a journal in `folder`. What cannot be looked at is taken for one: opening it says why.
pub fn exists(folder: &Path) -> bool {
    folder.join(FILE).try_exists().unwrap_or(true)
}

/// Takes the lock of a state folder; nothing where there is no folder. Waits for `patience` at most while another
/// process holds it. Blocks.
pub fn lock(folder: &Path, patience: Duration) -> Result<Option<FolderLock>, JournalError> {
    let path = folder.join(FILE);
    let failed = |source| JournalError::Io { action: "lock", path: path.clone(), source };
    let until = Instant::now() + patience;
    loop {
        let file = match open(&folder.join(LOCK)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        let lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => lock,
            // The kernel has no wait for a lock that ends by itself.
            Err((_, Errno::EWOULDBLOCK)) if Instant::now() < until => {
                std::thread::sleep(LOOK_AGAIN);
                continue;
            }
            Err((_, Errno::EWOULDBLOCK)) => return Err(JournalError::Locked { path }),
            Err((_, errno)) => return Err(failed(errno.into())),
        };
        // Whoever held it may have removed the folder, and another may have made it anew meanwhile: then this is a
        // lock on nothing.
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

/// Opened for reading: a read-only file system is locked as well, and a shim does not keep one from becoming read-only.
fn open(lock: &Path) -> io::Result<File> {
    match File::open(lock) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let mut making = fs::OpenOptions::new();
            making.write(true).create(true).truncate(false).mode(0o600).open(lock)?;
            File::open(lock)
        }
        other => other,
    }
}

/// Moves a journal that cannot be read out of the way, for whoever wants to look at it.
pub fn set_aside(folder: &Path) -> Result<(), JournalError> {
    let path = folder.join(FILE);
    fs::rename(&path, folder.join("journal.json.foreign")).map_err(|source| JournalError::Io {
        action: "set aside",
        path,
        source,
    })
}

pub fn remove(folder: &Path, _: &FolderLock) -> Result<(), JournalError> {
    for file in [FILE, ".journal.json.new"] {
        let path = folder.join(file);
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
        gone(if is_folder { fs::remove_dir_all(path) } else { fs::remove_file(path) })
            .map_err(failed)?;
    }
    gone(fs::remove_file(folder.join(LOCK))).map_err(failed)?;
    match gone(fs::remove_dir(folder)) {
        // A new shim of this name was waiting for the lock's end.
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => return Ok(()),
        other => other.map_err(failed)?,
    }
    if let Some(parent) = folder.parent() {
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
