//! What a journal does on a disk in trouble, and with one that is not ours.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::{
    super::{
        Executor,
        fake::{Deaf, Fake, ORDER, PLAN, Thing, about, holding},
    },
    *,
};
use crate::sys::replace;

/// A small disk of its own, which can be filled and made read-only.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn new() -> Self {
        let place = tempfile::tempdir().unwrap();
        let none: Option<&str> = None;
        mount(Some("tmpfs"), place.path(), Some("tmpfs"), MsFlags::empty(), Some("size=64k"))
            .unwrap();
        // Not to be seen by whoever else gets a copy of this machine's mounts.
        mount(none, place.path(), none, MsFlags::MS_PRIVATE, none).unwrap();
        Self(place)
    }

    fn folder(&self) -> PathBuf {
        self.0.path().join("ns/pod")
    }

    fn fill(&self) {
        let mut step = 4096;
        let mut file = fs::File::create(self.0.path().join("ballast")).unwrap();
        while step > 0 {
            if io::Write::write_all(&mut file, &vec![0; step]).is_err() {
                step /= 2;
            }
        }
    }

    fn make_read_only(&self) {
        let none: Option<&str> = None;
        let flags = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(none, self.0.path(), none, flags, none).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        umount2(self.0.path(), MntFlags::MNT_DETACH).unwrap();
    }
}

const HELD: [Thing; 3] = [Thing::First, Thing::Second, Thing::Lasting];

async fn is_taken_down(store: Store<Thing>) -> Store<Thing> {
    let fake = Fake::default();
    fake.world().held = HELD.to_vec();
    let store = Arc::new(store);
    let executor = Executor::new(PLAN, Arc::clone(&store));
    executor.run(Arc::new(fake.clone()), &Deaf).await.unwrap();
    let mut done = fake.world().done.clone();
    // What was only intended is released too.
    done.dedup();
    assert_eq!(done, ORDER);
    assert!(fake.world().held.is_empty());
    drop(executor);
    Arc::into_inner(store).unwrap()
}

fn is_out_of_space(error: &JournalError) -> bool {
    matches!(error, JournalError::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull)
}

#[tokio::test]
async fn on_a_full_disk_nothing_is_acquired_and_everything_released() {
    let disk = SmallDisk::new();
    let store = holding(&disk.folder(), &HELD);
    disk.fill();
    assert!(is_out_of_space(&store.intend(Thing::First).unwrap_err()));
    let store = is_taken_down(store).await;
    assert!(store.look(|journal| journal.closed));
    remove_folder(&disk.folder(), store.lock()).unwrap();
    assert!(!disk.folder().exists());
    disk.fill();
    assert!(is_out_of_space(&Store::<Thing>::create(&disk.folder(), about()).unwrap_err()));
}

#[tokio::test]
async fn what_a_full_disk_kept_is_written_once_there_is_room() {
    let disk = SmallDisk::new();
    let store = holding(&disk.folder(), &HELD);
    disk.fill();
    store.released(0).unwrap_err();
    fs::remove_file(disk.0.path().join("ballast")).unwrap();
    store.released(1).unwrap();
    let written = read::<Thing>(&disk.folder()).unwrap().unwrap();
    let stages: Vec<Stage> = written.entries.iter().map(|entry| entry.stage).collect();
    assert_eq!(stages, [Stage::Released, Stage::Released, Stage::Held]);
}

#[tokio::test]
async fn on_a_read_only_disk_the_journal_is_locked_read_and_taken_down() {
    let disk = SmallDisk::new();
    drop(holding(&disk.folder(), &HELD));
    disk.make_read_only();
    // Not the process that made it: a `delete`.
    let store = Store::open(&disk.folder(), Duration::ZERO).unwrap().unwrap();
    let second = Store::<Thing>::open(&disk.folder(), Duration::ZERO).unwrap_err();
    assert!(matches!(second, JournalError::Locked { .. }), "{second}");
    assert!(store.intend(Thing::First).is_err());
    let store = is_taken_down(store).await;
    let error = remove_folder(&disk.folder(), store.lock()).unwrap_err();
    assert!(error.to_string().contains("remove journal"), "{error}");
}

