//! Runs a plan: journal, deadlines, logging and observation for all steps, and knowledge of none.

use std::{
    collections::HashMap,
    future::poll_fn,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::Poll,
    time::Duration,
};

use async_trait::async_trait;
use thiserror::Error;
use tokio::{task::JoinHandle, time::Instant};

use super::{
    journal::{JournalError, Stage, Store},
    plan::{Does, Journaled, Line, Policy, Step},
};
use crate::{
    error::{Code, Coded},
    id::Id,
    released::Released,
    telemetry::trace::{Span, carried},
};

/// What a step may take beyond its budget: the work keeps its own deadline where it can.
const GRACE: Duration = Duration::from_secs(1);
/// Where a teardown stands that has gone through its plan and still holds something.
const CLOSE: Step = Step::named("close");

/// Why a step's work failed.
#[derive(Debug, Error)]
#[error("{message}")]
pub struct StepError {
    pub code: Code,
    /// What was done to what, and what came of it.
    pub message: String,
}

impl<E: Coded + std::fmt::Display> From<E> for StepError {
    fn from(error: E) -> Self {
        Self { code: error.code(), message: error.to_string() }
    }
}

/// A teardown that did not reach its end.
#[derive(Clone, Debug, Error)]
#[error("{step}: {message}")]
pub struct TeardownError {
    pub step: Step,
    pub code: Code,
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

/// Does what a plan's lines say.
#[async_trait]
pub trait StepWork<R, A>: Send + Sync {
    /// Does something that releases no journaled resource. Dropped when its time is over.
    async fn act(&self, action: A, deadline: Instant) -> Result<(), StepError>;

    /// Releases one resource, be it held or only intended; may be repeated. What is not done in time goes on, and is
    /// waited for by whoever wants it released again.
    async fn release(&self, resource: &R, deadline: Instant) -> Result<Released, StepError>;
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
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

impl Outcome {
    /// The name that logs and the status know it by.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::AlreadyGone => "already_gone",
            Self::InUse => "in_use",
            Self::Warned(_) => "warned",
            Self::Failed(_) => "failed",
        }
    }

    /// What went wrong.
    pub fn error(&self) -> Option<&str> {
        match self {
            Self::Warned(error) | Self::Failed(error) => Some(error),
            Self::Done | Self::AlreadyGone | Self::InUse => None,
        }
    }
}

/// What an observer hears of a step.
#[derive(Clone, Debug)]
pub struct StepReport {
    pub step: Step,
    pub outcome: Outcome,
    pub took: Duration,
}

/// Hears of every step, for status and metrics.
pub trait Observer: Send + Sync {
    fn begun(&self, step: Step);
    fn ended(&self, report: StepReport);
}

/// Both hear of it.
impl<A: Observer, B: Observer> Observer for (&A, &B) {
    fn begun(&self, step: Step) {
        self.0.begun(step);
        self.1.begun(step);
    }

    fn ended(&self, report: StepReport) {
        self.0.ended(report.clone());
        self.1.ended(report);
    }
}

type Release = JoinHandle<Result<Released, StepError>>;

/// Runs a plan over one journal, as often as it takes. One run at a time.
pub struct Executor<R, A: 'static> {
    plan: &'static [Line<A>],
    store: Arc<Store<R>>,
    /// Releases whose step was cut by its budget, by entry: they go on.
    unfinished: Mutex<HashMap<usize, Release>>,
}

