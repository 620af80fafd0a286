//! containerd's own services, for clients that are not CRI: the sandbox controller, containers and tasks.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use containerd_client::services::v1 as api;
use containerd_client::services::v1::sandbox as sandbox_api;
use containerd_client::tonic::metadata::AsciiMetadataValue;
use containerd_client::tonic::transport::Channel;
use containerd_client::tonic::{Request, Response, Status};
use containerd_client::types::{Mount, Platform, sandbox::Runtime};
use prost::Message;
use prost_types::Any;
use serde_json::{Value, json};

use crate::node::Node;
use crate::suite::Case;
use crate::systemd;

/// The containerd namespace of these clients.
pub const NAMESPACE: &str = "default";
const SPEC: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";
const PROCESS: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";

const RESTORE_OPTIONS: &str = "containerd.runc.v1.Options";
const CHECKPOINT_OPTIONS: &str = "containerd.runc.v1.CheckpointOptions";

/// What of `containerd.runc.v1.Options` a restore needs.
#[derive(Clone, PartialEq, Message)]
struct RestoreOptions {
    #[prost(string, tag = "10")]
    criu_image_path: String,
}

/// `containerd.runc.v1.CheckpointOptions`.
#[expect(clippy::struct_excessive_bools, reason = "they are the message's")]
#[derive(Clone, PartialEq, Message)]
pub struct CheckpointOptions {
    /// Whether the container ends with it.
    #[prost(bool, tag = "1")]
    pub exit: bool,
    /// Whether connections are kept.
    #[prost(bool, tag = "2")]
    pub open_tcp: bool,
    /// Whether sockets of others than the container's processes are kept.
    #[prost(bool, tag = "3")]
    pub external_unix_sockets: bool,
    /// Whether a terminal is kept.
    #[prost(bool, tag = "4")]
    pub terminal: bool,
    /// Whether locks of files are kept.
    #[prost(bool, tag = "5")]
    pub file_locks: bool,
    /// What becomes of cgroups.
    #[prost(string, tag = "7")]
    pub cgroups_mode: String,
    /// The folder of the images.
    #[prost(string, tag = "8")]
    pub image_path: String,
    /// The folder of criu's log.
    #[prost(string, tag = "9")]
    pub work_path: String,
}

/// Where a task's input comes from and its output goes.
#[derive(Clone, Debug, Default)]
pub struct Streams {
    /// A fifo.
    pub stdin: String,
    /// A fifo.
    pub stdout: String,
    /// A fifo, or nothing.
    pub stderr: String,
    /// Whether the process has a terminal.
    pub terminal: bool,
}

/// A request in one of containerd's namespaces.
pub fn in_namespace<T>(namespace: &'static str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request
        .metadata_mut()
        .insert("containerd-namespace", AsciiMetadataValue::from_static(namespace));
    request
}

fn request<T>(message: T) -> Request<T> {
    in_namespace(NAMESPACE, message)
}

fn any(kind: &str, value: &Value) -> Any {
    Any { type_url: kind.to_owned(), value: value.to_string().into_bytes() }
}

/// A client of the sandbox controller and the task service, with one sandbox in mind.
pub struct Client {
    node: Arc<Node>,
    runtime: String,
    /// The sandbox's id.
    pub id: String,
}

impl Client {
    /// A client whose sandbox does not exist yet.
    pub fn new(case: &Case) -> Self {
        Self {
            node: Arc::clone(&case.node),
            runtime: case.handler.runtime().to_owned(),
            id: case.unique("sandbox"),
        }
    }

    /// The same client with another sandbox in mind.
    #[must_use]
    pub fn with_id(&self, id: &str) -> Self {
        Self { node: Arc::clone(&self.node), runtime: self.runtime.clone(), id: id.to_owned() }
    }

    fn controller(&self) -> sandbox_api::controller_client::ControllerClient<Channel> {
        sandbox_api::controller_client::ControllerClient::new(self.node.channel())
    }

    fn store(&self) -> sandbox_api::store_client::StoreClient<Channel> {
        sandbox_api::store_client::StoreClient::new(self.node.channel())
    }

    fn containers(&self) -> api::containers_client::ContainersClient<Channel> {
        api::containers_client::ContainersClient::new(self.node.channel())
    }

    /// The task service.
    pub fn tasks(&self) -> api::tasks_client::TasksClient<Channel> {
        api::tasks_client::TasksClient::new(self.node.channel())
    }

    fn sandboxer() -> String {
        "shim".to_owned()
    }

