//! The stop of one sandbox, whoever has it in hand.

use std::{
    io,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use containerd_shim_protos::{
    sandbox_api::StopSandboxRequest,
    sandbox_async::SandboxClient,
    ttrpc::{self, context},
};
use mooring::{
    inspect::{AskError, Shim, State, Steps},
    process::Reaper,
    sandbox::{
        recover::{RecoverError, Recovery},
        survey::{Found, Hands, look},
        sweep::free,
    },
};
use thiserror::Error;
use tokio::time::{sleep, timeout};

use crate::{account::Step, args::StopArgs, gc, inspect::PATIENCE};

/// How long a shim has under `--force` before it is killed, where no timeout is given.
const FORCED: Duration = Duration::from_mins(2);
/// A shim that follows says something every two seconds; after so long it is asked whether it still answers.
const QUIET: Duration = Duration::from_secs(10);
/// How much longer than its own limit a call is waited for.
const GRACE: Duration = Duration::from_secs(5);
/// How often it is looked whether another process has finished.
const AGAIN: Duration = Duration::from_millis(200);

/// Why a sandbox is not stopped.
#[derive(Debug, Error)]
pub enum NotStopped {
    #[error(transparent)]
    Shim(#[from] AskError),
    #[error("{0}")]
    Older(ttrpc::Error),
    #[error("not touched: {}", .0.join("; "))]
    Unsure(Vec<String>),
    #[error(transparent)]
    Recovery(#[from] RecoverError),
    #[error("kill the shim: {0}")]
    Kill(io::Error),
    #[error("another process finishes it, and has not within {} s", .0.as_secs_f64())]
    Others(Duration),
    #[error("not completed within {} s; the next stop goes on", .0.as_secs_f64())]
    TooLong(Duration),
    #[error("work was lost: {0}")]
    Lost(#[from] tokio::task::JoinError),
}

impl NotStopped {
    /// Whether a shim is to blame that does not do as it is asked.
    fn is_the_shims(&self) -> bool {
        let hangs = |error: &AskError| {
            matches!(error, AskError::Silent(_) | AskError::NotYet(_) | AskError::Connect { .. })
        };
        matches!(self, Self::Shim(error) if hangs(error))
    }
}

/// What is to be done for one sandbox.
pub struct Stop {
    found: Found,
    recovery: Recovery,
    limit: Option<Duration>,
    force: bool,
}

impl Stop {
    pub fn of(found: &Found, args: &StopArgs, reaper: &Reaper) -> Self {
        let limit = args.timeout.or(args.force.then_some(FORCED));
        let recovery = gc::recovery(found, reaper);
        Self { found: found.clone(), recovery, limit, force: args.force }
    }

    /// Stops it, and tells each step.
    pub async fn run(self, tell: impl Fn(Step)) -> Result<(), NotStopped> {
        match &self.found.hands {
            Hands::Unsure(doubts) => Err(NotStopped::Unsure(doubts.clone())),
            Hands::Nobody | Hands::Locked => self.complete().await,
            Hands::Shim => match self.by_shim(tell).await {
                Err(error) if self.force && error.is_the_shims() => {
                    log::warn!(
                        "{}/{}: {error}; killing its shim",
                        self.found.namespace,
                        self.found.id
                    );
                    self.kill().await?;
                    self.complete().await
                }
                // Its client may have shut it down meanwhile, and the shim has ended with it.
                Err(error) if self.now().await?.is_none_or(|now| now.hands != Hands::Shim) => {
                    log::debug!("{error}");
                    self.complete().await
                }
                other => other,
            },
        }
    }

    async fn by_shim(&self, tell: impl Fn(Step)) -> Result<(), NotStopped> {
        let record = self.found.shim.as_ref().ok_or(AskError::Gone)?;
        let shim = Shim::find(record).await?;
        let before = match shim.get(PATIENCE).await {
            Ok(before) => before,
            Err(AskError::Unknown { .. }) => return self.older(&shim).await,
            Err(error) => return Err(error.into()),
        };
        let tell = Telling::new(tell);
        if before.current.is_none() {
            // Of an earlier teardown, which failed.
            before.steps.into_iter().map(Step::said).for_each(|step| tell.is_known(&step));
        }
        let stop = shim.stop(&self.found.id, self.limit);
        let stopped = match self.limit.map(|limit| limit + GRACE) {
            Some(limit) => {
                let both = follow(&shim, stop, &tell);
                timeout(limit, both).await.unwrap_or(Err(AskError::Silent(limit)))
            }
            None => follow(&shim, stop, &tell).await,
        };
        if !matches!(stopped, Err(AskError::Silent(_)))
            && let Ok(all) = shim.get(PATIENCE).await
        {
            all.steps.into_iter().map(Step::said).for_each(|step| tell.step(step));
        }
        Ok(stopped?)
    }

    /// A shim of an earlier release knows the call that containerd makes.
    async fn older(&self, shim: &Shim) -> Result<(), NotStopped> {
        let id = self.found.id.to_string();
        let request = StopSandboxRequest { sandbox_id: id, ..StopSandboxRequest::default() };
        let nanos = self.limit.map_or(0, |limit| i64::try_from(limit.as_nanos()).unwrap_or(0));
        let client = SandboxClient::new(shim.connection());
        let answer = client.stop_sandbox(context::with_timeout(nanos), &request).await;
        answer.map(drop).map_err(NotStopped::Older)
    }

    async fn kill(&self) -> Result<(), NotStopped> {
        let Some(record) = self.found.shim.clone() else { return Ok(()) };
        tokio::task::spawn_blocking(move || record.kill()).await?.map_err(NotStopped::Kill)
    }

    /// Completes what a shim has left that is gone, or waits for whoever does.
    async fn complete(&self) -> Result<(), NotStopped> {
        let limit = self.limit.unwrap_or(FORCED);
        let completed = async {
            loop {
                let Some(now) = self.now().await? else { return Ok(()) };
                match free(&now, &self.recovery).await? {
                    Hands::Nobody => return Ok(()),
                    // A new one of its name has come.
                    Hands::Shim if now.shim != self.found.shim => return Ok(()),
                    Hands::Unsure(doubts) => return Err(NotStopped::Unsure(doubts)),
                    Hands::Shim | Hands::Locked => sleep(AGAIN).await,
                }
            }
        };
        timeout(limit, completed).await.unwrap_or_else(|_| {
            let others = self.found.hands == Hands::Locked;
            Err(if others { NotStopped::Others(limit) } else { NotStopped::TooLong(limit) })
        })
    }

    /// How it stands now; nothing where it is gone.
    async fn now(&self) -> Result<Option<Found>, NotStopped> {
        let Found { folder, namespace, id, .. } = &self.found;
        let (folder, namespace, id) = (folder.clone(), namespace.clone(), id.clone());
        Ok(tokio::task::spawn_blocking(move || look(&folder, &namespace, &id)).await?)
    }
}

/// Tells each thing once.
struct Telling<F> {
    tell: F,
    told: Mutex<Vec<String>>,
}

impl<F: Fn(Step)> Telling<F> {
    fn new(tell: F) -> Self {
        Self { tell, told: Mutex::default() }
    }

    fn step(&self, step: Step) {
        if step.outcome == "under_way" || self.is_new(&step) {
            (self.tell)(step);
        }
    }

    fn is_known(&self, step: &Step) {
        let _ = self.is_new(step);
    }

    fn is_new(&self, step: &Step) -> bool {
        let key = format!("{} {:?}", step.name, step.began_at);
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let new = !told.contains(&key);
        if new {
            told.push(key);
        }
        new
    }
}

/// Waits for the stop, and tells the steps meanwhile.
async fn follow<F: Fn(Step)>(
    shim: &Shim,
    stop: impl Future<Output = Result<(), AskError>>,
    tell: &Telling<F>,
) -> Result<(), AskError> {
    let mut steps: Option<Steps> = shim.watch().await.ok();
    tokio::pin!(stop);
    loop {
        let news = async {
            match &mut steps {
                Some(steps) => steps.next().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            stopped = &mut stop => return stopped,
            news = timeout(QUIET, news) => match news {
                Ok(Ok(Some(news))) => {
                    let over = news.state.enum_value() == Ok(State::STOPPED);
                    if let Some(step) = news.step.into_option().filter(|_| !over) {
                        tell.step(Step::said(step));
                    }
                }
                Ok(_) => steps = None,
                Err(_) => drop(shim.version(PATIENCE).await?),
            },
        }
    }
}

#[cfg(test)]
mod tests;
