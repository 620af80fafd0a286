//! An open journal: what it says is in memory, and every transition goes to the disk.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use super::{
    super::plan::{Journaled, Step},
    folder::{FolderLock, lock, make_and_lock},
    format::{About, Entry, FILE, Journal, JournalError, Stage, read},
};
use crate::{
    failpoint,
    id::Id,
    interleave::point,
    sys::replace::{self, Sync},
};

/// How long the journal of a new sandbox waits for whoever still removes what is left of an earlier one of its name.
const EARLIER: Duration = Duration::from_secs(10);

/// An open journal, the only one that writes it: the folder's lock is held as long as this lives.
///
/// Whatever changes it blocks for as long as the disk takes. Looking does not: memory and disk have a lock each.
#[derive(Debug)]
pub struct Store<R> {
    folder: PathBuf,
    id: Id,
    memory: Mutex<Journal<R>>,
    disk: Mutex<Disk>,
    lock: FolderLock,
}

/// What is known of the file on disk.
#[derive(Debug, Default)]
struct Disk {
    /// What it says of resources that outlive a reboot, and would say after a power cut; unknown where another process
    /// wrote it.
    lasting: Option<Vec<u8>>,
    /// The folders above it are known to outlive one.
    parents_synced: bool,
    written: Written,
}

/// How often a journal was written by this process, which costs a pod's life little, and synced, which costs more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Written {
    pub writes: u32,
    /// Writes of which the file was synced, so that a power cut leaves the old text or the new one.
    pub whole: u32,
    /// Those of which the folder was synced too, so that it leaves the new one.
    pub kept: u32,
}

/// What lies in a state folder, under its lock.
#[derive(Debug)]
pub enum Left<R> {
    Nothing,
    /// Records of containers at most: the folder of a shim of plain tasks, or of a sandbox that was not created yet.
    Records(FolderLock),
    Journal(Box<Store<R>>),
}

/// Looks into a state folder under its lock, which may take `patience` where another process holds it. Blocks.
pub fn open<R: Journaled>(folder: &Path, patience: Duration) -> Result<Left<R>, JournalError> {
    let Some(lock) = lock(folder, patience)? else { return Ok(Left::Nothing) };
    point("read the journal");
    // Read under the lock: whoever held it may have finished the work meanwhile.
    Ok(match read(folder)? {
        Some(journal) => {
            // What names nothing of the kind has nothing to lose.
            let lasting = journal.lasting().ok().filter(Vec::is_empty);
            Left::Journal(Box::new(Store::over(folder, journal, lock, lasting)))
        }
        None => Left::Records(lock),
    })
}

impl<R: Journaled> Store<R> {
    /// Starts the journal of a new sandbox. One that is there already is replaced: see to it first. Blocks, 10 s at most
    /// where another process holds the folder's lock.
    pub fn create(folder: &Path, about: About) -> Result<Self, JournalError> {
        let lock = make_and_lock(folder, EARLIER)?;
        let store = Self::over(folder, Journal::new(about), lock, Some(Vec::new()));
        store.save("create:journal")?;
        Ok(store)
    }

    fn over(
        folder: &Path,
        journal: Journal<R>,
        lock: FolderLock,
        lasting: Option<Vec<u8>>,
    ) -> Self {
        Self {
            folder: folder.to_owned(),
            id: journal.about.id.clone(),
            disk: Mutex::new(Disk { lasting, ..Disk::default() }),
            memory: Mutex::new(journal),
            lock,
        }
    }

    /// Opens an existing journal, waiting for `patience` at most where another process holds it. Blocks.
    pub fn open(folder: &Path, patience: Duration) -> Result<Option<Self>, JournalError> {
        match open(folder, patience)? {
            Left::Journal(store) => Ok(Some(*store)),
            Left::Nothing | Left::Records(_) => Ok(None),
        }
    }

    /// The lock under which the journal is written.
    pub fn lock(&self) -> &FolderLock {
        &self.lock
    }

    /// Looks at what the journal says, which does not block.
    pub fn look<T>(&self, look: impl FnOnce(&Journal<R>) -> T) -> T {
        look(&self.memory())
    }

