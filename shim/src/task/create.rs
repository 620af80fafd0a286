//! Task.Create.

use std::{
    sync::{Arc, Mutex, atomic::AtomicBool},
    time::Duration,
};

use mooring::{
    cgroup::{Cgroup, Hierarchies, from_systemd},
    container::{self, Init, Record},
    failpoint,
    mounts::{self, UserNamespace},
    process::Exited,
    runtime::{Create, OciRuntime, Runc, quick},
};
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};

use super::{
    CreateRequest, Error,
    container::{Container, Frozen},
    process::{Life, Live, Process},
    publish, spec,
    stdio::{self, Io, Listener, Mode, Owner},
    tasks::Inner,
};

/// How long the undoing of a failed creation may take.
const UNDO: Duration = Duration::from_secs(10);
/// How long the runtime's terminal may take to arrive once the runtime has succeeded.
const TERMINAL: Duration = Duration::from_secs(10);

/// Creates the container. When this fails, nothing of it is left.
pub(super) async fn create(tasks: &Inner, request: CreateRequest) -> Result<Arc<Container>, Error> {
    if !request.checkpoint.is_empty() {
        return Err(Error::Unimplemented("restoring from a checkpoint"));
    }
    if !request.bundle.is_absolute() {
        return Err(Error::Invalid(format!(
            "bundle \"{}\" is no absolute path",
            request.bundle.display()
        )));
    }
    let _admitted = tasks.pod.admit(&request.id)?;
    let mut spec = spec::read(&request.bundle)?;
    // Somebody else's state of that name must not be taken for ours when something fails.
    if request.runtime.root.join(&request.id).exists() {
        return Err(Error::Exists(format!("container \"{}\" of the OCI runtime", request.id)));
    }
    let mut record =
        Record::new(request.id.clone(), request.bundle.clone(), request.runtime.clone());
    record.cgroup = planned_group(&spec, request.runtime.systemd_cgroup);
    record.rootfs_mounted = !request.rootfs.is_empty();
    let dir = tasks.pod.tasks_dir();
    record.save(&dir)?;
    failpoint::pass("task-create-recorded");
    match build(tasks, &request, &mut spec, &mut record).await {
        Ok(container) => Ok(container),
        Err(error) => {
            undo(tasks, &record).await;
            Err(error)
        }
    }
}

async fn undo(tasks: &Inner, record: &Record) {
    let released = container::release(record, &tasks.reaper, Instant::now() + UNDO).await;
    let forgotten = match released {
        Ok(_) => Record::remove(&tasks.pod.tasks_dir(), &record.id),
        // The record stays, so that the sandbox's teardown tries again.
        Err(error) => Err(error),
    };
    if let Err(error) = forgotten {
        log::error!("undo the creation of task {}: {error}", record.id);
    }
}

async fn build(
    tasks: &Inner,
    request: &CreateRequest,
    spec: &mut Value,
    record: &mut Record,
) -> Result<Arc<Container>, Error> {
    if tasks.pod.prepare(&request.id, &request.bundle, spec).await? {
        spec::write(&request.bundle, spec)?;
        record.cgroup = planned_group(spec, request.runtime.systemd_cgroup);
        record.save(&tasks.pod.tasks_dir())?;
    }
    mount(request, spec).await?;
    failpoint::pass("task-create-mounted");
    let runtime: Arc<dyn OciRuntime> =
        Arc::new(Runc::new(request.runtime.clone(), tasks.reaper.clone()));
    let (init, exited, io) = run(tasks, request, spec, &*runtime).await?;
    failpoint::pass("task-create-created");
    // Asked in this order: while it is not reaped, the number is its own.
    record.init = Init::of(init.pid).filter(|_| exited.now().is_none());
    // Where runc says what it made, that holds even if the init has ended already.
    record.cgroup = match quick::State::read(&request.runtime, &request.id) {
        Some(state) => state.cgroup(),
        None => Cgroup::of_process(init.pid)?,
    };
    record.save(&tasks.pod.tasks_dir())?;
    let pid = init.pid.unsigned_abs();
    let mappings = json!({"linux": {
        "uidMappings": spec.pointer("/linux/uidMappings"),
        "gidMappings": spec.pointer("/linux/gidMappings"),
    }});
    let container = Arc::new(Container {
        id: request.id.clone(),
        bundle: request.bundle.clone(),
        record: record.clone(),
        runtime,
        order: tokio::sync::Mutex::default(),
        init: Arc::new(Process::new(request.streams.clone(), Life::Created(init), Some(io))),
        exited,
        execs: Mutex::default(),
        cgroup: record.cgroup.clone(),
        frozen: Mutex::new(Frozen::No),
        owns_pid_namespace: spec::owns_pid_namespace(spec),
        owns_cgroup_namespace: spec::owns_cgroup_namespace(spec),
        mappings,
        ending: AtomicBool::new(false),
        watchers: Mutex::default(),
    });
    publish::created(&*tasks.events, request, pid);
    container.watch(&tasks.events);
    Ok(container)
}

