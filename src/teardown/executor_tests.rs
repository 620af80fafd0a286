//! A plan's execution with fake releases: order, resumption, nothing twice, nothing left.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use proptest::prelude::*;

use super::{
    Executor, TeardownError,
    fake::{Deaf, Fake, Fault, ORDER, PLAN, Thing, holding},
    journal::{self, Stage, Store},
};
use crate::error::{Code, Coded};

const HELD: [Thing; 3] = [Thing::First, Thing::Second, Thing::Lasting];

struct Bench {
    folder: tempfile::TempDir,
    fake: Fake,
}

impl Bench {
    fn new() -> Self {
        let bench = Self { folder: tempfile::tempdir().unwrap(), fake: Fake::default() };
        bench.fake.world().held = HELD.to_vec();
        holding(bench.folder.path(), &HELD);
        bench
    }

    /// An executor of a process that has just started: all it knows is the journal.
    fn executor(&self) -> Executor<Thing, &'static str> {
        let store = Store::open(self.folder.path(), Duration::from_secs(5)).unwrap().unwrap();
        Executor::new(PLAN, Arc::new(store))
    }

    async fn run(&self) -> Result<(), TeardownError> {
        self.executor().run(Arc::new(self.fake.clone()), &Deaf).await
    }

    /// A run that dies somewhere.
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

    fn done(&self) -> Vec<&'static str> {
        self.fake.world().done.clone()
    }

    fn fault(&self, step: &'static str, faults: &[Fault]) {
        self.fake.world().faults.insert(step, faults.to_vec());
    }
}

#[tokio::test]
async fn the_steps_run_in_the_plans_order_and_once() {
    let bench = Bench::new();
    bench.run().await.unwrap();
    assert_eq!(bench.done(), ORDER);
    bench.run().await.unwrap();
    assert_eq!(bench.done(), ORDER, "a second run finds nothing to do");
    let journal = journal::read::<Thing>(bench.folder.path()).unwrap().unwrap();
    assert!(journal.closed);
    assert!(journal.entries.iter().all(|entry| entry.stage == Stage::Released));
}

#[tokio::test]
async fn a_failed_step_is_named_and_the_next_run_resumes_there() {
    let bench = Bench::new();
    bench.fault("lasting", &[Fault::Fail, Fault::Fail]);
    for _ in 0..2 {
        let error = bench.run().await.unwrap_err();
        assert_eq!(error.step.name(), "lasting");
        assert_eq!(error.code(), Code::Unknown, "containerd would take Unavailable for stopped");
        assert!(error.to_string().starts_with("lasting: "), "{error}");
        assert_eq!(bench.done(), ORDER[..2]);
    }
    bench.run().await.unwrap();
    assert_eq!(bench.done(), ORDER, "no earlier step ran twice");
}

#[tokio::test(start_paused = true)]
async fn a_step_that_hangs_ends_with_its_budget() {
    let bench = Bench::new();
    bench.fault("containers", &[Fault::Hang]);
    let error = bench.run().await.unwrap_err();
    assert_eq!((error.step.name(), error.code), ("containers", Code::DeadlineExceeded));
    bench.run().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_release_that_outlasts_its_budget_is_joined_by_the_next_run() {
    let bench = Bench::new();
    let executor = bench.executor();
    // The budget is 10 s and one of grace. A release that was begun anew each time would never end.
    bench.fault("second", &[Fault::Slow(Duration::from_secs(25)); 9]);
    let mut runs = 0;
    loop {
        runs += 1;
        match executor.run(Arc::new(bench.fake.clone()), &Deaf).await {
            Ok(()) => break,
            Err(error) => {
                assert_eq!((error.step.name(), error.code), ("second", Code::DeadlineExceeded));
                assert!(runs < 5, "it never ends");
            }
        }
    }
    assert_eq!(runs, 3, "25 s are three runs of 11 s");
    assert_eq!(bench.fake.world().begun[&Thing::Second], 1, "it was begun twice");
    assert_eq!(bench.done(), ORDER);
}

#[tokio::test(start_paused = true)]
async fn a_joined_release_that_fails_is_begun_again_in_the_same_run() {
    let bench = Bench::new();
    let executor = bench.executor();
    bench.fault("second", &[Fault::SlowFail(Duration::from_secs(15)), Fault::None]);
    let work = Arc::new(bench.fake.clone());
    let cut = executor.run(work.clone(), &Deaf).await.unwrap_err();
    assert_eq!(cut.code, Code::DeadlineExceeded);
    executor.run(work, &Deaf).await.unwrap();
    assert_eq!(bench.fake.world().begun[&Thing::Second], 2);
    assert_eq!(bench.done(), ORDER);
}

#[tokio::test]
async fn a_step_that_may_fail_is_passed() {
    let bench = Bench::new();
    bench.fault("door", &[Fault::Fail]);
    bench.run().await.unwrap();
    assert_eq!(bench.done(), ORDER[1..]);
}

#[tokio::test]
async fn what_no_step_releases_keeps_the_journal_open_and_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let store = Arc::new(holding(folder.path(), &[Thing::First, Thing::Forgotten]));
    let executor = Executor::new(PLAN, Arc::clone(&store));
    for _ in 0..2 {
        let error = executor.run(Arc::new(Fake::default()), &Deaf).await.unwrap_err();
        assert_eq!(error.to_string(), "close: still held after the last step: forgotten");
    }
    assert!(!store.look(|journal| journal.closed));
    let written = journal::read::<Thing>(folder.path()).unwrap().unwrap();
    assert!(!written.closed);
    assert_eq!(written.entries[0].stage, Stage::Released);
}

