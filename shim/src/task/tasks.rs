//! The registry: one method per RPC.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use containerd_shim_protos::protobuf::well_known_types::any::Any;
use mooring::{
    container, id::Id, process::Reaper, runtime::Runtimes, sys::survivor::Survivors,
    telemetry::trace::carried,
};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, timeout_at},
};

use super::{
    CheckpointRequest, CreateRequest, Ended, Error, ExecRequest, Member, Pod, State,
    container::{Container, lock},
    create::{self, Created},
    metrics,
    parties::Parties,
    process::{Life, Process, signal},
    publish,
    restore::Restorable,
};
use crate::events::Events;

/// The containers of one sandbox, or of one plain task. A handle: clones are the same registry.
#[derive(Clone)]
pub struct Tasks(Arc<Inner>);

enum Slot {
    /// Its creation is under way: the name is taken. The channel closes when that is over.
    Coming(watch::Receiver<()>),
    Here(Arc<Container>),
    /// Created from a checkpoint: it has no process until it is started.
    Restorable(Arc<Restorable>),
}

struct Inner {
    parties: Parties,
    slots: Mutex<BTreeMap<Id, Slot>>,
}

/// Gives the name back unless the container came to be.
struct Reserved<'a> {
    inner: &'a Inner,
    id: Id,
    _over: watch::Sender<()>,
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        let mut slots = lock(&self.inner.slots);
        if matches!(slots.get(&self.id), Some(Slot::Coming(_))) {
            slots.remove(&self.id);
        }
    }
}

/// Does `work` to its end, even when the call that it is for is given up.
fn spawn<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
    tokio::spawn(carried(work))
}

impl Tasks {
    /// An empty registry. `run_dir` is for the sockets over which terminals arrive; a short path.
    pub fn new(
        namespace: String,
        events: Arc<dyn Events>,
        pod: Arc<dyn Pod>,
        runtimes: Arc<Runtimes>,
        reaper: Reaper,
        run_dir: PathBuf,
    ) -> Self {
        let oom_kills = Arc::default();
        let parties = Parties { namespace, events, pod, runtimes, reaper, oom_kills, run_dir };
        Self(Arc::new(Inner { parties, slots: Mutex::default() }))
    }

    fn container(&self, id: &str) -> Result<Arc<Container>, Error> {
        let slots = lock(&self.0.slots);
        match slots.iter().find(|(known, _)| known.as_str() == id) {
            Some((_, Slot::Here(container))) => Ok(Arc::clone(container)),
            Some((id, Slot::Restorable(_))) => Err(Error::Unrestored(id.clone())),
            Some((_, Slot::Coming(_))) | None => Err(Error::NoTask(id.to_owned())),
        }
    }

    fn restorable(&self, id: &str, exec_id: &str) -> Option<Arc<Restorable>> {
        let slots = lock(&self.0.slots);
        match slots.iter().find(|(known, _)| known.as_str() == id) {
            Some((_, Slot::Restorable(restorable))) if exec_id.is_empty() => {
                Some(Arc::clone(restorable))
            }
            _ => None,
        }
    }

    fn process(&self, id: &str, exec_id: &str) -> Result<Arc<Process>, Error> {
        match self.restorable(id, exec_id) {
            Some(restorable) => Ok(Arc::clone(&restorable.init)),
            None => self.container(id)?.process(exec_id),
        }
    }

    /// Creates a container; answers its init's process id, which is 0 where the start is to restore it.
    pub async fn create(&self, request: CreateRequest) -> Result<u32, Error> {
        let inner = Arc::clone(&self.0);
        let work = async move {
            let id = request.id.clone();
            let (over, coming) = watch::channel(());
            {
                let mut slots = lock(&inner.slots);
                if slots.contains_key(&id) {
                    return Err(Error::Exists(format!("task \"{id}\"")));
                }
                slots.insert(id.clone(), Slot::Coming(coming));
            }
            let reserved = Reserved { inner: &inner, id: id.clone(), _over: over };
            let (pid, slot) = match create::create(&inner.parties, request).await? {
                Created::Container(container) => {
                    (container.exited.pid().unsigned_abs(), Slot::Here(container))
                }
                Created::Restorable(restorable) => (0, Slot::Restorable(restorable)),
            };
            lock(&inner.slots).insert(id, slot);
            drop(reserved);
            Ok(pid)
        };
        spawn(work).await?
    }