    pub fn id(&self) -> &Id {
        &self.id
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// How often it was written and synced.
    pub fn written(&self) -> Written {
        self.disk.lock().unwrap_or_else(PoisonError::into_inner).written
    }

    /// Records that `resource` is about to be acquired; the answer names its entry.
    pub fn intend(&self, resource: R) -> Result<usize, JournalError> {
        let transition = format!("acquire:{}:intended", resource.kind());
        let index = {
            let mut journal = self.memory();
            journal.entries.push(Entry { resource, stage: Stage::Intended });
            journal.entries.len() - 1
        };
        self.save(&transition)?;
        Ok(index)
    }

    /// Records that entry `index` is held, as `resource` says now.
    pub fn held(&self, index: usize, resource: R) -> Result<(), JournalError> {
        let transition = format!("acquire:{}:held", resource.kind());
        if let Some(entry) = self.memory().entries.get_mut(index) {
            *entry = Entry { resource, stage: Stage::Held };
        }
        self.save(&transition)
    }

    /// Records what is known of entry `index` now, without changing how far it is.
    pub fn update(&self, index: usize, resource: R) -> Result<(), JournalError> {
        let transition = format!("acquire:{}:updated", resource.kind());
        if let Some(entry) = self.memory().entries.get_mut(index) {
            entry.resource = resource;
        }
        self.save(&transition)
    }

    /// Records that entry `index` is released.
    pub fn released(&self, index: usize) -> Result<(), JournalError> {
        let transition = {
            let mut journal = self.memory();
            let Some(entry) = journal.entries.get_mut(index) else { return Ok(()) };
            entry.stage = Stage::Released;
            format!("release:{}", entry.resource.kind())
        };
        self.save(&transition)
    }

    /// Records that step `done` is over (its entries with it) and step `next` begins.
    pub fn advance(
        &self,
        done: Option<Step>,
        released: &[usize],
        next: Option<Step>,
    ) -> Result<(), JournalError> {
        {
            let mut journal = self.memory();
            for index in released {
                if let Some(entry) = journal.entries.get_mut(*index) {
                    entry.stage = Stage::Released;
                }
            }
            journal.done.extend(done.map(|step| step.name().to_owned()));
            journal.current = next.map(|step| step.name().to_owned());
            journal.closed = next.is_none();
        }
        match next {
            Some(next) => self.save(&format!("stop:{next}:begin")),
            None => self.save("stop:closed"),
        }
    }

    fn memory(&self) -> MutexGuard<'_, Journal<R>> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn save(&self, transition: &str) -> Result<(), JournalError> {
        let failed =
            |source| JournalError::Io { action: "write", path: self.folder.join(FILE), source };
        let mut disk = self.disk.lock().unwrap_or_else(PoisonError::into_inner);
        // Whoever comes second writes what both have changed.
        let (text, lasting, closed) = {
            let journal = self.memory();
            (serde_json::to_vec(&*journal), journal.lasting(), journal.closed)
        };
        let text = text.map_err(|error| failed(error.into()))?;
        let lasting = lasting.map_err(|error| failed(error.into()))?;
        // A write that changes nothing of it must not lose it either.
        let sync = match &disk.lasting {
            Some(known) if *known == lasting && lasting.is_empty() => Sync::Nothing,
            Some(known) if *known == lasting => Sync::Either,
            _ => Sync::New,
        };
        if sync != Sync::Nothing {
            // Should it fail, nobody knows which text is there.
            disk.lasting = None;
        }
        replace::file(&self.folder.join(FILE), &text, 0o600, sync).map_err(failed)?;
        if sync == Sync::New && !disk.parents_synced {
            sync_parents(&self.folder).map_err(failed)?;
            disk.parents_synced = true;
        }
        disk.lasting = Some(lasting);
        let written = &mut disk.written;
        written.writes += 1;
        written.whole += u32::from(sync != Sync::Nothing);
        written.kept += u32::from(sync == Sync::New);
        if closed {
            let Written { writes, whole, kept } = *written;
            log::debug!(
                "journal of sandbox {}: {writes} writes, {whole} of them synced, {kept} with the folder",
                self.id
            );
        }
        drop(disk);
        log::trace!("journal of sandbox {}: {transition}", self.id);
        failpoint::pass(transition);
        Ok(())
    }
}

/// A folder outlives a power cut once the folder that it lies in is synced: the namespace's, the state root, and the one
/// where that was made.
fn sync_parents(folder: &Path) -> io::Result<()> {
    for parent in folder.ancestors().skip(1).take(3) {
        match replace::sync_folder(parent) {
            // Where the root's own place is a file system that cannot be synced, it was not made there.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {}
            other => other?,
        }
    }
    Ok(())
}
