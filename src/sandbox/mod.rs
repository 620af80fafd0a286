//! A sandbox: how it is created, started, watched and stopped. One file per verb.
//!
//! [`Sandbox`] is what the shim's Sandbox service calls. What the sandbox holds is in its journal
//! ([`crate::teardown::journal`]); starting is a list of acquisitions into it, stopping is the plan over it
//! ([`crate::resources::PLAN`]).

mod announce;
pub mod config;
mod create;
pub mod daemon_record;
mod door;
mod error;
pub mod inspect;
mod milestones;
#[cfg(test)]
mod model;
pub mod namespaces;
mod owner;
mod pod_spec;
mod prepare;
pub mod progress;
pub mod recover;
mod shutdown;
mod start;
mod status;
mod stop;
pub mod survey;
pub mod sweep;
#[cfg(test)]
mod sweep_tests;
mod teardown;
#[cfg(test)]
mod tests;
mod volumes;

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::SystemTime,
};

use async_trait::async_trait;
use thiserror::Error;
use tokio::{sync::watch, time::Instant};

use crate::{
    containerd::Containerd,
    id::Id,
    keeper::{HolderProgram, Keeper},
    network::{CniPlugins, Observed},
    nri::Announcer,
    options::Options,
    process::Reaper,
    resources::{Action, Parties, Resource},
    sys::survivor::Survivors,
    teardown::{Executor, journal::Store},
    telemetry::Telemetry,
};
pub use create::CreateRequest;
pub use door::Admitted;
pub use error::Error;
pub use start::Started;
pub use status::Status;

/// The tasks that run in this sandbox's shim, as far as a sandbox is concerned with them.
#[async_trait]
pub trait PodTasks: Send + Sync {
    /// The containers whose tasks the shim has, ended ones too.
    fn ids(&self) -> Vec<Id>;
    /// Whether the container's task is there and has not ended.
    fn is_running(&self, container: &Id) -> bool;
    /// Kills everything in the container without asking anybody.
    async fn kill_in_place(&self, container: &Id);
    /// Waits until the container's init has ended; at once when it has, or was never there.
    async fn exited(&self, container: &Id);
    /// The containers that have not ended, those of which only a record is left too, and what of each has not: to be
    /// named where they do not end.
    async fn outliving(&self) -> Vec<(Id, Survivors)>;
    /// Releases what creations that failed, and could not be taken back then, have left.
    async fn end_remains(&self, deadline: Instant) -> Result<(), NotCleared>;
    /// Deletes all tasks that are left, with their OCI runtime state and root file systems.
    async fn clear(&self) -> Result<(), NotCleared>;
}

/// Tasks could not be deleted, for a reason of whoever has them.
#[derive(Debug, Error)]
#[error("{0}")]
pub struct NotCleared(pub Box<dyn std::error::Error + Send + Sync>);

/// The world of one sandbox.
pub struct Environment {
    pub namespace: Id,
    pub id: Id,
    pub grpc_address: PathBuf,
    pub options: Options,
    /// Waits for this process's children.
    pub reaper: Reaper,
    pub containerd: Arc<dyn Containerd>,
    pub plugins: Arc<dyn CniPlugins>,
    pub holder: HolderProgram,
}

impl Environment {
    /// The folder of the sandbox's journal and records.
    pub fn state_dir(&self) -> PathBuf {
        state_dir(&self.options, &self.namespace, &self.id)
    }

    /// Who is needed to release what the sandbox holds.
    fn parties(&self) -> Parties {
        Parties {
            containerd: Arc::clone(&self.containerd),
            plugins: Arc::clone(&self.plugins),
            reaper: self.reaper.clone(),
        }
    }

    /// The folder of the pod's files and mounts.
    pub fn run_dir(&self) -> PathBuf {
        self.options.run_root.join(&self.namespace).join(&self.id)
    }
}

/// The folder of a sandbox's journal and records.
pub fn state_dir(options: &Options, namespace: &Id, id: &Id) -> PathBuf {
    options.state_root.join(namespace).join(id)
}

/// The exit of a sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SandboxExit {
    /// 0 where it was ended as asked, else what the holder ended with.
    pub status: u32,
    pub at: SystemTime,
}

/// A created sandbox: what its client wants and where it is written down.
struct Pod {
    config: config::PodConfig,
    network: create::Network,
    bundle: PathBuf,
    annotations: std::collections::BTreeMap<String, String>,
    store: Arc<Store<Resource>>,
    teardown: Executor<Resource, Action>,
    created_at: SystemTime,
    /// Image volumes are mounted once for all containers of the pod; one acquisition at a time.
    volumes: tokio::sync::Mutex<()>,
}