impl<R: Journaled, A: Copy + Send + Sync + 'static> Executor<R, A> {
    /// The execution of `plan` over what `store` says is held.
    pub fn new(plan: &'static [Line<A>], store: Arc<Store<R>>) -> Self {
        Self { plan, store, unfinished: Mutex::default() }
    }

    /// Runs every step that is not done yet. On an error the journal stands at the step that failed. A step some of
    /// whose resources are still in use does not hold up the others, and is for the next run to repeat.
    ///
    /// What was released is known in memory: a journal that cannot be written is one warning and holds up nothing. Only a
    /// process that dies then repeats what it had done.
    pub async fn run(
        &self,
        work: Arc<dyn StepWork<R, A>>,
        observer: &dyn Observer,
    ) -> Result<(), TeardownError> {
        let mut summary = Summary::default();
        let result = self.go_through(work, observer, &mut summary).await;
        summary.log(self.store.id(), result.as_ref().err());
        result
    }

    async fn go_through(
        &self,
        work: Arc<dyn StepWork<R, A>>,
        observer: &dyn Observer,
        summary: &mut Summary,
    ) -> Result<(), TeardownError> {
        let mut writes = Writes { store: &self.store, failed: false };
        // What the last step did is recorded together with the next one's beginning: one write for both.
        let mut finished: Option<(Option<Step>, Vec<usize>)> = None;
        let mut in_use = Vec::new();
        for line in self.plan {
            let Some(entries) = self.pending(line) else { continue };
            writes.advance(finished.take(), Some(line.step)).await;
            observer.begun(line.step);
            let started = Instant::now();
            let span = Span::current().child(line.step.name());
            let step = self.step(line, &entries, &work, started + line.budget);
            let (result, released) = span.within(step).await;
            if matches!(result, Ok(Released::InUse)) {
                in_use.push(line.step);
            }
            let (outcome, failure) = judge(line, result);
            let report = StepReport { step: line.step, outcome, took: started.elapsed() };
            span.set("mooring.outcome", report.outcome.word());
            if let Some(error) = report.outcome.error() {
                span.fail(error);
            }
            drop(span);
            summary.add(&report);
            self.log(&report);
            observer.ended(report);
            if let Some(error) = failure {
                writes.released(released).await;
                return Err(error);
            }
            let done = (!in_use.contains(&line.step)).then_some(line.step);
            finished = Some((done, released));
        }
        let released = finished.as_ref().map_or(&[][..], |(_, released)| released);
        let left = self.left(released, &in_use);
        if !left.is_empty() {
            writes.advance(finished, Some(CLOSE)).await;
            let message = format!("still held after the last step: {}", left.join(", "));
            return Err(TeardownError { step: CLOSE, code: Code::Unknown, message });
        }
        if finished.is_some() || !self.store.look(|journal| journal.closed) {
            // Not closed while anything is held.
            writes.advance(finished, in_use.first().copied()).await;
        }
        Ok(())
    }

    /// Whether a release goes on whose step was cut by its budget. The next run joins it.
    pub fn is_releasing(&self) -> bool {
        self.unfinished().values().any(|release| !release.is_finished())
    }

    /// The entries that a step has to release, the last acquired first; nothing where the step has nothing to do.
    fn pending(&self, line: &Line<A>) -> Option<Vec<(usize, R)>> {
        self.store.look(|journal| {
            if let Does::Act(_) = line.does {
                let is_done = journal.done.iter().any(|done| done == line.step.name());
                return (!is_done).then(Vec::new);
            }
            let entries = journal.entries.iter().enumerate().rev();
            let pending: Vec<_> = entries
                .filter(|(_, entry)| entry.stage != Stage::Released)
                .filter(|(_, entry)| entry.resource.step() == line.step)
                .map(|(index, entry)| (index, entry.resource.clone()))
                .collect();
            (!pending.is_empty()).then_some(pending)
        })
    }

    /// What no step has released, `released` aside and what is `in_use`.
    fn left(&self, released: &[usize], in_use: &[Step]) -> Vec<&'static str> {
        self.store.look(|journal| {
            let entries = journal.entries.iter().enumerate();
            entries
                .filter(|(index, entry)| {
                    entry.stage != Stage::Released && !released.contains(index)
                })
                .filter(|(_, entry)| !in_use.contains(&entry.resource.step()))
                .map(|(_, entry)| entry.resource.kind())
                .collect()
        })
    }

    async fn step(
        &self,
        line: &Line<A>,
        entries: &[(usize, R)],
        work: &Arc<dyn StepWork<R, A>>,
        deadline: Instant,
    ) -> (Result<Released, StepError>, Vec<usize>) {
        let mut released = Vec::new();
        let doing = async {
            if let Does::Act(action) = line.does {
                return work.act(action, deadline).await.map(|()| Released::Done);
            }
            let mut found = Released::AlreadyGone;
            for (index, resource) in entries {
                let one = self.release(*index, resource, work, deadline).await?;
                found = found.and(one);
                if one != Released::InUse {
                    released.push(*index);
                }
            }
            Ok(found)
        };
        let result = match tokio::time::timeout_at(deadline + GRACE, doing).await {
            Ok(result) => result,
            Err(_) => Err(StepError {
                code: Code::DeadlineExceeded,
                message: format!("not finished within {} s", line.budget.as_secs()),
            }),
        };
        (result, released)
    }

    /// Releases one entry. A system call cannot be taken back: one that an earlier run began and did not wait for is
    /// joined, since two at once would only stand in each other's way.
    async fn release(
        &self,
        index: usize,
        resource: &R,
        work: &Arc<dyn StepWork<R, A>>,
        deadline: Instant,
    ) -> Result<Released, StepError> {
        if let Some(Ok(found)) = self.join(index).await {
            return Ok(found);
        }
        let (work, resource) = (Arc::clone(work), resource.clone());
        // Whoever else would release it, or acquire what comes after it, waits for the journal's lock.
        let store = Arc::clone(&self.store);
        let begun = tokio::spawn(carried(async move {
            let released = work.release(&resource, deadline).await;
            drop(store);
            released
        }));
        self.unfinished().insert(index, begun);
        self.join(index).await.unwrap_or(Ok(Released::AlreadyGone))
    }

    /// Waits for the release of entry `index`, if one is under way. It stays known until it has ended.
    async fn join(&self, index: usize) -> Option<Result<Released, StepError>> {
        let ended = poll_fn(|context| {
            let mut unfinished = self.unfinished();
            let Some(release) = unfinished.get_mut(&index) else { return Poll::Ready(None) };
            let ended = Pin::new(release).poll(context);
            if ended.is_ready() {
                unfinished.remove(&index);
            }
            ended.map(Some)
        });
        let lost = |error: tokio::task::JoinError| {
            // A panic in the work, or the end of the runtime.
            StepError { code: Code::Unknown, message: format!("the release was lost: {error}") }
        };
        ended.await.map(|ended| ended.map_err(lost).flatten())
    }

    fn unfinished(&self) -> MutexGuard<'_, HashMap<usize, Release>> {
        self.unfinished.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn log(&self, report: &StepReport) {
        let StepReport { step, outcome, took } = report;
        let (sandbox, ms) = (self.store.id(), took.as_secs_f64() * 1e3);
        let word = outcome.word();
        match outcome.error() {
            None => {
                log::info!("teardown step sandbox={sandbox} step={step} outcome={word} ms={ms:.2}");
            }
            Some(error) => {
                log::warn!(
                    "teardown step sandbox={sandbox} step={step} outcome={word} ms={ms:.2} error={error:?}"
                );
            }
        }
    }
}

