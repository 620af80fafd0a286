//! What the plan's steps do where the shim is this process: containers are stopped, the keeper ended, the rest released
//! as without a shim.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use thiserror::Error;
use tokio::{
    task::{JoinError, JoinSet},
    time::Instant,
};

use super::{NotCleared, PodTasks, Sandbox, State};
use crate::{
    containerd::{self, Containerd},
    error::{Code, Coded},
    id::Id,
    keeper::Keeper,
    released::Released,
    resources::{Action, Resource},
    sys::survivor::Survivors,
    teardown::{StepError, StepWork},
    telemetry::{
        Telemetry,
        trace::{Span, carried},
    },
};

const SIGKILL: u32 = 9;
/// How often a kill is repeated when its connection was closed, and the first pause between.
const RETRIES: u32 = 4;
const PAUSE: Duration = Duration::from_millis(20);
/// The series of the containers that a teardown has stopped, by what killed them.
const STOPPED: &str = "container_stop";

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
            keeper.end(deadline).await?;
            return Ok(Released::Done);
        }
        if let Resource::Nri(_) = resource {
            return Ok(self.sandbox.announce_stop(deadline).await);
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
                telemetry: Arc::clone(&self.sandbox.telemetry),
            };
            let stopped = carried(async move {
                let span = Span::current().child("stop container");
                span.set("container.id", stop.container.as_str());
                let result = span.within(stop.run()).await;
                result.map_err(|source| {
                    span.fail(&source);
                    Left::Refused { container: stop.container.clone(), source }
                })
            });
            stops.spawn(tokio::time::timeout_at(deadline, stopped));
        }
        let mut left = Vec::new();
        while let Some(stopped) = stops.join_next().await {
            match stopped {
                // What did not end in time is named below.
                Ok(Ok(Ok(())) | Err(_)) => {}
                Ok(Ok(Err(error))) => left.push(error),
                Err(error) => left.push(Left::Lost(error)),
            }
        }
        left.extend(self.sandbox.running().await);
        if let Err(error) = tasks.end_remains(deadline).await {
            left.push(Left::Remains(error));
        }
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
    #[error(transparent)]
    Lost(JoinError),
    #[error("container {:?} is still running: {survivors}", container.as_str())]
    Running { container: Id, survivors: Survivors },
    #[error(transparent)]
    Remains(NotCleared),
}

/// Why containerd did not stop a container.
#[derive(Debug, Error)]
enum StopError {
    #[error("containerd is silent")]
    Silent,
    #[error(transparent)]
    Containerd(#[from] containerd::Error),
}

impl Sandbox {
    /// The containers that run, each with what of it does: why a teardown waits, or failed.
    async fn running(&self) -> Vec<Left> {
        let Some(tasks) = self.tasks.get() else { return Vec::new() };
        let outliving = tasks.outliving().await.into_iter();
        outliving.map(|(container, survivors)| Left::Running { container, survivors }).collect()
    }

    /// The same in words.
    pub(super) async fn running_in_words(&self) -> Vec<String> {
        self.running().await.iter().map(Left::to_string).collect()
    }
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
    telemetry: Arc<Telemetry>,
}

impl StopOne {
    async fn run(&self) -> Result<(), StopError> {
        let own = self.tasks.ids().contains(&self.container);
        if own && !self.tasks.is_running(&self.container) {
            return Ok(());
        }
        let begun = Instant::now();
        let stopped = |means| self.telemetry.observe(STOPPED, means, begun.elapsed(), false);
        let killed = if self.answers { self.kill().await } else { Err(StopError::Silent) };
        if !own {
            // Not this shim's: containerd is the only way to it.
            killed?;
            let waited =
                self.again(|| self.containerd.wait_task(&self.container, self.patience)).await;
            return match waited {
                Err(error) if error.code() != Code::NotFound => Err(error.into()),
                _ => {
                    stopped("containerd");
                    Ok(())
                }
            };
        }
        if killed.is_ok() {
            let exited =
                tokio::time::timeout_at(self.patience, self.tasks.exited(&self.container)).await;
            if exited.is_ok() {
                stopped("containerd");
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
        stopped("in_place");
        Ok(())
    }

    /// Kills through containerd.
    async fn kill(&self) -> Result<(), StopError> {
        let kill = || self.containerd.kill_task(&self.container, SIGKILL, true, self.patience);
        match self.again(kill).await {
            Ok(()) => Ok(()),
            // It has ended already, or was never started.
            Err(error) if matches!(error.code(), Code::NotFound | Code::FailedPrecondition) => {
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// A call that is made again where its connection was closed, or containerd says that it may succeed later.
    async fn again<T, C: Future<Output = Result<T, containerd::Error>>>(
        &self,
        call: impl Fn() -> C,
    ) -> Result<T, containerd::Error> {
        let mut pause = PAUSE;
        for _ in 0..RETRIES {
            match call().await {
                Err(error) if error.is_retryable() => {
                    tokio::time::sleep_until((Instant::now() + pause).min(self.patience)).await;
                    pause *= 2;
                }
                answer => return answer,
            }
        }
        call().await
    }
}