#[test]
fn looking_does_not_wait_for_the_disk() {
    let folder = tempfile::tempdir().unwrap();
    let store = Arc::new(holding(&folder.path().join("ns/pod"), &HELD));
    // A write that waits: the draft is a pipe that nobody reads.
    let draft = folder.path().join("ns/pod/.journal.json.new");
    nix::unistd::mkfifo(&draft, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let writes = std::thread::spawn({
        let store = Arc::clone(&store);
        move || store.released(0)
    });
    while store.look(|journal| journal.entries[0].stage != Stage::Released) {
        std::thread::yield_now();
    }
    assert!(!writes.is_finished());
    fs::OpenOptions::new().read(true).open(&draft).map(drop).unwrap();
    // The pipe has become the journal, or was broken; the next write mends it.
    let _ = writes.join().unwrap();
    store.released(1).unwrap();
    assert_eq!(read::<Thing>(&folder.path().join("ns/pod")).unwrap().unwrap().entries.len(), 3);
}

#[test]
fn a_torn_a_foreign_and_a_newer_journal_are_reported() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("journal.json");
    let read = |folder: &Path| read::<Thing>(folder);
    assert!(read(folder.path()).unwrap().is_none());
    for text in ["", "{", "[]", r#"{"version":0}"#, r#"{"version":"1"}"#, r#"{"version":1}"#] {
        fs::write(&file, text).unwrap();
        assert!(matches!(read(folder.path()), Err(JournalError::Foreign { .. })), "{text}");
    }
    fs::write(&file, r#"{"version":99}"#).unwrap();
    assert!(matches!(read(folder.path()), Err(JournalError::Newer { version: 99, .. })));
}

#[test]
fn a_second_process_waits_its_turn() {
    let folder = tempfile::tempdir().unwrap();
    let held = holding(folder.path(), &HELD);
    let open = || Store::<Thing>::open(folder.path(), Duration::ZERO);
    assert!(matches!(open(), Err(JournalError::Locked { .. })));
    drop(held);
    assert!(open().unwrap().is_some());
}

#[test]
fn what_outlives_a_reboot_is_synced_with_the_folders_above_it_once_they_are_made() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("state/ns/pod");
    let synced = || replace::SYNCED.take();
    let store = Store::create(&folder, about()).unwrap();
    store.intend(Thing::First).unwrap();
    assert!(synced().is_empty(), "nothing outlives one");
    store.intend(Thing::Lasting).unwrap();
    let above: Vec<&Path> = folder.ancestors().take(4).collect();
    assert_eq!(above[3], root.path());
    assert_eq!(synced(), above);
    store.released(1).unwrap();
    assert_eq!(synced(), [folder.as_path()], "the folders above are known to be there");
    store.released(0).unwrap();
    assert!(synced().is_empty());
}

#[test]
fn a_transition_of_what_a_reboot_takes_syncs_no_folder_and_loses_nothing_that_outlives_one() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("state/ns/pod");
    let store = Store::create(&folder, about()).unwrap();
    store.intend(Thing::Lasting).unwrap();
    store.held(0, Thing::Lasting).unwrap();
    replace::SYNCED.take();
    let first = store.intend(Thing::First).unwrap();
    store.held(first, Thing::First).unwrap();
    store.released(first).unwrap();
    assert_eq!(replace::SYNCED.take(), Vec::<PathBuf>::new());
    assert_eq!(store.written(), Written { writes: 6, whole: 5, kept: 2 });
    drop(store);
    // Whoever opens it does not know whether the last one came to sync what is there.
    let Some(store) = Store::<Thing>::open(&folder, Duration::ZERO).unwrap() else {
        panic!("it is there")
    };
    store.intend(Thing::First).unwrap();
    assert_eq!(store.written(), Written { writes: 1, whole: 1, kept: 1 });
    store.released(0).unwrap();
    store.released(first).unwrap();
    assert_eq!(store.written(), Written { writes: 3, whole: 2, kept: 2 });
}
