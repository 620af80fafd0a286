//! Being told that containerd has given this shim up.
//!
//! containerd removes a shim's bundle when it believes that the shim is gone, also when a client that lost patience
//! made it forget one that has just begun to serve. It cannot find such a shim again: where it listens is written in
//! the bundle.

use std::{io, os::fd::OwnedFd, path::Path};

use rustix::fs::inotify::{CreateFlags, WatchFlags, add_watch, init};
use tokio::io::{Interest, unix::AsyncFd};

/// Waits until the bundle is removed. At once where it is gone already.
pub async fn removed(bundle: &Path) -> io::Result<()> {
    let queue = init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
    match add_watch(&queue, bundle, WatchFlags::DELETE_SELF | WatchFlags::ONLYDIR) {
        Ok(_) => {}
        Err(rustix::io::Errno::NOENT) => return Ok(()),
        Err(error) => return Err(error.into()),
    }
    // It sends nothing but the one event that is waited for.
    watched(queue)?.readable().await.map(drop)
}

fn watched(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // The successor of this constructor is unsafe for types whose descriptor may change; an `OwnedFd`'s cannot.
    #[expect(deprecated, reason = "the only safe constructor, and sound for OwnedFd")]
    AsyncFd::with_interest(descriptor, Interest::READABLE)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn only_the_bundles_own_removal_counts() {
        let folder = tempfile::tempdir().unwrap();
        let bundle = folder.path().join("bundle");
        std::fs::create_dir(&bundle).unwrap();
        let mut waiting = Box::pin(removed(&bundle));
        let short = || Duration::from_millis(50);
        assert!(tokio::time::timeout(short(), &mut waiting).await.is_err());
        std::fs::write(bundle.join("log.json"), "").unwrap();
        std::fs::remove_file(bundle.join("log.json")).unwrap();
        assert!(tokio::time::timeout(short(), &mut waiting).await.is_err());
        // As containerd does it: under another name first.
        let aside = folder.path().join(".bundle");
        std::fs::rename(&bundle, &aside).unwrap();
        std::fs::remove_dir(&aside).unwrap();
        tokio::time::timeout(Duration::from_secs(5), waiting).await.unwrap().unwrap();
        removed(&bundle).await.unwrap();
    }
}
