//! Files that are replaced as a whole: whoever reads one finds the old text or the new one, also after a crash.

use std::{
    ffi::OsString,
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use crate::interleave::point;

/// What a power cut may leave of a file that is replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sync {
    /// Anything: an empty file as well.
    Nothing,
    /// The old text or the new one.
    Either,
    /// The new text, once the call has returned.
    New,
}

/// Writes `text` to `path` by way of a hidden file beside it, which is gone afterwards whatever happens. A new file gets
/// the permissions `mode`. Blocks.
pub fn file(path: &Path, text: &[u8], mode: u32, sync: Sync) -> io::Result<()> {
    let draft = draft_of(path);
    let replaced = write(&draft, text, mode, sync != Sync::Nothing).and_then(|()| {
        point("rename the draft");
        fs::rename(&draft, path)
    });
    if let Err(error) = replaced {
        // It is of no use to anybody, and the disk may be full.
        let _ = fs::remove_file(&draft);
        return Err(error);
    }
    match path.parent() {
        Some(folder) if sync == Sync::New => sync_folder(folder),
        _ => Ok(()),
    }
}

/// Makes what was made in a folder outlive a power cut. Blocks.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    #[cfg(test)]
    SYNCED.with_borrow_mut(|synced| synced.push(folder.to_owned()));
    File::open(folder)?.sync_all()
}

#[cfg(test)]
thread_local! {
    /// The folders that this thread has synced.
    pub(crate) static SYNCED: std::cell::RefCell<Vec<PathBuf>> = const { std::cell::RefCell::new(Vec::new()) };
}

fn draft_of(path: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".new");
    path.with_file_name(name)
}

fn write(draft: &Path, text: &[u8], mode: u32, sync: bool) -> io::Result<()> {
    let mut options = fs::OpenOptions::new();
    point("write a draft");
    let mut file = options.write(true).create(true).truncate(true).mode(mode).open(draft)?;
    file.write_all(text)?;
    if sync {
        file.sync_all()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_old_text_stays_until_the_new_one_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("record.json");
        file(&path, b"one", 0o600, Sync::New).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        // A write that fails in its middle, as on a broken disk: address 0 cannot be written (EIO).
        std::os::unix::fs::symlink("/proc/self/mem", draft_of(&path)).unwrap();
        let error = file(&path, b"two", 0o600, Sync::Nothing).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(nix::errno::Errno::EIO as i32));
        assert_eq!(fs::read(&path).unwrap(), b"one");
        assert!(fs::symlink_metadata(draft_of(&path)).is_err(), "the draft is gone");
        file(&path, b"three", 0o600, Sync::Either).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"three");
    }
}
