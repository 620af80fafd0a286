//! Task.Create, but for what a restore does in its stead (`restore.rs`).

use std::{
    sync::{Arc, Mutex, atomic::AtomicBool},
    time::Duration,
};

use mooring::{
    cgroup,
    container::{Acquisition, Record},
    failpoint,
    nri::Event,
    process::Exited,
    runtime::{Create, OciRuntime, checkpoint::StreamFiles},
};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{
    CreateRequest, Error,
    container::{Container, Frozen},
    parties::Parties,
    process::{Life, Live, Process},
    publish,
    restore::{self, Restorable},
    spec,
    stdio::{self, Io, Listener, Mode, Owner},
};

/// How long the undoing of a failed creation may take.
pub(super) const UNDO: Duration = Duration::from_secs(10);

/// What comes of a creation.
pub(super) enum Created {
    Container(Arc<Container>),
    /// A container to be, whose start restores it.
    Restorable(Arc<Restorable>),
}

/// Creates the container. When this fails, nothing of it is left.
pub(super) async fn create(parties: &Parties, request: CreateRequest) -> Result<Created, Error> {
    if !request.bundle.is_absolute() {
        return Err(Error::Invalid(format!(
            "bundle \"{}\" is no absolute path",
            request.bundle.display()
        )));
    }
    let checkpoint = restore::checkpoint_of(&request)?;
    let _admitted = parties.pod.admit(&request.id)?;
    // The built-in runtime moves none; systemd does it for either.
    if !request.runtime.is_builtin() || request.runtime.systemd_cgroup {
        expect_move();
    }
    let mut spec = spec::read(&request.bundle)?;
    // Somebody else's state of that name must not be taken for ours when something fails.
    if request.runtime.root.join(&request.id).exists() {
        return Err(Error::Exists(format!("container \"{}\" of the OCI runtime", request.id)));
    }
    let mut record =
        Record::new(request.id.clone(), request.bundle.clone(), request.runtime.clone())?;
    record.rootfs_mounted = !request.rootfs.is_empty();
    record.consoles = Some(parties.consoles(&request.id));
    record.criu_config = Some(parties.criu_config(&request.id));
    let group = spec::cgroups_path(&spec);
    let mut acquisition = Acquisition::begin(record, group, parties.pod.tasks_dir())?;
    failpoint::pass("task-create-recorded");
    let built = match prepare(parties, &request, &mut spec, &mut acquisition).await {
        Ok(()) if checkpoint.is_some() => Ok(None),
        Ok(()) => build(parties, &request, &spec, &mut acquisition).await.map(Some),
        Err(error) => Err(error),
    };
    match (built, checkpoint) {
        (Ok(Some(container)), _) => Ok(Created::Container(container)),
        (Ok(None), images) => {
            publish::created(&*parties.events, &request, 0);
            parties.pod.became(Event::PostCreateContainer, &request.id, 0);
            let images = images.unwrap_or_default();
            let restorable = Restorable::new(parties, request, images, spec, acquisition);
            Ok(Created::Restorable(Arc::new(restorable)))
        }
        (Err(error), _) => {
            parties.pod.became(Event::RemoveContainer, &request.id, 0);
            let undone = acquisition.undo(&parties.reaper, Instant::now() + UNDO).await;
            if let Err(error) = undone {
                log::error!("undo the creation of task {}: {error}", request.id);
            }
            Err(error)
        }
    }
}

/// Begins what the OCI runtime will have to wait for when it moves a process into the container's control group.
pub(super) fn expect_move() {
    tokio::task::spawn_blocking(|| {
        if let Err(error) = cgroup::expect_move() {
            log::debug!("begin a move between control groups: {error}");
        }
    });
}

/// Everything before the OCI runtime is called.
async fn prepare(
    parties: &Parties,
    request: &CreateRequest,
    spec: &mut Value,
    acquisition: &mut Acquisition,
) -> Result<(), Error> {
    if parties.pod.prepare(&request.id, &request.bundle, spec).await? {
        spec::write(&request.bundle, spec)?;
        acquisition.plan_again(spec::cgroups_path(spec))?;
    }
    acquisition.mount(request.rootfs.clone(), spec::user_namespace_owner(spec)).await?;
    failpoint::pass("task-create-mounted");
    Ok(())
}

