//! One pod's life in phases, whichever way its client takes, and the end that a client brings about after a fault.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use k8s_cri::v1 as cri;
use serde_json::json;
use tokio::time::timeout;
use tonic::{Code, Status};

use crate::cri::{ContainerSpec, Pod, PodSpec};
use crate::faults::{nobody_works_for, state_dir};
use crate::node::{DATA_IMAGE, Node};
use crate::services::{Client, NAMESPACE, Task, container_spec, sandbox_spec};
use crate::suite::Case;

/// No call may take longer, whatever has died: an answer must come.
const ANSWER: Duration = Duration::from_secs(20);
/// How long a client goes on trying to be rid of a pod.
const STUBBORN: Duration = Duration::from_secs(30);
/// How long whoever finishes for a killed shim may work on when its client is done.
const FINISHER: Duration = Duration::from_mins(1);

/// What a pod is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Over CRI: the network is the client's.
    Cri,
    /// Over CRI with one PID namespace for all: a process stands for the pod.
    SharedPid,
    /// Through the sandbox service, the network is the shim's.
    OwnNetwork,
    /// The same, in a user namespace, with a process that stands for the pod. It gets no container.
    UserNamespace,
    /// As [`Kind::OwnNetwork`], and its container has an image for a volume.
    ImageVolume,
}

/// A pod.
pub struct Life {
    node: Arc<Node>,
    kind: Kind,
    spec: PodSpec,
    pod: Option<Pod>,
    client: Client,
    pid: u32,
    task: Option<Task>,
}

impl Life {
    /// A pod that does not exist yet.
    pub fn new(case: &Case, kind: Kind) -> Self {
        let mut spec = PodSpec::new(case);
        if kind == Kind::SharedPid {
            spec = spec.pid(cri::NamespaceMode::Pod);
        }
        let (node, client) = (Arc::clone(&case.node), Client::new(case));
        Self { node, kind, spec, pod: None, client, pid: 0, task: None }
    }

    /// A pod over CRI that is to be so.
    pub fn of(case: &Case, spec: PodSpec) -> Self {
        Self { spec, ..Self::new(case, Kind::Cri) }
    }

    /// A pod of this id, through the sandbox service.
    pub fn named(case: &Case, kind: Kind, id: &str) -> Self {
        let life = Self::new(case, kind);
        Self { client: life.client.with_id(id), ..life }
    }

    fn by_cri(&self) -> bool {
        matches!(self.kind, Kind::Cri | Kind::SharedPid)
    }

    /// The sandbox's id, once there is one.
    pub fn id(&self) -> &str {
        match &self.pod {
            Some(pod) => &pod.id,
            None => &self.client.id,
        }
    }

    /// The pod, once CRI has run it.
    pub fn pod(&self) -> Option<&Pod> {
        self.pod.as_ref()
    }