#[tokio::test]
async fn what_is_in_use_holds_up_nothing_and_is_released_by_the_next_run() {
    let bench = Bench::new();
    bench.fault("second", &[Fault::InUse]);
    bench.run().await.unwrap();
    assert_eq!(bench.done(), ["door", "containers", "lasting", "first"]);
    let journal = || journal::read::<Thing>(bench.folder.path()).unwrap().unwrap();
    assert!(!journal().closed, "something is held");
    bench.run().await.unwrap();
    assert_eq!(bench.done(), ["door", "containers", "lasting", "first", "second"]);
    assert!(journal().closed);
}

#[tokio::test]
async fn a_step_that_an_earlier_plan_had_is_passed_over() {
    let bench = Bench::new();
    let file = bench.folder.path().join("journal.json");
    let text = std::fs::read_to_string(&file).unwrap();
    let text = text.replace(r#""done":[]"#, r#""done":["door","containers","nri"]"#);
    std::fs::write(&file, text.replace(r#""current":null"#, r#""current":"nri""#)).unwrap();
    bench.run().await.unwrap();
    assert_eq!(bench.done(), ORDER[2..]);
}

#[tokio::test]
async fn a_teardown_goes_on_without_its_journal() {
    let bench = Bench::new();
    let executor = bench.executor();
    // A file cannot take the place of a folder.
    let file = bench.folder.path().join("journal.json");
    std::fs::remove_file(&file).unwrap();
    std::fs::create_dir(&file).unwrap();
    executor.run(Arc::new(bench.fake.clone()), &Deaf).await.unwrap();
    assert_eq!(bench.done(), ORDER);
    assert!(bench.fake.world().held.is_empty());
    executor.run(Arc::new(bench.fake.clone()), &Deaf).await.unwrap();
    assert_eq!(bench.done(), ORDER, "memory knows what is done");
}

fn faults() -> impl Strategy<Value = BTreeMap<&'static str, Vec<Fault>>> {
    prop::collection::btree_map(
        prop::sample::select(ORDER.to_vec()),
        prop::collection::vec(prop::sample::select(vec![Fault::None, Fault::Fail]), 0..3),
        0..5,
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Whatever fails and whenever the process dies, running again until it succeeds leaves nothing, keeps the order,
    /// and repeats at most the step that was under way when the process died.
    #[test]
    fn any_mix_of_failures_and_deaths_ends_clean(faults in faults(), deaths in prop::collection::vec(0u32..40, 0..4)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let bench = Bench::new();
            let failures: usize = faults.values().map(Vec::len).sum();
            bench.fake.world().faults = faults;
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
            let world = bench.fake.world();
            prop_assert!(world.held.is_empty(), "left: {:?}", world.held);
            let position = |done: &&str| ORDER.iter().position(|name| name == done).unwrap();
            let places: Vec<usize> = world.done.iter().map(position).collect();
            prop_assert!(places.is_sorted(), "out of order: {:?}", world.done);
            let repeated = places.windows(2).filter(|pair| pair[0] == pair[1]).count();
            prop_assert!(repeated <= deaths.len(), "repeated: {:?}", world.done);
            Ok(())
        })?;
    }
}
