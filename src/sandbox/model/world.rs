//! What the actors share: one node's folders and namespaces, its CNI plugin, and a list of what went wrong.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::linux::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use async_trait::async_trait;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::Cast;
use crate::{
    containerd::fake::FakeContainerd,
    id::Id,
    interleave::{Table, point},
    keeper::Preference,
    network::{
        Call, CniPlugins, Operation, PluginError,
        netns::{self, NetnsRecord},
    },
    options::{NetworkOwner, Options},
    process::Reaper,
    sandbox::{
        CreateRequest, Environment, HolderProgram, Sandbox,
        daemon_record::DaemonRecord,
        recover::{Recovery, Unheard},
    },
    sys::pin,
};

const SPEC: &str = r#"{"ociVersion":"1.0.2","hostname":"moored"}"#;
const NETWORK: &str = r#"{"cniVersion":"1.0.0","name":"node","plugins":[{"type":"bridge"}]}"#;

/// A client's network namespace, for many orders: the kernel takes its time to make one and to end it.
pub(super) struct ClientsNetns(NetnsRecord);

impl ClientsNetns {
    pub(super) fn new(name: &str) -> Self {
        let path = format!("/run/netns/mooring-model-{name}-{}", std::process::id());
        Self(netns::acquire(path.as_ref()).unwrap())
    }
}

impl Drop for ClientsNetns {
    fn drop(&mut self) {
        netns::release(&self.0).unwrap();
    }
}

/// The network of the node: who has an address under the sandbox's name.
#[derive(Default)]
struct Ledger {
    attached: Option<usize>,
    adds: usize,
    /// DELs that found something.
    dels: usize,
    /// DELs that found nothing.
    empty_dels: usize,
    /// How many DELs are still to fail.
    failing: usize,
}

/// Things by their names, each with what tells it from another one of that name.
pub(super) type Things = BTreeMap<&'static str, String>;

pub(super) struct World {
    pub(super) folder: tempfile::TempDir,
    pub(super) id: Id,
    /// Of a client; else the shims make their own.
    netns: Option<PathBuf>,
    keeper: Preference,
    pub(super) table: Arc<Table>,
    ledger: Mutex<Ledger>,
    wrong: Mutex<Vec<String>>,
    /// Who serves the shim's socket.
    pub(super) socket: Mutex<Option<usize>>,
    /// The first shim has written its record.
    pub(super) is_recorded: AtomicBool,
    /// Finishers that have not looked yet whose shim is gone: containerd gives the name to nobody before.
    pub(super) to_look: Mutex<BTreeSet<usize>>,
}

/// A shim's record. All actors are one process: the socket tells them apart.
pub(super) fn record_of(actor: usize) -> DaemonRecord {
    DaemonRecord {
        pid: 1 << 30,
        start_time: 1,
        socket: Some(format!("/socket-of-{actor}").into()),
        boot: None,
    }
}

impl World {
    pub(super) fn new(cast: Cast, netns: Option<&ClientsNetns>) -> Arc<Self> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        // The journal is synced again and again: in memory that costs nothing.
        let memory = Path::new("/dev/shm");
        let place = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let folder = tempfile::tempdir_in(place).unwrap();
        for (file, text) in [("bundle/config.json", SPEC), ("net.d/10-node.conflist", NETWORK)] {
            let path = folder.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let id = Id::new(format!("model-{}-{number}", std::process::id())).unwrap();
        let ledger = Ledger { failing: cast.failing_dels, ..Ledger::default() };
        Arc::new(Self {
            folder,
            id,
            netns: netns.map(|netns| netns.0.path.clone()),
            keeper: cast.keeper,
            table: Arc::default(),
            ledger: Mutex::new(ledger),
            wrong: Mutex::default(),
            socket: Mutex::default(),
            is_recorded: AtomicBool::default(),
            to_look: Mutex::default(),
        })
    }

