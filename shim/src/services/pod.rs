//! The sandbox and its tasks, each as the other sees it.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use mooring::{
    error::{Coded, code_of_io},
    id::Id,
    nri::Event,
    sandbox::{self, NotCleared, PodTasks, Sandbox, daemon_record},
    sys::survivor::Survivors,
};
use tokio::time::Instant;

use crate::task::{Pod, PodError, Status, Tasks};

/// What a sandbox is to the tasks in it. Before it is created, and where none is, the tasks are on their own.
pub struct PodOfTasks(pub Arc<Sandbox>);

fn refused(error: &sandbox::Error) -> PodError {
    PodError { code: error.code(), message: error.to_string() }
}

#[async_trait]
impl Pod for PodOfTasks {
    fn admit(&self, _: &Id) -> Result<Box<dyn Send>, PodError> {
        if !self.0.is_created() {
            return Ok(Box::new(()));
        }
        let admitted = self.0.admit().map_err(|error| refused(&error))?;
        Ok(Box::new(admitted))
    }

    async fn prepare(
        &self,
        container: &Id,
        bundle: &Path,
        spec: &mut serde_json::Value,
    ) -> Result<bool, PodError> {
        // `delete` may be called for this container alone.
        let (bundle, root) = (bundle.to_owned(), self.0.environment().options.state_root.clone());
        let pointed =
            tokio::task::spawn_blocking(move || daemon_record::point_to(&bundle, &root)).await;
        if let Err(error) = pointed.unwrap_or_else(|error| Err(io::Error::other(error))) {
            let message = format!("point to the state folder: {error}");
            return Err(PodError { code: code_of_io(&error), message });
        }
        if !self.0.is_created() {
            return Ok(false);
        }
        self.0.prepare(container, spec).await.map_err(|error| refused(&error))
    }

    async fn verify(
        &self,
        container: &Id,
        pid: i32,
        spec: &serde_json::Value,
    ) -> Result<(), PodError> {
        if !self.0.is_created() {
            return Ok(());
        }
        self.0.verify(container, pid, spec).await.map_err(|error| refused(&error))
    }

    async fn starts(&self, container: &Id) -> Result<(), PodError> {
        self.0.container_starts(container).await.map_err(|error| refused(&error))
    }

    fn became(&self, event: Event, container: &Id, number: u32) {
        self.0.container_is(event, container, number);
    }

    fn tasks_dir(&self) -> PathBuf {
        self.0.tasks_dir()
    }
}

/// What the tasks are to their sandbox.
pub struct TasksOfPod(pub Tasks);

/// How long what is left of the containers may take to go.
const CLEAR: Duration = Duration::from_mins(1);

#[async_trait]
impl PodTasks for TasksOfPod {
    fn ids(&self) -> Vec<Id> {
        self.0.ids()
    }

    fn is_running(&self, container: &Id) -> bool {
        let state = self.0.state(container.as_str(), "");
        state.is_ok_and(|state| state.status != Status::Stopped)
    }

    async fn kill_in_place(&self, container: &Id) {
        if let Err(error) = self.0.kill_in_place(container) {
            log::warn!("kill container {:?}: {error}", container.as_str());
        }
    }

    async fn exited(&self, container: &Id) {
        self.0.exited(container).await;
    }

    async fn outliving(&self) -> Vec<(Id, Survivors)> {
        self.0.outliving().await
    }

    async fn end_remains(&self, deadline: Instant) -> Result<(), NotCleared> {
        self.0.end_remains(deadline).await.map_err(|error| NotCleared(error.into()))
    }

    async fn clear(&self) -> Result<(), NotCleared> {
        self.0.clear(Instant::now() + CLEAR).await.map_err(|error| NotCleared(error.into()))
    }
}