/// What one run came to.
struct Summary {
    since: Instant,
    steps: u32,
    slowest: Option<(Step, Duration)>,
}

impl Default for Summary {
    fn default() -> Self {
        Self { since: Instant::now(), steps: 0, slowest: None }
    }
}

impl Summary {
    fn add(&mut self, report: &StepReport) {
        self.steps += 1;
        if self.slowest.is_none_or(|(_, took)| took < report.took) {
            self.slowest = Some((report.step, report.took));
        }
    }

    /// One line for a run that had something to do. Why it failed is in its step's line.
    fn log(&self, sandbox: &Id, failed: Option<&TeardownError>) {
        let Some((slowest, took)) = self.slowest else { return };
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let (total, steps, slowest_ms) = (ms(self.since.elapsed()), self.steps, ms(took));
        let (level, outcome) = match failed {
            None => (log::Level::Info, "done".to_owned()),
            Some(error) => (log::Level::Warn, format!("failed at={}", error.step)),
        };
        log::log!(
            level,
            "teardown sandbox={sandbox} outcome={outcome} ms={total:.2} steps={steps} slowest={slowest} slowest_ms={slowest_ms:.2}"
        );
    }
}

/// The journal's writes during one run: the first that fails is told of, and none ends the run.
struct Writes<'a, R> {
    store: &'a Arc<Store<R>>,
    failed: bool,
}

impl<R: Journaled> Writes<'_, R> {
    async fn advance(&mut self, finished: Option<(Option<Step>, Vec<usize>)>, next: Option<Step>) {
        let (done, released) = finished.unwrap_or_default();
        self.write(move |store| store.advance(done, &released, next)).await;
    }

    /// With several entries of a step each is recorded by itself.
    async fn released(&mut self, released: Vec<usize>) {
        for index in released {
            self.write(move |store| store.released(index)).await;
        }
    }

    async fn write(
        &mut self,
        change: impl FnOnce(&Store<R>) -> Result<(), JournalError> + Send + 'static,
    ) {
        let store = Arc::clone(self.store);
        let error = match tokio::task::spawn_blocking(move || change(&store)).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        if !self.failed {
            log::warn!(
                "sandbox {}: the teardown goes on without its journal: {error}",
                self.store.id()
            );
        }
        self.failed = true;
    }
}

fn judge<A>(
    line: &Line<A>,
    result: Result<Released, StepError>,
) -> (Outcome, Option<TeardownError>) {
    match result {
        Ok(Released::Done) => (Outcome::Done, None),
        Ok(Released::AlreadyGone) => (Outcome::AlreadyGone, None),
        Ok(Released::InUse) => (Outcome::InUse, None),
        Err(error) if line.policy == Policy::Warn => (Outcome::Warned(error.message), None),
        Err(StepError { code, message }) => (
            Outcome::Failed(message.clone()),
            Some(TeardownError { step: line.step, code, message }),
        ),
    }
}
