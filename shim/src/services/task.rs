//! `containerd.task.v3.Task`, and `containerd.task.v2.Task`, which has the same messages.

use std::sync::Arc;

use async_trait::async_trait;
use containerd_shim_protos::{
    api::{
        CheckpointTaskRequest, CloseIORequest, ConnectRequest, ConnectResponse, CreateTaskRequest,
        CreateTaskResponse, DeleteRequest, DeleteResponse, Empty, ExecProcessRequest, KillRequest,
        PauseRequest, PidsRequest, PidsResponse, ProcessInfo, ResizePtyRequest, ResumeRequest,
        ShutdownRequest, StartRequest, StartResponse, StateRequest, StateResponse, StatsRequest,
        StatsResponse, Status as WireStatus, UpdateTaskRequest, WaitRequest, WaitResponse,
    },
    protobuf::{Message, MessageField, well_known_types::any::Any},
    shim::oci::ProcessDetails,
    shim_async::Task as Service,
    ttrpc::{self, asynchronous::TtrpcContext},
};
use mooring::{
    error::Coded,
    id::Id,
    options::{self, AnyValue, HandlerOptions},
    runtime::RuntimeSettings,
    sandbox::Sandbox,
};

use super::{
    Ending,
    convert::{checkpoint, mount, timestamp, value},
    status::status,
};
use crate::task::{CreateRequest, Error, ExecRequest, Member, Status, Streams, Tasks};

/// The type of what `Pids` says about a process that is an exec.
const DETAILS: &str = "containerd.runc.v1.ProcessDetails";

/// Serves the tasks of this process.
pub struct TaskService {
    sandbox: Arc<Sandbox>,
    tasks: Tasks,
    namespace: Id,
    options: HandlerOptions,
    /// Whether containerd speaks the bootstrap protocol: it is 2.3 or later.
    bootstrap: bool,
    ending: Arc<Ending>,
}

impl TaskService {
    /// Serves `tasks`, which are those of `sandbox` once it is created.
    pub fn new(
        sandbox: Arc<Sandbox>,
        tasks: Tasks,
        namespace: Id,
        options: HandlerOptions,
        bootstrap: bool,
        ending: Arc<Ending>,
    ) -> Self {
        Self { sandbox, tasks, namespace, options, bootstrap, ending }
    }

    /// Whether this process still stands for something.
    pub fn in_use(&self) -> bool {
        self.sandbox.is_created() || !self.tasks.is_empty()
    }

    fn runtime(&self, own: Option<&AnyValue>) -> Result<RuntimeSettings, options::Error> {
        let in_sandbox = self.sandbox.is_created();
        let (runtime, warnings) = self.options.runtime(&self.namespace, own, in_sandbox)?;
        for warning in warnings {
            log::warn!("{warning}");
        }
        Ok(runtime)
    }
}

/// What was called for which task, for errors.
struct Call<'a>(&'static str, &'a str);

impl Call<'_> {
    fn failed<E: Coded + std::fmt::Display>(&self, error: &E) -> ttrpc::Error {
        let error = status(self.0, "task", self.1, error);
        // What is gone already is everyday.
        if let ttrpc::Error::RpcStatus(status) = &error
            && status.code() != ttrpc::Code::NOT_FOUND
        {
            log::error!("{}", status.message());
        }
        error
    }
}

#[async_trait]
impl Service for TaskService {
    async fn create(
        &self,
        _: &TtrpcContext,
        request: CreateTaskRequest,
    ) -> ttrpc::Result<CreateTaskResponse> {
        let call = Call("create", &request.id);
        let runtime = self.runtime(request.options.into_option().map(value).as_ref());
        let create = CreateRequest {
            id: Id::new(&request.id).map_err(|e| call.failed(&e))?,
            bundle: request.bundle.into(),
            rootfs: request.rootfs.into_iter().map(mount).collect(),
            streams: Streams {
                stdin: request.stdin,
                stdout: request.stdout,
                stderr: request.stderr,
                terminal: request.terminal,
            },
            checkpoint: request.checkpoint,
            runtime: runtime.map_err(|error| call.failed(&error))?,
        };
        let pid = self.tasks.create(create).await.map_err(|error| call.failed(&error))?;
        Ok(CreateTaskResponse { pid, ..CreateTaskResponse::default() })
    }

