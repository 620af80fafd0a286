//! Task.Create.

use std::{
    sync::{Arc, Mutex, atomic::AtomicBool},
    time::Duration,
};

use mooring::{
    container::{Acquisition, Record},
    failpoint,
    process::Exited,
    runtime::{Create, OciRuntime},
};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{
    CreateRequest, Error,
    container::{Container, Frozen},
    parties::Parties,
    process::{Life, Live, Process},
    publish, spec,
    stdio::{self, Io, Listener, Mode, Owner},
};

/// How long the undoing of a failed creation may take.
const UNDO: Duration = Duration::from_secs(10);

/// Creates the container. When this fails, nothing of it is left.
pub(super) async fn create(
    parties: &Parties,
    request: CreateRequest,
) -> Result<Arc<Container>, Error> {
    if !request.checkpoint.is_empty() {
        return Err(Error::Unimplemented("restoring from a checkpoint"));
    }
    if !request.bundle.is_absolute() {
        return Err(Error::Invalid(format!(
            "bundle \"{}\" is no absolute path",
            request.bundle.display()
        )));
    }
    let _admitted = parties.pod.admit(&request.id)?;
    let mut spec = spec::read(&request.bundle)?;
    // Somebody else's state of that name must not be taken for ours when something fails.
    if request.runtime.root.join(&request.id).exists() {
        return Err(Error::Exists(format!("container \"{}\" of the OCI runtime", request.id)));
    }
    let mut record =
        Record::new(request.id.clone(), request.bundle.clone(), request.runtime.clone())?;
    record.rootfs_mounted = !request.rootfs.is_empty();
    record.consoles = Some(parties.consoles(&request.id));
    let group = spec::cgroups_path(&spec);
    let mut acquisition = Acquisition::begin(record, group, parties.pod.tasks_dir())?;
    failpoint::pass("task-create-recorded");
    match build(parties, &request, &mut spec, &mut acquisition).await {
        Ok(container) => Ok(container),
        Err(error) => {
            let undone = acquisition.undo(&parties.reaper, Instant::now() + UNDO).await;
            if let Err(error) = undone {
                log::error!("undo the creation of task {}: {error}", request.id);
            }
            Err(error)
        }
    }
}

async fn build(
    parties: &Parties,
    request: &CreateRequest,
    spec: &mut Value,
    acquisition: &mut Acquisition,
) -> Result<Arc<Container>, Error> {
    if parties.pod.prepare(&request.id, &request.bundle, spec).await? {
        spec::write(&request.bundle, spec)?;
        acquisition.plan_again(spec::cgroups_path(spec))?;
    }
    acquisition.mount(request.rootfs.clone(), spec::user_namespace_owner(spec)).await?;
    failpoint::pass("task-create-mounted");
    let runtime = (parties.runtimes)(request.runtime.clone());
    let (init, exited, io) = run(parties, request, spec, &*runtime).await?;
    failpoint::pass("task-create-created");
    acquisition.created(init.pid, &exited)?;
    let record = acquisition.record().clone();
    parties.pod.verify(&request.id, init.pid, spec).await?;
    let pid = init.pid.unsigned_abs();
    let mappings = json!({"linux": {
        "uidMappings": spec.pointer("/linux/uidMappings"),
        "gidMappings": spec.pointer("/linux/gidMappings"),
    }});
    let container = Arc::new(Container {
        id: request.id.clone(),
        bundle: request.bundle.clone(),
        cgroup: record.cgroup.clone(),
        record,
        runtime,
        order: tokio::sync::Mutex::default(),
        init: Arc::new(Process::new(request.streams.clone(), Life::Created(init), Some(io))),
        exited,
        execs: Mutex::default(),
        frozen: Mutex::new(Frozen::No),
        owns_pid_namespace: spec::owns_pid_namespace(spec),
        owns_cgroup_namespace: spec::owns_cgroup_namespace(spec),
        mappings,
        killed: Mutex::default(),
        ending: AtomicBool::new(false),
        deleted: AtomicBool::new(false),
    });
    publish::created(&*parties.events, request, pid);
    container.watch(&parties.events, &parties.oom_kills);
    Ok(container)
}

/// Has the runtime create the container, connected to its streams.
async fn run(
    parties: &Parties,
    request: &CreateRequest,
    spec: &Value,
    runtime: &dyn OciRuntime,
) -> Result<(Arc<Live>, Exited, Io), Error> {
    let process = spec.get("process").cloned().unwrap_or_default();
    let settings = &request.runtime;
    let given = (settings.io_uid != 0 || settings.io_gid != 0)
        .then_some((settings.io_uid, settings.io_gid));
    let owner = Owner {
        namespace: &parties.namespace,
        container: request.id.as_str(),
        ids: spec::mapped_owner(spec, &process).or(given),
    };
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
        return Ok((live, exited, io));
    }
    let mode = if spec::needs_relay(&process) { Mode::Relay } else { Mode::Direct };
    let (stdio, io) = stdio::open(&request.streams, mode, &owner, &parties.reaper).await?;
    let pid = runtime.create(&request.id, &request.bundle, Create { stdio, console: None }).await?;
    let (live, exited) = Live::adopt(pid, &expecting);
    Ok((live, exited, io))
}