    /// containerd's namespace.
    pub fn namespace(&self) -> &'static str {
        if self.by_cri() { "k8s.io" } else { NAMESPACE }
    }

    /// The client of the sandbox service.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The pid that stands for the pod.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Creates and starts it.
    pub async fn run(&mut self) -> Result<()> {
        answered("run", async {
            if self.by_cri() {
                self.pod = Some(self.spec.run().await?);
                return Ok(());
            }
            let mut spec = sandbox_spec(&self.client.id, false);
            if self.kind == Kind::UserNamespace
                && let Some(linux) = spec.get_mut("linux").and_then(|linux| linux.as_object_mut())
            {
                let mapping = json!([{ "containerID": 0, "hostID": 400_000, "size": 65536 }]);
                linux.insert("uidMappings".to_owned(), mapping.clone());
                linux.insert("gidMappings".to_owned(), mapping);
                if let Some(all) = linux.get_mut("namespaces").and_then(|all| all.as_array_mut()) {
                    all.push(json!({ "type": "user" }));
                }
            }
            self.client.record(&spec).await.context("record")?;
            self.client.create(&spec, None, "").await.context("create")?;
            self.pid = self.client.start().await.context("start")?.pid;
            Ok(())
        })
        .await
    }

    /// Starts a container in it.
    pub async fn container(&mut self) -> Result<()> {
        if self.kind == Kind::UserNamespace {
            return Ok(());
        }
        answered("start a container", async {
            if let Some(pod) = &self.pod {
                return pod.start(&ContainerSpec::idle("main")).await.map(drop);
            }
            let id = format!("{}-main", self.client.id);
            let task = self.prepare(&id).await?;
            let task = self.task.insert(task);
            task.create().await.context("create the task")?;
            task.start().await.context("start the task")?;
            Ok(())
        })
        .await
    }

    /// The record of a container that does nothing for a long time.
    async fn prepare(&self, id: &str) -> Result<Task> {
        let mut spec = container_spec(id, &["/bin/sleep", "100000"], Some(self.pid));
        if self.kind == Kind::ImageVolume
            && let Some(mounts) = spec.get_mut("mounts").and_then(|all| all.as_array_mut())
        {
            let volume = json!({ "destination": "/data", "type": "image", "source": DATA_IMAGE });
            mounts.push(volume);
        }
        self.client.container(id, &spec).await
    }

    /// A further container, through the sandbox service; its end is the caller's.
    pub async fn another(&self, name: &str) -> Result<Task> {
        let task = self.prepare(&format!("{}-{name}", self.client.id)).await?;
        task.create().await.context("create the task")?;
        task.start().await.context("start the task")?;
        Ok(task)
    }

    /// The container's task, where the sandbox service has it.
    pub fn task(&self) -> Option<&Task> {
        self.task.as_ref()
    }

    /// Stops it once.
    pub async fn stop(&self) -> Result<()> {
        answered("stop", async {
            match &self.pod {
                Some(pod) => pod.stop().await,
                None if self.by_cri() => Ok(()),
                None => self.client.stop().await.context("stop"),
            }
        })
        .await
    }

    /// [`Life::end_for_client`], and waits for whoever finishes for a killed shim, which may outlast its client.
    pub async fn end(&self) -> Result<()> {
        self.end_for_client().await?;
        nobody_works_for(self.id(), FINISHER).await
    }

    /// What a client does to be rid of the pod, whatever has happened: again and again until it succeeds.
    pub async fn end_for_client(&self) -> Result<()> {
        let until = Instant::now() + crate::patience(STUBBORN);
        loop {
            let ended =
                if self.by_cri() { self.end_by_cri().await } else { self.end_service().await };
            match ended {
                Ok(()) => return Ok(()),
                Err(error) if Instant::now() > until => return Err(error),
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }

    async fn end_by_cri(&self) -> Result<()> {
        // A run that failed may still have left a pod in the list.
        let request = cri::ListPodSandboxRequest { filter: None };
        let listed = answered("list", async {
            Ok(self.node.cri().list_pod_sandbox(request).await?.into_inner().items)
        });
        let name = self.spec.config.metadata.as_ref().map(|one| one.name.clone());
        for pod in listed.await? {
            if pod.metadata.map(|one| one.name) != name {
                continue;
            }
            let id = pod.id;
            let request = cri::StopPodSandboxRequest { pod_sandbox_id: id.clone() };
            answered("StopPodSandbox", async {
                self.node.cri().stop_pod_sandbox(request).await.context("StopPodSandbox")
            })
            .await?;
            let request = cri::RemovePodSandboxRequest { pod_sandbox_id: id };
            answered("RemovePodSandbox", async {
                self.node.cri().remove_pod_sandbox(request).await.context("RemovePodSandbox")
            })
            .await?;
        }
        Ok(())
    }

    async fn end_service(&self) -> Result<()> {
        let client = &self.client;
        answered("stop", async { gone(client.stop().await).context("stop") }).await?;
        if let Some(task) = &self.task {
            answered("delete the task", async {
                gone(task.delete().await.map(drop)).context("delete")
            })
            .await?;
            answered("forget", async { gone(task.forget().await).context("forget container") })
                .await?;
        }
        answered("shut down", async { gone(client.shutdown().await).context("shut down") }).await?;
        answered("forget", async { gone(client.forget().await).context("forget sandbox") }).await
    }

    /// Whether Mooring still has something written down about it.
    pub fn is_remembered(&self) -> bool {
        state_dir(self.namespace(), self.id()).exists()
    }
}

/// What is not there any more needs no end.
fn gone(answer: Result<(), Status>) -> Result<()> {
    match answer {
        Err(status) if status.code() != Code::NotFound => Err(anyhow!(status)),
        _ => Ok(()),
    }
}

/// A call that gets an answer in time.
pub async fn answered<T>(what: &str, call: impl Future<Output = Result<T>>) -> Result<T> {
    match timeout(crate::patience(ANSWER), call).await {
        Ok(answer) => answer,
        Err(_) => bail!("{what}: no answer within {} s", crate::patience(ANSWER).as_secs()),
    }
}
