//! The socket that containerd finds a shim by.

use std::{
    fmt::Write,
    fs::{self, File},
    io,
    os::fd::AsRawFd,
    os::unix::{
        fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
        net::UnixListener,
    },
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket},
};
use sha2::{Digest, Sha256};
use thiserror::Error;

/// Where sockets lie unless containerd says otherwise.
pub const FOLDER: &str = "/run/containerd/s";
/// The longest path that every client can connect to.
const LONGEST: usize = 104;

/// No socket could be made.
#[derive(Debug, Error)]
pub enum Error {
    /// The path is longer than a socket's may be.
    #[error("socket path {path} is longer than {LONGEST} bytes", path = .0.display())]
    TooLong(PathBuf),
    #[error("{operation} {path}: {source}", path = path.display())]
    Io {
        operation: &'static str,
        /// What it was done to.
        path: PathBuf,
        source: io::Error,
    },
}

#[derive(Debug)]
pub enum Bound {
    /// A shim is there already and takes connections.
    Served,
    /// This process does from now on; nobody else did, or nobody living.
    Ours(UnixListener),
}

/// The socket of the shim that serves `id` for the containerd at `grpc_address`.
pub fn path(folder: &Path, grpc_address: &Path, namespace: &str, id: &str) -> PathBuf {
    let name = grpc_address.join(namespace).join(id);
    let digest = Sha256::digest(name.as_os_str().as_encoded_bytes());
    let hex = digest.iter().fold(String::with_capacity(64), |mut hex, byte| {
        // Writing to a string cannot fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    });
    folder.join(hex)
}

/// The socket as containerd wants it told.
pub fn address(path: &Path) -> String {
    format!("unix://{}", path.display())
}

/// Listens on `path`, unless somebody living does.
pub fn bind(path: &Path) -> Result<Bound, Error> {
    if path.as_os_str().len() > LONGEST {
        return Err(Error::TooLong(path.into()));
    }
    let folder = path.parent().unwrap_or(Path::new("/"));
    let failed = |operation, path: &Path| {
        let path = path.to_owned();
        move |source| Error::Io { operation, path, source }
    };
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(failed("make the folder", folder))?;
    // Between bind and listen a socket looks as dead as one whose shim is gone: one at a time.
    let _one_at_a_time = lock(folder).map_err(failed("lock the folder", folder))?;
    let listener = match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            if serves(path) {
                return Ok(Bound::Served);
            }
            remove(path).map_err(failed("remove the stale socket", path))?;
            UnixListener::bind(path)
        }
        other => other,
    };
    let listener = listener.map_err(failed("bind", path))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))
        .map_err(failed("restrict", path))?;
    Ok(Bound::Ours(listener))
}

/// Whether somebody takes connections there. A full queue has somebody behind it too.
pub fn serves(path: &Path) -> bool {
    let Ok(address) = UnixAddr::new(path) else { return false };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let Ok(socket) = socket(AddressFamily::Unix, SockType::Stream, flags, None) else {
        // Nothing can be said without a socket of our own: do not take the address from anybody.
        return true;
    };
    matches!(connect(socket.as_raw_fd(), &address), Ok(()) | Err(Errno::EAGAIN))
}

/// Removes a socket that nobody serves. Under the lock that [`bind`] takes: one that is being bound looks as dead.
pub fn remove_dead(path: &Path) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    let _one_at_a_time = match lock(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    if serves(path) { Ok(()) } else { remove(path) }
}

/// Removes a socket; none there is as good.
pub fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn lock(folder: &Path) -> io::Result<Flock<File>> {
    let file = File::options().read(true).custom_flags(nix::libc::O_DIRECTORY).open(folder)?;
    Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| errno.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_is_the_digest_of_who_and_what() {
        let path =
            path(Path::new(FOLDER), Path::new("/run/containerd/containerd.sock"), "k8s.io", "a");
        // printf /run/containerd/containerd.sock/k8s.io/a | sha256sum
        assert_eq!(
            path.to_str().unwrap(),
            "/run/containerd/s/0b3c2065c4ad3e641dd16f5e2616734bf417fa5579f1c3b8f774f802cfa45e4b"
        );
    }

    #[test]
    fn a_living_shim_is_found_and_a_dead_ones_socket_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s").join("a");
        let Bound::Ours(first) = bind(&path).unwrap() else { panic!("it was free") };
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
        assert!(matches!(bind(&path).unwrap(), Bound::Served));
        drop(first);
        assert!(!serves(&path));
        assert!(matches!(bind(&path).unwrap(), Bound::Ours(_)));
    }

    #[test]
    fn a_dead_socket_is_removed_and_not_the_one_that_takes_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        drop(UnixListener::bind(&path).unwrap());
        remove_dead(&path).unwrap();
        assert!(!path.exists());
        drop(UnixListener::bind(&path).unwrap());
        // As another shim does that is being started.
        let one_at_a_time = lock(folder.path()).unwrap();
        let removal = std::thread::spawn({
            let path = path.clone();
            move || remove_dead(&path)
        });
        std::thread::sleep(std::time::Duration::from_millis(200));
        assert!(!removal.is_finished(), "it waits for its turn");
        remove(&path).unwrap();
        let _new = UnixListener::bind(&path).unwrap();
        drop(one_at_a_time);
        removal.join().unwrap().unwrap();
        assert!(serves(&path));
    }

    #[test]
    fn a_path_that_is_too_long_is_refused() {
        let path = Path::new("/tmp").join("x".repeat(LONGEST));
        assert!(matches!(bind(&path), Err(Error::TooLong(_))));
    }
}