    async fn start(&self, _: &TtrpcContext, request: StartRequest) -> ttrpc::Result<StartResponse> {
        let call = Call("start", &request.id);
        let pid =
            self.tasks.start(&request.id, &request.exec_id).await.map_err(|e| call.failed(&e))?;
        Ok(StartResponse { pid, ..StartResponse::default() })
    }

    async fn state(&self, _: &TtrpcContext, request: StateRequest) -> ttrpc::Result<StateResponse> {
        let call = Call("state of", &request.id);
        let state = self.tasks.state(&request.id, &request.exec_id).map_err(|e| call.failed(&e))?;
        let status = match state.status {
            Status::Created => WireStatus::CREATED,
            Status::Running => WireStatus::RUNNING,
            Status::Stopped => WireStatus::STOPPED,
            Status::Paused => WireStatus::PAUSED,
            Status::Pausing => WireStatus::PAUSING,
        };
        Ok(StateResponse {
            id: request.id,
            exec_id: request.exec_id,
            bundle: state.bundle.to_string_lossy().into_owned(),
            pid: state.pid,
            status: status.into(),
            stdin: state.streams.stdin,
            stdout: state.streams.stdout,
            stderr: state.streams.stderr,
            terminal: state.streams.terminal,
            exit_status: state.ended.map_or(0, |ended| ended.status),
            exited_at: state.ended.map(|ended| timestamp(ended.at)).unwrap_or_default(),
            ..StateResponse::default()
        })
    }

    async fn delete(
        &self,
        _: &TtrpcContext,
        request: DeleteRequest,
    ) -> ttrpc::Result<DeleteResponse> {
        let call = Call("delete", &request.id);
        if request.exec_id.is_empty() {
            // When a client gives up in mid-creation, or containerd ends, it deletes what it has not got yet. Not found
            // is all that it waits for before it unmounts the root file system, which the OCI runtime is at work in.
            self.tasks.settled(&request.id).await;
        }
        let ended =
            self.tasks.delete(&request.id, &request.exec_id).await.map_err(|e| call.failed(&e))?;
        Ok(DeleteResponse {
            pid: ended.pid,
            exit_status: ended.status,
            exited_at: timestamp(ended.at),
            ..DeleteResponse::default()
        })
    }

    async fn pids(&self, _: &TtrpcContext, request: PidsRequest) -> ttrpc::Result<PidsResponse> {
        let call = Call("processes of", &request.id);
        let members = match self.tasks.pids(&request.id) {
            // After its own restart containerd asks for the sandbox too, and complains of an error.
            Err(Error::NoTask(id))
                if id == self.sandbox.id().as_str() && self.sandbox.is_created() =>
            {
                let pid = self.sandbox.own_pid();
                pid.into_iter().map(|pid| Member { pid, exec_id: None }).collect()
            }
            // containerd before 2.3 takes an error for an empty list, and deletes the task with its exit code.
            Err(Error::Ended { init, .. }) if !self.bootstrap => {
                vec![Member { pid: init, exec_id: None }]
            }
            members => members.map_err(|e| call.failed(&e))?,
        };
        let info = |exec: Id| {
            let details = ProcessDetails { exec_id: exec.into(), ..ProcessDetails::default() };
            // A message without required fields always encodes.
            let value = details.write_to_bytes().unwrap_or_default();
            Any { type_url: DETAILS.into(), value, ..Any::default() }
        };
        let process = |member: Member| ProcessInfo {
            pid: member.pid,
            info: member.exec_id.map(info).into(),
            ..ProcessInfo::default()
        };
        let processes = members.into_iter().map(process).collect();
        Ok(PidsResponse { processes, ..PidsResponse::default() })
    }

    async fn pause(&self, _: &TtrpcContext, request: PauseRequest) -> ttrpc::Result<Empty> {
        let call = Call("pause", &request.id);
        self.tasks.pause(&request.id).await.map_err(|e| call.failed(&e))?;
        Ok(Empty::new())
    }

    async fn resume(&self, _: &TtrpcContext, request: ResumeRequest) -> ttrpc::Result<Empty> {
        let call = Call("resume", &request.id);
        self.tasks.resume(&request.id).await.map_err(|e| call.failed(&e))?;
        Ok(Empty::new())
    }

    async fn checkpoint(
        &self,
        _: &TtrpcContext,
        request: CheckpointTaskRequest,
    ) -> ttrpc::Result<Empty> {
        let id = request.id.clone();
        let call = Call("checkpoint", &id);
        let checkpoint = checkpoint(request).map_err(|e| call.failed(&e))?;
        self.tasks.checkpoint(&id, checkpoint).await.map_err(|e| call.failed(&e))?;
        Ok(Empty::new())
    }