    fn sandbox(&self, spec: &Value) -> containerd_client::types::Sandbox {
        containerd_client::types::Sandbox {
            sandbox_id: self.id.clone(),
            runtime: Some(Runtime { name: self.runtime.clone(), options: None }),
            spec: Some(any(SPEC, spec)),
            sandboxer: Self::sandboxer(),
            ..Default::default()
        }
    }

    /// Writes the sandbox's record, as every client of the controller does first.
    pub async fn record(&self, spec: &Value) -> Result<(), Status> {
        let message = sandbox_api::StoreCreateRequest { sandbox: Some(self.sandbox(spec)) };
        self.store().create(request(message)).await.map(drop)
    }

    /// Removes the record.
    pub async fn forget(&self) -> Result<(), Status> {
        let message = sandbox_api::StoreDeleteRequest { sandbox_id: self.id.clone() };
        self.store().delete(request(message)).await.map(drop)
    }

    /// Create of the controller.
    pub async fn create(
        &self,
        spec: &Value,
        options: Option<Any>,
        netns_path: &str,
    ) -> Result<(), Status> {
        let message = sandbox_api::ControllerCreateRequest {
            sandbox_id: self.id.clone(),
            options,
            netns_path: netns_path.to_owned(),
            sandbox: Some(self.sandbox(spec)),
            sandboxer: Self::sandboxer(),
            ..Default::default()
        };
        self.controller().create(request(message)).await.map(drop)
    }

    /// Start.
    pub async fn start(&self) -> Result<sandbox_api::ControllerStartResponse, Status> {
        let message = sandbox_api::ControllerStartRequest {
            sandbox_id: self.id.clone(),
            sandboxer: Self::sandboxer(),
        };
        self.controller().start(request(message)).await.map(Response::into_inner)
    }

    /// Platform.
    pub async fn platform(&self) -> Result<Option<Platform>, Status> {
        let message = sandbox_api::ControllerPlatformRequest {
            sandbox_id: self.id.clone(),
            sandboxer: Self::sandboxer(),
        };
        self.controller()
            .platform(request(message))
            .await
            .map(|answer| answer.into_inner().platform)
    }

    /// Status, verbose.
    pub async fn status(&self) -> Result<sandbox_api::ControllerStatusResponse, Status> {
        let message = sandbox_api::ControllerStatusRequest {
            sandbox_id: self.id.clone(),
            verbose: true,
            sandboxer: Self::sandboxer(),
        };
        self.controller().status(request(message)).await.map(Response::into_inner)
    }

    /// Stop.
    pub async fn stop(&self) -> Result<(), Status> {
        self.stop_within(10).await
    }

    /// Stop, with so many seconds for the answer.
    pub async fn stop_within(&self, seconds: u32) -> Result<(), Status> {
        let message = sandbox_api::ControllerStopRequest {
            sandbox_id: self.id.clone(),
            timeout_secs: seconds,
            sandboxer: Self::sandboxer(),
        };
        self.controller().stop(request(message)).await.map(drop)
    }

    /// Wait.
    pub async fn wait(&self) -> Result<sandbox_api::ControllerWaitResponse, Status> {
        let message = sandbox_api::ControllerWaitRequest {
            sandbox_id: self.id.clone(),
            sandboxer: Self::sandboxer(),
        };
        self.controller().wait(request(message)).await.map(Response::into_inner)
    }

    /// Shutdown.
    pub async fn shutdown(&self) -> Result<(), Status> {
        let message = sandbox_api::ControllerShutdownRequest {
            sandbox_id: self.id.clone(),
            sandboxer: Self::sandboxer(),
        };
        self.controller().shutdown(request(message)).await.map(drop)
    }

    /// Metrics.
    pub async fn metrics(&self) -> Result<Option<containerd_client::types::Metric>, Status> {
        let message = sandbox_api::ControllerMetricsRequest {
            sandbox_id: self.id.clone(),
            sandboxer: Self::sandboxer(),
        };
        self.controller().metrics(request(message)).await.map(|answer| answer.into_inner().metrics)
    }

    /// A container of the sandbox, without a task yet.
    pub async fn container(&self, id: &str, spec: &Value) -> Result<Task> {
        self.container_in(&self.id, id, spec).await
    }

    /// A container without sandbox.
    pub async fn plain_container(&self, id: &str, spec: &Value) -> Result<Task> {
        self.container_in("", id, spec).await
    }

    async fn container_in(&self, sandbox: &str, id: &str, spec: &Value) -> Result<Task> {
        let record = api::Container {
            id: id.to_owned(),
            runtime: Some(api::container::Runtime { name: self.runtime.clone(), options: None }),
            spec: Some(any(SPEC, spec)),
            sandbox: sandbox.to_owned(),
            ..Default::default()
        };
        let message = api::CreateContainerRequest { container: Some(record) };
        self.containers().create(request(message)).await.context("create the container")?;
        Ok(Task { client: self.with_id(&self.id), id: id.to_owned() })
    }
}

