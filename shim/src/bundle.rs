//! Being told that containerd has given this shim up.
//!
//! containerd removes a shim's bundle when it believes that the shim is gone, also when a client that lost patience
//! made it forget one that has just begun to serve. It cannot find such a shim again: where it listens is written in
//! the bundle.

use std::{io, path::Path, time::Duration};

use mooring::sys::watched;
use rustix::fs::inotify::{CreateFlags, WatchFlags, add_watch, init};
use tokio::io::Interest;

/// What happens to a bundle and in it when it is removed: containerd moves it aside, then empties it. Its end alone does
/// not do, for it does not come while this process has a file of the bundle open (the log).
const SIGNS: WatchFlags =
    WatchFlags::MOVE_SELF.union(WatchFlags::DELETE_SELF).union(WatchFlags::DELETE);
/// When to look again after a sign: whoever empties the bundle where it is gives none for its last step.
const LOOK_AGAIN: [Duration; 3] =
    [Duration::from_millis(50), Duration::from_secs(1), Duration::from_secs(10)];

/// Waits until the bundle is removed. At once where it is gone already.
pub async fn removed(bundle: &Path) -> io::Result<()> {
    let queue = init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
    match add_watch(&queue, bundle, SIGNS | WatchFlags::ONLYDIR) {
        Ok(_) => {}
        Err(rustix::io::Errno::NOENT) => return Ok(()),
        Err(error) => return Err(error.into()),
    }
    let queue = watched(queue, Interest::READABLE)?;
    let mut events = [0; 1024];
    while bundle.exists() {
        let mut ready = queue.readable().await?;
        // Which sign it was does not matter.
        while matches!(rustix::io::read(queue.get_ref(), &mut events), Ok(1..)) {}
        ready.clear_ready();
        for pause in LOOK_AGAIN {
            if !bundle.exists() {
                return Ok(());
            }
            tokio::time::sleep(pause).await;
        }
    }
    Ok(())
}

/// Whether the bundle is certain not to be there. Looked for away from the async thread.
pub async fn is_gone(bundle: &Path) -> bool {
    let bundle = bundle.to_owned();
    let there = tokio::task::spawn_blocking(move || bundle.try_exists()).await;
    matches!(there, Ok(Ok(false)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_the_bundles_own_removal_counts() {
        let folder = tempfile::tempdir().unwrap();
        let bundle = folder.path().join("bundle");
        std::fs::create_dir(&bundle).unwrap();
        let mut waiting = Box::pin(removed(&bundle));
        let short = || Duration::from_millis(50);
        assert!(tokio::time::timeout(short(), &mut waiting).await.is_err());
        let log = std::fs::File::create(bundle.join("log")).unwrap();
        std::fs::write(bundle.join("log.json"), "").unwrap();
        std::fs::remove_file(bundle.join("log.json")).unwrap();
        assert!(tokio::time::timeout(short(), &mut waiting).await.is_err());
        // As containerd does it: under another name first.
        let aside = folder.path().join(".bundle");
        std::fs::rename(&bundle, &aside).unwrap();
        std::fs::remove_dir_all(&aside).unwrap();
        tokio::time::timeout(Duration::from_secs(5), waiting).await.unwrap().unwrap();
        removed(&bundle).await.unwrap();
        drop(log);
    }

    #[tokio::test]
    async fn a_bundle_that_is_removed_where_it_is_counts_too() {
        let folder = tempfile::tempdir().unwrap();
        let bundle = folder.path().join("bundle");
        std::fs::create_dir(&bundle).unwrap();
        // Held open, it keeps the kernel from telling of the folder's own end.
        let log = std::fs::File::create(bundle.join("log")).unwrap();
        let mut waiting = Box::pin(removed(&bundle));
        let short = || Duration::from_millis(50);
        assert!(tokio::time::timeout(short(), &mut waiting).await.is_err());
        std::fs::remove_file(bundle.join("log")).unwrap();
        // The last sign is seen while the folder is still there.
        assert!(tokio::time::timeout(short() / 2, &mut waiting).await.is_err());
        std::fs::remove_dir(&bundle).unwrap();
        tokio::time::timeout(Duration::from_secs(5), waiting).await.unwrap().unwrap();
        drop(log);
    }
}
