//! What a reboot, a torn journal and a name used again find of an earlier sandbox.

use std::{
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use rustix::process::Signal;
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use super::{
    daemon_record::DaemonRecord,
    recover::{RecoverError, Recovery, Remains, Unheard},
    survey::{Found, Hands, survey},
    sweep::free,
};
use crate::{
    cgroup::{self, Hierarchies},
    container::{Init, Record},
    containerd::fake::FakeContainerd,
    id::Id,
    keeper::KeeperRecord,
    mounts::files::{self, FilesRequest},
    network::{
        self, AttachRequest, Call, CniPlugins, Operation, PluginError, Settings,
        fake::{FakePlugins, Fault},
    },
    process::{Reaper, testing::TestChild},
    resources::Resource,
    runtime::RuntimeSettings,
    sys::{
        boot::BootId,
        identity::{Pinned, is_alive, start_time},
    },
    teardown::journal::{self, About, JournalError, Store},
};

struct Node {
    folder: tempfile::TempDir,
    plugins: Arc<FakePlugins>,
}

impl Node {
    fn new() -> Self {
        let node = Self { folder: tempfile::tempdir().unwrap(), plugins: Arc::default() };
        let conf = node.folder.path().join("net.d");
        std::fs::create_dir(&conf).unwrap();
        let list = json!({"cniVersion": "1.0.0", "name": "node", "plugins": [{"type": "bridge"}]});
        std::fs::write(conf.join("10-node.conflist"), list.to_string()).unwrap();
        node
    }

    fn recovery(&self) -> Recovery {
        Recovery {
            reaper: Reaper::start().unwrap(),
            containerd: Arc::new(FakeContainerd::default()),
            plugins: self.plugins.clone(),
            listener: Arc::new(Unheard),
        }
    }

    fn state_root(&self) -> std::path::PathBuf {
        self.folder.path().join("state")
    }

    /// A sandbox that was attached to its network when the machine went down.
    async fn sandbox(&self, name: &str) {
        self.sandbox_of(name, None).await;
    }

    async fn sandbox_of(&self, name: &str, boot: Option<BootId>) {
        let run_dir = self.folder.path().join("run").join(name);
        let folder = self.state_root().join("ns").join(name);
        let about = About {
            namespace: Id::new("ns").unwrap(),
            id: Id::new(name).unwrap(),
            bundle: "/bundle".into(),
            grpc_address: "/c.sock".into(),
            created_at: SystemTime::now(),
            run_dir: run_dir.clone(),
            shim: None,
            boot,
        };
        let store = Store::create(&folder, about).unwrap();
        let record = files::acquire(&run_dir, &FilesRequest::default()).unwrap();
        let entry = store.intend(Resource::Files(record.clone())).unwrap();
        store.held(entry, Resource::Files(record)).unwrap();
        let settings = Settings {
            conf_dir: self.folder.path().join("net.d"),
            cache_dir: self.folder.path().join("cni"),
            loopback: false,
            ..Settings::default()
        };
        let request = AttachRequest {
            container_id: name.into(),
            // Gone with the reboot.
            netns: self.folder.path().join("netns").join(name),
            args: vec![],
            capabilities: Map::new(),
        };
        let mut record = network::plan(&settings, request).unwrap();
        let entry = store.intend(Resource::Network(Box::new(record.clone()))).unwrap();
        network::attach(&*self.plugins, &mut record, None).await.unwrap();
        store.held(entry, Resource::Network(Box::new(record))).unwrap();
    }

    fn dels(&self) -> Vec<Option<String>> {
        let calls = self.plugins.calls();
        let dels = calls.iter().filter(|call| call.operation == Operation::Del);
        dels.map(|call| call.target.as_ref().map(|target| target.netns.display().to_string()))
            .collect()
    }
}

/// What became of everything below a state root.
#[derive(Debug, Default)]
struct Swept {
    taken_down: Vec<Id>,
    in_use: Vec<Id>,
    unsure: Vec<(Id, Vec<String>)>,
    failed: Vec<(Id, RecoverError)>,
}

async fn sweep(node: &Node) -> Swept {
    let mut swept = Swept::default();
    for found in survey(&node.state_root()).unwrap() {
        let Found { id, .. } = &found;
        match free(&found, &node.recovery()).await {
            Ok(Hands::Nobody) => swept.taken_down.push(id.clone()),
            Ok(Hands::Shim | Hands::Locked) => swept.in_use.push(id.clone()),
            Ok(Hands::Unsure(doubts)) => swept.unsure.push((id.clone(), doubts)),
            Err(error) => swept.failed.push((id.clone(), error)),
        }
    }
    swept
}

#[tokio::test]
async fn after_a_reboot_what_outlived_it_is_released() {
    let node = Node::new();
    node.sandbox("a").await;
    node.sandbox("b").await;
    let swept = sweep(&node).await;
    assert_eq!(swept.taken_down.len(), 2, "{swept:?}");
    assert_eq!(node.dels().len(), 2);
    assert!(node.dels().iter().all(|netns| netns.as_deref() == Some("")), "{:?}", node.dels());
    assert!(!node.state_root().join("ns").exists());
    assert!(!node.folder.path().join("run/a").exists());
}

/// After a reboot the holder's number and the cgroup's path are somebody else's; the address is still the sandbox's.
#[tokio::test]
async fn what_a_reboot_has_ended_is_not_looked_for() {
    for (boot, touched) in [(BootId::earlier(), false), (BootId::current().unwrap(), true)] {
        let node = Node::new();
        node.sandbox_of("a", Some(boot.clone())).await;
        let folder = node.state_root().join("ns/a");
        let mut child = TestChild::start(Command::new("sleep").arg("60"));
        let start = start_time(child.pid).unwrap().unwrap();
        let group = Hierarchies::read().unwrap();
        let path = format!("/mooring-reboot-{}-{touched}", std::process::id());
        let group = group.group(&path).unwrap();
        let store = Store::open(&folder, Duration::ZERO).unwrap().unwrap();
        let (_, record) = cgroup::pod::acquire(&path).unwrap();
        let cgroup = Resource::Cgroup(record);
        let entry = store.intend(cgroup.clone()).unwrap();
        store.held(entry, cgroup).unwrap();
        let holder = Resource::Keeper(KeeperRecord::Holder { identity: Some((child.pid, start)) });
        let entry = store.intend(holder.clone()).unwrap();
        store.held(entry, holder).unwrap();
        drop(store);
        // The number of the shim is that of a living process, too.
        let shim = DaemonRecord::of_this_process(Path::new("/s")).unwrap();
        if !touched {
            DaemonRecord { boot: Some(boot), ..shim }.save(&folder).unwrap();
        }
        let swept = sweep(&node).await;
        assert_eq!(swept.taken_down.len(), 1, "{swept:?}");
        assert_eq!(node.dels().len(), 1);
        assert!(!node.state_root().join("ns").exists());
        assert!(!node.folder.path().join("run/a").exists());
        assert_eq!(is_alive(child.pid, start).unwrap(), !touched, "the holder");
        let there = group.folders().iter().all(|folder| folder.exists());
        assert_eq!(there, !touched, "the cgroup");
        if !touched {
            Pinned::new(child.pid, Some(start)).unwrap().unwrap().signal(Signal::KILL).unwrap();
            let deadline = Instant::now() + Duration::from_secs(5);
            group.remove(deadline).await.unwrap();
        }
        assert_eq!(child.status(), 128 + 9);
    }
}

#[tokio::test]
async fn what_a_living_process_holds_is_left_alone() {
    let node = Node::new();
    node.sandbox("a").await;
    node.sandbox("b").await;
    let folder = node.state_root().join("ns/a");
    DaemonRecord::of_this_process(Path::new("/s")).unwrap().save(&folder).unwrap();
    let held = Store::<Resource>::open(&node.state_root().join("ns/b"), Duration::ZERO).unwrap();
    let swept = sweep(&node).await;
    assert_eq!((swept.in_use.len(), swept.taken_down.len()), (2, 0), "{swept:?}");
    drop(held);
    assert!(node.dels().is_empty());
}

#[tokio::test]
async fn what_fails_is_named_and_does_not_stop_the_others() {
    let node = Node::new();
    node.sandbox("a").await;
    node.sandbox("b").await;
    node.plugins.fail(Operation::Del, "bridge", &[Fault::Missing]);
    let swept = sweep(&node).await;
    let failed: Vec<&str> = swept.failed.iter().map(|(id, _)| id.as_str()).collect();
    assert_eq!(failed, ["a"], "{swept:?}");
    assert!(swept.failed[0].1.to_string().contains("bridge"), "{swept:?}");
    // The next one takes up what is left.
    let swept = sweep(&node).await;
    assert_eq!(swept.taken_down.len(), 1, "{swept:?}");
    assert!(journal::read::<Resource>(&node.state_root().join("ns/a")).unwrap().is_none());
}

/// Whatever it may be that a later version, a torn file or somebody's own hand has made of a state folder: it is named,
/// and neither its files nor its containers are touched.
#[tokio::test]
async fn what_is_not_understood_is_named_and_not_touched() {
    for (file, text, named) in [
        ("journal.json", r#"{"version":99}"#, "has version 99, this Mooring reads up to 1"),
        ("journal.json", r#"{"version":"#, "is torn or not Mooring's"),
        ("journal.json.foreign", "", "was set aside here"),
        ("shim.json", r#"{"pid":"new"}"#, "the shim's record"),
        ("tasks/d.json", r#"{"version":99}"#, "d.json"),
    ] {
        let node = Node::new();
        node.sandbox("a").await;
        let folder = node.state_root().join("ns/a");
        let mut init = TestChild::start(Command::new("sleep").arg("60"));
        let runtime =
            RuntimeSettings { root: node.folder.path().join("runc"), ..RuntimeSettings::default() };
        let mut record = Record::new(Id::new("c").unwrap(), "/bundle".into(), runtime).unwrap();
        record.init = Init::of(init.pid).unwrap();
        record.save(&folder.join("tasks")).unwrap();
        std::fs::write(folder.join(file), text).unwrap();
        let swept = sweep(&node).await;
        assert!(swept.unsure.len() == 1 && swept.taken_down.is_empty(), "{file}: {swept:?}");
        let doubts = swept.unsure[0].1.join("; ");
        assert!(doubts.contains(named), "{file}: {doubts}");
        assert_eq!(std::fs::read_to_string(folder.join(file)).unwrap(), text);
        assert!(node.dels().is_empty(), "{file}: a DEL ran");
        assert!(is_alive(init.pid, record.init.unwrap().start_time).unwrap(), "{file}: killed");
        Pinned::new(init.pid, None).unwrap().unwrap().signal(Signal::KILL).unwrap();
        assert_eq!(init.status(), 128 + 9);
    }
}

#[tokio::test]
async fn the_socket_of_a_shim_that_is_gone_goes_with_what_it_left() {
    let node = Node::new();
    node.sandbox("a").await;
    let socket = node.folder.path().join("s");
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let shim = DaemonRecord { pid: 1, start_time: 1, socket: Some(socket.clone()), boot: None };
    shim.save(&node.state_root().join("ns/a")).unwrap();
    assert_eq!(sweep(&node).await.taken_down.len(), 1);
    assert!(!socket.exists());
}

/// A plugin that keeps no deadline.
#[derive(Default)]
struct Slow(AtomicUsize);

#[async_trait]
impl CniPlugins for Slow {
    async fn run(&self, call: &Call, _: Option<Instant>) -> Result<Option<Value>, PluginError> {
        if call.operation == Operation::Del {
            self.0.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_secs(400)).await;
        }
        Ok(None)
    }
}

#[tokio::test]
async fn a_release_that_outlasts_its_budget_is_joined_by_the_next_attempt_and_kept_from_others() {
    let node = Node::new();
    node.sandbox("a").await;
    let state_dir = node.state_root().join("ns/a");
    let remains = || Remains { state_dir: state_dir.clone(), shim: None, patience: Duration::ZERO };
    let slow = Arc::new(Slow::default());
    let slowly = || Recovery { plugins: slow.clone(), ..node.recovery() };
    tokio::time::pause();
    let mut takeover = slowly().take_over(remains());
    // The budget is 180 s and one of grace.
    for _ in 0..2 {
        let error = takeover.attempt().await.unwrap_err().to_string();
        assert_eq!(error, "network: not finished within 180 s");
        let another = slowly().finish(remains()).await.unwrap_err();
        let locked = matches!(another, RecoverError::Journal(JournalError::Locked { .. }));
        assert!(locked, "{another}");
    }
    assert!(takeover.attempt().await.unwrap());
    assert_eq!(slow.0.load(Ordering::Relaxed), 1, "it was begun twice");
    assert!(!state_dir.exists());

    // Nobody who gives up lets another one in while it goes on.
    node.sandbox("a").await;
    slowly().finish(remains()).await.unwrap_err();
    let another = slowly().finish(remains()).await.unwrap_err();
    assert!(matches!(another, RecoverError::Journal(JournalError::Locked { .. })), "{another}");
    tokio::time::sleep(Duration::from_secs(400)).await;
    node.recovery().finish(remains()).await.unwrap();
    assert!(!state_dir.exists());
}

/// A shim of tasks without a sandbox holds no lock while it works: whoever finishes late for an earlier one of its name
/// finds its records.
#[tokio::test]
async fn a_late_finisher_leaves_the_containers_of_a_new_shim_of_the_name() {
    let node = Node::new();
    let state_dir = node.state_root().join("ns/c");
    let sleep = || TestChild::start(Command::new("sleep").arg("60"));
    let (mut shim, mut init) = (sleep(), sleep());
    let new = DaemonRecord {
        pid: shim.pid,
        start_time: start_time(shim.pid).unwrap().unwrap(),
        socket: None,
        boot: None,
    };
    new.save(&state_dir).unwrap();
    let runtime =
        RuntimeSettings { root: node.folder.path().join("runc"), ..RuntimeSettings::default() };
    let bundle = node.folder.path().join("bundle");
    let mut record = Record::new(Id::new("c").unwrap(), bundle, runtime).unwrap();
    record.init = Init::of(init.pid).unwrap();
    record.shim = Init::of(shim.pid).unwrap();
    record.save(&state_dir.join("tasks")).unwrap();
    let remains = |shim: &DaemonRecord| Remains {
        state_dir: state_dir.clone(),
        shim: Some(shim.clone()),
        patience: Duration::ZERO,
    };

    let earlier = DaemonRecord { pid: 1, start_time: 1, ..new.clone() };
    node.recovery().finish(remains(&earlier)).await.unwrap();
    assert!(is_alive(init.pid, record.init.unwrap().start_time).unwrap(), "it was killed");
    assert!(state_dir.join("tasks/c.json").exists());
    assert_eq!(DaemonRecord::load(&state_dir).unwrap().as_ref(), Some(&new));

    new.kill().unwrap();
    assert_eq!(shim.status(), 128 + 9);
    assert!(node.recovery().finish(remains(&new)).await.unwrap());
    assert_eq!(init.status(), 128 + 9);
    assert!(!state_dir.exists());
}
