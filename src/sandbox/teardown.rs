//! What the plan's steps do where the shim is this process: containers are stopped, the keeper ended, the rest released
//! as without a shim.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use thiserror::Error;
use tokio::{
    task::{JoinError, JoinSet},
    time::Instant,
};

use super::{PodTasks, Sandbox, State};
use crate::{
    containerd::{self, Containerd},
    error::{Code, Coded},
    id::Id,
    keeper::Keeper,
    released::Released,
    resources::{Action, Resource},
    teardown::{StepError, StepWork},
};

const SIGKILL: u32 = 9;
/// How often a kill is repeated when its connection was closed, and the first pause between.
const RETRIES: u32 = 4;
const PAUSE: Duration = Duration::from_millis(20);

/// The teardown of a sandbox whose shim is this process.
pub(super) struct ShimTeardown {
    pub(super) sandbox: Arc<Sandbox>,
}

#[async_trait]
impl StepWork<Resource, Action> for ShimTeardown {
    async fn act(&self, action: Action, deadline: Instant) -> Result<(), StepError> {
        match action {
            Action::CloseDoor => {
                self.sandbox.door.close();
                let quiet = tokio::time::timeout_at(deadline, self.sandbox.door.quiet()).await;
                quiet.map_err(|_| StepError {
                    code: Code::DeadlineExceeded,
                    message: "a container's creation is still under way".into(),
                })
            }
            Action::StopContainers => self.stop_containers(deadline).await,
        }
    }

    async fn release(&self, resource: &Resource, deadline: Instant) -> Result<Released, StepError> {
        if let Resource::Keeper(_) = resource
            && let Some(keeper) = self.take_keeper()
        {
            keeper.end().await;
            return Ok(Released::Done);
        }
        resource.release(&self.sandbox.env.parties(), deadline).await
    }
}

impl ShimTeardown {
    fn take_keeper(&self) -> Option<Keeper> {
        let mut state = self.sandbox.state();
        if let State::Ready { pod, pid, keeper } = &mut *state {
            let taken = keeper.take();
            *state = State::Down { pod: Arc::clone(pod), pid: *pid };
            return taken;
        }
        None
    }

    /// Stops every container: those that containerd's records say are the sandbox's, and those of the shim.
    async fn stop_containers(&self, deadline: Instant) -> Result<(), StepError> {
        let Some(tasks) = self.sandbox.tasks.get() else { return Ok(()) };
        let env = &self.sandbox.env;
        let patience = Instant::now().checked_add(env.options.containerd_timeout);
        let patience = patience.map_or(deadline, |patience| patience.min(deadline));
        let listed =
            tokio::time::timeout_at(patience, env.containerd.containers_of(&env.id, patience))
                .await;
        let (listed, answers) = match listed {
            Ok(Ok(listed)) => (listed, true),
            Ok(Err(error)) => {
                log::warn!(
                    "sandbox {}: {error}; stopping its containers without containerd",
                    env.id
                );
                (vec![], false)
            }
            Err(_) => {
                log::warn!(
                    "sandbox {}: containerd is silent; stopping its containers without it",
                    env.id
                );
                (vec![], false)
            }
        };
        let mut stops = JoinSet::new();
        let mut all = tasks.ids();
        for id in listed {
            if !all.contains(&id) {
                all.push(id);
            }
        }
        for container in all {
            let stop = StopOne {
                tasks: Arc::clone(tasks),
                containerd: Arc::clone(&env.containerd),
                container,
                answers,
                patience,
            };
            stops.spawn(tokio::time::timeout_at(deadline, async move {
                let result = stop.run().await;
                result.map_err(|source| Left::Refused { container: stop.container.clone(), source })
            }));
        }
        let mut left = Vec::new();
        while let Some(stopped) = stops.join_next().await {
            match stopped {
                Ok(Ok(Ok(()))) => {}
                Ok(Ok(Err(error))) => left.push(error),
                Ok(Err(_)) => left.push(Left::Late),
                Err(error) => left.push(Left::Lost(error)),
            }
        }
        let running = tasks.ids().into_iter().filter(|id| tasks.is_running(id));
        left.extend(running.map(Left::Running));
        if left.is_empty() {
            return Ok(());
        }
        let words: Vec<String> = left.iter().map(Left::to_string).collect();
        Err(StepError { code: Code::Unknown, message: words.join("; ") })
    }
}

/// A container that was not stopped.
#[derive(Debug, Error)]
enum Left {
    #[error("container {:?}: {source}", container.as_str())]
    Refused { container: Id, source: StopError },
    #[error("a container did not end in time")]
    Late,
    #[error(transparent)]
    Lost(JoinError),
    #[error("container {:?} is still running", .0.as_str())]
    Running(Id),
}

/// Why containerd did not stop a container.
#[derive(Debug, Error)]
enum StopError {
    #[error("containerd is silent")]
    Silent,
    #[error("its connection was closed again and again")]
    Closed,
    #[error(transparent)]
    Containerd(#[from] containerd::Error),
}

/// The stop of one container.
struct StopOne {
    tasks: Arc<dyn PodTasks>,
    containerd: Arc<dyn Containerd>,
    container: Id,
    /// Whether containerd has answered before.
    answers: bool,
    /// Until when containerd is waited for.
    patience: Instant,
}

impl StopOne {
    async fn run(&self) -> Result<(), StopError> {
        let own = self.tasks.ids().contains(&self.container);
        if own && !self.tasks.is_running(&self.container) {
            return Ok(());
        }
        let killed = if self.answers { self.kill().await } else { Err(StopError::Silent) };
        if !own {
            // Not this shim's: containerd is the only way to it.
            killed?;
            return match self.containerd.wait_task(&self.container, self.patience).await {
                Ok(_) => Ok(()),
                Err(error) if error.code() == Code::NotFound => Ok(()),
                Err(error) => Err(error.into()),
            };
        }
        if killed.is_ok() {
            let exited =
                tokio::time::timeout_at(self.patience, self.tasks.exited(&self.container)).await;
            if exited.is_ok() {
                return Ok(());
            }
        }
        log::warn!(
            "container {}: killed in place ({})",
            self.container,
            killed.err().map_or_else(|| "it goes on".into(), |error| error.to_string())
        );
        self.tasks.kill_in_place(&self.container).await;
        self.tasks.exited(&self.container).await;
        Ok(())
    }

    /// Kills through containerd; a connection closed in mid-call is tried again.
    async fn kill(&self) -> Result<(), StopError> {
        let mut pause = PAUSE;
        for attempt in 0..=RETRIES {
            match self.containerd.kill_task(&self.container, SIGKILL, true, self.patience).await {
                Ok(()) => return Ok(()),
                // It has ended already, or was never started.
                Err(error) if matches!(error.code(), Code::NotFound | Code::FailedPrecondition) => {
                    return Ok(());
                }
                Err(error) if error.is_retryable() && attempt < RETRIES => {
                    tokio::time::sleep_until((Instant::now() + pause).min(self.patience)).await;
                    pause *= 2;
                }
                Err(error) => return Err(error.into()),
            }
        }
        Err(StopError::Closed)
    }
}
