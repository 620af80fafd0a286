//! The plan's execution with fake deeds: order, resumption, nothing twice, nothing left.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use proptest::prelude::*;
use tokio::time::Instant;

use super::{
    Executor, Observer, PLAN, Policy, Step, StepReport, Work, WorkError,
    journal::{self, About, Resource, State, Store},
};
use crate::{
    error::{Code, Coded},
    id::Id,
    keeper::KeeperRecord,
    mounts::{files::FilesRecord, shm::ShmRecord},
    network::{AttachmentRecord, netns::NetnsRecord},
    released::Released,
};

/// What happens at a step when it is reached for the n-th time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    Fail,
    Hang,
}

#[derive(Default)]
struct World {
    /// Faults to come, by step.
    faults: BTreeMap<Step, Vec<Fault>>,
    /// Every deed that succeeded.
    deeds: Vec<String>,
    /// What is held.
    held: Vec<&'static str>,
}

#[derive(Clone, Default)]
struct Fake(Arc<Mutex<World>>);

fn step_of(resource: &Resource) -> Step {
    PLAN.iter().find(|line| line.releases.is_some_and(|releases| releases(resource))).unwrap().step
}

impl Fake {
    async fn meet(&self, step: Step) -> Result<(), WorkError> {
        let fault = {
            let mut world = self.0.lock().unwrap();
            let faults = world.faults.entry(step).or_default();
            if faults.is_empty() { Fault::None } else { faults.remove(0) }
        };
        match fault {
            Fault::None => Ok(()),
            Fault::Fail => Err(WorkError { code: Code::Unavailable, message: "broken".into() }),
            Fault::Hang => std::future::pending().await,
        }
    }
}

#[async_trait]
impl Work for Fake {
    async fn act(&self, step: Step, _: Instant) -> Result<(), WorkError> {
        self.meet(step).await?;
        self.0.lock().unwrap().deeds.push(step.name().into());
        Ok(())
    }

    async fn release(
        &self,
        resource: &Resource,
        _: State,
        _: Instant,
    ) -> Result<Released, WorkError> {
        self.meet(step_of(resource)).await?;
        let mut world = self.0.lock().unwrap();
        world.deeds.push(resource.kind().into());
        let before = world.held.len();
        world.held.retain(|held| *held != resource.kind());
        Ok(if world.held.len() < before { Released::Done } else { Released::AlreadyGone })
    }
}

struct Deaf;

impl Observer for Deaf {
    fn begun(&self, _: Step) {}
    fn ended(&self, _: StepReport) {}
}

fn resources() -> Vec<Resource> {
    vec![
        Resource::Files(FilesRecord { dir: "/x".into() }),
        Resource::Shm(ShmRecord { path: "/x/shm".into() }),
        Resource::Netns(NetnsRecord { path: "/x/netns".into() }),
        Resource::Keeper(KeeperRecord::Thread),
        Resource::Network(Box::new(AttachmentRecord {
            container_id: "pod".into(),
            netns: "/x/netns".into(),
            args: vec![],
            capabilities: serde_json::Map::new(),
            settings: crate::network::Settings::default(),
            networks: vec![],
        })),
    ]
}

struct Bench {
    folder: tempfile::TempDir,
    id: Id,
    fake: Fake,
}

impl Bench {
    fn new() -> Self {
        let bench = Self {
            folder: tempfile::tempdir().unwrap(),
            id: Id::new("pod").unwrap(),
            fake: Fake::default(),
        };
        let about = About {
            namespace: Id::new("k8s.io").unwrap(),
            id: bench.id.clone(),
            bundle: "/bundle".into(),
            grpc_address: "/x.sock".into(),
            created_at: SystemTime::now(),
            run_dir: "/x".into(),
            shim: None,
            boot: None,
        };
        let mut store = Store::create(bench.folder.path(), about).unwrap();
        for resource in resources() {
            bench.fake.0.lock().unwrap().held.push(resource.kind());
            let entry = store.intend(resource.clone()).unwrap();
            store.held(entry, resource).unwrap();
        }
        bench
    }

    /// One run by a process that has just started: all it knows is the journal.
    async fn run(&self) -> Result<(), super::TeardownError> {
        let store = Arc::new(Mutex::new(
            Store::open(self.folder.path(), Duration::from_secs(5)).unwrap().unwrap(),
        ));
        let executor = Executor { sandbox: &self.id, store, work: &self.fake, observer: &Deaf };
        executor.run().await
    }

    /// A run that dies after `deeds` further deeds.
    async fn run_and_die_after(&self, polls: u32) {
        // A future that is dropped stops where a killed process would: between two awaits.
        let run = self.run();
        tokio::pin!(run);
        for _ in 0..polls {
            if tokio::time::timeout(Duration::ZERO, &mut run).await.is_ok() {
                return;
            }
            tokio::task::yield_now().await;
        }
    }

    fn deeds(&self) -> Vec<String> {
        self.fake.0.lock().unwrap().deeds.clone()
    }
}

const ORDER: [&str; 8] =
    ["door", "containers", "keeper", "nri", "network", "netns", "shm", "files"];

#[tokio::test]
async fn the_steps_run_in_the_plans_order_and_once() {
    let bench = Bench::new();
    bench.run().await.unwrap();
    assert_eq!(bench.deeds(), ORDER);
    bench.run().await.unwrap();
    assert_eq!(bench.deeds(), ORDER, "a second run finds nothing to do");
    let journal = journal::read(bench.folder.path()).unwrap().unwrap();
    assert!(journal.closed);
    assert!(journal.entries.iter().all(|entry| entry.state == State::Released));
}

