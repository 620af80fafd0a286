//! The one way to finish what a shim has left that is gone: for `delete`, for a new sandbox of the same name, and for the
//! operator's `gc`. Everything is read from the state folder.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use thiserror::Error;
use tokio::{
    task::{JoinError, JoinSet, spawn_blocking},
    time::Instant,
};

use super::{
    daemon_record::{self, DaemonRecord},
    milestones::Milestones,
    shutdown::remove_run_dir,
};
use crate::{
    container::{self, Record},
    containerd::Containerd,
    error::{Code, Coded, code_of_io},
    id::Id,
    network::CniPlugins,
    process::{Reaper, orphans},
    released::Released,
    resources::{Action, Parties, Resource, WITHOUT_SHIM},
    sys::{boot, survivor::Survivors},
    teardown::{
        Executor, StepError, StepWork, TeardownError,
        journal::{self, FolderLock, JournalError, Left, Store},
    },
    telemetry::totals,
};

/// How long the containers of a shim that is gone may take to end.
const CONTAINERS: Duration = Duration::from_mins(1);
/// How long until what has not ended of one is told: while whoever asks for a recovery still listens.
const OUTLIVES: Duration = Duration::from_millis(2500);

/// Hears how a recovery comes along.
pub trait Listener: Send + Sync {
    /// The container of this record has been killed and removed.
    fn ended(&self, record: &Record);
    /// The container of this record was killed a while ago, and goes on for these processes.
    fn outlives(&self, _record: &Record, _survivors: &Survivors) {}
    /// No container is left; what follows may take its time.
    fn all_ended(&self) {}
}

/// For recoveries that nobody asks after.
pub struct Unheard;

impl Listener for Unheard {
    fn ended(&self, _: &Record) {}
}

/// The parties that a recovery needs.
#[derive(Clone)]
pub struct Recovery {
    /// Waits for this process's children.
    pub reaper: Reaper,
    pub containerd: Arc<dyn Containerd>,
    pub plugins: Arc<dyn CniPlugins>,
    pub listener: Arc<dyn Listener>,
}

/// What a shim that is gone has left.
pub struct Remains {
    pub state_dir: PathBuf,
    /// Its record as it was read when it was known to be gone: another one that is there by the end is a new shim's.
    pub shim: Option<DaemonRecord>,
    /// How long to wait for whoever works on the same.
    pub patience: Duration,
}

/// A container that could not be ended or removed.
#[derive(Debug, Error)]
#[error("container {}{source}", name(.id.as_ref()))]
pub struct ContainerLeft {
    /// Which, where its record says so.
    pub id: Option<Id>,
    pub source: container::Error,
}

fn name(id: Option<&Id>) -> String {
    id.map(|id| format!("{:?}: ", id.as_str())).unwrap_or_default()
}

/// All containers that could not be ended or removed; the others are gone.
#[derive(Debug)]
pub struct ContainersLeft(pub Vec<ContainerLeft>);