/// Where a sandbox is in its life.
enum State {
    Empty,
    Created(Arc<Pod>),
    /// Started: something stands for the pod.
    Ready {
        pod: Arc<Pod>,
        pid: u32,
        keeper: Option<Keeper>,
    },
    /// What stood for the pod has ended by itself, or the teardown is under way or has failed.
    Down {
        pod: Arc<Pod>,
        pid: u32,
    },
    Stopped {
        pod: Arc<Pod>,
        pid: u32,
    },
}

impl State {
    fn pod(&self) -> Option<&Arc<Pod>> {
        match self {
            Self::Empty => None,
            Self::Created(pod)
            | Self::Ready { pod, .. }
            | Self::Down { pod, .. }
            | Self::Stopped { pod, .. } => Some(pod),
        }
    }

    fn pid(&self) -> u32 {
        match self {
            Self::Empty | Self::Created(_) => 0,
            Self::Ready { pid, .. } | Self::Down { pid, .. } | Self::Stopped { pid, .. } => *pid,
        }
    }
}

/// One sandbox. All methods may be called at any time and at once.
pub struct Sandbox {
    env: Environment,
    tasks: OnceLock<Arc<dyn PodTasks>>,
    state: Mutex<State>,
    door: door::Door,
    exit: watch::Sender<Option<SandboxExit>>,
    /// Create, start and teardown exclude one another. Held across calls to other parties, so nothing that a
    /// teardown's own kills come back with (Task.Kill, Task.Wait, State) may want it.
    lifecycle: tokio::sync::Mutex<()>,
    teardown: Mutex<Option<stop::Run>>,
    /// Who tells the NRI plugins, where there are any and the pod is announced to them.
    nri: Mutex<Option<Arc<Announcer>>>,
    progress: Arc<progress::Progress>,
    telemetry: Arc<Telemetry>,
}

impl Sandbox {
    /// A sandbox that is not created yet.
    pub fn new(mut env: Environment) -> Arc<Self> {
        let telemetry = Arc::new(Telemetry::default());
        env.plugins = Arc::new(Observed::new(env.plugins, telemetry.clone()));
        Arc::new(Self {
            env,
            tasks: OnceLock::new(),
            state: Mutex::new(State::Empty),
            door: door::Door::default(),
            exit: watch::Sender::new(None),
            lifecycle: tokio::sync::Mutex::default(),
            teardown: Mutex::new(None),
            nri: Mutex::new(None),
            progress: Arc::new(progress::Progress::new(Arc::clone(&telemetry))),
            telemetry,
        })
    }

    /// Tells the sandbox which tasks run in it. To be called once, before anything else.
    pub fn set_tasks(&self, tasks: Arc<dyn PodTasks>) {
        let _ = self.tasks.set(tasks);
    }

    pub fn id(&self) -> &Id {
        &self.env.id
    }

    pub fn environment(&self) -> &Environment {
        &self.env
    }

    /// Whether a client has created it: a shim without sandbox serves plain tasks.
    pub fn is_created(&self) -> bool {
        !matches!(*self.state(), State::Empty)
    }

    /// The folder where the records of its tasks are.
    pub fn tasks_dir(&self) -> PathBuf {
        self.env.state_dir().join("tasks")
    }

    /// Lets a container's task be created, unless the sandbox is being stopped. The teardown waits for the answer
    /// to be dropped.
    pub fn admit(&self) -> Result<Admitted, Error> {
        let admitted = self.door.admit();
        admitted.ok_or_else(|| {
            Error::Precondition("the sandbox is being stopped and takes no new tasks".into())
        })
    }

    /// Waits for the sandbox's end; at once when it has ended.
    pub async fn wait(&self) -> Result<SandboxExit, Error> {
        let mut exit = self.exit.subscribe();
        if !self.is_created() && exit.borrow().is_none() {
            return Err(Error::NotFound);
        }
        match exit.wait_for(Option::is_some).await.map(|exit| *exit) {
            Ok(Some(exit)) => Ok(exit),
            _ => Err(Error::Precondition("the shim is ending".into())),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records the sandbox's end; the first one counts.
    fn ended(&self, status: u32) {
        self.exit.send_if_modified(|exit| {
            let first = exit.is_none();
            if first {
                *exit = Some(SandboxExit { status, at: SystemTime::now() });
            }
            first
        });
    }
}

/// Runs what may block away from the async thread.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.map_err(|error| Error::Internal(error.to_string()))
}
