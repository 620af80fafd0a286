//! The pod's `/dev/shm`: one tmpfs, shared by the containers that share its IPC namespace.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{Error, Mount, files::remove_if_empty, kernel::Kernel};
use crate::{interleave::point, released::Released};

/// The size that a pod's shm has unless somebody says otherwise.
pub const DEFAULT_SIZE: u64 = 64 << 20;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShmRecord {
    pub path: PathBuf,
}

impl ShmRecord {
    /// The shm that [`acquire`] will make in `dir`: written to the journal before it is made.
    pub fn in_dir(dir: &Path) -> Self {
        Self { path: dir.join("shm") }
    }
}

/// Mounts a tmpfs of `size` bytes at `dir`/shm. Blocking, for a moment. May be repeated.
pub fn acquire(kernel: &dyn Kernel, dir: &Path, size: u64) -> Result<ShmRecord, Error> {
    let record = ShmRecord::in_dir(dir);
    point("make the folder of the shm");
    fs::create_dir_all(&record.path).map_err(|error| Error::at("make", &record.path, error))?;
    if kernel.is_mounted(&record.path)? {
        return Ok(record);
    }
    let size = format!("size={size}");
    let tmpfs = Mount::new("tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", &size]);
    point("mount the shm");
    kernel.mount_all(&[tmpfs], &record.path).inspect_err(|_| {
        // The mount's error is the one to hear.
        let _ = fs::remove_dir(&record.path);
    })?;
    Ok(record)
}

/// Unmounts it and removes its folder. Blocking.
pub fn release(kernel: &dyn Kernel, record: &ShmRecord) -> Result<Released, Error> {
    point("unmount the shm");
    let unmounted = kernel.unmount_all(&record.path)?;
    point("remove the folder of the shm");
    let removed = match fs::remove_dir(&record.path) {
        Ok(()) => Released::Done,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Released::AlreadyGone,
        Err(error) => return Err(Error::at("remove", &record.path, error)),
    };
    record.path.parent().map_or(Ok(()), remove_if_empty)?;
    Ok(unmounted.and(removed))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::{
        super::kernel::{FakeKernel, System},
        *,
    };
    use crate::sys::mountinfo;

    #[test]
    fn it_is_a_small_tmpfs_that_everybody_may_write_and_nobody_execute() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("pod");
        let record = acquire(&System, &dir, DEFAULT_SIZE).unwrap();
        assert_eq!(acquire(&System, &dir, DEFAULT_SIZE).unwrap(), record);
        let all = mountinfo::read().unwrap();
        let mut all = all.into_iter().filter(|entry| entry.target == record.path);
        let entry = all.next().unwrap();
        assert_eq!(all.next(), None, "mounted twice");
        assert_eq!((entry.kind.as_str(), entry.source.as_str()), ("tmpfs", "shm"));
        assert!(entry.options.starts_with("rw,nosuid,nodev,noexec"), "{entry:?}");
        assert!(entry.super_options.contains("size=65536k"), "{entry:?}");
        let mode = fs::metadata(&record.path).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o1777);
        assert_eq!(release(&System, &record).unwrap(), Released::Done);
        assert!(!dir.exists());
        assert_eq!(release(&System, &record).unwrap(), Released::AlreadyGone);
    }

    #[test]
    fn it_is_released_after_a_reboot_that_took_the_mount() {
        let folder = tempfile::tempdir().unwrap();
        let record = acquire(&FakeKernel::default(), folder.path(), DEFAULT_SIZE).unwrap();
        assert_eq!(release(&FakeKernel::default(), &record).unwrap(), Released::Done);
    }

    #[test]
    fn a_refused_mount_leaves_no_folder() {
        let folder = tempfile::tempdir().unwrap();
        let kernel = FakeKernel::default();
        kernel.refuse("mount_all", 1, 12);
        acquire(&kernel, folder.path(), DEFAULT_SIZE).unwrap_err();
        assert!(!folder.path().join("shm").exists());
    }
}
