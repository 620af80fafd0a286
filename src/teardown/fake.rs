//! A plan, resources and their releases in memory.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{
    Journaled, Line, Observer, Policy, Step, StepError, StepReport, StepWork,
    journal::{About, Store},
};
use crate::{error::Code, id::Id, released::Released};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Thing {
    First,
    Second,
    Lasting,
    /// Of a step that no plan here has.
    Forgotten,
}

pub(super) const PLAN: &[Line<&str>] = &[
    Line::act("door", "door", 10, Policy::Warn),
    Line::act("containers", "containers", 30, Policy::Abort),
    Line::release("lasting", 10),
    Line::release("second", 10),
    Line::release("first", 10),
];
pub(super) const ORDER: [&str; 5] = ["door", "containers", "lasting", "second", "first"];

impl Journaled for Thing {
    fn kind(&self) -> &'static str {
        self.step().name()
    }

    fn step(&self) -> Step {
        match self {
            Self::First => const { super::releasing(PLAN, "first") },
            Self::Second => const { super::releasing(PLAN, "second") },
            Self::Lasting => const { super::releasing(PLAN, "lasting") },
            Self::Forgotten => Step::named("forgotten"),
        }
    }

    fn outlives_reboot(&self) -> bool {
        matches!(self, Self::Lasting)
    }
}

/// What happens at a step when it is reached for the n-th time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    None,
    Fail,
    Hang,
    InUse,
    /// It takes this long, whatever its deadline.
    Slow(Duration),
    /// It takes this long to fail.
    SlowFail(Duration),
}

#[derive(Default)]
pub(super) struct World {
    /// Faults to come, by step.
    pub(super) faults: BTreeMap<&'static str, Vec<Fault>>,
    /// Every action and release that succeeded.
    pub(super) done: Vec<&'static str>,
    pub(super) held: Vec<Thing>,
    /// How often each release was begun.
    pub(super) begun: BTreeMap<Thing, usize>,
}

#[derive(Clone, Default)]
pub(super) struct Fake(Arc<Mutex<World>>);

impl Fake {
    pub(super) fn world(&self) -> MutexGuard<'_, World> {
        self.0.lock().unwrap()
    }

    async fn meet(&self, step: &'static str) -> Result<bool, StepError> {
        let fault = {
            let mut world = self.world();
            let faults = world.faults.entry(step).or_default();
            if faults.is_empty() { Fault::None } else { faults.remove(0) }
        };
        match fault {
            Fault::None => Ok(true),
            Fault::InUse => Ok(false),
            Fault::Fail => Err(broken()),
            Fault::Hang => std::future::pending().await,
            Fault::Slow(time) => {
                tokio::time::sleep(time).await;
                Ok(true)
            }
            Fault::SlowFail(time) => {
                tokio::time::sleep(time).await;
                Err(broken())
            }
        }
    }
}

fn broken() -> StepError {
    StepError { code: Code::Unavailable, message: "broken".into() }
}

#[async_trait]
impl StepWork<Thing, &'static str> for Fake {
    async fn act(&self, action: &'static str, _: Instant) -> Result<(), StepError> {
        self.meet(action).await?;
        self.world().done.push(action);
        Ok(())
    }

    async fn release(&self, thing: &Thing, _: Instant) -> Result<Released, StepError> {
        *self.world().begun.entry(*thing).or_default() += 1;
        if !self.meet(thing.kind()).await? {
            return Ok(Released::InUse);
        }
        let mut world = self.world();
        world.done.push(thing.kind());
        let before = world.held.len();
        world.held.retain(|held| held != thing);
        Ok(if world.held.len() < before { Released::Done } else { Released::AlreadyGone })
    }
}

pub(super) struct Deaf;

impl Observer for Deaf {
    fn begun(&self, _: Step) {}
    fn ended(&self, _: StepReport) {}
}

pub(super) fn about() -> About {
    About {
        namespace: Id::new("k8s.io").unwrap(),
        id: Id::new("pod").unwrap(),
        bundle: "/bundle".into(),
        grpc_address: "/x.sock".into(),
        created_at: SystemTime::now(),
        run_dir: "/x".into(),
        shim: None,
        boot: None,
    }
}

/// A journal in `folder` that holds `things`.
pub(super) fn holding(folder: &Path, things: &[Thing]) -> Store<Thing> {
    let store = Store::create(folder, about()).unwrap();
    for thing in things {
        let entry = store.intend(*thing).unwrap();
        store.held(entry, *thing).unwrap();
    }
    store
}