    async fn kill(&self, _: &TtrpcContext, request: KillRequest) -> ttrpc::Result<Empty> {
        let call = Call("kill", &request.id);
        self.tasks
            .kill(&request.id, &request.exec_id, request.signal, request.all)
            .await
            .map_err(|e| call.failed(&e))?;
        Ok(Empty::new())
    }

    async fn exec(&self, _: &TtrpcContext, request: ExecProcessRequest) -> ttrpc::Result<Empty> {
        let call = Call("exec in", &request.id);
        let exec = ExecRequest {
            id: Id::new(&request.id).map_err(|e| call.failed(&e))?,
            exec_id: Id::new(request.exec_id).map_err(|e| call.failed(&e))?,
            streams: Streams {
                stdin: request.stdin,
                stdout: request.stdout,
                stderr: request.stderr,
                terminal: request.terminal,
            },
            process: request.spec.into_option().unwrap_or_default().value,
        };
        self.tasks.exec(exec).map_err(|e| call.failed(&e))?;
        Ok(Empty::new())
    }

    async fn resize_pty(
        &self,
        _: &TtrpcContext,
        request: ResizePtyRequest,
    ) -> ttrpc::Result<Empty> {
        let call = Call("resize the terminal of", &request.id);
        self.tasks
            .resize_pty(&request.id, &request.exec_id, request.width, request.height)
            .map_err(|e| call.failed(&e))?;
        Ok(Empty::new())
    }

    async fn close_io(&self, _: &TtrpcContext, request: CloseIORequest) -> ttrpc::Result<Empty> {
        let call = Call("close the input of", &request.id);
        if request.stdin {
            self.tasks.close_io(&request.id, &request.exec_id).map_err(|e| call.failed(&e))?;
        }
        Ok(Empty::new())
    }

    async fn update(&self, _: &TtrpcContext, request: UpdateTaskRequest) -> ttrpc::Result<Empty> {
        let call = Call("update", &request.id);
        let resources = request.resources.into_option().unwrap_or_default().value;
        self.tasks.update(&request.id, resources).await.map_err(|e| call.failed(&e))?;
        Ok(Empty::new())
    }

    async fn wait(&self, _: &TtrpcContext, request: WaitRequest) -> ttrpc::Result<WaitResponse> {
        let call = Call("wait for", &request.id);
        let ended =
            self.tasks.wait(&request.id, &request.exec_id).await.map_err(|e| call.failed(&e))?;
        Ok(WaitResponse {
            exit_status: ended.status,
            exited_at: timestamp(ended.at),
            ..WaitResponse::default()
        })
    }

    async fn stats(&self, _: &TtrpcContext, request: StatsRequest) -> ttrpc::Result<StatsResponse> {
        let call = Call("statistics of", &request.id);
        let stats = self.tasks.stats(&request.id).map_err(|e| call.failed(&e))?;
        Ok(StatsResponse { stats: MessageField::some(stats), ..StatsResponse::default() })
    }

    async fn connect(
        &self,
        _: &TtrpcContext,
        request: ConnectRequest,
    ) -> ttrpc::Result<ConnectResponse> {
        let call = Call("connect to", &request.id);
        // A containerd that has died while it had a container created asks for it when it is back. One that it does
        // not find it has deleted, and the creation would go on behind its back.
        self.tasks.settled(&request.id).await;
        let task_pid = match self.tasks.pid(&request.id) {
            Ok(pid) => pid,
            // After its own restart containerd asks for the sandbox as if it were a task. An empty id asks for the shim.
            Err(_) if request.id.is_empty() || request.id == self.sandbox.id().as_str() => 0,
            Err(error) => return Err(call.failed(&error)),
        };
        Ok(ConnectResponse {
            shim_pid: std::process::id(),
            task_pid,
            version: env!("CARGO_PKG_VERSION").into(),
            ..ConnectResponse::default()
        })
    }

    async fn shutdown(&self, context: &TtrpcContext, _: ShutdownRequest) -> ttrpc::Result<Empty> {
        // It comes after every Delete; a sandbox ends by its own shutdown, a shared shim with its last container.
        if !self.in_use() {
            self.ending.after(context.mh.stream_id);
        }
        Ok(Empty::new())
    }
}