    /// Waits while the container's creation is under way.
    pub async fn settled(&self, id: &str) {
        let coming = {
            let slots = lock(&self.0.slots);
            match slots.iter().find(|(known, _)| known.as_str() == id) {
                Some((_, Slot::Coming(coming))) => Some(coming.clone()),
                _ => None,
            }
        };
        if let Some(mut coming) = coming {
            // Nothing is ever sent: it closes.
            let _ = coming.changed().await;
        }
    }

    /// Starts a container, or an exec of it; answers the process id.
    pub async fn start(&self, id: &str, exec_id: &str) -> Result<u32, Error> {
        if let Some(restorable) = self.restorable(id, exec_id) {
            let inner = Arc::clone(&self.0);
            let work = async move {
                let keep = |container: Arc<Container>| {
                    lock(&inner.slots).insert(container.id.clone(), Slot::Here(container));
                };
                restorable.start(&inner.parties, keep).await
            };
            if let Some(pid) = spawn(work).await?? {
                return Ok(pid);
            }
        }
        let (inner, container, exec_id) =
            (Arc::clone(&self.0), self.container(id)?, exec_id.to_owned());
        spawn(async move {
            if exec_id.is_empty() {
                container.start(&inner.parties).await
            } else {
                container.start_exec(&inner.parties, &exec_id).await
            }
        })
        .await?
    }

    /// What is known of a process.
    pub fn state(&self, id: &str, exec_id: &str) -> Result<State, Error> {
        if let Some(restorable) = self.restorable(id, exec_id) {
            return Ok(restorable.state());
        }
        let container = self.container(id)?;
        let process = container.process(exec_id)?;
        let (pid, ended) = match process.life() {
            Life::Added(_) => (0, None),
            Life::Created(live) | Life::Running(live) => (live.pid.unsigned_abs(), None),
            Life::Stopped(ended) => (ended.pid, Some(ended)),
        };
        Ok(State {
            bundle: container.bundle.clone(),
            pid,
            status: container.status(&process),
            streams: process.streams.clone(),
            ended,
        })
    }

    /// Deletes a container that has ended or was never restored, or an exec of it.
    pub async fn delete(&self, id: &str, exec_id: &str) -> Result<Ended, Error> {
        if let Some(restorable) = self.restorable(id, exec_id) {
            let inner = Arc::clone(&self.0);
            let work = async move {
                let ended = restorable.delete(&inner.parties).await?;
                if let Some(ended) = &ended {
                    lock(&inner.slots).remove(restorable.id());
                    publish::deleted(&*inner.parties.events, restorable.id(), ended);
                }
                Ok::<_, Error>(ended)
            };
            if let Some(ended) = spawn(work).await?? {
                return Ok(ended);
            }
        }
        let (inner, container, exec_id) =
            (Arc::clone(&self.0), self.container(id)?, exec_id.to_owned());
        spawn(async move {
            if !exec_id.is_empty() {
                return container.delete_exec(&exec_id).await;
            }
            let ended = container.delete(&inner.parties).await?;
            lock(&inner.slots).remove(&container.id);
            publish::deleted(&*inner.parties.events, &container.id, &ended);
            Ok(ended)
        })
        .await?
    }

    /// The container's processes. [`Error::Ended`] when there are none any more: an empty list is what containerd,
    /// when it is back after a restart, takes for a shim without a task, and it would delete the task and its exit.
    pub fn pids(&self, id: &str) -> Result<Vec<Member>, Error> {
        let container = self.container(id)?;
        let execs: BTreeMap<i32, Id> = lock(&container.execs)
            .iter()
            .filter_map(|(id, process)| Some((process.live()?.pid, id.clone())))
            .collect();
        let mut pids = container.cgroup.pids()?;
        if pids.is_empty() {
            let pid = container.exited.pid();
            if container.exited.now().is_some() {
                let (task, init) = (container.id.clone(), pid.unsigned_abs());
                return Err(Error::Ended { task, init });
            }
            pids.push(pid);
        }
        let member =
            |pid: i32| Member { pid: pid.unsigned_abs(), exec_id: execs.get(&pid).cloned() };
        Ok(pids.into_iter().map(member).collect())
    }

