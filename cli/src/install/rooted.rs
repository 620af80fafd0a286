//! Files below the root that something is installed into, which may be another system's: whatever its symlinks say,
//! nothing outside of it is read or written. Files are replaced as a whole.

use std::{
    ffi::OsString,
    fs::File,
    io::{self, Read, Write},
    os::fd::OwnedFd,
    path::{Component, Path, PathBuf},
};

use mooring::sys::rooted;
use rustix::{
    fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, Uid},
    io::Errno,
};

/// A file that is larger is none that is dealt with here.
const LIMIT: u64 = 256 << 20;
/// As many symlinks as the kernel follows.
const LINKS: usize = 40;

/// The folder that stands for `/`.
#[derive(Debug)]
pub struct Root {
    folder: OwnedFd,
}

/// A file's parent and its name there, with all symlinks followed.
struct Place {
    parent: OwnedFd,
    name: OsString,
}

impl Root {
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self { folder: rustix::fs::openat(CWD, path, flags, Mode::empty())? })
    }

    /// What a plain file holds; nothing where there is none.
    pub fn read(&self, path: &Path) -> io::Result<Option<Vec<u8>>> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = match rooted::open(&self.folder, path, flags, Mode::empty()) {
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
            other => File::from(other?),
        };
        let found = file.metadata()?;
        if !found.is_file() || found.len() > LIMIT {
            return Err(io::Error::other("it is no plain file of an ordinary size"));
        }
        let mut text = Vec::new();
        file.take(LIMIT).read_to_end(&mut text)?;
        Ok(Some(text))
    }

    /// Replaces a file, or makes it with the permissions `mode`. Owner and permissions of one that was there stay.
    pub fn write(&self, path: &Path, text: &[u8], mode: u32) -> io::Result<()> {
        let place = self.place(path)?;
        let mut draft = OsString::from(".");
        draft.push(&place.name);
        draft.push(".new");
        // One that was left, or put there for somebody to write through, is none of ours.
        gone(rustix::fs::unlinkat(&place.parent, &draft, AtFlags::empty()))?;
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&place.parent, &draft, flags, Mode::from_raw_mode(mode))?;
        let written = || -> io::Result<()> {
            let mut file = File::from(file);
            file.write_all(text)?;
            let before = rustix::fs::statat(&place.parent, &place.name, AtFlags::SYMLINK_NOFOLLOW);
            let mode = match before {
                Ok(before) => {
                    let (user, group) =
                        (Uid::from_raw(before.st_uid), Gid::from_raw(before.st_gid));
                    rustix::fs::fchown(&file, Some(user), Some(group))?;
                    Mode::from_raw_mode(before.st_mode)
                }
                Err(_) => Mode::from_raw_mode(mode),
            };
            rustix::fs::fchmod(&file, mode)?;
            file.sync_all()?;
            rustix::fs::renameat(&place.parent, &draft, &place.parent, &place.name)?;
            Ok(())
        };
        let written = written();
        if written.is_err() {
            let _ = rustix::fs::unlinkat(&place.parent, &draft, AtFlags::empty());
        }
        written
    }

    /// Removes a file; none there is as good.
    pub fn remove(&self, path: &Path) -> io::Result<()> {
        match self.place(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
            Ok(place) => gone(rustix::fs::unlinkat(&place.parent, &place.name, AtFlags::empty())),
        }
    }

    /// Makes a folder and those above it. Answers the ones that were missing, the topmost first.
    pub fn make_folder(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        let mut made = Vec::new();
        let mut reached = PathBuf::from("/");
        for part in path.components() {
            let name = match part {
                Component::Normal(name) => name,
                Component::ParentDir => return Err(io::ErrorKind::InvalidInput.into()),
                _ => continue,
            };
            let flags = OFlags::PATH | OFlags::DIRECTORY;
            let parent = rooted::open(&self.folder, &reached, flags, Mode::empty())?;
            reached.push(name);
            match rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755)) {
                Ok(()) => made.push(reached.clone()),
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(made)
    }

    /// Removes a folder, unless something is in it.
    pub fn remove_folder(&self, path: &Path) -> io::Result<()> {
        let place = match self.place(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other?,
        };
        match rustix::fs::unlinkat(&place.parent, &place.name, AtFlags::REMOVEDIR) {
            Err(Errno::NOTEMPTY) => Ok(()),
            other => gone(other),
        }
    }

    /// The names in a folder, sorted; none where there is no folder.
    pub fn list(&self, path: &Path) -> io::Result<Vec<OsString>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let folder = match rooted::open(&self.folder, path, flags, Mode::empty()) {
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(Vec::new()),
            other => other?,
        };
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(&folder)? {
            let name =
                std::os::unix::ffi::OsStringExt::from_vec(entry?.file_name().to_bytes().into());
            names.push(name);
        }
        names.retain(|name| name != "." && name != "..");
        names.sort();
        Ok(names)
    }

    /// Where a path leads: a file that is a symlink is the one that it leads to, within the root.
    fn place(&self, path: &Path) -> io::Result<Place> {
        let mut path = path.to_owned();
        for _ in 0..LINKS {
            let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
            let folder = path.parent().unwrap_or(Path::new("/")).to_owned();
            let flags = OFlags::PATH | OFlags::DIRECTORY;
            let parent = rooted::open(&self.folder, &folder, flags, Mode::empty())?;
            let found = rustix::fs::statat(&parent, &name, AtFlags::SYMLINK_NOFOLLOW);
            let is_link =
                found.is_ok_and(|found| FileType::from_raw_mode(found.st_mode).is_symlink());
            if !is_link {
                return Ok(Place { parent, name });
            }
            let target = rustix::fs::readlinkat(&parent, &name, Vec::new())?.into_bytes();
            let target: OsString = std::os::unix::ffi::OsStringExt::from_vec(target);
            path = folder.join(target);
        }
        Err(Errno::LOOP.into())
    }
}

