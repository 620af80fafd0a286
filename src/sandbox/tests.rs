//! The state machine with fake parties: containerd, CNI plugins and tasks are in memory, the kernel is the real one.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use proptest::prelude::*;
use serde_json::json;
use tokio::time::{Instant, timeout};

use super::{
    CreateRequest, Environment, Error, HolderProgram, NotCleared, PodTasks, Sandbox, Status,
};
use crate::{
    containerd::fake::{FakeContainerd, Fault},
    error::{Code, Coded},
    id::Id,
    keeper::Preference,
    mounts::unmount_all,
    network::{
        Operation,
        fake::{self, FakePlugins},
        netns::{self, NetnsRecord},
    },
    options::{AnyValue, Options},
    process::Reaper,
    resources::Resource,
    sys::{mountinfo, pin, survivor::Survivors},
    teardown::journal,
};

/// Tasks in memory. Kills reach them as the shim's own would.
#[derive(Default)]
struct FakeTasks {
    running: Mutex<BTreeSet<Id>>,
    known: Mutex<BTreeSet<Id>>,
    changed: tokio::sync::Notify,
    killed_in_place: Mutex<Vec<Id>>,
    /// Nothing ends them.
    immortal: std::sync::atomic::AtomicBool,
}

impl FakeTasks {
    fn run(&self, id: &Id) {
        self.known.lock().unwrap().insert(id.clone());
        self.running.lock().unwrap().insert(id.clone());
    }

    fn end(&self, id: &Id) {
        if !self.immortal.load(std::sync::atomic::Ordering::SeqCst) {
            self.running.lock().unwrap().remove(id);
        }
        self.changed.notify_waiters();
    }
}

#[async_trait]
impl PodTasks for FakeTasks {
    fn ids(&self) -> Vec<Id> {
        self.known.lock().unwrap().iter().cloned().collect()
    }

    fn is_running(&self, container: &Id) -> bool {
        self.running.lock().unwrap().contains(container)
    }

    async fn kill_in_place(&self, container: &Id) {
        self.killed_in_place.lock().unwrap().push(container.clone());
        self.end(container);
    }

    async fn exited(&self, container: &Id) {
        loop {
            let changed = self.changed.notified();
            if !self.is_running(container) {
                return;
            }
            changed.await;
        }
    }

    async fn outliving(&self) -> Vec<(Id, Survivors)> {
        // The test's own process stands for what does not end.
        let survivors = Survivors::among([i32::try_from(std::process::id()).unwrap()]);
        let running = self.running.lock().unwrap();
        running.iter().map(|id| (id.clone(), survivors.clone())).collect()
    }

    async fn end_remains(&self, _: Instant) -> Result<(), NotCleared> {
        Ok(())
    }

    async fn clear(&self) -> Result<(), NotCleared> {
        self.known.lock().unwrap().clear();
        Ok(())
    }
}

struct World {
    folder: tempfile::TempDir,
    id: Id,
    sandbox: Arc<Sandbox>,
    containerd: Arc<FakeContainerd>,
    plugins: Arc<FakePlugins>,
    tasks: Arc<FakeTasks>,
}

const SPEC: &str = r#"{"ociVersion":"1.0.2","hostname":"moored"}"#;

impl World {
    fn new(name: &str) -> Self {
        Self::kept_by(Preference::Thread, name)
    }

