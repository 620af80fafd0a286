//! Pinned namespaces: mounts of their files below the pod's folder. No thread and no process holds them.
//!
//! A thread makes the namespaces, sets them up from inside, pins them, and ends. They live by the mounts alone: the shim's
//! death does not touch them, and whoever takes the pod down removes the mounts by the record.

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::{fd::AsFd, unix::fs::DirBuilderExt},
    path::{Path, PathBuf},
};

use super::{
    KeeperError, Wanted, during,
    thread::{self, Home},
};
use crate::{
    failpoint,
    released::Released,
    sys::{namespaces, pin},
};

/// Namespaces that are pinned in a folder, each at a file that has the kernel's name of its kind.
#[derive(Debug)]
pub struct Pins {
    folder: PathBuf,
}

impl Pins {
    /// Makes the namespaces and pins them in `folder`, which only root may enter. What a failure leaves there is for
    /// [`release`]. Blocks for as long as the kernel takes (well under 1 ms).
    pub fn make(wanted: &Wanted, folder: &Path) -> Result<Self, KeeperError> {
        let made = std::thread::scope(|scope| {
            let builder = std::thread::Builder::new().name("pins".into());
            let visitor = builder.spawn_scoped(scope, || {
                let home = Home::open()?;
                let files = thread::enter(wanted).and_then(|()| own_files(wanted));
                // As with a parked thread: once this has returned, only the files hold them.
                home.enter();
                files
            });
            let visitor = visitor.map_err(during("start the thread that makes the pod"))?;
            let lost = || KeeperError::Lost("the thread that makes the pod's namespaces panicked");
            visitor.join().map_err(|_| lost())?
        })?;
        match DirBuilder::new().mode(0o700).create(folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(during(format!("make {}", folder.display()))(error));
            }
            _ => {}
        }
        for (kind, file) in made {
            let path = folder.join(kind);
            pin::pin(&path, file.as_fd()).map_err(|source| KeeperError::Pin { path, source })?;
            failpoint::pass("keeper-pinned");
        }
        Ok(Self { folder: folder.to_owned() })
    }

    /// Where they are pinned.
    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

/// The files of the calling thread's namespaces, as far as they are to be the pod's: then none may be the node's.
fn own_files(wanted: &Wanted) -> Result<Vec<(&'static str, File)>, KeeperError> {
    let kinds = [("ipc", wanted.ipc), ("uts", wanted.uts.is_some())];
    let own = kinds.into_iter().filter(|(_, own)| *own).map(|(kind, _)| {
        let path = format!("/proc/thread-self/ns/{kind}");
        let is_nodes = namespaces::is_the_nodes(path.as_ref(), kind);
        if is_nodes.map_err(during(format!("tell {path} from the node's")))? {
            return Err(during(format!("pin {path}"))(io::Error::other("it is the node's")));
        }
        File::open(&path).map(|file| (kind, file)).map_err(during(format!("open {path}")))
    });
    own.collect()
}

/// Removes every pin in `folder`, and the folder.
pub(super) fn release(folder: &Path) -> Result<Released, KeeperError> {
    let failed = |what: &str| during(format!("{what} {}", folder.display()));
    let found = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Released::AlreadyGone),
        found => found.map_err(failed("read"))?,
    };
    for entry in found {
        let path = entry.map_err(failed("read"))?.path();
        pin::unpin(&path).map_err(|source| KeeperError::Pin { path, source })?;
        failpoint::pass("keeper-unpinned");
    }
    match fs::remove_dir(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove")(error)),
        _ => Ok(Released::Done),
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{Net, User},
        *,
    };

    fn wanted() -> Wanted {
        Wanted {
            pins: None,
            net: Net::Host,
            user: User::Host,
            ipc: true,
            uts: Some("moored".into()),
            shared_pid: false,
            sysctls: [("kernel.shm_rmid_forced".to_owned(), "1".to_owned())].into(),
        }
    }

    /// What `inside` gives in the pinned namespaces.
    fn visit<T: Send>(pins: &Pins, inside: impl FnOnce() -> T + Send) -> T {
        let join = || {
            for kind in ["ipc", "uts"] {
                let file = File::open(pins.folder().join(kind)).unwrap();
                nix::sched::setns(file, nix::sched::CloneFlags::empty()).unwrap();
            }
            inside()
        };
        std::thread::scope(|scope| scope.spawn(join).join().unwrap())
    }

    #[test]
    fn namespaces_are_the_pods_without_a_thread_and_go_with_their_pins() {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().join("ns");
        let pins = Pins::make(&wanted(), &at).unwrap();
        for kind in ["ipc", "uts"] {
            assert!(pin::is_pinned(&at.join(kind)), "{kind}");
            assert!(!namespaces::is_the_nodes(&at.join(kind), kind).unwrap(), "{kind}");
        }
        let (name, parameter) = visit(&pins, || {
            let parameter = fs::read_to_string("/proc/sys/kernel/shm_rmid_forced").unwrap();
            (nix::unistd::gethostname().unwrap(), parameter)
        });
        assert_eq!((name.to_str(), parameter.trim()), (Some("moored"), "1"));
        assert_ne!(nix::unistd::gethostname().unwrap(), "moored");
        assert_eq!(release(&at).unwrap(), Released::Done);
        assert!(!at.exists());
        assert_eq!(release(&at).unwrap(), Released::AlreadyGone);
    }

    #[test]
    fn what_is_the_nodes_is_not_pinned() {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().join("ns");
        let nothing = Wanted { ipc: false, uts: None, sysctls: [].into(), ..wanted() };
        Pins::make(&nothing, &at).unwrap();
        assert_eq!(fs::read_dir(&at).unwrap().count(), 0);
        // Called where nothing was unshared.
        let error = own_files(&wanted()).unwrap_err().to_string();
        assert!(error.contains("it is the node's"), "{error}");
        release(&at).unwrap();
    }

    #[test]
    fn half_of_them_and_what_a_reboot_left_are_released() {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().join("ns");
        Pins::make(&Wanted { uts: None, ..wanted() }, &at).unwrap();
        fs::write(at.join("uts"), "").unwrap();
        assert_eq!(release(&at).unwrap(), Released::Done);
        assert!(!at.exists());
    }

    #[test]
    fn a_refused_parameter_pins_nothing_and_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().join("ns");
        let sysctls = [("kernel.sem".to_owned(), "nonsense".to_owned())].into();
        let error = Pins::make(&Wanted { sysctls, ..wanted() }, &at).unwrap_err().to_string();
        assert!(error.contains("kernel.sem"), "{error}");
        assert!(!at.exists());
    }
}
