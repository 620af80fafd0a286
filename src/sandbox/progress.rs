//! How far the teardown is, for whoever looks: the status, the inspection service, and those who follow it.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use serde_json::{Value, json};
use tokio::sync::watch;

use crate::{
    teardown::{Observer, Step, StepReport},
    telemetry::Telemetry,
};

/// A step that is under way.
#[derive(Clone, Debug)]
pub struct Current {
    pub step: Step,
    pub began_at: SystemTime,
    pub so_far: Duration,
    /// What it was last seen to wait for.
    pub waits_for: Vec<String>,
}

/// A step that has ended.
#[derive(Clone, Debug)]
pub struct Ended {
    pub report: StepReport,
    pub began_at: SystemTime,
    /// Grows with each report.
    pub number: u64,
}

#[derive(Default)]
struct Seen {
    current: Option<(Step, SystemTime, Instant)>,
    waits_for: Vec<String>,
    ended: Vec<Ended>,
    runs: u32,
}

/// Remembers the steps of the last teardown.
pub(super) struct Progress {
    seen: Mutex<Seen>,
    /// Counts whatever changes.
    changes: watch::Sender<u64>,
    telemetry: Arc<Telemetry>,
}

impl Progress {
    /// Steps are also counted and timed in `telemetry`.
    pub(super) fn new(telemetry: Arc<Telemetry>) -> Self {
        Self { seen: Mutex::default(), changes: watch::Sender::new(0), telemetry }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells those who follow that something has changed.
    pub(super) fn changed(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    /// Hears of every change from now on.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// A teardown begins.
    pub(super) fn begins(&self) {
        self.seen().runs += 1;
    }

    /// How many teardowns have begun.
    pub(super) fn runs(&self) -> u32 {
        self.seen().runs
    }

    /// The step that is under way.
    pub(super) fn current(&self) -> Option<Current> {
        let seen = self.seen();
        seen.current.map(|(step, began_at, since)| {
            let (so_far, waits_for) = (since.elapsed(), seen.waits_for.clone());
            Current { step, began_at, so_far, waits_for }
        })
    }

    /// The steps that have ended, each by its last report, in their order.
    pub(super) fn ended(&self) -> Vec<Ended> {
        self.seen().ended.clone()
    }

    /// What the step under way was seen to wait for.
    pub(super) fn waits_for(&self, what: &[String]) {
        what.clone_into(&mut self.seen().waits_for);
        self.changed();
    }

    /// What an operator wants to see of it.
    pub(super) fn to_json(&self) -> Value {
        let steps = self.ended().into_iter().map(|Ended { report, .. }| {
            let StepReport { step, outcome, took } = &report;
            json!({"step": step, "outcome": outcome.word(), "ms": took.as_secs_f64() * 1e3, "error": outcome.error()})
        });
        let steps: Vec<Value> = steps.collect();
        let current = self.current().map(|it| {
            json!({"step": it.step, "ms": it.so_far.as_secs_f64() * 1e3, "waits_for": it.waits_for})
        });
        json!({"current": current, "steps": steps})
    }
}

impl Observer for Progress {
    fn begun(&self, step: Step) {
        let mut seen = self.seen();
        seen.current = Some((step, SystemTime::now(), Instant::now()));
        seen.waits_for.clear();
        drop(seen);
        self.changed();
    }

    fn ended(&self, report: StepReport) {
        let name = format!("teardown_{}", report.step);
        self.telemetry.observe(&name, "", report.took, report.outcome.error().is_some());
        let mut seen = self.seen();
        let began = seen.current.take().map(|(_, began_at, _)| began_at);
        let number = seen.ended.iter().map(|ended| ended.number).max().unwrap_or(0) + 1;
        // A repeated step replaces its earlier report: a retried stop does not grow without end.
        seen.ended.retain(|earlier| earlier.report.step != report.step);
        let began_at = began.unwrap_or_else(SystemTime::now);
        seen.ended.push(Ended { report, began_at, number });
        drop(seen);
        self.changed();
    }
}