    fn options(&self) -> Options {
        let mut options = Options {
            state_root: self.folder.path().join("state"),
            run_root: self.folder.path().join("run"),
            ..Options::default()
        };
        options.network.conf_dir = self.folder.path().join("net.d");
        options.network.cache_dir = self.folder.path().join("cni");
        options.network.loopback = false;
        options.keeper = self.keeper;
        if self.netns.is_some() {
            options.network_owner = NetworkOwner::Shim;
        }
        options
    }

    pub(super) fn state_dir(&self) -> PathBuf {
        self.folder.path().join("state/unit").join(&self.id)
    }

    fn run_dir(&self) -> PathBuf {
        self.folder.path().join("run/unit").join(&self.id)
    }

    fn netns(&self) -> PathBuf {
        format!("/run/netns/mooring-unit--{}", self.id).into()
    }

    pub(super) fn request(&self) -> CreateRequest {
        let bundle = self.folder.path().join("bundle");
        CreateRequest { bundle, netns_path: self.netns.clone(), ..CreateRequest::default() }
    }

    /// The living shim that `record` is of.
    pub(super) fn actor_of(&self, record: &DaemonRecord) -> Option<usize> {
        let socket = record.socket.as_ref()?.to_string_lossy().into_owned();
        let actor = socket.strip_prefix("/socket-of-")?.parse().ok()?;
        (!self.table.is_over(actor)).then_some(actor)
    }

    /// Whether there is, or was, a shim to come after.
    pub(super) fn has_begun(&self) -> bool {
        self.is_recorded.load(Ordering::Relaxed) || self.table.is_over(0)
    }

    /// Whether no finisher will look any more.
    pub(super) fn has_looked(&self) -> bool {
        self.to_look.lock().unwrap().iter().all(|actor| self.table.is_over(*actor))
    }

    /// Whether a new shim of the name can begin.
    pub(super) fn is_free(&self) -> bool {
        self.has_begun()
            && self.has_looked()
            && self.socket.lock().unwrap().is_none_or(|other| self.table.is_over(other))
    }

    fn plugins(self: &Arc<Self>, actor: usize) -> Arc<dyn CniPlugins> {
        Arc::new(Plugin { world: Arc::clone(self), actor })
    }

    pub(super) fn sandbox(self: &Arc<Self>, actor: usize) -> Arc<Sandbox> {
        Sandbox::new(Environment {
            namespace: Id::new("unit").unwrap(),
            id: self.id.clone(),
            grpc_address: "/nonexistent.sock".into(),
            options: self.options(),
            reaper: Reaper::start().unwrap(),
            containerd: Arc::new(FakeContainerd::default()),
            plugins: self.plugins(actor),
            holder: HolderProgram(&[]),
        })
    }

    pub(super) fn recovery(self: &Arc<Self>, actor: usize) -> Recovery {
        Recovery {
            reaper: Reaper::start().unwrap(),
            containerd: Arc::new(FakeContainerd::default()),
            plugins: self.plugins(actor),
            listener: Arc::new(Unheard),
        }
    }

    pub(super) fn wrong(&self, what: String) {
        self.wrong.lock().unwrap().push(what);
    }

    /// The first thing that went wrong by itself.
    pub(super) fn complaint(&self) -> Option<String> {
        self.wrong.lock().unwrap().first().cloned()
    }

