//! A file system in memory whose server does as it is told: it does not answer, or refuses what is to reach the disk.
//!
//! A request that a silent server has read is waited for in state D, and not even SIGKILL ends the wait (fs/fuse/dev.c,
//! `request_wait_answer`). Only an end of the connection does.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, LockOwner, MountOption, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate,
    ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, Request, Session,
    SessionACL, TimeOrNow, WriteFlags,
};
use nix::mount::{MntFlags, umount2};

/// Whoever opens the file of this name waits until [`Fuse::abort`].
pub const SILENT: &str = "silent";
/// Whoever looks for this name waits as long.
pub const NOWHERE: &str = "nowhere";

/// Nothing is cached: the server is to be asked.
const TTL: Duration = Duration::ZERO;

/// A mounted file system. It goes with this.
pub struct Fuse {
    place: PathBuf,
    memory: Arc<Memory>,
    session: Option<BackgroundSession>,
}

impl Fuse {
    /// Mounts an empty one, with one file [`SILENT`].
    pub fn mount(place: &Path) -> Result<Self> {
        std::fs::create_dir_all(place)?;
        let memory = Arc::new(Memory::new());
        let mut config = Config::default();
        config.mount_options = vec![
            MountOption::FSName("trouble".to_owned()),
            MountOption::DefaultPermissions,
            MountOption::RW,
        ];
        config.acl = SessionACL::All;
        let session = Session::new(Server(Arc::clone(&memory)), place, &config);
        let session = session.context("mount a FUSE file system")?.spawn()?;
        Ok(Self { place: place.to_owned(), memory, session: Some(session) })
    }

    /// From now on nothing reaches the disk: fsync is EIO. Or again it does.
    pub fn fail_syncs(&self, fail: bool) {
        self.memory.fail_syncs.store(fail, Ordering::SeqCst);
    }

    /// How many requests wait for an answer that does not come.
    pub fn unanswered(&self) -> usize {
        lock(&self.memory.unanswered).len()
    }

    /// How many fsyncs were refused.
    pub fn refused(&self) -> usize {
        *lock(&self.memory.refused)
    }

    /// The connection ends: who waits gets an error, and so does whoever asks from now on.
    pub fn abort(&self) {
        // "Busy" is the answer while somebody has it open; the connection has ended all the same.
        let _ = umount2(&self.place, MntFlags::MNT_FORCE);
        lock(&self.memory.unanswered).clear();
    }
}

impl Drop for Fuse {
    fn drop(&mut self) {
        self.abort();
        let _ = umount2(&self.place, MntFlags::MNT_DETACH);
        drop(self.session.take());
    }
}

struct Node {
    kind: FileType,
    mode: u32,
    data: Vec<u8>,
    children: BTreeMap<OsString, u64>,
    links: u32,
}

impl Node {
    fn new(kind: FileType, mode: u32) -> Self {
        let links = if kind == FileType::Directory { 2 } else { 1 };
        Self { kind, mode: mode & 0o7777, data: Vec::new(), children: BTreeMap::new(), links }
    }

