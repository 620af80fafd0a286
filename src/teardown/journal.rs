//! The journal: one small file per sandbox that says what was acquired and how far the teardown is.
//!
//! Every transition is written before the deed (intent) and after it (outcome): to a temporary file that is renamed
//! over the old one. A killed process loses nothing that way, since the page cache outlives it. What a reboot
//! destroys anyway (namespaces, mounts, processes, cgroups) needs no more than that; as soon as the journal names
//! something that outlives a reboot (a CNI attachment and its address, a snapshot, a lease), file and folder are
//! also synced at each transition.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::plan::Step;
use crate::{
    cgroup::pod::PodCgroupRecord,
    error::{Code, Coded},
    failpoint,
    id::Id,
    keeper::KeeperRecord,
    mounts::{files::FilesRecord, shm::ShmRecord},
    network::{AttachmentRecord, netns::NetnsRecord},
    sys::boot::BootId,
    volumes::{lease::LeaseRecord, volume::ImageVolumeRecord},
};

/// The version that this build writes. It reads all from 1 to this one.
pub const VERSION: u32 = 1;
const FILE: &str = "journal.json";
const LOCK: &str = "lock";
/// How soon a lock that another process holds is tried again.
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// The most that a journal may hold, in bytes; a larger file is none of ours.
const LIMIT: u64 = 16 << 20;

/// Something that a sandbox holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Resource {
    /// The pod's cgroup.
    Cgroup(PodCgroupRecord),
    /// hosts, resolv.conf, hostname.
    Files(FilesRecord),
    /// The pod's /dev/shm.
    Shm(ShmRecord),
    /// A network namespace that the shim made.
    Netns(NetnsRecord),
    /// What keeps the namespaces.
    Keeper(KeeperRecord),
    /// CNI attachments.
    Network(Box<AttachmentRecord>),
    /// A mounted image.
    ImageVolume(ImageVolumeRecord),
    /// The lease that keeps the sandbox's snapshots.
    Lease(LeaseRecord),
}

impl Resource {
    /// The kind's name in failpoints and logs.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Cgroup(_) => "cgroup",
            Self::Files(_) => "files",
            Self::Shm(_) => "shm",
            Self::Netns(_) => "netns",
            Self::Keeper(_) => "keeper",
            Self::Network(_) => "network",
            Self::ImageVolume(_) => "image_volume",
            Self::Lease(_) => "lease",
        }
    }

    /// Whether it is still there after a reboot.
    fn outlives_reboot(&self) -> bool {
        matches!(self, Self::Network(_) | Self::ImageVolume(_) | Self::Lease(_))
    }
}

/// How far a resource is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// About to be acquired: it may be there, in part or in whole.
    Intended,
    /// Acquired.
    Held,
    /// Released.
    Released,
}

/// A resource and how far it is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// What it is.
    pub resource: Resource,
    /// How far it is.
    pub state: State,
}

/// What identifies the sandbox and its shim.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct About {
    /// containerd's namespace.
    pub namespace: Id,
    /// The sandbox's id.
    pub id: Id,
    /// The sandbox's bundle.
    pub bundle: PathBuf,
    /// containerd's gRPC socket.
    #[serde(default)]
    pub grpc_address: PathBuf,
    /// When the sandbox was created.
    pub created_at: SystemTime,
    /// The folder of the pod's files and mounts.
    #[serde(default)]
    pub run_dir: PathBuf,
    /// The process id of its shim, which is also the session of everything that the shim starts.
    #[serde(default)]
    pub shim: Option<i32>,
    /// The boot in which the sandbox was created.
    #[serde(default)]
    pub boot: Option<BootId>,
}

/// The journal's content.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Journal {
    /// The format's version.
    pub version: u32,
    /// Whose it is.
    pub about: About,
    /// What the sandbox holds, in the order of acquisition.
    #[serde(default)]
    pub entries: Vec<Entry>,
    /// The step that is under way.
    #[serde(default)]
    pub current: Option<Step>,
    /// The steps that are done.
    #[serde(default)]
    pub done: Vec<Step>,
    /// Whether the teardown is complete.
    #[serde(default)]
    pub closed: bool,
}

impl Journal {
    fn outlives_reboot(&self) -> bool {
        let lasting =
            |entry: &Entry| entry.resource.outlives_reboot() && entry.state != State::Released;
        self.entries.iter().any(lasting)
    }
}

