//! StopSandbox: one teardown for all callers; it goes on when they leave.

use std::{
    sync::{Arc, PoisonError},
    time::Duration,
};

use tokio::{sync::watch, time::Instant};

use super::{
    Error, Pod, Sandbox, State, blocking, milestones::Milestones, shutdown::remove_run_dir,
    teardown::ShimTeardown,
};
use crate::{
    teardown::TeardownError,
    telemetry::trace::{Span, carried},
};

/// The step that waits for processes.
const CONTAINERS: &str = "containers";

/// A teardown under way; callers join it.
pub(super) type Run = watch::Receiver<Option<Result<(), TeardownError>>>;

impl Sandbox {
    /// Stops the sandbox and leaves nothing of it but its tasks' remains, which are their client's.
    ///
    /// A stopped or unknown sandbox is success. With a `timeout` the call ends after it, and the teardown goes on.
    pub async fn stop(self: &Arc<Self>, timeout: Option<Duration>) -> Result<(), Error> {
        let begun = Instant::now();
        let Some(mut run) = self.join_or_begin() else { return Ok(()) };
        let ended = async { run.wait_for(Option::is_some).await.map(|result| result.clone()) };
        let ended = match timeout {
            Some(timeout) => tokio::time::timeout(timeout, ended).await.ok(),
            None => Some(ended.await),
        };
        match ended {
            Some(Ok(result)) => result.unwrap_or(Ok(())).map_err(Error::from),
            Some(Err(_)) => Err(Error::Internal("the teardown was lost".into())),
            None => Err(self.still_stopping(begun.elapsed()).await),
        }
    }

    async fn still_stopping(&self, waited: Duration) -> Error {
        self.look_what_it_waits_for().await;
        let (step, waits_for) = match self.progress.current() {
            Some(current) => (Some(current.step), current.waits_for),
            None => (None, Vec::new()),
        };
        Error::StillStopping { step, seconds: waited.as_secs_f64(), waits_for }
    }

    /// Finds out which processes the step under way waits for. What another step waits for is in its error.
    pub(super) async fn look_what_it_waits_for(&self) {
        let step = self.progress.current().map(|current| current.step);
        if step.is_some_and(|step| step.name() == CONTAINERS) {
            self.progress.waits_for(&self.running_in_words().await);
        }
    }

    /// The teardown under way, or a new one; nothing where there is nothing to take down.
    fn join_or_begin(self: &Arc<Self>) -> Option<Run> {
        let mut teardown = self.teardown.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(run) = &*teardown
            && run.borrow().is_none()
        {
            Span::current().event("joined the teardown under way");
            return Some(run.clone());
        }
        if matches!(*self.state(), State::Empty | State::Stopped { .. }) {
            return None;
        }
        self.door.close();
        let (done, run) = watch::channel(None);
        let sandbox = Arc::clone(self);
        tokio::spawn(carried(async move {
            // A start under way sees the closed door at its next step, and takes itself back.
            let _life = sandbox.lifecycle.lock().await;
            let pod = sandbox.state().pod().cloned();
            sandbox.progress.begins();
            let taken_down = async {
                match pod {
                    Some(pod) => sandbox.take_down(&pod).await,
                    None => Ok(()),
                }
            };
            let result = sandbox.telemetry.timed("sandbox_stop", taken_down).await;
            if let Err(error) = &result {
                log::error!("stop sandbox {:?}: {error}", sandbox.id().as_str());
            }
            done.send_replace(Some(result));
        }));
        *teardown = Some(run.clone());
        Some(run)
    }

    /// Runs the plan from where the journal stands. The lifecycle lock is held by the caller.
    pub(super) async fn take_down(self: &Arc<Self>, pod: &Arc<Pod>) -> Result<(), TeardownError> {
        if matches!(*self.state(), State::Stopped { .. }) {
            return Ok(());
        }
        let result = self.run_plan(pod).await;
        // The connection costs memory, and whatever asks next may find another containerd.
        self.env.containerd.disconnect().await;
        if result.is_ok() {
            let run_dir = self.env.run_dir();
            // Only tidiness: it is empty by now, and removed again with the journal.
            let _ = blocking(move || remove_run_dir(&run_dir)).await;
            let mut state = self.state();
            *state = State::Stopped { pod: Arc::clone(pod), pid: state.pid() };
            drop(state);
            self.ended(0);
            self.progress.changed();
        }
        result
    }

    /// Does what the plan has left to do.
    pub(super) async fn run_plan(self: &Arc<Self>, pod: &Arc<Pod>) -> Result<(), TeardownError> {
        let steps = Arc::new(ShimTeardown { sandbox: Arc::clone(self) });
        let milestones = Milestones::begin(self.id());
        let observer = (&*self.progress, &milestones);
        let result = milestones.span().within(pod.teardown.run(steps, &observer)).await;
        milestones.end(&result);
        result
    }
}
