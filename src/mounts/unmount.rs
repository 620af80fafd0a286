//! Unmounting that ends with nothing mounted: every layer, a busy one by detaching it.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::{
    io::Errno,
    mount::{UnmountFlags, unmount},
};

use super::Error;
use crate::{released::Released, sys::mountinfo};

/// How long to wait for a busy mount before it is detached: five times, doubled each time, 31 ms in all.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const PAUSES: u32 = 5;
/// More layers than this on one folder are no pod's; the number only keeps a broken kernel from holding us for ever.
const MOST_LAYERS: usize = 10_000;

/// Unmounts everything that is mounted at `path`, layer by layer. Blocking.
///
/// A mount that stays busy for some milliseconds is detached: gone from the tree at once, freed by its last user.
pub fn unmount_all(path: &Path) -> Result<Released, Error> {
    let mut found = Released::AlreadyGone;
    for _ in 0..MOST_LAYERS {
        match unmount_patiently(path) {
            Ok(()) => found = Released::Done,
            // Nothing is mounted here, or there is no here.
            Err(Errno::INVAL | Errno::NOENT | Errno::NOTDIR) => return Ok(found),
            Err(errno) => return Err(Error::at("unmount", path, errno)),
        }
    }
    Err(Error::at("unmount", path, Errno::LOOP))
}

fn unmount_patiently(path: &Path) -> rustix::io::Result<()> {
    let mut pause = FIRST_PAUSE;
    for _ in 0..PAUSES {
        match unmount(path, UnmountFlags::NOFOLLOW) {
            Err(Errno::BUSY) => {}
            answer => return answer,
        }
        std::thread::sleep(pause);
        pause *= 2;
    }
    unmount(path, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH)
}

/// Unmounts everything that is mounted at or below `dir`, the deepest first. Blocking.
///
/// A failure does not keep the others mounted; the first one is returned.
pub fn unmount_tree(dir: &Path) -> Result<Released, Error> {
    // The table has no symlinks in its paths.
    let dir = match fs::canonicalize(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Ok(Released::AlreadyGone);
        }
        answer => answer.map_err(|error| Error::at("resolve", dir, error))?,
    };
    let mut targets: Vec<PathBuf> = mountinfo::read()
        .map_err(|error| Error::system("read the mount table", error))?
        .into_iter()
        .map(|entry| entry.target)
        .filter(|target| target.starts_with(&dir))
        .collect();
    targets.sort_by_key(|target| std::cmp::Reverse(target.components().count()));
    targets.dedup();
    let mut released = Released::AlreadyGone;
    let mut failed = None;
    for target in targets {
        match unmount_all(&target) {
            Ok(one) => released = released.and(one),
            Err(error) => {
                log::warn!("{error}");
                failed.get_or_insert(error);
            }
        }
    }
    failed.map_or(Ok(released), Err)
}

#[cfg(test)]
mod tests {
    use super::{super::mount_all, *};
    use crate::mounts::Mount;

    fn tmpfs(target: &Path) {
        mount_all(&[Mount::new("tmpfs", "tmpfs", &["size=1m"])], target).unwrap();
    }

    #[test]
    fn every_layer_is_unmounted_and_a_second_time_finds_nothing() {
        let folder = tempfile::tempdir().unwrap();
        (0..3).for_each(|_| tmpfs(folder.path()));
        assert_eq!(unmount_all(folder.path()).unwrap(), Released::Done);
        assert!(!mountinfo::is_mounted(folder.path()).unwrap());
        assert_eq!(unmount_all(folder.path()).unwrap(), Released::AlreadyGone);
    }

    #[test]
    fn an_absent_target_is_already_gone() {
        let folder = tempfile::tempdir().unwrap();
        let absent = folder.path().join("a/b");
        assert_eq!(unmount_all(&absent).unwrap(), Released::AlreadyGone);
        assert_eq!(unmount_tree(&absent).unwrap(), Released::AlreadyGone);
    }

    #[test]
    fn a_busy_mount_is_detached() {
        let folder = tempfile::tempdir().unwrap();
        tmpfs(folder.path());
        let held = fs::File::create(folder.path().join("held")).unwrap();
        assert_eq!(unmount_all(folder.path()).unwrap(), Released::Done);
        assert!(!mountinfo::is_mounted(folder.path()).unwrap());
        drop(held);
    }

    #[test]
    fn a_symlink_is_not_followed_to_what_it_points_to() {
        let folder = tempfile::tempdir().unwrap();
        let real = folder.path().join("real");
        fs::create_dir(&real).unwrap();
        tmpfs(&real);
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&real, &link).unwrap();
        assert_eq!(unmount_all(&link).unwrap(), Released::AlreadyGone);
        assert!(mountinfo::is_mounted(&real).unwrap());
        unmount_all(&real).unwrap();
    }

    #[test]
    fn a_tree_is_unmounted_whatever_its_names_and_its_neighbour_stays() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("tree");
        let neighbour = folder.path().join("tree-2");
        let deep = dir.join("a b").join("c\\d\ne");
        fs::create_dir_all(dir.join("a b")).unwrap();
        fs::create_dir_all(&neighbour).unwrap();
        tmpfs(&neighbour);
        tmpfs(&dir.join("a b"));
        fs::create_dir_all(&deep).unwrap();
        tmpfs(&deep);
        tmpfs(&deep);
        assert_eq!(unmount_tree(&dir).unwrap(), Released::Done);
        assert!(!mountinfo::read().unwrap().iter().any(|entry| entry.target.starts_with(&dir)));
        assert!(mountinfo::is_mounted(&neighbour).unwrap());
        assert_eq!(unmount_tree(&dir).unwrap(), Released::AlreadyGone);
        unmount_all(&neighbour).unwrap();
    }
}
