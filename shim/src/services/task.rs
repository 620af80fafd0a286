//! `containerd.task.v3.Task`, and `containerd.task.v2.Task`, which has the same messages.

use std::sync::Arc;

use async_trait::async_trait;
use containerd_shim_protos::{
    api::{ConnectRequest, ConnectResponse, Empty, PidsRequest, PidsResponse, ShutdownRequest},
    shim_async::Task as Service,
    ttrpc::{self, asynchronous::TtrpcContext},
};
use mooring::{error::Code, id::Id};

use super::{Ending, pod::Pod, status::answer};

/// Serves the tasks of this process.
pub struct TaskService {
    id: Id,
    pod: Arc<dyn Pod>,
    ending: Arc<Ending>,
}

impl TaskService {
    /// Serves the tasks of `pod`, or those of no pod.
    pub fn new(id: Id, pod: Arc<dyn Pod>, ending: Arc<Ending>) -> Self {
        Self { id, pod, ending }
    }

    /// Whether this process still stands for something.
    pub fn in_use(&self) -> bool {
        self.pod.held()
    }
}

#[async_trait]
impl Service for TaskService {
    async fn connect(
        &self,
        _: &TtrpcContext,
        request: ConnectRequest,
    ) -> ttrpc::Result<ConnectResponse> {
        // After its own restart containerd asks for the sandbox as if it were a task.
        if request.id != self.id.as_str() {
            return Err(answer(
                Code::NotFound,
                format!("connect to task {:?}: not found", request.id),
            ));
        }
        Ok(ConnectResponse {
            shim_pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").into(),
            ..ConnectResponse::default()
        })
    }

    async fn pids(&self, _: &TtrpcContext, request: PidsRequest) -> ttrpc::Result<PidsResponse> {
        Err(answer(Code::NotFound, format!("processes of task {:?}: not found", request.id)))
    }

    async fn shutdown(&self, context: &TtrpcContext, _: ShutdownRequest) -> ttrpc::Result<Empty> {
        if !self.in_use() {
            self.ending.after(context.mh.stream_id);
        }
        Ok(Empty::new())
    }
}
