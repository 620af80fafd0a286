//! How far the teardown is, for the verbose status.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use serde_json::{Value, json};

use crate::{
    teardown::{Observer, Outcome, Step, StepReport},
    telemetry::Telemetry,
};

#[derive(Default)]
struct Seen {
    current: Option<(Step, Instant)>,
    /// What it was last seen to wait for.
    waits_for: Vec<String>,
    ended: Vec<StepReport>,
}

/// Remembers the steps of the last teardown.
pub(super) struct Progress {
    seen: Mutex<Seen>,
    telemetry: Arc<Telemetry>,
}

impl Progress {
    /// Steps are also counted and timed in `telemetry`.
    pub(super) fn new(telemetry: Arc<Telemetry>) -> Self {
        Self { seen: Mutex::default(), telemetry }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The step that is under way.
    pub(super) fn current(&self) -> Option<Step> {
        self.seen().current.map(|(step, _)| step)
    }

    /// What the step under way was seen to wait for.
    pub(super) fn waits_for(&self, what: &[String]) {
        what.clone_into(&mut self.seen().waits_for);
    }

    /// What an operator wants to see of it.
    pub(super) fn to_json(&self) -> Value {
        let seen = self.seen();
        let steps: Vec<Value> = seen
            .ended
            .iter()
            .map(|report| {
                let (outcome, error) = match &report.outcome {
                    Outcome::Done => ("done", None),
                    Outcome::AlreadyGone => ("already_gone", None),
                    Outcome::InUse => ("in_use", None),
                    Outcome::Warned(error) => ("warned", Some(error)),
                    Outcome::Failed(error) => ("failed", Some(error)),
                };
                json!({"step": report.step, "outcome": outcome, "ms": report.took.as_secs_f64() * 1e3, "error": error})
            })
            .collect();
        let current = seen
            .current
            .map(|(step, since)| json!({"step": step, "ms": since.elapsed().as_secs_f64() * 1e3, "waits_for": seen.waits_for}));
        json!({"current": current, "steps": steps})
    }
}

impl Observer for Progress {
    fn begun(&self, step: Step) {
        let mut seen = self.seen();
        seen.current = Some((step, Instant::now()));
        seen.waits_for.clear();
    }

    fn ended(&self, report: StepReport) {
        let failed = matches!(report.outcome, Outcome::Failed(_) | Outcome::Warned(_));
        self.telemetry.observe(&format!("teardown_{}", report.step), report.took, failed);
        let mut seen = self.seen();
        seen.current = None;
        // A repeated step replaces its earlier report: a retried stop does not grow without end.
        seen.ended.retain(|earlier| earlier.step != report.step);
        seen.ended.push(report);
    }
}