impl fmt::Display for ContainersLeft {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, left) in self.0.iter().enumerate() {
            let between = if index == 0 { "" } else { "; " };
            write!(f, "{between}{left}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ContainersLeft {}

impl Coded for ContainersLeft {
    fn code(&self) -> Code {
        self.0.first().map_or(Code::Unknown, |left| left.source.code())
    }
}

/// What a shim has left could not be finished; whoever tries again goes on from there.
#[derive(Debug, Error)]
pub enum RecoverError {
    /// The journal cannot be read, or somebody else works on it.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The journal cannot be read, nor could all containers be ended without it.
    #[error("{0}; {1}")]
    Both(JournalError, Box<RecoverError>),
    #[error(transparent)]
    Containers(#[from] ContainersLeft),
    /// A step of the teardown failed.
    #[error(transparent)]
    Teardown(#[from] TeardownError),
    /// The folder of the containers' records cannot be read.
    #[error(transparent)]
    Records(#[from] container::Error),
    /// Whether the machine was started anew since cannot be found out.
    #[error("find out which boot this is: {0}")]
    Boot(std::io::Error),
    /// The dead shim's socket is still there.
    #[error("remove the socket {path}: {source}", path = path.display())]
    Socket { path: PathBuf, source: std::io::Error },
    /// Work off the async thread was lost.
    #[error("work was lost: {0}")]
    Lost(#[from] JoinError),
}

impl RecoverError {
    /// Whether somebody else works on the same.
    pub fn is_locked(&self) -> bool {
        matches!(self, Self::Journal(JournalError::Locked { .. }))
    }
}

impl Coded for RecoverError {
    fn code(&self) -> Code {
        match self {
            Self::Journal(error) | Self::Both(error, _) => error.code(),
            Self::Containers(error) => error.code(),
            Self::Teardown(error) => error.code(),
            Self::Records(error) => error.code(),
            Self::Boot(error) | Self::Socket { source: error, .. } => code_of_io(error),
            Self::Lost(_) => Code::Unknown,
        }
    }
}

/// The end of what a shim has left, in as many attempts as it takes.
pub struct Takeover {
    recovery: Recovery,
    remains: Remains,
    /// Of an attempt that was cut while it still released something.
    begun: Option<Begun>,
}

/// A teardown without the shim, under the journal's lock.
struct Begun {
    store: Arc<Store<Resource>>,
    executor: Executor<Resource, Action>,
}

impl Recovery {
    /// Takes over what a shim has left; nothing happens yet.
    pub fn take_over(self, remains: Remains) -> Takeover {
        Takeover { recovery: self, remains, begun: None }
    }

    /// Finishes what a shim has left, in one attempt: see [`Takeover::attempt`].
    pub async fn finish(&self, remains: Remains) -> Result<bool, RecoverError> {
        self.clone().take_over(remains).attempt().await
    }

    /// Kills and removes every container that has a record in `state_dir`, all at once. Those of a new shim of that name
    /// are that one's: one that serves tasks without a sandbox holds no lock.
    async fn end_containers(
        &self,
        state_dir: &Path,
        deadline: Instant,
    ) -> Result<(), RecoverError> {
        let tasks_dir = state_dir.join("tasks");
        let folder = tasks_dir.clone();
        let records = spawn_blocking(move || container::load_all(&folder)).await??;
        let mut left = Vec::new();
        let mut ends = JoinSet::new();
        for record in records {
            let record = match record.and_then(|record| Ok((record.is_anothers()?, record))) {
                Ok((true, _)) => continue,
                Ok((false, record)) => record,
                Err(source) => {
                    // Its container cannot be found by a torn record; the others can.
                    left.push(ContainerLeft { id: None, source });
                    continue;
                }
            };
            let (reaper, listener) = (self.reaper.clone(), Arc::clone(&self.listener));
            let folder = tasks_dir.clone();
            ends.spawn(async move {
                let release = container::release(&record, &reaper, deadline);
                tokio::pin!(release);
                let soon = tokio::time::timeout(OUTLIVES, &mut release).await;
                let ended = if let Ok(ended) = soon {
                    ended
                } else {
                    let look = record.clone();
                    let seen = Survivors::seen(move || container::survivors(&look)).await;
                    if !seen.is_empty() {
                        listener.outlives(&record, &seen);
                    }
                    release.await
                };
                match ended.and_then(|_| Record::remove(&folder, &record.id)) {
                    Ok(()) => {
                        listener.ended(&record);
                        Ok(())
                    }
                    Err(source) => Err(ContainerLeft { id: Some(record.id.clone()), source }),
                }
            });
        }
        while let Some(ended) = ends.join_next().await {
            left.extend(ended?.err());
        }
        if left.is_empty() { Ok(()) } else { Err(ContainersLeft(left).into()) }
    }
}

impl Takeover {
    /// Finishes what a shim has left: kills and removes its containers, runs the plan of its sandbox from where the
    /// journal stands, and removes the state folder. `Ok(false)`: nothing was left. To be tried again after an error.
    ///
    /// The state folder's lock is held meanwhile, and after it as long as a release goes on that did not end within its
    /// step's budget: the next attempt joins it. A journal that cannot be read is an error, but containers have records
    /// of their own and do not go on for it.
    pub async fn attempt(&mut self) -> Result<bool, RecoverError> {
        if let Some(begun) = self.begun.take() {
            return self.finish_sandbox(begun).await.map(|()| true);
        }
        let Remains { state_dir, shim, patience } = &self.remains;
        let (folder, patience) = (state_dir.clone(), *patience);
        let end_containers =
            || self.recovery.end_containers(state_dir, Instant::now() + CONTAINERS);
        let left = match spawn_blocking(move || journal::open(&folder, patience)).await? {
            Ok(left) => left,
            Err(error @ JournalError::Locked { .. }) => return Err(error.into()),
            Err(error) => {
                return Err(match end_containers().await {
                    Ok(()) => error.into(),
                    Err(more) => RecoverError::Both(error, Box::new(more)),
                });
            }
        };
        match left {
            Left::Nothing => Ok(false),
            Left::Records(lock) => {
                end_containers().await?;
                self.recovery.listener.all_ended();
                let (folder, shim) = (state_dir.clone(), shim.clone());
                spawn_blocking(move || forget(&folder, shim.as_ref(), &lock)).await?;
                Ok(true)
            }
            Left::Journal(store) => {
                let store = Arc::new(*store);
                let executor = Executor::new(WITHOUT_SHIM, Arc::clone(&store));
                self.finish_sandbox(Begun { store, executor }).await.map(|()| true)
            }
        }
    }

    async fn finish_sandbox(&mut self, begun: Begun) -> Result<(), RecoverError> {
        let taken_down = self.take_down(&begun).await;
        if taken_down.is_err() && begun.executor.is_releasing() {
            self.begun = Some(begun);
        }
        taken_down
    }

    async fn take_down(&self, begun: &Begun) -> Result<(), RecoverError> {
        let took = Instant::now();
        let Self { recovery, remains, .. } = self;
        let state_dir = remains.state_dir.clone();
        let shim = remains.shim.clone();
        let about = begun.store.look(|journal| journal.about.clone());
        // A plan that was at its end before may have left containers to their client, which will not come any more.
        recovery.end_containers(&state_dir, Instant::now() + CONTAINERS).await?;
        recovery.listener.all_ended();
        let rebooted = boot::is_over(about.boot.as_ref()).map_err(RecoverError::Boot)?;
        let session = about.shim.or(shim.as_ref().map(|shim| shim.pid)).filter(|_| !rebooted);
        let steps = Remaining {
            recovery: recovery.clone(),
            state_dir: state_dir.clone(),
            shim: session,
            rebooted,
        };
        let milestones = Milestones::begin(&about.id);
        let taken_down = begun.executor.run(Arc::new(steps), &milestones);
        let taken_down = milestones.span().within(taken_down).await;
        milestones.end(&taken_down);
        taken_down?;
        recovery.containerd.disconnect().await;
        let store = Arc::clone(&begun.store);
        spawn_blocking(move || {
            totals::count_where_kept(&about.run_dir, "teardown_resumed", took.elapsed());
            remove_run_dir(&about.run_dir);
            // Under the journal's own lock, so that nobody else takes up what is finished.
            forget(&state_dir, shim.as_ref(), store.lock());
        })
        .await?;
        Ok(())
    }
}

/// Removes the state folder of what has been released. It names nothing that is left, so that a broken or read-only disk
/// is no reason to fail.
fn forget(state_dir: &Path, shim: Option<&DaemonRecord>, lock: &FolderLock) {
    if let Err(error) = daemon_record::remove_folder(state_dir, shim, lock) {
        log::warn!("{error}");
    }
}

/// The teardown of a sandbox whose shim is gone.
struct Remaining {
    recovery: Recovery,
    state_dir: PathBuf,
    /// The dead shim's process id, where it is known, in this boot.
    shim: Option<i32>,
    /// The machine was started anew since: processes and cgroups are gone, and who has their names is another.
    rebooted: bool,
}

#[async_trait]
impl StepWork<Resource, Action> for Remaining {
    async fn act(&self, action: Action, deadline: Instant) -> Result<(), StepError> {
        match action {
            // Nobody can create containers any more.
            Action::CloseDoor => Ok(()),
            Action::StopContainers => {
                Ok(self.recovery.end_containers(&self.state_dir, deadline).await?)
            }
        }
    }

    async fn release(&self, resource: &Resource, deadline: Instant) -> Result<Released, StepError> {
        if self.rebooted && resource.is_anothers_after_reboot() {
            return Ok(Released::AlreadyGone);
        }
        let started = match resource {
            // An ADD that goes on would undo what its DEL does now.
            Resource::Network(record) => Some(format!("CNI_CONTAINERID={}", record.container_id)),
            // One that does not end with its connection.
            Resource::Nri(record) => Some(record.variable()),
            _ => None,
        };
        if let (Some(variable), Some(shim)) = (started, self.shim) {
            let ended = spawn_blocking(move || orphans::end(&variable, shim)).await;
            let ended = ended.unwrap_or_else(|error| Err(std::io::Error::other(error)));
            ended.map_err(|error| StepError {
                code: code_of_io(&error),
                message: format!("plugins that outlived their shim: {error}"),
            })?;
        }
        let Recovery { containerd, plugins, reaper, .. } = &self.recovery;
        let (containerd, plugins) = (Arc::clone(containerd), Arc::clone(plugins));
        let parties = Parties { containerd, plugins, reaper: reaper.clone() };
        resource.release(&parties, deadline).await
    }
}