    /// Everything of a sandbox that is there now.
    pub(super) fn things(&self) -> Things {
        let mut things = Things::new();
        let state_dir = self.state_dir();
        if let Ok(text) = fs::read_to_string(state_dir.join("shim.json")) {
            things.insert("shim's record", text);
        }
        if let Ok(text) = fs::read_to_string(state_dir.join("journal.json")) {
            let (_, about) = text.split_once("\"created_at\":").unwrap();
            things.insert("journal", about.split('}').next().unwrap().to_owned());
        }
        let run_dir = self.run_dir();
        let device = |path: &Path| fs::metadata(path).map(|found| found.st_dev()).ok();
        let shm = device(&run_dir.join("shm"));
        if let Some(shm) = shm.filter(|shm| Some(*shm) != device(&run_dir)) {
            things.insert("shm", shm.to_string());
        }
        if let Ok(found) = fs::metadata(run_dir.join("hosts")) {
            things.insert("files", found.st_ino().to_string());
        }
        for (thing, file) in [("IPC namespace", "ns/ipc"), ("UTS namespace", "ns/uts")] {
            let path = run_dir.join(file);
            if pin::is_pinned(&path) {
                things.insert(thing, fs::metadata(&path).unwrap().st_ino().to_string());
            }
        }
        let netns = self.netns();
        if pin::is_pinned(&netns) {
            things.insert("network namespace", fs::metadata(&netns).unwrap().st_ino().to_string());
        }
        let ledger = self.ledger.lock().unwrap();
        if ledger.attached.is_some() {
            things.insert("network", ledger.adds.to_string());
        }
        things
    }

    /// What is left once nobody works any more. `interruptions`: deaths and failures, each of which may cost one
    /// repetition.
    pub(super) fn left(&self, interruptions: usize) -> Result<(), String> {
        let things = self.things();
        if !things.is_empty() {
            return Err(format!("left: {things:?}"));
        }
        for path in [self.state_dir(), self.run_dir(), self.netns()] {
            if path.exists() {
                return Err(format!("left: {}", path.display()));
            }
            // Only tidiness, in which one may be interrupted: the next one of the namespace makes use of it.
            let namespace = path.parent().filter(|_| interruptions == 0 && path != self.netns());
            if let Some(namespace) = namespace.filter(|namespace| namespace.exists()) {
                return Err(format!("left: {}", namespace.display()));
            }
        }
        let Ledger { adds, dels, empty_dels, .. } = *self.ledger.lock().unwrap();
        if adds != dels || empty_dels > interruptions {
            return Err(format!("{adds} ADDs, {dels} DELs, {empty_dels} more that found nothing"));
        }
        Ok(())
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // Of a run that failed.
        let none = nix::mount::MntFlags::MNT_DETACH;
        for mounted in ["shm", "ns/ipc", "ns/uts"] {
            let _ = nix::mount::umount2(&self.run_dir().join(mounted), none);
        }
        let _ = nix::mount::umount2(&self.netns(), none);
        let _ = fs::remove_file(self.netns());
    }
}

/// The node's one CNI plugin, as an actor runs it.
struct Plugin {
    world: Arc<World>,
    actor: usize,
}

#[async_trait]
impl CniPlugins for Plugin {
    async fn run(&self, call: &Call, _: Option<Instant>) -> Result<Option<Value>, PluginError> {
        match call.operation {
            Operation::Add => point("ADD"),
            _ => point("DEL"),
        }
        let answer = self.done(call);
        point("hear of the plugin");
        answer
    }
}

impl Plugin {
    fn done(&self, call: &Call) -> Result<Option<Value>, PluginError> {
        let mut ledger = self.world.ledger.lock().unwrap();
        if call.operation == Operation::Add {
            if let Some(other) = ledger.attached {
                let who = self.actor;
                self.world.wrong(format!("an ADD of actor {who} while that of {other} lasts"));
            }
            ledger.attached = Some(self.actor);
            ledger.adds += 1;
            return Ok(Some(json!({
                "cniVersion": "1.0.0",
                "interfaces": [{"name": "eth0", "mac": "", "sandbox": call.target.as_ref().unwrap().netns}],
                "ips": [{"address": "192.0.2.7/24", "interface": 0}],
            })));
        }
        if ledger.failing > 0 {
            ledger.failing -= 1;
            let (msg, details) = ("busy".to_owned(), String::new());
            return Err(PluginError::Reported { code: 11, msg, details });
        }
        match ledger.attached.take() {
            Some(_) => ledger.dels += 1,
            None => ledger.empty_dels += 1,
        }
        Ok(None)
    }
}
