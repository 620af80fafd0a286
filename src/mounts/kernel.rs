//! The kernel as an outside party, for what mounts something of a pod's own.

use std::path::Path;

use super::{Error, Mount, mount_all, unmount_all};
use crate::{released::Released, sys::mountinfo};

/// What is asked of the kernel. All of it blocks.
pub trait Kernel: Send + Sync {
    /// Mounts all of `mounts` on `root`, or none.
    fn mount_all(&self, mounts: &[Mount], root: &Path) -> Result<(), Error>;
    /// Unmounts every layer at `target`.
    fn unmount_all(&self, target: &Path) -> Result<Released, Error>;
    /// Whether something is mounted at `target`.
    fn is_mounted(&self, target: &Path) -> Result<bool, Error>;
}

/// The kernel that we run on.
#[derive(Clone, Copy, Debug, Default)]
pub struct System;

impl Kernel for System {
    fn mount_all(&self, mounts: &[Mount], root: &Path) -> Result<(), Error> {
        mount_all(mounts, root)
    }

    fn unmount_all(&self, target: &Path) -> Result<Released, Error> {
        unmount_all(target)
    }

    fn is_mounted(&self, target: &Path) -> Result<bool, Error> {
        match target.canonicalize() {
            Ok(target) => mountinfo::is_mounted(&target)
                .map_err(|error| Error::system("read the mount table", error)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(Error::at("resolve", target, error)),
        }
    }
}

#[cfg(any(test, feature = "fakes"))]
pub use fake::FakeKernel;

#[cfg(any(test, feature = "fakes"))]
mod fake {
    use std::{
        collections::BTreeMap,
        io,
        path::PathBuf,
        sync::{Mutex, MutexGuard, PoisonError},
    };

    use super::{Error, Kernel, Mount, Path, Released};

    /// A kernel whose mounts are only written down.
    #[derive(Default)]
    pub struct FakeKernel {
        state: Mutex<State>,
    }

    #[derive(Default)]
    struct State {
        mounted: BTreeMap<PathBuf, Vec<Mount>>,
        refuse: BTreeMap<&'static str, (usize, i32)>,
    }

    impl FakeKernel {
        fn state(&self) -> MutexGuard<'_, State> {
            self.state.lock().unwrap_or_else(PoisonError::into_inner)
        }

        /// Refuses the next `times` calls of `name` (a method of the trait) with the error number `errno`.
        pub fn refuse(&self, name: &'static str, times: usize, errno: i32) {
            self.state().refuse.insert(name, (times, errno));
        }

        pub fn mounted(&self) -> BTreeMap<PathBuf, Vec<Mount>> {
            self.state().mounted.clone()
        }
    }

    impl State {
        fn refused(&mut self, name: &str, path: &Path) -> Result<(), Error> {
            match self.refuse.get_mut(name) {
                Some((times @ 1.., errno)) => {
                    *times -= 1;
                    Err(Error::at(name, path, io::Error::from_raw_os_error(*errno)))
                }
                _ => Ok(()),
            }
        }
    }

    impl Kernel for FakeKernel {
        fn mount_all(&self, mounts: &[Mount], root: &Path) -> Result<(), Error> {
            let mut state = self.state();
            state.refused("mount_all", root)?;
            state.mounted.entry(root.to_path_buf()).or_default().extend_from_slice(mounts);
            Ok(())
        }

        fn unmount_all(&self, target: &Path) -> Result<Released, Error> {
            let mut state = self.state();
            state.refused("unmount_all", target)?;
            let found = state.mounted.remove(target);
            Ok(if found.is_some() { Released::Done } else { Released::AlreadyGone })
        }

        fn is_mounted(&self, target: &Path) -> Result<bool, Error> {
            Ok(self.state().mounted.contains_key(target))
        }
    }
}
