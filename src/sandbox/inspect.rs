//! All that a sandbox knows of itself, for whoever asks its shim.

use std::{path::PathBuf, time::SystemTime};

use tokio::sync::watch;

use super::{
    Sandbox, SandboxExit, State,
    create::Network,
    progress::{Current, Ended},
};
use crate::{
    keeper::KeeperRecord, network::NetworkRecord, resources::Resource, teardown::journal::Entry,
    telemetry::Series,
};

/// Where a sandbox is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// There is none: the shim serves tasks on their own.
    Tasks,
    Created,
    Ready,
    /// What stood for the pod has ended, or the teardown is under way or has failed.
    Stopping,
    Stopped,
}

/// Whose the pod's network is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetworkOwner {
    Node,
    Client,
    Shim,
}

/// A sandbox at one moment.
#[derive(Clone, Debug)]
pub struct Inspection {
    pub phase: Phase,
    /// Kubernetes' name, namespace and uid of the pod; empty for other clients.
    pub pod: (String, String, String),
    /// What keeps the namespaces, while something does.
    pub keeper: Option<KeeperRecord>,
    /// The number under /proc that stands for the pod; 0 where none does.
    pub pid: u32,
    pub created_at: SystemTime,
    pub exit: Option<SandboxExit>,
    pub bundle: PathBuf,
    pub network: NetworkOwner,
    pub netns: Option<PathBuf>,
    /// The networks that the shim has attached the pod to.
    pub attachments: Vec<NetworkRecord>,
    pub entries: Vec<Entry<Resource>>,
}

/// The teardown of a sandbox, as it changes.
pub struct Following {
    changes: watch::Receiver<u64>,
    /// The number of the last report that was told.
    told: u64,
}

/// What a look at the teardown has to tell.
#[derive(Clone, Debug)]
pub struct News {
    /// The reports that are new, in their order.
    pub ended: Vec<Ended>,
    pub current: Option<Current>,
    pub phase: Phase,
}

impl Sandbox {
    /// All of it; nothing where there is no sandbox.
    pub fn inspect(&self) -> Option<Inspection> {
        let phase = self.phase();
        let (pod, pid, keeper) = {
            let state = self.state();
            let keeper = match &*state {
                State::Ready { keeper: Some(keeper), .. } => Some(keeper.record()),
                _ => None,
            };
            (state.pod().cloned()?, state.pid(), keeper)
        };
        let attachments = pod.find(|resource| match resource {
            Resource::Network(record) => Some(record.networks.clone()),
            _ => None,
        });
        let network = match pod.network {
            Network::Host => NetworkOwner::Node,
            Network::Client(_) => NetworkOwner::Client,
            Network::Own | Network::Attach(_) => NetworkOwner::Shim,
        };
        let config = &pod.config;
        Some(Inspection {
            phase,
            pod: (config.name.clone(), config.namespace.clone(), config.uid.clone()),
            pid: if keeper.is_some() { pid } else { 0 },
            keeper,
            created_at: pod.created_at,
            exit: *self.exit.borrow(),
            bundle: pod.bundle.clone(),
            network,
            netns: pod.netns(),
            attachments: attachments.unwrap_or_default(),
            entries: pod.store.look(|journal| journal.entries.clone()),
        })
    }

    /// Where it is in its life.
    pub fn phase(&self) -> Phase {
        match &*self.state() {
            State::Empty => Phase::Tasks,
            State::Stopped { .. } => Phase::Stopped,
            State::Down { .. } => Phase::Stopping,
            _ if self.door.is_closed() => Phase::Stopping,
            State::Created(_) => Phase::Created,
            State::Ready { .. } => Phase::Ready,
        }
    }

    /// The steps of the teardown that have ended, each by its last report.
    pub fn steps(&self) -> Vec<Ended> {
        self.progress.ended()
    }

    /// The step that is under way, and what it waits for now.
    pub async fn current_step(&self) -> Option<Current> {
        self.look_what_it_waits_for().await;
        self.progress.current()
    }

    /// How many teardowns have begun.
    pub fn teardowns(&self) -> u32 {
        self.progress.runs()
    }

    /// What was measured, by name and subject.
    pub fn operations(&self) -> Vec<(String, String, Series)> {
        self.telemetry.all()
    }

    /// Follows the teardown, from the first report of the last one on.
    pub fn follow(&self) -> Following {
        let mut changes = self.progress.changes();
        changes.mark_changed();
        Following { changes, told: 0 }
    }
}

impl Following {
    /// Waits until something has changed. False where nothing ever will again.
    pub async fn changed(&mut self) -> bool {
        self.changes.changed().await.is_ok()
    }

    /// What is new since the last look, and what is under way.
    pub fn look(&mut self, sandbox: &Sandbox) -> News {
        let ended = sandbox.progress.ended();
        let ended: Vec<Ended> =
            ended.into_iter().filter(|ended| ended.number > self.told).collect();
        self.told = ended.iter().map(|ended| ended.number).max().unwrap_or(self.told);
        News { ended, current: sandbox.progress.current(), phase: sandbox.phase() }
    }
}