/// The journal cannot be read or written.
#[derive(Debug, Error)]
pub enum JournalError {
    /// The file system refused.
    #[error("{deed} journal {path}: {source}")]
    Io {
        /// What was being done.
        deed: &'static str,
        /// The journal.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The file is torn or no journal of ours.
    #[error("journal {path} is torn or not Mooring's: {reason}")]
    Foreign {
        /// The journal.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A later Mooring wrote it.
    #[error("journal {path} has version {version}, this Mooring reads up to {VERSION}")]
    Newer {
        /// The journal.
        path: PathBuf,
        /// Its version.
        version: u64,
    },
    /// Somebody else works on it.
    #[error("journal {path} is locked by another process of Mooring")]
    Locked {
        /// The journal.
        path: PathBuf,
    },
}

impl Coded for JournalError {
    fn code(&self) -> Code {
        match self {
            Self::Locked { .. } => Code::Unavailable,
            _ => Code::Unknown,
        }
    }
}

/// Whether there is a journal in `folder`. What cannot be looked at is taken for one: opening it says why.
pub fn exists(folder: &Path) -> bool {
    folder.join(FILE).try_exists().unwrap_or(true)
}

/// Reads the journal in `folder`, if there is one.
pub fn read(folder: &Path) -> Result<Option<Journal>, JournalError> {
    let path = folder.join(FILE);
    let foreign = |reason: String| JournalError::Foreign { path: path.clone(), reason };
    let text = match fs::metadata(&path) {
        Ok(found) if found.len() > LIMIT => return Err(foreign(format!("{} bytes", found.len()))),
        Ok(_) => fs::read(&path),
        Err(error) => Err(error),
    };
    let text = match text {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(JournalError::Io { deed: "read", path, source }),
    };
    let value: serde_json::Value =
        serde_json::from_slice(&text).map_err(|error| foreign(error.to_string()))?;
    match value.get("version").and_then(serde_json::Value::as_u64) {
        Some(version) if version > u64::from(VERSION) => Err(JournalError::Newer { path, version }),
        Some(1..) => {
            serde_json::from_value(value).map(Some).map_err(|error| foreign(error.to_string()))
        }
        _ => Err(foreign("it has no version".into())),
    }
}

/// An open journal, the only one that writes it: the folder's lock is held as long as this lives.
#[derive(Debug)]
pub struct Store {
    folder: PathBuf,
    journal: Journal,
    /// Whether the file on disk may name something that outlives a reboot.
    synced: bool,
    lock: FolderLock,
}

/// The lock of a state folder: whoever changes what is in it holds this. Let go when it is dropped, and by the kernel
/// when its holder dies.
#[derive(Debug)]
pub struct FolderLock {
    _file: nix::fcntl::Flock<File>,
}

/// What lies in a state folder, under its lock.
#[derive(Debug)]
pub enum Left {
    /// There is no folder.
    Nothing,
    /// Records of containers at most: the folder of a shim of plain tasks, or of a sandbox that was not created yet.
    Records(FolderLock),
    /// A sandbox's journal.
    Journal(Box<Store>),
}

impl Store {
    /// Starts the journal of a new sandbox. One that is there already is replaced: see to it first.
    pub fn create(folder: &Path, about: About) -> Result<Self, JournalError> {
        let path = folder.join(FILE);
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
        made.map_err(|source| JournalError::Io {
            deed: "make the folder of",
            path: path.clone(),
            source,
        })?;
        let lock = lock(folder, Duration::ZERO)?.ok_or_else(|| JournalError::Io {
            deed: "lock",
            path,
            source: io::ErrorKind::NotFound.into(),
        })?;
        let journal = Journal {
            version: VERSION,
            about,
            entries: vec![],
            current: None,
            done: vec![],
            closed: false,
        };
        let mut store = Self { folder: folder.to_owned(), journal, synced: false, lock };
        store.save("create:journal")?;
        Ok(store)
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

    /// What the journal says.
    pub fn journal(&self) -> &Journal {
        &self.journal
    }

    /// The sandbox's state folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Records that `resource` is about to be acquired; the answer names its entry.
    pub fn intend(&mut self, resource: Resource) -> Result<usize, JournalError> {
        let transition = format!("acquire:{}:intended", resource.kind());
        self.journal.entries.push(Entry { resource, state: State::Intended });
        self.save(&transition)?;
        Ok(self.journal.entries.len() - 1)
    }

    /// Records that entry `index` is held, as `resource` says now.
    pub fn held(&mut self, index: usize, resource: Resource) -> Result<(), JournalError> {
        let transition = format!("acquire:{}:held", resource.kind());
        if let Some(entry) = self.journal.entries.get_mut(index) {
            *entry = Entry { resource, state: State::Held };
        }
        self.save(&transition)
    }

    /// Records what is known of entry `index` now, without changing how far it is.
    pub fn update(&mut self, index: usize, resource: Resource) -> Result<(), JournalError> {
        let transition = format!("acquire:{}:updated", resource.kind());
        if let Some(entry) = self.journal.entries.get_mut(index) {
            entry.resource = resource;
        }
        self.save(&transition)
    }

    /// Records that entry `index` is released. With several entries of a step each is recorded by itself.
    pub fn released(&mut self, index: usize) -> Result<(), JournalError> {
        let Some(entry) = self.journal.entries.get_mut(index) else { return Ok(()) };
        entry.state = State::Released;
        let transition = format!("release:{}", entry.resource.kind());
        self.save(&transition)
    }

    /// Records that step `done` is over (its entries with it) and step `next` begins.
    pub fn advance(
        &mut self,
        done: Option<Step>,
        released: &[usize],
        next: Option<Step>,
    ) -> Result<(), JournalError> {
        for index in released {
            if let Some(entry) = self.journal.entries.get_mut(*index) {
                entry.state = State::Released;
            }
        }
        self.journal.done.extend(done);
        self.journal.current = next;
        self.journal.closed = next.is_none();
        let transition = match (done, next) {
            (_, Some(next)) => format!("stop:{next}:begin"),
            (_, None) => "stop:closed".into(),
        };
        self.save(&transition)
    }

    fn save(&mut self, transition: &str) -> Result<(), JournalError> {
        let sync = self.journal.outlives_reboot() || self.synced;
        self.synced = self.journal.outlives_reboot();
        write(&self.folder, &self.journal, sync).map_err(|source| JournalError::Io {
            deed: "write",
            path: self.folder.join(FILE),
            source,
        })?;
        log::trace!("journal of sandbox {}: {transition}", self.journal.about.id);
        failpoint::pass(transition);
        Ok(())
    }
}

/// Moves a journal that cannot be read out of the way, for whoever wants to look at it.
pub fn set_aside(folder: &Path) -> Result<(), JournalError> {
    let path = folder.join(FILE);
    fs::rename(&path, folder.join("journal.json.foreign")).map_err(|source| JournalError::Io {
        deed: "set aside",
        path,
        source,
    })
}

/// Removes the journal alone.
pub fn remove(folder: &Path, _: &FolderLock) -> Result<(), JournalError> {
    for file in [FILE, "journal.json.new"] {
        let path = folder.join(file);
        gone(fs::remove_file(&path)).map_err(|source| JournalError::Io {
            deed: "remove",
            path,
            source,
        })?;
    }
    Ok(())
}

/// Removes a sandbox's state folder, and the namespace's folder with its last sandbox. The lock goes last: whoever comes
/// anew after that finds nothing that is removed any more.
pub fn remove_folder(folder: &Path, _: &FolderLock) -> Result<(), JournalError> {
    let failed = |source| JournalError::Io { deed: "remove", path: folder.to_owned(), source };
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(failed)?,
    };
    for entry in entries {
        let entry = entry.map_err(failed)?;
        if entry.file_name() == LOCK {
            continue;
        }
        let is_folder = entry.file_type().map_err(failed)?.is_dir();
        let path = entry.path();
        gone(if is_folder { fs::remove_dir_all(path) } else { fs::remove_file(path) })
            .map_err(failed)?;
    }
    gone(fs::remove_file(folder.join(LOCK))).map_err(failed)?;
    match gone(fs::remove_dir(folder)) {
        // A new shim of this name was waiting for the lock's end.
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => return Ok(()),
        other => other.map_err(failed)?,
    }
    if let Some(parent) = folder.parent() {
        // Any other sandbox's folder keeps it.
        let _ = fs::remove_dir(parent);
    }
    Ok(())
}

/// What is not there any more need not be removed.
fn gone(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn write(folder: &Path, journal: &Journal, sync: bool) -> io::Result<()> {
    let temporary = folder.join("journal.json.new");
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)?;
    file.write_all(&serde_json::to_vec(journal)?)?;
    if sync {
        file.sync_all()?;
    }
    fs::rename(&temporary, folder.join(FILE))?;
    if sync {
        File::open(folder)?.sync_all()?;
    }
    Ok(())
}

/// Looks into a state folder under its lock, which may take `patience` where another process holds it. Blocks.
pub fn open(folder: &Path, patience: Duration) -> Result<Left, JournalError> {
    let Some(lock) = lock(folder, patience)? else { return Ok(Left::Nothing) };
    // Read under the lock: whoever held it may have finished the work meanwhile.
    Ok(match read(folder)? {
        Some(journal) => {
            let synced = journal.outlives_reboot();
            Left::Journal(Box::new(Store { folder: folder.to_owned(), journal, synced, lock }))
        }
        None => Left::Records(lock),
    })
}

/// Takes the lock of a state folder; nothing where there is no folder. Waits for `patience` at most while another
/// process holds it. Blocks.
pub fn lock(folder: &Path, patience: Duration) -> Result<Option<FolderLock>, JournalError> {
    use nix::fcntl::{Flock, FlockArg};
    let path = folder.join(FILE);
    let failed = |source| JournalError::Io { deed: "lock", path: path.clone(), source };
    let until = Instant::now() + patience;
    loop {
        let file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(folder.join(LOCK));
        let file = match file {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        let lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => lock,
            // The kernel has no wait for a lock that ends by itself.
            Err((_, nix::errno::Errno::EWOULDBLOCK)) if Instant::now() < until => {
                std::thread::sleep(LOOK_AGAIN);
                continue;
            }
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => return Err(JournalError::Locked { path }),
            Err((_, errno)) => return Err(failed(errno.into())),
        };
        // Whoever held it may have removed the folder, and another may have made it anew meanwhile: then this is a
        // lock on nothing.
        match fs::metadata(folder.join(LOCK)) {
            Ok(found) if found.ino() == lock.metadata().map_err(failed)?.ino() => {
                return Ok(Some(FolderLock { _file: lock }));
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
    }
}