    pub async fn pause(&self, id: &str) -> Result<(), Error> {
        let (inner, container) = (Arc::clone(&self.0), self.container(id)?);
        spawn(async move { container.pause(&inner.parties).await }).await?
    }

    /// Lets a frozen container go on.
    pub async fn resume(&self, id: &str) -> Result<(), Error> {
        let (inner, container) = (Arc::clone(&self.0), self.container(id)?);
        spawn(async move { container.resume(&inner.parties).await }).await?
    }

    /// Writes the container's processes into a folder.
    pub async fn checkpoint(&self, id: &str, request: CheckpointRequest) -> Result<(), Error> {
        let (inner, container) = (Arc::clone(&self.0), self.container(id)?);
        spawn(async move { container.checkpoint(&inner.parties, request).await }).await?
    }

    /// Signals a process, or with `all` every process of the container.
    pub async fn kill(&self, id: &str, exec_id: &str, number: u32, all: bool) -> Result<(), Error> {
        let container = self.container(id).map_err(|error| match error {
            Error::Unrestored(task) => Error::NoProcess { task, exec: exec_id.to_owned() },
            error => error,
        });
        container?.kill(exec_id, signal(number)?, all).await
    }

    /// Adds a process to a container, to be started by [`Tasks::start`].
    pub fn exec(&self, request: ExecRequest) -> Result<(), Error> {
        self.container(request.id.as_str())?.add_exec(&self.0.parties, request)
    }

    /// Sets the size of a process's terminal.
    pub fn resize_pty(
        &self,
        id: &str,
        exec_id: &str,
        width: u32,
        height: u32,
    ) -> Result<(), Error> {
        let container = self.container(id)?;
        let process = container.process(exec_id)?;
        let side = |length: u32| u16::try_from(length).unwrap_or(u16::MAX);
        match process.resize(side(width), side(height)) {
            Some(done) => done.map_err(Error::at("resize", "terminal")),
            // Resizing what has no terminal (yet, or any more) is what clients do in passing.
            None => Ok(()),
        }
    }

    /// Closes a process's standard input.
    pub fn close_io(&self, id: &str, exec_id: &str) -> Result<(), Error> {
        let container = self.container(id)?;
        container.process(exec_id)?.close_stdin();
        Ok(())
    }

    /// Sets the container's resources (JSON, as in an OCI specification).
    pub async fn update(&self, id: &str, resources: Vec<u8>) -> Result<(), Error> {
        let container = self.container(id)?;
        spawn(async move { container.update(&resources).await }).await?
    }

    /// Waits for the end of a process.
    pub async fn wait(&self, id: &str, exec_id: &str) -> Result<Ended, Error> {
        let process = self.process(id, exec_id)?;
        Ok(process.wait().await)
    }

    /// The container's resource usage, as `io.containerd.cgroups.v1.Metrics` or `…v2.Metrics`.
    pub fn stats(&self, id: &str) -> Result<Any, Error> {
        metrics::read(&[&self.container(id)?.cgroup])
    }

    /// The containers whose creation is over.
    fn here(&self) -> Vec<Arc<Container>> {
        let slots = lock(&self.0.slots);
        let here = slots.values().filter_map(|slot| match slot {
            Slot::Here(container) => Some(Arc::clone(container)),
            Slot::Coming(_) | Slot::Restorable(_) => None,
        });
        here.collect()
    }

    /// What all containers use together, in the same message.
    pub fn stats_of_all(&self) -> Result<Any, Error> {
        let here = self.here();
        metrics::read(&here.iter().map(|container| &container.cgroup).collect::<Vec<_>>())
    }

    /// The process id of a container's init, for Connect; 0 while it has none.
    pub fn pid(&self, id: &str) -> Result<u32, Error> {
        if self.restorable(id, "").is_some() {
            return Ok(0);
        }
        Ok(self.container(id)?.exited.pid().unsigned_abs())
    }

    /// Whether there is no container, nor one coming: a plain task's shim may exit.
    pub fn is_empty(&self) -> bool {
        lock(&self.0.slots).is_empty()
    }

