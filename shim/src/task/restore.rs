//! Task.Create with a checkpoint, and the start of what comes of it.
//!
//! A restored process runs as soon as it is there. So the creation only mounts and records, and the start restores: between
//! the two containerd puts the changed files of a checkpoint into the root file system.

use std::{path::PathBuf, sync::Arc, time::SystemTime};

use mooring::{
    container::{self, Acquisition},
    failpoint,
    id::Id,
    nri::Event,
    runtime::{
        self, OciRuntime, Restore,
        checkpoint::{Note, StreamFiles},
    },
};
use serde_json::Value;
use tokio::time::Instant;

use super::{
    CreateRequest, Ended, Error, State, Status,
    checkpoint::{self, criu_work},
    container::Container,
    create::{Made, UNDO, known, owner},
    parties::Parties,
    process::{Life, Live, Process},
    publish, spec,
    stdio::{self, Listener, Mode},
};

/// A container to be: everything of it is there but its processes.
pub(super) struct Restorable {
    request: CreateRequest,
    images: PathBuf,
    spec: Value,
    runtime: Arc<dyn OciRuntime>,
    pub(super) init: Arc<Process>,
    /// Held while it is restored or deleted; taken by whoever has done so.
    acquisition: tokio::sync::Mutex<Option<Acquisition>>,
}

/// The folder of the checkpoint that is to be restored, if one is: one that can be.
pub(super) fn checkpoint_of(request: &CreateRequest) -> Result<Option<PathBuf>, Error> {
    if request.checkpoint.is_empty() {
        return Ok(None);
    }
    let images = checkpoint::folder("checkpoint", &request.checkpoint, &request.bundle)?;
    if !images.join("inventory.img").is_file() {
        let shown = images.display();
        return Err(Error::Invalid(format!("{shown} is no checkpoint: it has no inventory.img")));
    }
    request.runtime.path_to_criu("restore")?;
    Ok(Some(images))
}

impl Restorable {
    pub(super) fn new(
        parties: &Parties,
        request: CreateRequest,
        images: PathBuf,
        spec: Value,
        acquisition: Acquisition,
    ) -> Self {
        let init = Process::new(request.streams.clone(), Life::Added(Arc::default()), None);
        Self {
            images,
            spec,
            runtime: (parties.runtimes)(request.runtime.clone()),
            init: Arc::new(init),
            acquisition: tokio::sync::Mutex::new(Some(acquisition)),
            request,
        }
    }

    pub(super) fn id(&self) -> &Id {
        &self.request.id
    }

    pub(super) fn state(&self) -> State {
        State {
            bundle: self.request.bundle.clone(),
            pid: 0,
            status: Status::Created,
            streams: self.init.streams.clone(),
            ended: None,
        }
    }

    /// Task.Start: restores the container and hands it to `keep` before anybody else can start or delete it. When this
    /// fails, it is as it was before. `None` when somebody else has restored or deleted it meanwhile.
    pub(super) async fn start(
        &self,
        parties: &Parties,
        keep: impl FnOnce(Arc<Container>),
    ) -> Result<Option<u32>, Error> {
        let mut place = self.acquisition.lock().await;
        let Some(acquisition) = place.as_mut() else { return Ok(None) };
        let _admitted = parties.pod.admit(self.id())?;
        parties.pod.starts(self.id()).await?;
        // Its exit is not published before its start.
        let _gate = self.init.gate.lock().await;
        let (container, live) = match self.restore(parties, acquisition).await {
            Ok(restored) => restored,
            Err(error) => {
                drop(self.init.take_io());
                if let Err(error) = self.undo(parties, acquisition).await {
                    log::error!("undo the restoring of task {}: {error}", self.id());
                }
                return Err(error);
            }
        };
        let pid = live.pid.unsigned_abs();
        self.init.run(live);
        *place = None;
        keep(Arc::clone(&container));
        publish::started(&*parties.events, self.id(), pid);
        parties.pod.became(Event::PostStartContainer, self.id(), pid);
        container.watch(parties);
        if container.owns_cgroup_namespace {
            container.cgroup.delegate();
        }
        Ok(Some(pid))
    }