    fn kept_by(keeper: Preference, name: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for (file, text) in [
            ("bundle/config.json", SPEC),
            (
                "net.d/10-node.conflist",
                r#"{"cniVersion":"1.0.0","name":"node","plugins":[{"type":"bridge"},{"type":"portmap"}]}"#,
            ),
        ] {
            let path = folder.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let mut options = Options {
            state_root: folder.path().join("state"),
            run_root: folder.path().join("run"),
            keeper,
            ..Options::default()
        };
        options.network.conf_dir = folder.path().join("net.d");
        options.network.cache_dir = folder.path().join("cni");
        options.containerd_timeout = Duration::from_millis(200);
        let id = Id::new(format!("unit-{name}-{}", std::process::id())).unwrap();
        let containerd = Arc::new(FakeContainerd::default());
        let plugins = Arc::new(FakePlugins::default());
        let tasks = Arc::new(FakeTasks::default());
        let sandbox = Sandbox::new(Environment {
            namespace: Id::new("unit").unwrap(),
            id: id.clone(),
            grpc_address: "/nonexistent.sock".into(),
            options,
            reaper: Reaper::start().unwrap(),
            containerd: containerd.clone(),
            plugins: plugins.clone(),
            holder: HolderProgram(&[]),
        });
        sandbox.set_tasks(tasks.clone());
        Self { folder, id, sandbox, containerd, plugins, tasks }
    }

    /// Another shim's sandbox of the same name, with the same parties.
    fn another(&self, change: impl FnOnce(&mut Options)) -> Arc<Sandbox> {
        let env = self.sandbox.environment();
        let mut options = env.options.clone();
        change(&mut options);
        let sandbox = Sandbox::new(Environment {
            namespace: env.namespace.clone(),
            id: self.id.clone(),
            grpc_address: env.grpc_address.clone(),
            options,
            reaper: env.reaper.clone(),
            containerd: self.containerd.clone(),
            plugins: self.plugins.clone(),
            holder: env.holder,
        });
        sandbox.set_tasks(self.tasks.clone());
        sandbox
    }

    fn request(&self) -> CreateRequest {
        CreateRequest { bundle: self.folder.path().join("bundle"), ..CreateRequest::default() }
    }

    async fn started(name: &str) -> Self {
        let world = Self::new(name);
        world.sandbox.create(world.request()).await.unwrap();
        world.sandbox.start().await.unwrap();
        world
    }

    fn asked_for_owner(&self) -> usize {
        let calls = self.containerd.calls();
        calls.iter().filter(|call| call.starts_with("knows_sandbox")).count()
    }

    fn netns(&self) -> PathBuf {
        format!("/run/netns/mooring-unit--{}", self.id).into()
    }

    fn state_dir(&self) -> PathBuf {
        self.folder.path().join("state/unit").join(&self.id)
    }

    /// Everything that a sandbox may leave behind.
    fn left(&self) -> Vec<String> {
        let mut left = Vec::new();
        let mut note = |path: &Path| {
            if path.exists() {
                left.push(path.display().to_string());
            }
        };
        note(&self.netns());
        note(&self.folder.path().join("run/unit"));
        for entry in std::fs::read_dir(self.folder.path().join("cni/results"))
            .into_iter()
            .flatten()
            .flatten()
        {
            note(&entry.path());
        }
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let ours = self.folder.path().to_string_lossy().into_owned();
        left.extend(mounts.lines().filter(|line| line.contains(&ours)).map(str::to_owned));
        left
    }

    /// Every network that was attached was detached.
    fn owed(&self) -> i64 {
        let count = |operation| {
            let calls = self.plugins.calls();
            i64::try_from(calls.iter().filter(|call| call.operation == operation).count()).unwrap()
        };
        count(Operation::Add) - count(Operation::Del)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // Of a test that failed.
        let _ = netns::release(&NetnsRecord { path: self.netns() });
        for entry in mountinfo::read().into_iter().flatten().rev() {
            if entry.target.starts_with(self.folder.path()) {
                let _ = unmount_all(&entry.target);
            }
        }
    }
}

fn id(text: &str) -> Id {
    Id::new(text).unwrap()
}

#[tokio::test]
async fn a_test_that_fails_leaves_nothing() {
    for keeper in [Preference::Thread, Preference::Pinned] {
        let world = World::kept_by(keeper, "failed");
        world.sandbox.create(world.request()).await.unwrap();
        world.sandbox.start().await.unwrap();
        let (netns, folder) = (world.netns(), world.folder.path().to_owned());
        assert!(netns.exists() && !world.left().is_empty());
        drop(world);
        let mounts = mountinfo::read().unwrap();
        let ours = |at: &Path| at.starts_with(&folder) || at == netns;
        assert!(!netns.exists() && !folder.exists());
        assert!(!mounts.iter().any(|entry| ours(&entry.target)));
    }
}

#[tokio::test]
async fn a_sandbox_that_was_created_and_forgotten_is_noticed() {
    let world = World::new("forgotten");
    world.sandbox.create(world.request()).await.unwrap();
    world.containerd.forget_sandbox(&world.id);
    // A containerd that is away knows nothing, also not that there is no such sandbox.
    world.containerd.fault_once("knows_sandbox", Fault::CloseBefore);
    world.containerd.fault_once("knows_sandbox", Fault::Hang);
    tokio::time::pause();
    let forgotten = timeout(Duration::from_mins(10), world.sandbox.was_forgotten()).await;
    assert_eq!((forgotten, world.asked_for_owner()), (Ok(true), 3));
    tokio::time::resume();
    world.sandbox.shutdown().await.unwrap();
    assert!(world.left().is_empty() && !world.state_dir().exists());
}

#[tokio::test]
async fn a_sandbox_that_has_an_owner_waits_for_him() {
    let world = World::new("owned");
    world.sandbox.create(world.request()).await.unwrap();
    tokio::time::pause();
    let waiting = timeout(Duration::from_secs(630), world.sandbox.was_forgotten()).await;
    assert!(waiting.is_err() && world.asked_for_owner() == 10, "{}", world.asked_for_owner());
    tokio::time::resume();
    world.sandbox.start().await.unwrap();
    world.containerd.forget_sandbox(&world.id);
    tokio::time::pause();
    // It runs, and nobody is asked.
    assert!(!world.sandbox.was_forgotten().await);
    assert_eq!(world.asked_for_owner(), 10);
    tokio::time::resume();
    world.sandbox.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_sandbox_goes_through_its_life_and_leaves_nothing() {
    let world = World::started("life").await;
    let Status { pid, ready, .. } = world.sandbox.status(false).unwrap();
    assert!(ready && Path::new(&format!("/proc/{pid}/ns/net")).exists());
    assert!(world.netns().exists());
    world.sandbox.stop(None).await.unwrap();
    assert_eq!(world.left(), Vec::<String>::new());
    assert_eq!(world.owed(), 0);
    assert!(!world.sandbox.status(false).unwrap().ready);
    assert_eq!(world.sandbox.wait().await.unwrap().status, 0);
    world.sandbox.shutdown().await.unwrap();
    assert!(!world.folder.path().join("state/unit").exists());
    assert_eq!(world.sandbox.status(false).unwrap_err().code(), Code::NotFound);
}

/// What the journal costs a pod whose network is the shim's: more writes are cheap, more syncs are not.
#[tokio::test]
async fn a_pods_life_syncs_its_journal_no_more_often_than_its_network_changes() {
    let world = World::started("syncs").await;
    let store = Arc::clone(&world.sandbox.state().pod().unwrap().store);
    let started = store.written();
    assert_eq!(started.kept, 2, "the ADD's intent and its outcome: {started:?}");
    assert_eq!(started.whole, 2, "nothing else is written from then on: {started:?}");
    world.sandbox.stop(None).await.unwrap();
    let stopped = store.written();
    assert_eq!(stopped.kept, 3, "and that the DEL is done: {stopped:?}");
    assert_eq!(stopped.whole - stopped.kept, 4, "the steps before it begin: {stopped:?}");
    assert!(stopped.writes <= 24, "{stopped:?}");
    drop(store);
    world.sandbox.shutdown().await.unwrap();
}

/// The pods' namespaces of a specification, by their kind.
fn namespaces(spec: &serde_json::Value) -> BTreeMap<String, Option<String>> {
    let all = spec.pointer("/linux/namespaces").and_then(serde_json::Value::as_array).unwrap();
    let text = |one: &serde_json::Value, key| one.get(key)?.as_str().map(str::to_owned);
    all.iter().map(|one| (text(one, "type").unwrap(), text(one, "path"))).collect()
}

#[tokio::test]
async fn pinned_namespaces_have_no_number_and_are_joined_by_path() {
    let world = World::kept_by(Preference::Pinned, "pinned");
    world.sandbox.create(world.request()).await.unwrap();
    assert_eq!(world.sandbox.start().await.unwrap().pid, 0);
    let status = world.sandbox.status(false).unwrap();
    assert!(status.ready && status.pid == 0 && world.sandbox.own_pid().is_none());
    let own = namespaces(&world.sandbox.spec().unwrap());
    let pins = world.folder.path().join("run/unit").join(&world.id).join("ns");
    let at = |kind| Some(pins.join(kind).display().to_string());
    let wanted = [
        ("ipc".to_owned(), at("ipc")),
        ("network".to_owned(), Some(world.netns().display().to_string())),
        ("uts".to_owned(), at("uts")),
    ];
    assert_eq!(own, wanted.into());
    assert!(own.values().flatten().all(|path| pin::is_pinned(Path::new(path))), "{own:?}");
    // What a client asks for that knows no paths, and one that builds them from the number it was given.
    for path in ["", "/proc/0/ns/"] {
        let file = |kind: &str| match kind {
            "network" => "net".to_owned(),
            other => other.to_owned(),
        };
        let one = |kind: &str| match path {
            "" => json!({"type": kind}),
            path => json!({"type": kind, "path": format!("{path}{}", file(kind))}),
        };
        let mut spec = json!({
            "ociVersion": "1.2.0", "hostname": "x", "mounts": [],
            "linux": {"namespaces": [{"type": "pid"}, one("network"), one("ipc"), one("uts")]},
        });
        world.sandbox.prepare(&id("c"), &mut spec).await.unwrap();
        let mut joined = namespaces(&spec);
        assert_eq!(joined.remove("pid"), Some(None));
        assert_eq!(joined, own);
        assert_eq!(spec.get("hostname"), None);
    }
    // What is not the pod's to give stays refused.
    for (kind, path) in [("pid", "/proc/0/ns/pid"), ("uts", "/proc/1/ns/uts")] {
        let mut spec = json!({"linux": {"namespaces": [{"type": kind, "path": path}]}});
        let error = world.sandbox.prepare(&id("c"), &mut spec).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{error}");
    }
    world.sandbox.stop(None).await.unwrap();
    assert_eq!(world.left(), Vec::<String>::new());
    let after = namespaces(&world.sandbox.spec().unwrap());
    assert_eq!((&after["ipc"], &after["uts"]), (&None, &None));
    world.sandbox.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_pod_of_the_nodes_namespaces_pins_none() {
    let world = World::kept_by(Preference::Pinned, "nodes");
    let spec = r#"{"ociVersion":"1.0.2","linux":{"namespaces":[{"type":"mount"}]}}"#;
    std::fs::write(world.folder.path().join("bundle/config.json"), spec).unwrap();
    world.sandbox.create(world.request()).await.unwrap();
    assert_eq!(world.sandbox.start().await.unwrap().pid, 0);
    let kinds = json!([{"type": "network"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}]);
    let mut spec = json!({"hostname": "x", "mounts": [], "linux": {"namespaces": kinds}});
    world.sandbox.prepare(&id("c"), &mut spec).await.unwrap();
    // It is in the node's without asking, and its name is not to be set there.
    assert_eq!(namespaces(&spec), [("mount".to_owned(), None)].into());
    assert_eq!(spec.get("hostname"), None);
    world.sandbox.shutdown().await.unwrap();
    assert_eq!(world.left(), Vec::<String>::new());
}

/// CRI names the node's PID namespace, too, by the number of what stands for the pod.
#[tokio::test]
async fn a_pod_of_the_nodes_processes_has_them_without_a_number() {
    let world = World::kept_by(Preference::Pinned, "processes");
    let pod = |pid| k8s_cri::v1::PodSandboxConfig {
        metadata: Some(k8s_cri::v1::PodSandboxMetadata { name: "x".into(), ..Default::default() }),
        linux: Some(k8s_cri::v1::LinuxPodSandboxConfig {
            security_context: Some(k8s_cri::v1::LinuxSandboxSecurityContext {
                namespace_options: Some(k8s_cri::v1::NamespaceOption { pid, ..Default::default() }),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    };
    for (mode, is_allowed) in [(2, true), (1, false)] {
        let value = prost::Message::encode_to_vec(&pod(mode));
        let options = AnyValue { type_url: "runtime.v1.PodSandboxConfig".into(), value };
        let sandbox = world.another(|_| {});
        let request = CreateRequest { options: Some(options), ..world.request() };
        sandbox.create(request).await.unwrap();
        assert_eq!(sandbox.start().await.unwrap().pid, 0);
        let numbered = json!([{"type": "pid", "path": "/proc/0/ns/pid"}, {"type": "mount"}]);
        let mut spec = json!({"mounts": [], "linux": {"namespaces": numbered}});
        match sandbox.prepare(&id("c"), &mut spec).await {
            Ok(_) => assert_eq!(namespaces(&spec), [("mount".to_owned(), None)].into()),
            Err(error) => assert_eq!((is_allowed, error.code()), (false, Code::InvalidArgument)),
        }
        sandbox.shutdown().await.unwrap();
    }
}

/// The shim dies while its namespaces live on: they are what a recovery by the journal has to end.
#[tokio::test]
async fn pins_of_a_shim_that_is_gone_are_released_by_the_journal() {
    let mut world = World::kept_by(Preference::Pinned, "gone");
    world.sandbox.create(world.request()).await.unwrap();
    world.sandbox.start().await.unwrap();
    let next = world.another(|options| options.keeper = Preference::Thread);
    drop(std::mem::replace(&mut world.sandbox, next));
    let pins = world.folder.path().join("run/unit").join(&world.id).join("ns");
    assert!(pin::is_pinned(&pins.join("ipc")) && pin::is_pinned(&pins.join("uts")));
    world.sandbox.create(world.request()).await.unwrap();
    assert_eq!(world.left(), Vec::<String>::new());
    world.sandbox.shutdown().await.unwrap();
}

#[tokio::test]
async fn calls_out_of_order_are_refused_with_their_code() {
    let world = World::new("order");
    assert_eq!(world.sandbox.start().await.unwrap_err().code(), Code::NotFound);
    assert_eq!(world.sandbox.wait().await.unwrap_err().code(), Code::NotFound);
    world.sandbox.stop(None).await.expect("an unknown sandbox is stopped");
    world.sandbox.create(world.request()).await.unwrap();
    assert_eq!(
        world.sandbox.create(world.request()).await.unwrap_err().code(),
        Code::AlreadyExists
    );
    world.sandbox.start().await.unwrap();
    assert_eq!(world.sandbox.start().await.unwrap_err().code(), Code::FailedPrecondition);
    world.sandbox.stop(None).await.unwrap();
    assert_eq!(world.sandbox.start().await.unwrap_err().code(), Code::FailedPrecondition);
    assert_eq!(
        world.sandbox.admit().err().map(|error| error.code()),
        Some(Code::FailedPrecondition)
    );
    world.sandbox.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_failed_add_takes_everything_back_and_names_the_plugin() {
    let world = World::new("add");
    world.plugins.fail(Operation::Add, "portmap", &[fake::Fault::Reported(11, "no ports left")]);
    world.sandbox.create(world.request()).await.unwrap();
    let error = world.sandbox.start().await.unwrap_err().to_string();
    assert!(error.contains("portmap") && error.contains("no ports left"), "{error}");
    assert_eq!(world.left(), Vec::<String>::new());
    world.sandbox.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_failed_del_is_returned_and_the_next_stop_resumes_there() {
    let world = World::started("del").await;
    world.plugins.fail(
        Operation::Del,
        "bridge",
        &[fake::Fault::Reported(1, "busy"), fake::Fault::Missing],
    );
    for _ in 0..2 {
        let error = world.sandbox.stop(None).await.unwrap_err().to_string();
        assert!(error.starts_with("network: ") && error.contains("bridge"), "{error}");
        assert!(world.netns().exists(), "the namespace is kept for the next DEL");
    }
    let listed = |world: &World| {
        let calls = world.containerd.calls();
        calls.iter().filter(|call| call.contains("containers_of")).count()
    };
    let before = listed(&world);
    world.sandbox.stop(None).await.unwrap();
    assert_eq!(listed(&world), before, "containers are not stopped twice");
    assert_eq!(world.left(), Vec::<String>::new());
    world.sandbox.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_second_stop_joins_the_first() {
    let world = World::started("join").await;
    let stops: Vec<_> = (0..20)
        .map(|_| {
            let sandbox = Arc::clone(&world.sandbox);
            tokio::spawn(async move { sandbox.stop(None).await })
        })
        .collect();
    for stop in stops {
        stop.await.unwrap().unwrap();
    }
    let dels = world.plugins.calls().iter().filter(|call| call.operation == Operation::Del).count();
    assert_eq!(dels, 2, "each plugin once");
    world.sandbox.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_stop_during_a_start_wins() {
    let world = World::new("during");
    world.sandbox.create(world.request()).await.unwrap();
    let starting = {
        let sandbox = Arc::clone(&world.sandbox);
        tokio::spawn(async move { sandbox.start().await })
    };
    tokio::task::yield_now().await;
    world.sandbox.stop(None).await.unwrap();
    // Whether the start was quicker or not: nothing of it is left.
    let _ = starting.await.unwrap();
    assert_eq!(world.left(), Vec::<String>::new());
    world.sandbox.shutdown().await.unwrap();
}

#[tokio::test]
async fn containers_are_killed_through_containerd_and_in_place_when_it_is_silent() {
    let world = World::started("silent").await;
    for name in ["a", "b"] {
        world.tasks.run(&id(name));
        world.containerd.add_container(&id(name), &world.id);
    }
    world.containerd.fault_always("containers_of", Fault::Hang);
    world.sandbox.stop(None).await.unwrap();
    let mut killed = world.tasks.killed_in_place.lock().unwrap().clone();
    killed.sort();
    assert_eq!(killed, [id("a"), id("b")]);
    world.sandbox.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_stop_that_takes_longer_than_its_caller_waits_says_where_it_is_and_goes_on() {
    let world = World::started("late").await;
    let guest = world.sandbox.admit().unwrap();
    let until = Instant::now() + Duration::from_secs(30);
    loop {
        let error = world.sandbox.stop(Some(Duration::from_millis(50))).await.unwrap_err();
        assert_eq!(error.code(), Code::DeadlineExceeded);
        // A busy machine may not even have begun.
        if error.to_string().contains("door") {
            break;
        }
        assert!(Instant::now() < until, "{error}");
    }
    drop(guest);
    timeout(Duration::from_secs(5), world.sandbox.stop(None)).await.unwrap().unwrap();
    world.sandbox.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_stop_names_what_it_waits_for_and_the_next_one_goes_on() {
    let world = World::started("immortal").await;
    world.tasks.immortal.store(true, std::sync::atomic::Ordering::SeqCst);
    world.tasks.run(&id("a"));
    let error = world.sandbox.stop(Some(Duration::from_secs(1))).await.unwrap_err();
    assert_eq!(error.code(), Code::DeadlineExceeded);
    let named = format!("container \"a\" is still running: process {} (", std::process::id());
    assert!(error.to_string().contains(&named), "{error}");
    let info = world.sandbox.status(true).unwrap().info;
    let info: serde_json::Value = serde_json::from_str(&info["info"]).unwrap();
    let waits_for = info.pointer("/teardown/current/waits_for/0").unwrap();
    assert!(waits_for.as_str().unwrap().contains(&named), "{waits_for}");
    world.tasks.immortal.store(false, std::sync::atomic::Ordering::SeqCst);
    world.tasks.end(&id("a"));
    world.sandbox.stop(None).await.unwrap();
    world.sandbox.shutdown().await.unwrap();
    assert_eq!(world.left(), Vec::<String>::new());
}

#[tokio::test]
async fn a_name_used_again_first_gives_back_what_an_unfinished_sandbox_held() {
    let mut world = World::started("again").await;
    world.plugins.fail(Operation::Del, "bridge", &[fake::Fault::Missing]);
    world.sandbox.stop(None).await.unwrap_err();
    // The shim dies here, and another one is started for a new sandbox of that name.
    let next = world.another(|_| {});
    drop(std::mem::replace(&mut world.sandbox, next));
    world.sandbox.create(world.request()).await.unwrap();
    assert_eq!(world.left(), Vec::<String>::new());
    world.sandbox.start().await.unwrap();
    world.sandbox.shutdown().await.unwrap();
    assert_eq!(world.left(), Vec::<String>::new());
}

#[tokio::test]
async fn a_torn_journal_is_set_aside_and_does_not_hold_up_a_new_sandbox() {
    let world = World::new("torn");
    std::fs::create_dir_all(world.state_dir()).unwrap();
    std::fs::write(world.state_dir().join("journal.json"), "").unwrap();
    world.sandbox.create(world.request()).await.unwrap();
    assert!(world.state_dir().join("journal.json.foreign").exists());
    world.sandbox.shutdown().await.unwrap();
}

#[tokio::test]
async fn the_del_that_a_failed_start_owes_is_not_forgotten() {
    let world = World::new("owed");
    let second = r#"{"cniVersion":"1.0.0","name":"second","plugins":[{"type":"macvlan"}]}"#;
    std::fs::write(world.folder.path().join("net.d/20-second.conflist"), second).unwrap();
    let sandbox = world.another(|options| options.network.max_conf_num = 0);
    // The first network's ADD works, the second's fails, and the first's DEL fails twice: when the start takes itself
    // back, and when the teardown of the failed start runs.
    world.plugins.fail(Operation::Add, "macvlan", &[fake::Fault::Missing]);
    world.plugins.fail(Operation::Del, "bridge", &[fake::Fault::Missing, fake::Fault::Missing]);
    sandbox.create(world.request()).await.unwrap();
    sandbox.start().await.unwrap_err();
    assert!(!world.left().is_empty(), "the DEL is still owed");
    sandbox.stop(None).await.unwrap();
    assert_eq!(world.left(), Vec::<String>::new());
    sandbox.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_network_namespace_that_is_none_is_refused() {
    let world = World::new("netns");
    let request = CreateRequest { netns_path: Some("/dev/null".into()), ..world.request() };
    let error = world.sandbox.create(request).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    assert!(matches!(error, Error::Netns(_)), "{error}");
    assert!(!world.state_dir().exists());
}

/// What a client may do, and what may happen to it.
#[derive(Clone, Copy, Debug)]
enum Event {
    Create,
    Start,
    Stop,
    StopImpatiently,
    Run,
    Exit,
    Status,
    FailDel,
    FailAdd,
    Silence,
    Heal,
    Shutdown,
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    use Event::{
        Create, Exit, FailAdd, FailDel, Heal, Run, Shutdown, Silence, Start, Status, Stop,
        StopImpatiently,
    };
    let any = prop::sample::select(vec![
        Create,
        Start,
        Start,
        Stop,
        StopImpatiently,
        Run,
        Run,
        Exit,
        Status,
        FailDel,
        FailAdd,
        Silence,
        Heal,
        Shutdown,
    ]);
    prop::collection::vec(any, 1..14)
}

async fn happen(world: &World, event: Event) {
    let container = id("c");
    match event {
        Event::Create => drop(world.sandbox.create(world.request()).await),
        Event::Start => drop(world.sandbox.start().await),
        Event::Stop => drop(world.sandbox.stop(None).await),
        Event::StopImpatiently => drop(world.sandbox.stop(Some(Duration::ZERO)).await),
        Event::Run => {
            if world.sandbox.is_created()
                && let Ok(_guest) = world.sandbox.admit()
            {
                world.tasks.run(&container);
                world.containerd.add_container(&container, &world.id);
            }
        }
        Event::Exit => world.tasks.end(&container),
        Event::Status => drop(world.sandbox.status(true)),
        Event::FailDel => {
            world.plugins.fail(Operation::Del, "bridge", &[fake::Fault::Reported(1, "no")]);
        }
        Event::FailAdd => world.plugins.fail(Operation::Add, "bridge", &[fake::Fault::Missing]),
        Event::Silence => world.containerd.fault_always("containers_of", Fault::Hang),
        Event::Heal => world.containerd.heal(),
        Event::Shutdown => drop(world.sandbox.shutdown().await),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Whatever a client does in whatever order: no call hangs, and once a stop has succeeded nothing is left, no
    /// container runs, and every ADD has had its DEL.
    #[test]
    fn any_sequence_of_calls_and_faults_ends_clean(
        events in events(),
        keeper in prop::sample::select(vec![Preference::Thread, Preference::Pinned]),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let world = World::kept_by(keeper, "any");
            for event in &events {
                let done = timeout(Duration::from_secs(10), happen(&world, *event)).await;
                prop_assert!(done.is_ok(), "{event:?} hangs");
            }
            world.containerd.heal();
            let mut ended = Err(Error::NotFound);
            for _ in 0..4 {
                ended = timeout(Duration::from_secs(10), world.sandbox.shutdown()).await.expect("shutdown hangs");
                if ended.is_ok() {
                    break;
                }
            }
            prop_assert!(ended.is_ok(), "{ended:?}");
            prop_assert_eq!(world.left(), Vec::<String>::new());
            prop_assert!(world.tasks.running.lock().unwrap().is_empty());
            prop_assert!(journal::read::<Resource>(&world.state_dir()).unwrap().is_none());
            Ok(())
        })?;
    }
}