    fn attributes(&self, number: u64) -> FileAttr {
        let size = self.data.len() as u64;
        let at = SystemTime::UNIX_EPOCH;
        FileAttr {
            ino: INodeNo(number),
            size,
            blocks: size.div_ceil(512),
            atime: at,
            mtime: at,
            ctime: at,
            crtime: at,
            kind: self.kind,
            perm: u16::try_from(self.mode).unwrap_or(0),
            nlink: self.links,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}

/// What is in the file system, and how it behaves.
struct Memory {
    nodes: Mutex<HashMap<u64, Node>>,
    last: Mutex<u64>,
    fail_syncs: AtomicBool,
    refused: Mutex<usize>,
    unanswered: Mutex<Vec<Box<dyn Send>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

type Answer<T> = Result<T, Errno>;

impl Memory {
    fn new() -> Self {
        let memory = Self {
            nodes: Mutex::new(HashMap::from([(1, Node::new(FileType::Directory, 0o755))])),
            last: Mutex::new(1),
            fail_syncs: AtomicBool::new(false),
            refused: Mutex::default(),
            unanswered: Mutex::default(),
        };
        let _ =
            memory.make(INodeNo(1), OsStr::new(SILENT), Node::new(FileType::RegularFile, 0o644));
        memory
    }

    fn find(&self, parent: INodeNo, name: &OsStr) -> Answer<FileAttr> {
        let nodes = lock(&self.nodes);
        let number =
            *nodes.get(&parent.0).and_then(|up| up.children.get(name)).ok_or(Errno::ENOENT)?;
        nodes.get(&number).map(|node| node.attributes(number)).ok_or(Errno::ENOENT)
    }

    fn attributes(&self, number: INodeNo) -> Answer<FileAttr> {
        lock(&self.nodes).get(&number.0).map(|node| node.attributes(number.0)).ok_or(Errno::ENOENT)
    }

    fn make(&self, parent: INodeNo, name: &OsStr, node: Node) -> Answer<FileAttr> {
        let mut nodes = lock(&self.nodes);
        let up = nodes.get_mut(&parent.0).ok_or(Errno::ENOENT)?;
        if up.children.contains_key(name) {
            return Err(Errno::EEXIST);
        }
        let mut last = lock(&self.last);
        *last += 1;
        up.children.insert(name.to_owned(), *last);
        let attributes = node.attributes(*last);
        nodes.insert(*last, node);
        Ok(attributes)
    }

    fn remove(&self, parent: INodeNo, name: &OsStr) -> Answer<()> {
        let mut nodes = lock(&self.nodes);
        let number = nodes.get(&parent.0).and_then(|up| up.children.get(name)).copied();
        let number = number.ok_or(Errno::ENOENT)?;
        if nodes.get(&number).is_some_and(|node| !node.children.is_empty()) {
            return Err(Errno::ENOTEMPTY);
        }
        if let Some(up) = nodes.get_mut(&parent.0) {
            up.children.remove(name);
        }
        // Its content stays for whoever has it open.
        if let Some(node) = nodes.get_mut(&number) {
            node.links = 0;
        }
        Ok(())
    }

    fn rename(&self, from: (INodeNo, &OsStr), to: (INodeNo, &OsStr)) -> Answer<()> {
        let mut nodes = lock(&self.nodes);
        let up = nodes.get_mut(&from.0.0).ok_or(Errno::ENOENT)?;
        let number = up.children.remove(from.1).ok_or(Errno::ENOENT)?;
        let up = nodes.get_mut(&to.0.0).ok_or(Errno::ENOENT)?;
        up.children.insert(to.1.to_owned(), number);
        Ok(())
    }

    fn sync(&self) -> Answer<()> {
        if !self.fail_syncs.load(Ordering::SeqCst) {
            return Ok(());
        }
        *lock(&self.refused) += 1;
        Err(Errno::EIO)
    }
}

/// What the kernel talks to.
struct Server(Arc<Memory>);

macro_rules! say {
    ($reply:ident, $answer:expr, $ok:pat => $said:expr) => {
        match $answer {
            Ok($ok) => $said,
            Err(errno) => $reply.error(errno),
        }
    };
}

impl Filesystem for Server {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if name == NOWHERE {
            lock(&self.0.unanswered).push(Box::new(reply));
            return;
        }
        say!(reply, self.0.find(parent, name), found => reply.entry(&TTL, &found, Generation(0)));
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        say!(reply, self.0.attributes(ino), found => reply.attr(&TTL, &found));
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        if let Some(node) = lock(&self.0.nodes).get_mut(&ino.0) {
            node.mode = mode.map_or(node.mode, |mode| mode & 0o7777);
            if let Some(size) = size.and_then(|size| usize::try_from(size).ok()) {
                node.data.resize(size, 0);
            }
        }
        say!(reply, self.0.attributes(ino), found => reply.attr(&TTL, &found));
    }

    fn mkdir(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        let node = Node::new(FileType::Directory, mode & !umask);
        say!(reply, self.0.make(parent, name, node), new => reply.entry(&TTL, &new, Generation(0)));
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        say!(reply, self.0.remove(parent, name), () => reply.ok());
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        say!(reply, self.0.remove(parent, name), () => reply.ok());
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        _: RenameFlags,
        reply: ReplyEmpty,
    ) {
        say!(reply, self.0.rename((parent, name), (new_parent, new_name)), () => reply.ok());
    }

    fn open(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let silent = self.0.find(INodeNo(1), OsStr::new(SILENT));
        if silent.is_ok_and(|silent| silent.ino == ino) {
            lock(&self.0.unanswered).push(Box::new(reply));
            return;
        }
        reply.opened(FileHandle(0), FopenFlags::empty());
    }

    fn create(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _: i32,
        reply: ReplyCreate,
    ) {
        let node = Node::new(FileType::RegularFile, mode & !umask);
        say!(reply, self.0.make(parent, name, node), new => {
            reply.created(&TTL, &new, Generation(0), FileHandle(0), FopenFlags::empty());
        });
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let nodes = lock(&self.0.nodes);
        let Some(node) = nodes.get(&ino.0) else { return reply.error(Errno::ENOENT) };
        let begin = usize::try_from(offset).unwrap_or(usize::MAX).min(node.data.len());
        let end = begin.saturating_add(size as usize).min(node.data.len());
        reply.data(node.data.get(begin..end).unwrap_or_default());
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let mut nodes = lock(&self.0.nodes);
        let Some(node) = nodes.get_mut(&ino.0) else { return reply.error(Errno::ENOENT) };
        let begin = usize::try_from(offset).unwrap_or(usize::MAX);
        let Some(end) = begin.checked_add(data.len()) else { return reply.error(Errno::EFBIG) };
        if node.data.len() < end {
            node.data.resize(end, 0);
        }
        if let Some(place) = node.data.get_mut(begin..end) {
            place.copy_from_slice(data);
        }
        reply.written(u32::try_from(data.len()).unwrap_or(u32::MAX));
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        say!(reply, self.0.sync(), () => reply.ok());
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        say!(reply, self.0.sync(), () => reply.ok());
    }

    fn readdir(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let nodes = lock(&self.0.nodes);
        let Some(node) = nodes.get(&ino.0) else { return reply.error(Errno::ENOENT) };
        let special = [(OsStr::new("."), ino.0), (OsStr::new(".."), 1)];
        let children = node.children.iter().map(|(name, number)| (name.as_os_str(), *number));
        let all = special.into_iter().chain(children).enumerate();
        for (index, (name, number)) in all.skip(usize::try_from(offset).unwrap_or(usize::MAX)) {
            let kind = nodes.get(&number).map_or(FileType::Directory, |node| node.kind);
            if reply.add(INodeNo(number), index as u64 + 1, kind, name) {
                break;
            }
        }
        reply.ok();
    }
}