async fn mount(request: &CreateRequest, spec: &Value) -> Result<(), Error> {
    if request.rootfs.is_empty() {
        return Ok(());
    }
    let rootfs = request.bundle.join("rootfs");
    std::fs::create_dir_all(&rootfs).map_err(Error::at("make", &rootfs))?;
    let layers = request.rootfs.clone();
    let owner = spec::user_namespace_owner(spec);
    let mounted = tokio::task::spawn_blocking(move || {
        let mapped =
            layers.iter().flat_map(|layer| &layer.options).any(|o| o.starts_with("uidmap="));
        match owner.filter(|_| mapped) {
            Some(pid) => UserNamespace::of_process(pid)
                .and_then(|namespace| mounts::mount_all_mapped(&layers, &rootfs, &namespace)),
            None => mounts::mount_all(&layers, &rootfs),
        }
    });
    mounted.await?.map_err(|source| Error::Mounts { task: request.id.clone(), source })
}

/// Has the runtime create the container, connected to its streams.
async fn run(
    tasks: &Inner,
    request: &CreateRequest,
    spec: &Value,
    runtime: &dyn OciRuntime,
) -> Result<(Arc<Live>, Exited, Io), Error> {
    let process = spec.get("process").cloned().unwrap_or_default();
    let settings = &request.runtime;
    let given = (settings.io_uid != 0 || settings.io_gid != 0)
        .then_some((settings.io_uid, settings.io_gid));
    let owner = Owner {
        namespace: &tasks.namespace,
        container: request.id.as_str(),
        ids: spec::mapped_owner(spec, &process).or(given),
    };
    // Held until the init is adopted: it may end before its number is known.
    let expecting = tasks.reaper.expecting();
    if request.streams.terminal {
        let listener = Listener::new(&tasks.run_dir)?;
        let console = Some(listener.path());
        let create = Create { stdio: mooring::runtime::Stdio::default(), console };
        let (pid, master) = with_terminal(&listener, async {
            Ok(runtime.create(&request.id, &request.bundle, create).await?)
        })
        .await?;
        let (live, exited) = Live::adopt(pid, &expecting);
        let io = stdio::open_terminal(&request.streams, master, &owner, &tasks.reaper).await?;
        return Ok((live, exited, io));
    }
    let mode = if spec::needs_relay(&process) { Mode::Relay } else { Mode::Direct };
    let (stdio, io) = stdio::open(&request.streams, mode, &owner, &tasks.reaper).await?;
    let pid = runtime.create(&request.id, &request.bundle, Create { stdio, console: None }).await?;
    let (live, exited) = Live::adopt(pid, &expecting);
    Ok((live, exited, io))
}

/// Runs a call of the runtime that sends a terminal; answers what it started, and the terminal.
pub(super) async fn with_terminal<F>(
    listener: &Listener,
    call: F,
) -> Result<(i32, std::os::fd::OwnedFd), Error>
where
    F: Future<Output = Result<i32, Error>> + Send,
{
    tokio::pin!(call);
    let receive = listener.receive();
    tokio::pin!(receive);
    tokio::select! {
        pid = &mut call => {
            let pid = pid?;
            let master = timeout(TERMINAL, receive).await;
            Ok((pid, master.map_err(|_| Error::Late("the runtime's terminal".into()))??))
        }
        master = &mut receive => {
            let master = master?;
            Ok((call.await?, master))
        }
    }
}

/// The group that the specification asks for, as far as it does not exist yet: what was there before is not ours to
/// kill when the creation fails.
fn planned_group(spec: &Value, systemd: bool) -> Cgroup {
    let Some(path) = spec::cgroups_path(spec) else { return Cgroup::default() };
    let path = if systemd { from_systemd(path) } else { Ok(path.to_owned()) };
    // A path that is not understood is the runtime's to judge.
    let planned = path.and_then(|path| Hierarchies::read()?.group(&path));
    let mut group = planned.unwrap_or_default();
    group.v2 = group.v2.filter(|folder| !folder.exists());
    group.v1.retain(|_, folder| !folder.exists());
    group
}