/// A container with at most one task.
pub struct Task {
    client: Client,
    /// The container's id.
    pub id: String,
}

impl Task {
    /// A task of a container that may not exist.
    pub fn of(client: &Client, id: &str) -> Self {
        Self { client: client.with_id(&client.id), id: id.to_owned() }
    }

    /// Create, with a root file system made for it.
    pub async fn create(&self) -> Result<u32, Status> {
        let root = root_file_system(&self.client.node)
            .map_err(|error| Status::internal(format!("{error:#}")))?;
        self.create_on(&root).await
    }

    /// Create, with this folder as its root file system.
    pub async fn create_on(&self, root: &Path) -> Result<u32, Status> {
        let mount = Mount {
            r#type: "bind".to_owned(),
            source: root.display().to_string(),
            options: vec!["rbind".to_owned(), "rw".to_owned()],
            ..Default::default()
        };
        let message = api::CreateTaskRequest {
            container_id: self.id.clone(),
            rootfs: vec![mount],
            ..Default::default()
        };
        self.client.tasks().create(request(message)).await.map(|answer| answer.into_inner().pid)
    }

    /// Create with this folder as its root file system and fifos as its output, from a checkpoint if one is given.
    pub async fn create_with(
        &self,
        root: &Path,
        streams: &Streams,
        checkpoint: Option<&Path>,
    ) -> Result<u32, Status> {
        let mount = Mount {
            r#type: "bind".to_owned(),
            source: root.display().to_string(),
            options: vec!["rbind".to_owned(), "rw".to_owned()],
            ..Default::default()
        };
        let options = checkpoint.map(|images| {
            let message = RestoreOptions { criu_image_path: images.display().to_string() };
            Any { type_url: RESTORE_OPTIONS.to_owned(), value: message.encode_to_vec() }
        });
        let message = api::CreateTaskRequest {
            container_id: self.id.clone(),
            rootfs: vec![mount],
            stdin: streams.stdin.clone(),
            stdout: streams.stdout.clone(),
            stderr: streams.stderr.clone(),
            terminal: streams.terminal,
            options,
            ..Default::default()
        };
        self.client.tasks().create(request(message)).await.map(|answer| answer.into_inner().pid)
    }

    /// Checkpoint.
    pub async fn checkpoint(&self, options: &CheckpointOptions) -> Result<(), Status> {
        let value = options.encode_to_vec();
        let message = api::CheckpointTaskRequest {
            container_id: self.id.clone(),
            options: Some(Any { type_url: CHECKPOINT_OPTIONS.to_owned(), value }),
            ..Default::default()
        };
        self.client.tasks().checkpoint(request(message)).await.map(drop)
    }

    /// Start.
    pub async fn start(&self) -> Result<u32, Status> {
        let message = api::StartRequest { container_id: self.id.clone(), exec_id: String::new() };
        self.client.tasks().start(request(message)).await.map(|answer| answer.into_inner().pid)
    }

    /// Kill.
    pub async fn kill(&self, signal: u32) -> Result<(), Status> {
        let message = api::KillRequest {
            container_id: self.id.clone(),
            signal,
            all: false,
            exec_id: String::new(),
        };
        self.client.tasks().kill(request(message)).await.map(drop)
    }

    /// Wait: the exit status.
    pub async fn wait(&self) -> Result<u32, Status> {
        let message = api::WaitRequest { container_id: self.id.clone(), exec_id: String::new() };
        let answer = self.client.tasks().wait(request(message)).await?;
        Ok(answer.into_inner().exit_status)
    }

    /// Delete: the exit status.
    pub async fn delete(&self) -> Result<u32, Status> {
        let message = api::DeleteTaskRequest { container_id: self.id.clone() };
        let answer = self.client.tasks().delete(request(message)).await?;
        Ok(answer.into_inner().exit_status)
    }

    /// Get: the process's state, as containerd numbers it.
    pub async fn state(&self) -> Result<i32, Status> {
        let message = api::GetRequest { container_id: self.id.clone(), exec_id: String::new() };
        let answer = self.client.tasks().get(request(message)).await?.into_inner();
        Ok(answer.process.map_or(0, |process| process.status))
    }

    /// Pause.
    pub async fn pause(&self) -> Result<(), Status> {
        let message = api::PauseTaskRequest { container_id: self.id.clone() };
        self.client.tasks().pause(request(message)).await.map(drop)
    }

    /// Resume.
    pub async fn resume(&self) -> Result<(), Status> {
        let message = api::ResumeTaskRequest { container_id: self.id.clone() };
        self.client.tasks().resume(request(message)).await.map(drop)
    }

