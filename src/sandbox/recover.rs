//! Taking down a sandbox whose shim is gone, from its journal alone: for `delete`, and for the operator's `gc`.

use std::{
    path::Path,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use tokio::{task::JoinSet, time::Instant};

use super::{daemon_record::DaemonRecord, shutdown::remove_run_dir, work};
use crate::{
    container::{self, Record},
    containerd::Containerd,
    error::Code,
    network::{CniPlugins, orphans},
    process::Reaper,
    released::Released,
    teardown::{
        Executor, Observer, Step, StepReport, TeardownError, Work, WorkError,
        journal::{self, JournalError, Resource, Store},
    },
};

/// Hears of containers that the recovery ended, so that their exits become known.
pub trait ContainerEnded: Send + Sync {
    /// The container of this record has been killed and removed.
    fn ended(&self, record: &Record);
}

/// For recoveries whose containers nobody asks after.
pub struct Unheard;

impl ContainerEnded for Unheard {
    fn ended(&self, _: &Record) {}
}

/// The parties that a recovery needs.
pub struct Recovery {
    /// Waits for this process's children.
    pub reaper: Reaper,
    /// containerd.
    pub containerd: Arc<dyn Containerd>,
    /// The CNI plugins.
    pub plugins: Arc<dyn CniPlugins>,
    /// Who hears of ended containers.
    pub listener: Arc<dyn ContainerEnded>,
}

struct Silent;

impl Observer for Silent {
    fn begun(&self, _: Step) {}
    fn ended(&self, _: StepReport) {}
}

impl Recovery {
    /// Kills and removes every container that has a record in `state_dir`, all at once. What fails is named.
    pub async fn end_containers(
        &self,
        state_dir: &Path,
        deadline: Instant,
    ) -> Result<usize, WorkError> {
        let tasks_dir = state_dir.join("tasks");
        let folder = tasks_dir.clone();
        let records = tokio::task::spawn_blocking(move || container::load_all(&folder)).await;
        let records = match records {
            Ok(Ok(records)) => records,
            Ok(Err(error)) => return Err(error.into()),
            Err(error) => {
                return Err(WorkError { code: Code::Unknown, message: error.to_string() });
            }
        };
        let count = records.len();
        let mut failures = Vec::new();
        let mut ends = JoinSet::new();
        for record in records {
            let record = match record {
                Ok(record) => record,
                Err(error) => {
                    // Its container cannot be found by a torn record; the others can.
                    failures.push(error.to_string());
                    continue;
                }
            };
            let (reaper, listener) = (self.reaper.clone(), Arc::clone(&self.listener));
            let folder = tasks_dir.clone();
            ends.spawn(async move {
                let ended = container::release(&record, &reaper, deadline).await;
                let ended = ended.and_then(|_| Record::remove(&folder, &record.id));
                if ended.is_ok() {
                    listener.ended(&record);
                }
                ended.map_err(|error| format!("container {:?}: {error}", record.id.as_str()))
            });
        }
        while let Some(ended) = ends.join_next().await {
            match ended {
                Ok(Ok(())) => {}
                Ok(Err(error)) => failures.push(error),
                Err(error) => failures.push(error.to_string()),
            }
        }
        if failures.is_empty() {
            return Ok(count);
        }
        Err(WorkError { code: Code::Unknown, message: failures.join("; ") })
    }

    /// Completes the teardown in `state_dir` and removes the folder. Success where there is no journal.
    pub async fn take_down(&self, store: Store) -> Result<(), TeardownError> {
        let state_dir = store.folder().to_owned();
        let about = store.journal().about.clone();
        let store = Arc::new(Mutex::new(store));
        let shim = DaemonRecord::load(&state_dir);
        let work = Dead { recovery: self, state_dir: &state_dir, shim };
        // A plan that was at its end before may have left containers to their client, which will not come any more.
        let failed = |error: WorkError| TeardownError {
            step: Step::Containers,
            code: error.code,
            message: error.message,
        };
        let deadline = Instant::now() + std::time::Duration::from_secs(30);
        self.end_containers(&state_dir, deadline).await.map_err(failed)?;
        let executor = Executor {
            sandbox: &about.id,
            store: Arc::clone(&store),
            work: &work,
            observer: &Silent,
        };
        executor.run().await?;
        self.containerd.disconnect().await;
        let removed = tokio::task::spawn_blocking(move || {
            remove_run_dir(&about.run_dir);
            // Held until the folder is gone, so that nobody else takes up what is finished.
            let _store = store;
            journal::remove_folder(&state_dir)
        });
        let failed = |code, message| TeardownError { step: Step::Lease, code, message };
        match removed.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(failed(Code::Unknown, error.to_string())),
            Err(error) => Err(failed(Code::Unknown, error.to_string())),
        }
    }
}

/// Opens the journal of a sandbox whose shim is gone, waiting for whoever works on it. Blocks.
pub fn open(state_dir: &Path) -> Result<Option<Store>, JournalError> {
    Store::open(state_dir, true)
}

/// The teardown of a sandbox whose shim is gone.
struct Dead<'a> {
    recovery: &'a Recovery,
    state_dir: &'a Path,
    /// What is known of the dead shim.
    shim: Option<DaemonRecord>,
}

#[async_trait]
impl Work for Dead<'_> {
    async fn act(&self, step: Step, deadline: Instant) -> Result<(), WorkError> {
        match step {
            // Nobody can create containers any more: the shim is gone.
            Step::Containers => {
                self.recovery.end_containers(self.state_dir, deadline).await.map(|_| ())
            }
            _ => Ok(()),
        }
    }

    async fn release(
        &self,
        resource: &Resource,
        _: journal::State,
        deadline: Instant,
    ) -> Result<Released, WorkError> {
        let Recovery { containerd, plugins, .. } = self.recovery;
        // An ADD that goes on would undo what its DEL does now.
        if let (Resource::Network(record), Some(shim)) = (resource, &self.shim) {
            let (id, shim) = (record.container_id.clone(), shim.pid);
            let ended = tokio::task::spawn_blocking(move || orphans::end(&id, shim)).await;
            ended.map_err(|error| WorkError { code: Code::Unknown, message: error.to_string() })?;
        }
        work::release(resource, containerd, &**plugins, deadline).await
    }
}