    async fn restore(
        &self,
        parties: &Parties,
        acquisition: &mut Acquisition,
    ) -> Result<(Arc<Container>, Arc<Live>), Error> {
        // Somebody else's state of that name must not be taken for ours.
        if self.request.runtime.root.join(self.id()).exists() {
            return Err(Error::Exists(format!("container \"{}\" of the OCI runtime", self.id())));
        }
        let (live, made) = self.run(parties).await?;
        failpoint::pass("task-restored");
        let (spec, init) = (&self.spec, Arc::clone(&self.init));
        let runtime = Arc::clone(&self.runtime);
        let container =
            known(parties, &self.request, spec, acquisition, runtime, init, made).await?;
        Ok((container, live))
    }

    async fn run(&self, parties: &Parties) -> Result<(Arc<Live>, Made), Error> {
        let CreateRequest { bundle, streams, runtime: settings, .. } = &self.request;
        let id = self.id();
        let process = self.spec.get("process").cloned().unwrap_or_default();
        let owner = owner(parties, &self.request, &self.spec, &process);
        let images = self.images.clone();
        let note = tokio::task::spawn_blocking(move || Note::read(&images)).await?;
        let note = note.map_err(|error| {
            let images = self.images.display();
            Error::Invalid(format!("{images}/{}: {error}", runtime::checkpoint::NOTE))
        })?;
        let work = criu_work(bundle, &settings.criu_work)?;
        let restore = |stdio, console| Restore {
            images: self.images.clone(),
            work,
            stdio,
            console,
            note,
            config: parties.criu_config(id),
        };
        // Held until the init is adopted: it may end before its number is known.
        let expecting = parties.reaper.expecting();
        if streams.terminal {
            let listener = Listener::new(&parties.consoles(id))?;
            let restore = restore(runtime::Stdio::default(), Some(listener.path()));
            let (pid, master) = listener
                .during(async { Ok(self.runtime.restore(id, bundle, restore).await?) })
                .await?;
            let (live, exited) = Live::adopt(pid, &expecting);
            let io = stdio::open_terminal(streams, master, &owner, &parties.reaper).await?;
            return Ok((live, Made { exited, io, streams: StreamFiles::default() }));
        }
        let mode = if spec::needs_relay(&process) { Mode::Relay } else { Mode::Direct };
        let (stdio, io) = stdio::open(streams, mode, &owner, &parties.reaper).await?;
        let files = StreamFiles::of(&stdio).map_err(Error::at("look at", "the streams"))?;
        let pid = self.runtime.restore(id, bundle, restore(stdio, None)).await?;
        let (live, exited) = Live::adopt(pid, &expecting);
        Ok((live, Made { exited, io, streams: files }))
    }

    /// Releases what a restore has left that failed, but not what the creation has made.
    async fn undo(&self, parties: &Parties, acquisition: &mut Acquisition) -> Result<(), Error> {
        let (group, deadline) = (spec::cgroups_path(&self.spec), Instant::now() + UNDO);
        Ok(acquisition.undo_runtime(group, &parties.reaper, deadline).await?)
    }

    /// Task.Delete of a container that was never restored. `None` when somebody else has restored or deleted it.
    pub(super) async fn delete(&self, parties: &Parties) -> Result<Option<Ended>, Error> {
        let mut place = self.acquisition.lock().await;
        let Some(acquisition) = place.as_ref() else { return Ok(None) };
        let (dir, deadline) = (parties.pod.tasks_dir(), Instant::now() + UNDO);
        container::end(acquisition.record(), &dir, &parties.reaper, deadline).await?;
        *place = None;
        parties.pod.became(Event::RemoveContainer, self.id(), 0);
        let ended = Ended { pid: 0, status: 0, at: SystemTime::now() };
        self.init.stop(ended);
        Ok(Some(ended))
    }
}
