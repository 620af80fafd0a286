//! A node that is driven as a kubelet drives it: pods that shall be, and for each a worker that looks at what CRI shows,
//! again and again, and does what is missing. It knows nothing that CRI does not tell.

mod runtime;
mod worker;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::cri::{ContainerSpec, PodSpec};
use crate::node::Node;
use crate::patience;
use runtime::Runtime;
use worker::Worker;

/// When a container that has ended is started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restart {
    /// Whenever it ends.
    Always,
    /// When its exit code is not zero.
    OnFailure,
}

/// One container of a pod.
#[derive(Clone)]
pub struct Part {
    /// As CRI will be given it; its attempt is counted here.
    pub spec: ContainerSpec,
    /// A command that is run in it each second and must answer zero.
    pub probe: Option<&'static str>,
    /// A command that is run in it before it is stopped.
    pub pre_stop: Option<&'static str>,
    /// When it is started again.
    pub restart: Restart,
}

impl Part {
    /// A container that shall run for ever.
    pub fn of(spec: ContainerSpec) -> Self {
        Self { spec, probe: None, pre_stop: None, restart: Restart::Always }
    }

    /// One that runs to its end.
    #[must_use]
    pub fn until_done(mut self) -> Self {
        self.restart = Restart::OnFailure;
        self
    }

    /// With a liveness probe: a shell script.
    #[must_use]
    pub fn probed(mut self, script: &'static str) -> Self {
        self.probe = Some(script);
        self
    }

    /// With a hook before its stop: a shell script.
    #[must_use]
    pub fn before_stop(mut self, script: &'static str) -> Self {
        self.pre_stop = Some(script);
        self
    }

    fn name(&self) -> &str {
        self.spec.config.metadata.as_ref().map_or("", |metadata| &metadata.name)
    }
}

/// A pod that shall be.
#[derive(Clone)]
pub struct Manifest {
    /// What kind of pod it is, for people.
    pub kind: &'static str,
    /// The sandbox.
    pub sandbox: PodSpec,
    /// Containers that run before the others, one after another; those that are always started again are sidecars, which
    /// the next one does not wait for.
    pub init: Vec<Part>,
    /// The others.
    pub main: Vec<Part>,
    /// How many seconds its containers have to end.
    pub grace: i64,
}

/// How a pod is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// Something that shall run does not.
    #[default]
    Pending,
    /// All that shall run runs, and its probes have answered.
    Running,
    /// All its containers have ended and none is started again.
    Succeeded,
}

/// What has become of a pod so far.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// How it is.
    pub phase: Phase,
    /// The sandboxes that were made for it.
    pub sandboxes: u32,
    /// The containers that were started.
    pub started: u32,
    /// The exit code with which each container's attempts ended.
    pub exits: BTreeMap<String, Vec<i32>>,
    /// Probes that answered zero, and those that did not.
    pub probes: (u32, u32),
    /// Calls that failed, with what they said.
    pub errors: Vec<String>,
}

struct Pod {
    kind: &'static str,
    view: Arc<Mutex<View>>,
    deleted: watch::Sender<bool>,
}

fn locked(view: &Mutex<View>) -> MutexGuard<'_, View> {
    view.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The pods of a node and their workers.
pub struct Kubelet {
    node: Arc<Node>,
    pods: Vec<Pod>,
    workers: JoinSet<()>,
}

impl Kubelet {
    /// One without pods.
    pub fn new(node: &Arc<Node>) -> Self {
        Self { node: Arc::clone(node), pods: Vec::new(), workers: JoinSet::new() }
    }

    /// A pod shall be.
    pub fn add(&mut self, manifest: Manifest) {
        let (deleted, told) = watch::channel(false);
        let view = Arc::default();
        self.pods.push(Pod { kind: manifest.kind, view: Arc::clone(&view), deleted });
        let runtime = Runtime::new(&self.node, &manifest.sandbox);
        self.workers.spawn(Worker::new(runtime, manifest, view, told).run());
    }

    /// All pods: their kinds, and what has become of them.
    pub fn views(&self) -> Vec<(&'static str, View)> {
        self.pods.iter().map(|pod| (pod.kind, locked(&pod.view).clone())).collect()
    }

    /// What became of all of them together.
    pub fn total(&self) -> Total {
        let mut total = Total::default();
        for (_, view) in self.views() {
            total.pods += 1;
            total.sandboxes += view.sandboxes;
            total.started += view.started;
            total.probes += view.probes.0;
            total.failed_probes += view.probes.1;
            total.errors += view.errors.len();
        }
        total
    }

    /// Waits until every pod is as it shall be.
    pub async fn settled(&self, within: Duration) -> Result<()> {
        let until = Instant::now() + patience(within);
        loop {
            let mut pending = self.views();
            pending.retain(|(_, view)| view.phase == Phase::Pending);
            if pending.is_empty() {
                return Ok(());
            }
            if Instant::now() > until {
                bail!("after {within:?} these pods are not as they shall be: {pending:?}");
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Deletes all pods at once and waits until CRI shows none of them.
    pub async fn end(&mut self, within: Duration) -> Result<()> {
        for pod in &self.pods {
            pod.deleted.send_replace(true);
        }
        let all = async {
            while let Some(done) = self.workers.join_next().await {
                done?;
            }
            anyhow::Ok(())
        };
        match tokio::time::timeout(patience(within), all).await {
            Ok(done) => done,
            Err(_) => bail!("after {within:?} these pods are Terminating: {:?}", self.views()),
        }
    }
}

/// What became of the pods of a node.
#[derive(Clone, Copy, Debug, Default)]
pub struct Total {
    /// How many there were.
    pub pods: u32,
    /// See [`View::sandboxes`].
    pub sandboxes: u32,
    /// See [`View::started`].
    pub started: u32,
    /// See [`View::probes`].
    pub probes: u32,
    /// See [`View::probes`].
    pub failed_probes: u32,
    /// How many calls failed.
    pub errors: usize,
}

impl fmt::Display for Total {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pods, sandboxes, started, probes, failed_probes, errors } = self;
        write!(
            out,
            "{pods} pods, {sandboxes} sandboxes, {started} containers started, {probes} probes and {failed_probes} \
             failed, {errors} calls failed"
        )
    }
}