#[tokio::test]
async fn a_failed_step_is_named_and_the_next_run_resumes_there() {
    let bench = Bench::new();
    bench.fake.0.lock().unwrap().faults.insert(Step::Network, vec![Fault::Fail, Fault::Fail]);
    for _ in 0..2 {
        let error = bench.run().await.unwrap_err();
        assert_eq!(error.step, Step::Network);
        assert_eq!(error.code(), Code::Unknown, "containerd would take Unavailable for stopped");
        assert!(error.to_string().starts_with("network: "), "{error}");
        assert_eq!(bench.deeds(), ORDER[..4]);
    }
    bench.run().await.unwrap();
    assert_eq!(bench.deeds(), ORDER, "no earlier step ran twice");
}

#[tokio::test(start_paused = true)]
async fn a_step_that_hangs_ends_with_its_budget() {
    let bench = Bench::new();
    bench.fake.0.lock().unwrap().faults.insert(Step::Network, vec![Fault::Hang]);
    let error = bench.run().await.unwrap_err();
    assert_eq!((error.step, error.code), (Step::Network, Code::DeadlineExceeded));
    bench.run().await.unwrap();
}

#[tokio::test]
async fn a_step_that_may_fail_is_passed() {
    let bench = Bench::new();
    bench.fake.0.lock().unwrap().faults.insert(Step::Nri, vec![Fault::Fail]);
    bench.run().await.unwrap();
    assert!(!bench.deeds().contains(&"nri".to_owned()));
}

fn faults() -> impl Strategy<Value = BTreeMap<Step, Vec<Fault>>> {
    let step = prop::sample::select(PLAN.iter().map(|line| line.step).collect::<Vec<_>>());
    prop::collection::btree_map(
        step,
        prop::collection::vec(prop::sample::select(vec![Fault::None, Fault::Fail]), 0..3),
        0..5,
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Whatever fails and whenever the process dies, running again until it succeeds leaves nothing, keeps the order,
    /// and repeats at most the deed that was under way when the process died.
    #[test]
    fn any_mix_of_failures_and_deaths_ends_clean(faults in faults(), deaths in prop::collection::vec(0u32..40, 0..4)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let bench = Bench::new();
            let failures: usize = faults.values().map(Vec::len).sum();
            bench.fake.0.lock().unwrap().faults = faults;
            for polls in &deaths {
                bench.run_and_die_after(*polls).await;
                // The journal's write under way ends by itself, as a killed process's rename does or does not.
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            let mut ended = false;
            for _ in 0..=failures {
                if bench.run().await.is_ok() {
                    ended = true;
                    break;
                }
            }
            prop_assert!(ended, "every fault happens once, so some run succeeds");
            let world = bench.fake.0.lock().unwrap();
            prop_assert!(world.held.is_empty(), "left: {:?}", world.held);
            let position = |deed: &String| ORDER.iter().position(|name| name == deed).unwrap();
            let places: Vec<usize> = world.deeds.iter().map(position).collect();
            prop_assert!(places.is_sorted(), "out of order: {:?}", world.deeds);
            let repeated = places.windows(2).filter(|pair| pair[0] == pair[1]).count();
            prop_assert!(repeated <= deaths.len(), "repeated: {:?}", world.deeds);
            Ok(())
        })?;
    }
}

#[test]
fn a_torn_a_foreign_and_a_newer_journal_are_reported() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("journal.json");
    assert!(journal::read(folder.path()).unwrap().is_none());
    for text in ["", "{", "[]", r#"{"version":0}"#, r#"{"version":"1"}"#, r#"{"version":1}"#] {
        std::fs::write(&file, text).unwrap();
        assert!(
            matches!(journal::read(folder.path()), Err(journal::JournalError::Foreign { .. })),
            "{text}"
        );
    }
    std::fs::write(&file, r#"{"version":99}"#).unwrap();
    assert!(matches!(
        journal::read(folder.path()),
        Err(journal::JournalError::Newer { version: 99, .. })
    ));
}

#[test]
fn a_journal_of_the_first_version_is_understood() {
    let folder = tempfile::tempdir().unwrap();
    let text = include_str!("testdata/journal-v1.json");
    std::fs::write(folder.path().join("journal.json"), text).unwrap();
    let journal = journal::read(folder.path()).unwrap().unwrap();
    assert_eq!(journal.entries.len(), 3);
    assert_eq!(journal.done, [Step::Door, Step::Containers]);
}

#[test]
fn a_second_process_waits_its_turn() {
    let bench = Bench::new();
    let held = Store::open(bench.folder.path(), Duration::ZERO).unwrap().unwrap();
    assert!(matches!(
        Store::open(bench.folder.path(), Duration::ZERO),
        Err(journal::JournalError::Locked { .. })
    ));
    drop(held);
    assert!(Store::open(bench.folder.path(), Duration::ZERO).unwrap().is_some());
}

#[test]
fn only_what_may_fail_without_harm_is_warned_about() {
    let warned: Vec<Step> =
        PLAN.iter().filter(|line| line.policy == Policy::Warn).map(|line| line.step).collect();
    assert_eq!(warned, [Step::Door, Step::Nri]);
}
