//! What containerd calls, the sandbox service and the task service, and what operators do: they translate and decide
//! nothing.

mod convert;
mod inspect;
mod listener;
mod pod;
mod sandbox;
pub mod status;
mod task;
mod traced;

use std::{collections::HashMap, sync::Arc, time::Duration};

use containerd_shim_protos::{
    sandbox_async::create_sandbox, shim_async::create_task, ttrpc::asynchronous::Service,
};
use mooring::{
    containerd::{Containerd, Grpc},
    inspect::create_inspect,
    keeper::HolderProgram,
    network::{CniPlugins, ExecPlugins},
    options::HandlerOptions,
    process::Reaper,
    runtime::{Runc, Runtimes},
    sandbox::{Environment, Sandbox},
};
use tokio::sync::Notify;

use crate::{events::Events, launch::Launch, publisher::Publisher, task::Tasks};

pub use listener::{Incoming, LastAnswer};
pub use traced::traced;

/// How long a shim that nobody owns waits before it tries again to take its sandbox down, at first and at most.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_mins(1);
/// The older name of the task service. Its messages are the same.
const TASK_V2: &str = "containerd.task.v2.Task";

/// The program that stands for a pod where a thread cannot.
static HOLDER: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/holder"));

/// The end of this process.
#[derive(Default)]
pub struct Ending {
    last: Arc<LastAnswer>,
    begin: Notify,
}

impl Ending {
    /// Ends the process as soon as the call on `stream` is answered.
    pub fn after(&self, stream: u32) {
        self.last.expect(stream);
        self.begin.notify_one();
    }

    pub fn begin(&self) {
        self.begin.notify_one();
    }

    /// Waits for the end to begin.
    pub async fn begun(&self) {
        self.begin.notified().await;
    }

    /// The answer to wait for.
    pub fn last_answer(&self) -> Arc<LastAnswer> {
        Arc::clone(&self.last)
    }
}

/// Takes down a sandbox that nobody owns any more, again and again until it succeeds.
pub async fn give_up<F>(take_down: impl Fn() -> F)
where
    F: Future<Output = Result<(), mooring::sandbox::Error>>,
{
    let mut pause = FIRST_PAUSE;
    while let Err(error) = take_down().await {
        log::error!("take down a sandbox that nobody owns: {error}");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Whom the services deal with, beside the client that calls them.
pub struct Parties {
    pub containerd: Arc<dyn Containerd>,
    pub plugins: Arc<dyn CniPlugins>,
    pub runtimes: Arc<Runtimes>,
    pub events: Arc<dyn Events>,
    pub reaper: Reaper,
    pub holder: HolderProgram,
}

impl Parties {
    /// Those of a shim: the containerd that started it, and programs of this node.
    pub fn of(launch: &Launch, reaper: Reaper, publisher: &Publisher) -> Self {
        let containerd =
            Grpc::new(&launch.grpc_address.to_string_lossy(), launch.namespace.clone());
        let programs = reaper.clone();
        Self {
            containerd: Arc::new(containerd),
            plugins: Arc::new(ExecPlugins::new(reaper.clone())),
            runtimes: Arc::new(move |settings| Arc::new(Runc::new(settings, programs.clone()))),
            events: Arc::new(publisher.clone()),
            reaper,
            holder: HolderProgram(HOLDER),
        }
    }
}

/// All services of this process.
#[derive(Clone)]
pub struct Services {
    sandbox: Arc<sandbox::SandboxService>,
    task: Arc<task::TaskService>,
    inspect: Arc<inspect::InspectService>,
}

impl Services {
    /// The services of the shim that `launch` describes.
    pub fn new(
        launch: Launch,
        options: HandlerOptions,
        parties: Parties,
        ending: &Arc<Ending>,
    ) -> Self {
        let Launch { namespace, id, grpc_address, bootstrap, .. } = launch;
        let Parties { containerd, plugins, runtimes, events, reaper, holder } = parties;
        let sandbox = Sandbox::new(Environment {
            namespace: namespace.clone(),
            id,
            containerd,
            grpc_address,
            options: options.shim().clone(),
            reaper: reaper.clone(),
            plugins,
            holder,
        });
        let tasks = Tasks::new(
            namespace.to_string(),
            events,
            Arc::new(pod::PodOfTasks(Arc::clone(&sandbox))),
            runtimes,
            reaper,
            options.shim().run_root.clone(),
        );
        sandbox.set_tasks(Arc::new(pod::TasksOfPod(tasks.clone())));
        let ending = || Arc::clone(ending);
        Self {
            inspect: Arc::new(inspect::InspectService::new(Arc::clone(&sandbox), tasks.clone())),
            sandbox: Arc::new(sandbox::SandboxService::new(
                Arc::clone(&sandbox),
                tasks.clone(),
                ending(),
            )),
            task: Arc::new(task::TaskService::new(
                sandbox,
                tasks,
                namespace,
                options,
                bootstrap,
                ending(),
            )),
        }
    }

    /// The services under the names that they are called by.
    pub fn register(&self) -> HashMap<String, Service> {
        let mut all = create_sandbox(Arc::clone(&self.sandbox) as _);
        let task = || create_task(Arc::clone(&self.task) as _);
        all.extend(create_inspect(Arc::clone(&self.inspect) as _));
        all.extend(task());
        all.extend(task().into_values().map(|service| (TASK_V2.to_owned(), service)));
        all
    }

    /// Takes the sandbox down, if there is one, for a client that will not come any more.
    pub async fn abandon(&self) -> Result<(), mooring::sandbox::Error> {
        self.sandbox.abandon().await
    }

    /// Whether this process holds a sandbox or a container.
    pub fn in_use(&self) -> bool {
        self.task.in_use()
    }
}