async fn build(
    parties: &Parties,
    request: &CreateRequest,
    spec: &Value,
    acquisition: &mut Acquisition,
) -> Result<Arc<Container>, Error> {
    let runtime = (parties.runtimes)(request.runtime.clone());
    let process = Process::new(request.streams.clone(), Life::Added(Arc::default()), None);
    let (live, made) = run(parties, request, spec, &*runtime).await?;
    failpoint::pass("task-create-created");
    let pid = live.pid.unsigned_abs();
    process.set_life(Life::Created(live));
    let container =
        known(parties, request, spec, acquisition, runtime, Arc::new(process), made).await?;
    publish::created(&*parties.events, request, pid);
    parties.pod.became(Event::PostCreateContainer, &request.id, pid);
    container.watch(parties);
    Ok(container)
}

/// What the runtime has made of a container, beside its init.
pub(super) struct Made {
    pub(super) exited: Exited,
    pub(super) io: Io,
    pub(super) streams: StreamFiles,
}

/// Records and checks what the runtime has made: the container, which is watched and told of by the caller.
pub(super) async fn known(
    parties: &Parties,
    request: &CreateRequest,
    spec: &Value,
    acquisition: &mut Acquisition,
    runtime: Arc<dyn OciRuntime>,
    init: Arc<Process>,
    made: Made,
) -> Result<Arc<Container>, Error> {
    let Made { exited, io, streams } = made;
    acquisition.created(exited.pid(), &exited)?;
    let record = acquisition.record().clone();
    parties.pod.verify(&request.id, exited.pid(), spec).await?;
    init.set_io(io);
    let mappings = json!({"linux": {
        "uidMappings": spec.pointer("/linux/uidMappings"),
        "gidMappings": spec.pointer("/linux/gidMappings"),
    }});
    Ok(Arc::new(Container {
        id: request.id.clone(),
        bundle: request.bundle.clone(),
        cgroup: record.cgroup.clone(),
        record,
        runtime,
        order: tokio::sync::Mutex::default(),
        init,
        exited,
        streams,
        execs: Mutex::default(),
        frozen: Mutex::new(Frozen::No),
        owns_pid_namespace: spec::owns_pid_namespace(spec),
        owns_cgroup_namespace: spec::owns_cgroup_namespace(spec),
        mappings,
        killed: Mutex::default(),
        ending: AtomicBool::new(false),
        deleted: AtomicBool::new(false),
    }))
}

/// Has the runtime create the container, connected to its streams.
async fn run(
    parties: &Parties,
    request: &CreateRequest,
    spec: &Value,
    runtime: &dyn OciRuntime,
) -> Result<(Arc<Live>, Made), Error> {
    let process = spec.get("process").cloned().unwrap_or_default();
    let owner = owner(parties, request, spec, &process);
    // Held until the init is adopted: it may end before its number is known.
    let expecting = parties.reaper.expecting();
    if request.streams.terminal {
        let listener = Listener::new(&parties.consoles(&request.id))?;
        let console = Some(listener.path());
        let create = Create { stdio: mooring::runtime::Stdio::default(), console };
        let (pid, master) = listener
            .during(async { Ok(runtime.create(&request.id, &request.bundle, create).await?) })
            .await?;
        let (live, exited) = Live::adopt(pid, &expecting);
        let io = stdio::open_terminal(&request.streams, master, &owner, &parties.reaper).await?;
        return Ok((live, Made { exited, io, streams: StreamFiles::default() }));
    }
    let mode = if spec::needs_relay(&process) { Mode::Relay } else { Mode::Direct };
    let (stdio, io) = stdio::open(&request.streams, mode, &owner, &parties.reaper).await?;
    let streams = StreamFiles::of(&stdio).map_err(Error::at("look at", "the streams"))?;
    let pid = runtime.create(&request.id, &request.bundle, Create { stdio, console: None }).await?;
    let (live, exited) = Live::adopt(pid, &expecting);
    Ok((live, Made { exited, io, streams }))
}

/// Whom the streams of a container's init are for.
pub(super) fn owner<'a>(
    parties: &'a Parties,
    request: &'a CreateRequest,
    spec: &Value,
    process: &Value,
) -> Owner<'a> {
    let settings = &request.runtime;
    let given = (settings.io_uid != 0 || settings.io_gid != 0)
        .then_some((settings.io_uid, settings.io_gid));
    Owner {
        namespace: &parties.namespace,
        container: request.id.as_str(),
        ids: spec::mapped_owner(spec, process).or(given),
    }
}