    /// The containers that have processes, or had.
    pub fn ids(&self) -> Vec<Id> {
        let slots = lock(&self.0.slots);
        slots
            .iter()
            .filter(|(_, slot)| matches!(slot, Slot::Here(_)))
            .map(|(id, _)| id.clone())
            .collect()
    }

    fn restorables(&self) -> Vec<Id> {
        let slots = lock(&self.0.slots);
        let here = slots.iter().filter(|(_, slot)| matches!(slot, Slot::Restorable(_)));
        here.map(|(id, _)| id.clone()).collect()
    }

    /// Sends SIGKILL to everything in a container. One that is not there is dead enough.
    pub fn kill_in_place(&self, id: &Id) -> Result<(), Error> {
        match self.container(id.as_str()) {
            Ok(container) => container.kill_everything(),
            Err(_) => Ok(()),
        }
    }

    /// Waits until a container's init has ended and that has been published. `None` when there is no such container.
    pub async fn exited(&self, id: &Id) -> Option<Ended> {
        let container = self.container(id.as_str()).ok()?;
        Some(container.init.wait().await)
    }

    /// The containers that have not ended, and what of each has not.
    pub async fn outliving(&self) -> Vec<(Id, Survivors)> {
        let here = self.here();
        let mut outliving = Vec::new();
        for container in here.iter().filter(|one| one.init.live().is_some()) {
            let survivors = container.survivors().await;
            // It may have ended while it was looked at.
            if container.init.live().is_some() {
                outliving.push((container.id.clone(), survivors));
            }
        }
        for record in self.remains().await.unwrap_or_default() {
            let id = record.id.clone();
            let survivors = Survivors::seen(move || container::survivors(&record)).await;
            if !survivors.is_empty() {
                outliving.push((id, survivors));
            }
        }
        outliving
    }

    /// The containers that have a record and no task: a creation failed, and could not be taken back then. A record that
    /// cannot be read is `delete`'s to report.
    async fn remains(&self) -> Result<Vec<container::Record>, Error> {
        let dir = self.0.parties.pod.tasks_dir();
        let records = tokio::task::spawn_blocking(move || container::load_all(&dir)).await??;
        let slots = lock(&self.0.slots);
        let records = records.into_iter().flatten();
        Ok(records.filter(|record| !slots.contains_key(&record.id)).collect())
    }

    /// Releases what creations have left that failed.
    pub async fn end_remains(&self, deadline: Instant) -> Result<(), Error> {
        let dir = self.0.parties.pod.tasks_dir();
        let mut first = Ok(());
        for record in self.remains().await? {
            let ended = container::end(&record, &dir, &self.0.parties.reaper, deadline).await;
            first = first.and(ended.map(drop).map_err(Error::from));
        }
        first
    }

    /// Kills and deletes what is left, publishing exits: the end of the sandbox.
    pub async fn clear(&self, deadline: Instant) -> Result<(), Error> {
        let late = |id: &Id| Error::Late(format!("the deletion of task \"{id}\""));
        let mut first = Ok(());
        let ids = self.ids();
        for id in &ids {
            if let Err(error) = self.kill_in_place(id) {
                first = first.and(Err(error));
            }
        }
        for id in &ids {
            let deleted = async {
                self.exited(id).await;
                self.delete(id.as_str(), "").await
            };
            let outcome = match timeout_at(deadline, deleted).await {
                Ok(Ok(_) | Err(Error::NoTask(_))) => Ok(()),
                Ok(Err(error)) => Err(error),
                Err(_) => {
                    let survivors = match self.container(id.as_str()) {
                        Ok(container) => container.survivors().await,
                        Err(_) => Survivors::default(),
                    };
                    // Of a container that has ended it is something else that lasts.
                    Err(if survivors.is_empty() {
                        late(id)
                    } else {
                        container::Error::Alive { id: id.to_string(), survivors }.into()
                    })
                }
            };
            first = first.and(outcome);
        }
        for id in self.restorables() {
            let deleted = match timeout_at(deadline, self.delete(id.as_str(), "")).await {
                Ok(Ok(_) | Err(Error::NoTask(_))) => Ok(()),
                Ok(Err(error)) => Err(error),
                Err(_) => Err(late(&id)),
            };
            first = first.and(deleted);
        }
        first.and(self.end_remains(deadline).await)
    }
}
