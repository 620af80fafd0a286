//! Unmounting that ends with nothing mounted.

use std::path::Path;

use super::Error;
use crate::{released::Released, sys::unmount};

/// Unmounts everything that is mounted at `path`, layer by layer, a busy one by detaching it. Blocking.
pub fn unmount_all(path: &Path) -> Result<Released, Error> {
    unmount::all(path).map_err(|error| Error::at("unmount", path, error))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{super::mount_all, *};
    use crate::{mounts::Mount, sys::mountinfo};

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
}
