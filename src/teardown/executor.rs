//! Runs the plan: journal, deadlines, logging and observation for all steps, and knowledge of none.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use thiserror::Error;
use tokio::time::Instant;

use super::{
    journal::{JournalError, Resource, State, Store},
    plan::{PLAN, Policy, Step, StepSpec},
};
use crate::{
    error::{Code, Coded},
    id::Id,
    released::Released,
};

/// Why a step's work failed.
#[derive(Debug, Error)]
#[error("{message}")]
pub struct WorkError {
    /// Its class.
    pub code: Code,
    /// What was done to what, and what came of it.
    pub message: String,
}

impl<E: Coded + std::fmt::Display> From<E> for WorkError {
    fn from(error: E) -> Self {
        Self { code: error.code(), message: error.to_string() }
    }
}

/// A teardown that did not reach its end.
#[derive(Clone, Debug, Error)]
#[error("{step}: {message}")]
pub struct TeardownError {
    /// The step that failed.
    pub step: Step,
    /// The failure's class.
    pub code: Code,
    /// What failed.
    pub message: String,
}

impl Coded for TeardownError {
    /// Never `NotFound` or `Unavailable`: containerd takes those for "it is stopped", and what is still there would be
    /// forgotten.
    fn code(&self) -> Code {
        match self.code {
            Code::NotFound | Code::Unavailable => Code::Unknown,
            code => code,
        }
    }
}

/// The deeds behind the plan's steps.
#[async_trait]
pub trait Work: Send + Sync {
    /// Does a step that releases no journaled resource.
    async fn act(&self, step: Step, deadline: Instant) -> Result<(), WorkError>;

    /// Releases one resource; may be repeated. `state` tells an intended from a held one.
    async fn release(
        &self,
        resource: &Resource,
        state: State,
        deadline: Instant,
    ) -> Result<Released, WorkError>;
}

/// How a step ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It did its work.
    Done,
    /// There was nothing left to do.
    AlreadyGone,
    /// Something is still in use; the next run tries again.
    InUse,
    /// It failed, and the teardown went on.
    Warned(String),
    /// It failed, and the teardown ended here.
    Failed(String),
}

/// What an observer hears of a step.
#[derive(Clone, Debug)]
pub struct StepReport {
    /// Which step.
    pub step: Step,
    /// How it ended.
    pub outcome: Outcome,
    /// How long it took.
    pub took: Duration,
}

/// Hears of every step, for status, metrics and traces.
pub trait Observer: Send + Sync {
    /// A step begins.
    fn begun(&self, step: Step);
    /// A step ended.
    fn ended(&self, report: StepReport);
}

/// Runs the plan over one journal.
pub struct Executor<'a> {
    /// The sandbox, for the log.
    pub sandbox: &'a Id,
    /// Its journal.
    pub store: Arc<Mutex<Store>>,
    /// The deeds.
    pub work: &'a dyn Work,
    /// Who hears of it.
    pub observer: &'a dyn Observer,
}