    /// Exec, start, wait and delete of a further process: its exit status.
    pub async fn exec(&self, exec_id: &str, arguments: &[&str]) -> Result<u32, Status> {
        self.add_exec(exec_id, arguments).await?;
        let mut tasks = self.client.tasks();
        let (container_id, exec_id) = (self.id.clone(), exec_id.to_owned());
        let message =
            api::StartRequest { container_id: container_id.clone(), exec_id: exec_id.clone() };
        tasks.start(request(message)).await?;
        let message =
            api::WaitRequest { container_id: container_id.clone(), exec_id: exec_id.clone() };
        let status = tasks.wait(request(message)).await?.into_inner().exit_status;
        let message = api::DeleteProcessRequest { container_id, exec_id };
        tasks.delete_process(request(message)).await?;
        Ok(status)
    }

    /// Exec alone.
    pub async fn add_exec(&self, exec_id: &str, arguments: &[&str]) -> Result<(), Status> {
        let process = json!({ "args": arguments, "cwd": "/", "user": { "uid": 0, "gid": 0 }, "env": ["PATH=/bin"] });
        let message = api::ExecProcessRequest {
            container_id: self.id.clone(),
            exec_id: exec_id.to_owned(),
            spec: Some(any(PROCESS, &process)),
            ..Default::default()
        };
        self.client.tasks().exec(request(message)).await.map(drop)
    }

    /// The ids of its processes.
    pub async fn pids(&self) -> Result<Vec<u32>, Status> {
        let message = api::ListPidsRequest { container_id: self.id.clone() };
        let answer = self.client.tasks().list_pids(request(message)).await?.into_inner();
        Ok(answer.processes.iter().map(|process| process.pid).collect())
    }

    /// Removes the container's record.
    pub async fn forget(&self) -> Result<(), Status> {
        let message = api::DeleteContainerRequest { id: self.id.clone() };
        self.client.containers().delete(request(message)).await.map(drop)
    }
}

/// A folder with busybox, made once.
fn root_file_system(node: &Node) -> Result<PathBuf> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _one_at_a_time = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let root = node.folder().join("rootfs");
    if !root.exists() {
        for folder in ["bin", "dev", "etc", "proc", "sys", "tmp"] {
            fs::create_dir_all(root.join(folder))?;
        }
        fs::copy(node.deps().join("bin/busybox"), root.join("bin/busybox"))?;
        for applet in ["sh", "sleep", "true", "false", "cat", "hostname"] {
            symlink("busybox", root.join("bin").join(applet))?;
        }
        // What a pod's files are mounted on: runc makes it where it is missing, and fails where another one just has.
        for file in ["hosts", "hostname", "resolv.conf"] {
            fs::write(root.join("etc").join(file), "")?;
        }
    }
    Ok(root)
}

/// A sandbox's specification: host network or one of its own.
pub fn sandbox_spec(hostname: &str, host_network: bool) -> Value {
    let mut namespaces = vec![json!({ "type": "ipc" }), json!({ "type": "uts" })];
    if !host_network {
        namespaces.push(json!({ "type": "network" }));
    }
    json!({
        "ociVersion": "1.2.0",
        "hostname": hostname,
        "linux": { "namespaces": namespaces },
    })
}

/// A container's specification: a command in the namespaces of a sandbox's process.
pub fn container_spec(id: &str, arguments: &[&str], sandbox_pid: Option<u32>) -> Value {
    let mut namespaces = vec![json!({ "type": "mount" }), json!({ "type": "pid" })];
    for (kind, name) in [("network", "net"), ("ipc", "ipc"), ("uts", "uts")] {
        let namespace = match sandbox_pid {
            Some(pid) => json!({ "type": kind, "path": format!("/proc/{pid}/ns/{name}") }),
            None => json!({ "type": kind }),
        };
        namespaces.push(namespace);
    }
    // As whoever has systemd's cgroups must name it.
    let group = if systemd::is_first() {
        format!("system.slice:{NAMESPACE}:{id}")
    } else {
        format!("/{NAMESPACE}/{id}")
    };
    json!({
        "ociVersion": "1.2.0",
        "process": {
            "args": arguments,
            "cwd": "/",
            "user": { "uid": 0, "gid": 0 },
            "env": ["PATH=/bin"],
            "capabilities": { "bounding": ["CAP_KILL"], "effective": ["CAP_KILL"], "permitted": ["CAP_KILL"] },
        },
        "root": { "path": "rootfs" },
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc" },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"] },
        ],
        "linux": { "namespaces": namespaces, "cgroupsPath": group },
    })
}