fn gone(removed: rustix::io::Result<()>) -> io::Result<()> {
    match removed {
        Err(Errno::NOENT) => Ok(()),
        other => Ok(other?),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::{PermissionsExt, symlink},
    };

    use super::*;

    #[test]
    fn no_symlink_leads_out_of_the_root() {
        let outer = tempfile::tempdir().unwrap();
        let inner = outer.path().join("root");
        fs::create_dir_all(inner.join("etc")).unwrap();
        fs::create_dir(outer.path().join("secret")).unwrap();
        fs::write(outer.path().join("secret/file"), "old").unwrap();
        let root = Root::open(&inner).unwrap();
        let outside = outer.path().join("secret");
        symlink(&outside, inner.join("absolute")).unwrap();
        symlink("../secret", inner.join("relative")).unwrap();
        symlink(outside.join("file"), inner.join("etc/link")).unwrap();
        symlink("../../secret/file", inner.join("etc/up")).unwrap();
        for path in ["/absolute/file", "/relative/file", "/../secret/file", "/etc/link", "/etc/up"]
        {
            assert!(!matches!(root.read(path.as_ref()), Ok(Some(_))), "{path} was read");
            let _ = root.write(path.as_ref(), b"new", 0o644);
            let _ = root.remove(path.as_ref());
        }
        let _ = root.make_folder("/absolute/made".as_ref());
        let _ = root.remove_folder("/absolute".as_ref());
        assert_eq!(fs::read_to_string(outside.join("file")).unwrap(), "old");
        assert!(!outside.join("made").exists());
        assert!(!outside.join(".file.new").exists());
    }

    #[test]
    fn a_file_is_replaced_where_its_link_leads_and_keeps_its_permissions() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::open(folder.path()).unwrap();
        let made = root.make_folder("/etc/real".as_ref()).unwrap();
        assert_eq!(made, [PathBuf::from("/etc"), PathBuf::from("/etc/real")]);
        let path = folder.path().join("etc/real/file");
        fs::write(&path, "old").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        symlink("/etc/real/file", folder.path().join("etc/link")).unwrap();
        // Somebody's own file in the draft's place is not written through.
        fs::write(folder.path().join("precious"), "kept").unwrap();
        symlink(folder.path().join("precious"), path.with_file_name(".file.new")).unwrap();
        root.write("/etc/link".as_ref(), b"new", 0o600).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
        assert!(folder.path().join("etc/link").is_symlink());
        assert_eq!(fs::read_to_string(folder.path().join("precious")).unwrap(), "kept");
        assert_eq!(root.list("/etc/real".as_ref()).unwrap(), ["file"]);
        assert_eq!(root.read("/etc/none".as_ref()).unwrap(), None);
        symlink("loop", folder.path().join("loop")).unwrap();
        assert!(root.write("/loop".as_ref(), b"", 0o600).is_err());
    }
}
