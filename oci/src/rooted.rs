//! Paths within a container's root file system. Whoever made the image chose what lies there, and other containers may be
//! changing it at this moment: so nothing is looked up twice, and nothing is followed to where the root does not reach.

use std::{
    ffi::OsStr,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Component, Path, PathBuf},
};

use rustix::{
    fs::{Mode, OFlags, ResolveFlags, openat2},
    io::Errno,
};

use crate::error::{Doing, Error, Result};

/// How a path is followed: no link of /proc's own, and never out of the root.
const WITHIN: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);
/// The same for parts of the kernel's own file systems, where no link has any business.
const STRAIGHT: ResolveFlags = WITHIN.union(ResolveFlags::NO_SYMLINKS);

/// Others rename meanwhile: the kernel then wants to be asked again.
const TRIES: usize = 64;

fn open(root: BorrowedFd<'_>, path: &Path, how: ResolveFlags) -> rustix::io::Result<OwnedFd> {
    let mut answer = Err(Errno::AGAIN);
    for _ in 0..TRIES {
        answer = openat2(root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), how);
        if !matches!(answer, Err(Errno::AGAIN | Errno::INTR)) {
            break;
        }
    }
    answer
}

/// What lies at `path`; `None` when nothing does.
pub fn find(root: BorrowedFd<'_>, path: &Path, straight: bool) -> Result<Option<OwnedFd>> {
    match open(root, path, if straight { STRAIGHT } else { WITHIN }) {
        Ok(found) => Ok(Some(found)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(Errno::LOOP) => Err(Error::invalid(format!(
            "{} leads through a symbolic link where none may be",
            path.display()
        ))),
        Err(error) => Err(error).doing_at("open in the container", path),
    }
}

/// How many links to nothing are followed in the making of one path.
const MOST_LINKS: u32 = 40;

/// A folder at `path`, made with its parents where it is missing. Images have links to folders that only a container has,
/// as /var/run to /run: what such a link means is made, within the root.
pub fn folder(root: BorrowedFd<'_>, path: &Path, mode: u32, straight: bool) -> Result<OwnedFd> {
    folder_by(root, path, mode, straight, MOST_LINKS)
}

fn folder_by(
    root: BorrowedFd<'_>,
    path: &Path,
    mode: u32,
    straight: bool,
    links: u32,
) -> Result<OwnedFd> {
    if let Some(found) = find(root, path, straight)? {
        return Ok(found);
    }
    let Some((above, name)) = split(path) else {
        return find(root, Path::new("/"), straight)?
            .ok_or_else(|| Error::invalid("the container has no root"));
    };
    let folder = folder_by(root, &above, mode, straight, links)?;
    match rustix::fs::mkdirat(&folder, name, Mode::from_raw_mode(mode)) {
        Ok(()) => {}
        Err(Errno::EXIST) => {
            if let Some(target) = target_of(&folder, &above, name).filter(|_| !straight) {
                return folder_by(root, &target, mode, straight, fewer(links, path)?);
            }
        }
        Err(error) => return Err(error).doing_at("make in the container", path),
    }
    below(&folder, name, path)
}

fn fewer(links: u32, path: &Path) -> Result<u32> {
    let many = || Error::invalid(format!("{}: too many symbolic links", path.display()));
    links.checked_sub(1).ok_or_else(many)
}

/// Where the link `name` in `folder`, whose path is `above`, leads to.
fn target_of(folder: &OwnedFd, above: &Path, name: &OsStr) -> Option<PathBuf> {
    let target = rustix::fs::readlinkat(folder, name, Vec::new()).ok()?;
    Some(clean(&above.join(OsStr::from_bytes(target.as_bytes()))))
}

/// A file at `path`, made empty with the folders above it where it is missing; links as in [`folder`], such as that of
/// /etc/resolv.conf to a file below /run.
pub fn file(root: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd> {
    file_by(root, path, MOST_LINKS)
}

fn file_by(root: BorrowedFd<'_>, path: &Path, links: u32) -> Result<OwnedFd> {
    if let Some(found) = find(root, path, false)? {
        return Ok(found);
    }
    let Some((above, name)) = split(path) else {
        return Err(Error::invalid(format!("{} is no file's path", path.display())));
    };
    let folder = folder_by(root, &above, 0o755, false, links)?;
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::WRONLY;
    match rustix::fs::openat(&folder, name, flags, Mode::from_raw_mode(0o644)) {
        Ok(_) => {}
        Err(Errno::EXIST) => {
            if let Some(target) = target_of(&folder, &above, name) {
                return file_by(root, &target, fewer(links, path)?);
            }
        }
        Err(error) => return Err(error).doing_at("make in the container", path),
    }
    below(&folder, name, path)
}

/// What was just made, and nothing that a link has put in its place.
fn below(above: &OwnedFd, name: &OsStr, path: &Path) -> Result<OwnedFd> {
    let how = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    open(above.as_fd(), Path::new(name), how).doing_at("open in the container", path)
}

/// The folder above, and the name in it.
pub fn split(path: &Path) -> Option<(PathBuf, &OsStr)> {
    let path = path.components().as_path();
    match path.components().next_back()? {
        Component::Normal(name) => Some((path.parent().unwrap_or(Path::new("/")).to_owned(), name)),
        _ => None,
    }
}

/// Without `.` and `..`, as if no part were a link: what a specification means by a path.
pub fn clean(path: &Path) -> PathBuf {
    let mut clean = PathBuf::from("/");
    for part in path.components() {
        match part {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => {
                clean.pop();
            }
            _ => {}
        }
    }
    clean
}

/// Whether the clean path is of the kernel's own file systems.
pub fn is_of_the_kernel(path: &Path) -> bool {
    path.starts_with("/proc") || path.starts_with("/sys")
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    fn opened(path: &Path) -> OwnedFd {
        fs::File::open(path).unwrap().into()
    }

    #[test]
    fn links_stay_within_the_root() {
        let folder_ = tempfile::tempdir().unwrap();
        let root = folder_.path().join("root");
        fs::create_dir_all(root.join("etc")).unwrap();
        symlink("/etc", root.join("link")).unwrap();
        symlink("../../../../..", root.join("up")).unwrap();
        let fd = opened(&root);
        drop(folder(fd.as_fd(), Path::new("/link/made"), 0o755, false).unwrap());
        assert!(root.join("etc/made").is_dir());
        drop(file(fd.as_fd(), Path::new("/up/new/file")).unwrap());
        assert!(root.join("new/file").is_file());
    }

    #[test]
    fn a_link_to_what_is_not_there_yet_is_made_within_the_root() {
        let folder_ = tempfile::tempdir().unwrap();
        let root = folder_.path().join("root");
        fs::create_dir_all(root.join("var")).unwrap();
        symlink("/run/a/../b", root.join("var/run")).unwrap();
        symlink("loop", root.join("loop")).unwrap();
        let fd = opened(&root);
        drop(folder(fd.as_fd(), Path::new("/var/run/secrets"), 0o755, false).unwrap());
        assert!(root.join("run/b/secrets").is_dir());
        assert!(folder(fd.as_fd(), Path::new("/loop/x"), 0o755, false).is_err());
        // As images with systemd have it.
        fs::create_dir(root.join("etc")).unwrap();
        symlink("../run/resolve/stub.conf", root.join("etc/resolv.conf")).unwrap();
        symlink("/etc/resolv.conf", root.join("etc/again")).unwrap();
        drop(file(fd.as_fd(), Path::new("/etc/again")).unwrap());
        assert!(root.join("run/resolve/stub.conf").is_file());
        assert!(file(fd.as_fd(), Path::new("/loop")).is_err());
    }

    #[test]
    fn a_dangling_link_is_not_written_through() {
        let folder_ = tempfile::tempdir().unwrap();
        let root = folder_.path().join("root");
        fs::create_dir(&root).unwrap();
        let outside = folder_.path().join("outside");
        symlink(&outside, root.join("a")).unwrap();
        let fd = opened(&root);
        // Within the root the link's target is made, or nothing is; outside it never is.
        let _ = file(fd.as_fd(), Path::new("/a"));
        let _ = folder(fd.as_fd(), Path::new("/a/b"), 0o755, false);
        assert!(!outside.exists());
    }

    #[test]
    fn proc_by_a_link_is_refused_and_so_are_its_own_links() {
        let folder_ = tempfile::tempdir().unwrap();
        let root = folder_.path();
        fs::create_dir(root.join("real")).unwrap();
        symlink("real", root.join("proc")).unwrap();
        let fd = opened(root);
        let error = find(fd.as_fd(), Path::new("/proc"), true).unwrap_err();
        assert!(error.to_string().contains("symbolic link"), "{error}");
        let host = opened(Path::new("/"));
        let error = find(host.as_fd(), Path::new("/proc/self/root/etc"), false).unwrap_err();
        assert!(error.to_string().contains("symbolic link"), "{error}");
    }

    #[test]
    fn paths_are_cleaned_as_texts() {
        for (path, expected) in
            [("a/../b", "/b"), ("/../../x", "/x"), ("/a/./b/", "/a/b"), ("", "/")]
        {
            assert_eq!(clean(Path::new(path)), Path::new(expected));
        }
    }
}