impl Executor<'_> {
    /// Runs every step that is not done yet. On an error the journal stands at the step that failed. A step some of
    /// whose resources are still in use does not hold up the others, and is for the next run to repeat.
    pub async fn run(&self) -> Result<(), TeardownError> {
        // What the last step did is recorded together with the next one's beginning: one write for both.
        let mut finished: Option<(Option<Step>, Vec<usize>)> = None;
        for spec in PLAN {
            let Some(entries) = self.pending(spec) else { continue };
            self.advance(finished.take(), Some(spec.step)).await?;
            self.observer.begun(spec.step);
            let started = Instant::now();
            let (result, released) = self.step(spec, &entries, started + spec.budget).await;
            let done = (!matches!(result, Ok(Released::InUse))).then_some(spec.step);
            let (outcome, failure) = judge(spec, result);
            self.report(spec.step, outcome, started.elapsed());
            if let Some(error) = failure {
                self.record_released(&released).await?;
                return Err(error);
            }
            finished = Some((done, released));
        }
        if finished.is_some() || !self.locked(|store| store.journal().closed) {
            self.advance(finished, None).await?;
        }
        Ok(())
    }

    /// The entries that a step has to release; nothing where the step has nothing to do.
    fn pending(&self, spec: &StepSpec) -> Option<Vec<(usize, Resource, State)>> {
        self.locked(|store| {
            let journal = store.journal();
            if journal.done.contains(&spec.step) {
                return None;
            }
            let Some(releases) = spec.releases else { return Some(vec![]) };
            let entries = journal.entries.iter().enumerate().rev();
            let pending: Vec<_> = entries
                .filter(|(_, entry)| entry.state != State::Released && releases(&entry.resource))
                .map(|(index, entry)| (index, entry.resource.clone(), entry.state))
                .collect();
            (!pending.is_empty()).then_some(pending)
        })
    }

    async fn step(
        &self,
        spec: &StepSpec,
        entries: &[(usize, Resource, State)],
        deadline: Instant,
    ) -> (Result<Released, WorkError>, Vec<usize>) {
        let mut released = Vec::new();
        let work = async {
            if spec.releases.is_none() {
                return self.work.act(spec.step, deadline).await.map(|()| Released::Done);
            }
            let mut found = Released::AlreadyGone;
            for (index, resource, state) in entries {
                let one = self.work.release(resource, *state, deadline).await?;
                found = found.and(one);
                if one != Released::InUse {
                    released.push(*index);
                }
            }
            Ok(found)
        };
        // The work keeps its own deadline where it can; this is for what cannot.
        let result = match tokio::time::timeout_at(deadline + Duration::from_secs(1), work).await {
            Ok(result) => result,
            Err(_) => Err(WorkError {
                code: Code::DeadlineExceeded,
                message: format!("not finished within {} s", spec.budget.as_secs()),
            }),
        };
        (result, released)
    }

    fn report(&self, step: Step, outcome: Outcome, took: Duration) {
        let (sandbox, ms) = (self.sandbox, took.as_secs_f64() * 1e3);
        match &outcome {
            Outcome::Done => {
                log::info!("teardown step sandbox={sandbox} step={step} outcome=done ms={ms:.2}");
            }
            Outcome::AlreadyGone => {
                log::info!(
                    "teardown step sandbox={sandbox} step={step} outcome=already_gone ms={ms:.2}"
                );
            }
            Outcome::InUse => {
                log::info!("teardown step sandbox={sandbox} step={step} outcome=in_use ms={ms:.2}");
            }
            Outcome::Warned(error) | Outcome::Failed(error) => {
                let word = if matches!(outcome, Outcome::Failed(_)) { "failed" } else { "warned" };
                log::warn!(
                    "teardown step sandbox={sandbox} step={step} outcome={word} ms={ms:.2} error={error:?}"
                );
            }
        }
        self.observer.ended(StepReport { step, outcome, took });
    }

    async fn record_released(&self, released: &[usize]) -> Result<(), TeardownError> {
        for index in released.iter().copied() {
            self.write(move |store| store.released(index)).await?;
        }
        Ok(())
    }

    async fn advance(
        &self,
        finished: Option<(Option<Step>, Vec<usize>)>,
        next: Option<Step>,
    ) -> Result<(), TeardownError> {
        let (done, released) = finished.unwrap_or_default();
        self.write(move |store| store.advance(done, &released, next)).await
    }

    async fn write(
        &self,
        change: impl FnOnce(&mut Store) -> Result<(), JournalError> + Send + 'static,
    ) -> Result<(), TeardownError> {
        let store = Arc::clone(&self.store);
        let written = tokio::task::spawn_blocking(move || {
            change(&mut store.lock().unwrap_or_else(PoisonError::into_inner))
        });
        let failed = |code, message| {
            let step = self.locked(|store| store.journal().current).unwrap_or(Step::Door);
            TeardownError { step, code, message }
        };
        match written.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(failed(error.code(), error.to_string())),
            Err(error) => Err(failed(Code::Unknown, format!("write the journal: {error}"))),
        }
    }

    fn locked<T>(&self, look: impl FnOnce(&Store) -> T) -> T {
        look(&self.store.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn judge(spec: &StepSpec, result: Result<Released, WorkError>) -> (Outcome, Option<TeardownError>) {
    match result {
        Ok(Released::Done) => (Outcome::Done, None),
        Ok(Released::AlreadyGone) => (Outcome::AlreadyGone, None),
        Ok(Released::InUse) => (Outcome::InUse, None),
        Err(error) if spec.policy == Policy::Warn => (Outcome::Warned(error.message), None),
        Err(WorkError { code, message }) => (
            Outcome::Failed(message.clone()),
            Some(TeardownError { step: spec.step, code, message }),
        ),
    }
}
