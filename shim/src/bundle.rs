//! Finding out that containerd has given this shim up.
//!
//! containerd removes a shim's bundle when it believes that the shim is gone, also when a client that lost patience
//! made it forget one that has just begun to serve. It cannot find such a shim again: where it listens is written in
//! the bundle.
//!
//! The bundle is looked for, not watched: the node's root may have 128 inotify instances (`fs.inotify.max_user_instances`,
//! inotify(7)) for kubelet, containerd and all pods together.

use std::{path::Path, time::Duration};

use tokio::time::Instant;

/// The shortest and the longest time between two looks.
const SOONEST: Duration = Duration::from_secs(1);
const LATEST: Duration = Duration::from_secs(15);
/// Most shims that are given up are young: a look comes after this part of the shim's age.
const PART_OF_AGE: u32 = 8;

/// Waits until the bundle is removed, whether under another name first or where it is. At once where it is gone already.
pub async fn removed(bundle: &Path) {
    let begun = Instant::now();
    while !is_gone(bundle) {
        tokio::time::sleep(pause(begun.elapsed())).await;
    }
}

fn pause(age: Duration) -> Duration {
    (age / PART_OF_AGE).clamp(SOONEST, LATEST)
}

/// Whether the bundle is certain not to be there. On the async thread: containerd's state is in memory (tmpfs), and a
/// thread for every look would cost an idle pod more than everything else that it does.
fn is_gone(bundle: &Path) -> bool {
    matches!(bundle.try_exists(), Ok(false))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[tokio::test]
    async fn a_bundle_that_is_moved_aside_or_removed_where_it_is_is_gone() {
        for aside in [true, false] {
            let folder = tempfile::tempdir().unwrap();
            let bundle = folder.path().join("bundle");
            fs::create_dir(&bundle).unwrap();
            let log = fs::File::create(bundle.join("log")).unwrap();
            let mut waiting = Box::pin(removed(&bundle));
            let short = Duration::from_millis(50);
            assert!(tokio::time::timeout(short, &mut waiting).await.is_err());
            fs::remove_file(bundle.join("log")).unwrap();
            assert!(tokio::time::timeout(short, &mut waiting).await.is_err());
            if aside {
                fs::rename(&bundle, folder.path().join(".bundle")).unwrap();
            } else {
                fs::remove_dir(&bundle).unwrap();
            }
            tokio::time::timeout(Duration::from_secs(30), waiting).await.unwrap();
            removed(&bundle).await;
            drop(log);
        }
    }

    #[test]
    fn a_young_shim_looks_often_and_an_old_one_seldom() {
        let seconds = Duration::from_secs;
        assert_eq!(pause(seconds(0)), seconds(1));
        assert_eq!(pause(seconds(40)), seconds(5));
        assert_eq!(pause(seconds(86_400)), seconds(15));
    }
}
