//! The daemon: one process per pod, or per container that is in no pod.

use std::{
    fs::File,
    io::{self, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixListener,
    },
    panic,
    path::PathBuf,
    process,
    sync::Arc,
    time::Duration,
};

use containerd_shim_protos::ttrpc::asynchronous::{Server, transport::Listener};
use mooring::{
    options::{self, HandlerOptions, Options},
    process::Reaper,
    sandbox::{
        daemon_record::{self, DaemonRecord, RecordError},
        state_dir,
    },
    telemetry::trace::Kind,
};
use thiserror::Error;
use tokio::{
    runtime::{Builder, Runtime},
    signal::unix::{SignalKind, signal},
};

use crate::{
    bundle, detach,
    launch::{Launch, READY},
    logging, memory,
    publisher::Publisher,
    services::{self, Ending, Incoming, traced},
    socket,
    traces::Traces,
    watchdog,
};

/// Threads for calls that sleep in the kernel: their stack, their number, how long they stay without work.
const BLOCKING_STACK: usize = 256 << 10;
const BLOCKING_THREADS: usize = 16;
const BLOCKING_IDLE: Duration = Duration::from_secs(1);
/// How long the last answer may take to leave and be taken, and how long the last events.
const LAST_ANSWER: Duration = Duration::from_secs(2);
const LAST_EVENTS: Duration = Duration::from_secs(2);
/// How long the last spans may take, meanwhile.
const LAST_SPANS: Duration = Duration::from_secs(1);
/// How long it waits at its end for whoever has the lock of its state folder.
const LAST_LOCK: Duration = Duration::from_secs(1);

#[derive(Debug, Error)]
enum Error {
    #[error("{operation}: {source}")]
    Io { operation: &'static str, source: io::Error },
    #[error(transparent)]
    Options(#[from] options::Error),
    #[error("enter the cgroup {path:?}: {source}")]
    Cgroup { path: String, source: mooring::cgroup::Error },
    #[error(transparent)]
    Record(#[from] RecordError),
    #[error("serve: {0}")]
    Serve(#[from] containerd_shim_protos::ttrpc::Error),
}

fn io(operation: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Io { operation, source }
}

/// Serves until the pod is shut down. What goes wrong before it can serve is said to `say`.
pub fn run(launch: Launch, listener: UnixListener, say: OwnedFd, parent_score: Option<i32>) -> ! {
    let mut say = Some(File::from(say));
    let socket = launch.socket.clone();
    let code = match set_up_and_serve(launch, listener, &mut say, parent_score) {
        Ok(()) => 0,
        Err(error) => {
            log::error!("{error}");
            // Whoever started this may have been killed, and cannot remove it. Another shim may have it already.
            let _ = socket::remove_dead(&socket);
            // Whoever started this reads it; when it does not, there is nobody else to tell.
            let _ = say.map(|mut say| write!(say, "{error}"));
            1
        }
    };
    process::exit(code)
}

fn set_up_and_serve(
    launch: Launch,
    listener: UnixListener,
    say: &mut Option<File>,
    parent_score: Option<i32>,
) -> Result<(), Error> {
    let keep = say.iter().map(AsFd::as_fd).chain([listener.as_fd()]).collect::<Vec<_>>();
    detach::leave(&keep).map_err(io("become a daemon"))?;
    let fields = format!("namespace={} id={}", launch.namespace, launch.id);
    logging::start(&launch.bundle, launch.level, fields.clone());
    end_on_panic();
    let (options, warnings) =
        HandlerOptions::load(launch.profile.as_ref(), launch.options.clone())?;
    for warning in warnings {
        log::warn!("{warning}");
    }
    // containerd's own privileges decide: without them the shim is as likely to be killed as containerd.
    if let Some(Err(error)) = parent_score.map(detach::set_oom_score) {
        log::warn!("adjust the OOM score: {error}");
    }
    let cgroup = &options.shim().shim_cgroup;
    if !cgroup.is_empty() {
        detach::enter_cgroup(cgroup)
            .map_err(|source| Error::Cgroup { path: cgroup.clone(), source })?;
    }
    detach::schedule_core().map_err(io("enable core scheduling, which SCHED_CORE asks for"))?;
    let record = StateRecord::write(&launch, options.shim())?;
    if let Err(error) = watchdog::start(fields) {
        log::warn!("nobody watches whether this shim hangs: {error}");
    }
    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(error) => {
            record.remove();
            return Err(io("start the runtime")(error));
        }
    };
    let record = Arc::new(record);
    let result = runtime.block_on(serve(launch, options, listener, say, Arc::clone(&record)));
    if result.is_err() {
        record.remove();
        // With its tasks goes the listener: a socket that somebody serves, this process too, is never removed as dead.
        runtime.shutdown_background();
    } else {
        // Dropping it would wait for whatever still sleeps in the kernel.
        std::mem::forget(runtime);
    }
    result
}

/// A panic ends the shim, in every build and on every thread, so that `delete` finishes for it. It is said in containerd's
/// log: standard error leads nowhere.
fn end_on_panic() {
    panic::set_hook(Box::new(|panic| {
        log::error!("{panic}");
        process::abort();
    }));
}

fn runtime() -> io::Result<Runtime> {
    Builder::new_current_thread()
        .enable_all()
        .thread_name("mooring-io")
        .thread_stack_size(BLOCKING_STACK)
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_keep_alive(BLOCKING_IDLE)
        .on_thread_park(watchdog::asleep)
        .on_thread_unpark(watchdog::awake)
        .build()
}

async fn serve(
    launch: Launch,
    options: HandlerOptions,
    listener: UnixListener,
    say: &mut Option<File>,
    record: Arc<StateRecord>,
) -> Result<(), Error> {
    let reaper = Reaper::start().map_err(io("watch for ended children"))?;
    let publisher = Publisher::start(launch.ttrpc_address.clone(), &launch.namespace);
    let traces = Traces::start(&launch.namespace, |warning| log::warn!("{warning}"));
    let ending = Arc::new(Ending::default());
    let socket = launch.socket.clone();
    let own_bundle = launch.bundle.clone();
    let parties = services::Parties::of(&launch, reaper, &publisher);
    let services = services::Services::new(launch, options, parties, &ending);

    listener.set_nonblocking(true).map_err(io("prepare the socket"))?;
    let listener = tokio::net::UnixListener::from_std(listener).map_err(io("take the socket"))?;
    let back = publisher.clone();
    let incoming = Incoming::new(listener, ending.last_answer(), move || back.retry());
    let all = traced(services.register(), traces.as_ref());
    let mut server = Server::new().add_listener(Listener::new(incoming)).register_service(all);
    server.start().await?;
    heed_signals(&services, &ending).map_err(io("watch for signals"))?;
    tokio::spawn(memory::give_back());
    memory::worked();
    log::info!("serving {}", socket.display());
    if let Some(mut say) = say.take()
        && let Err(error) = say.write_all(READY)
    {
        // Whoever started this was killed, and containerd will not learn where to find it.
        return Err(io("tell that the shim is ready")(error));
    }
    let abandoned = Abandoned {
        services: services.clone(),
        ending: Arc::clone(&ending),
        traces: traces.clone(),
    };
    tokio::spawn(abandoned.end_with_bundle(own_bundle));

    loop {
        ending.begun().await;
        // A container may have come to a shared shim after the last one's client said that it was the last.
        if !services.in_use() {
            break;
        }
    }
    // containerd has been answered, or is about to be, and comes back no more.
    if let Err(error) = socket::remove(&socket) {
        log::warn!("remove the socket {}: {error}", socket.display());
    }
    // Before the last answer: it is followed by `delete`, which takes what is there for its own.
    if let Err(error) = tokio::task::spawn_blocking(move || record.remove()).await {
        log::warn!("remove the shim's record: {error}");
    }
    ending.last_answer().sent(LAST_ANSWER).await;
    let spans = async {
        if let Some(traces) = &traces {
            traces.drain(LAST_SPANS).await;
        }
    };
    let (left, ()) = tokio::join!(publisher.drain(LAST_EVENTS), spans);
    if left > 0 {
        log::error!("{left} events could not be sent");
    }
    // The server's own shutdown would wait seconds for calls such as WaitSandbox; the kernel closes faster.
    Ok(())
}

/// What a shim needs that may have to end by itself.
struct Abandoned {
    services: services::Services,
    ending: Arc<Ending>,
    traces: Option<Traces>,
}

impl Abandoned {
    /// A shim whose bundle is gone has been given up by containerd, and nobody will ever shut it down: it takes down what
    /// it holds, and ends.
    async fn end_with_bundle(self, bundle: PathBuf) {
        bundle::removed(&bundle).await;
        log::warn!("containerd has removed this shim's bundle: ending");
        let traces = self.traces.as_ref();
        let open = traces.map(|all| all.tracer.entry("bundle removed", Kind::Internal, None));
        let span = open.as_deref().cloned().unwrap_or_default();
        span.within(services::give_up(|| self.services.abandon())).await;
        drop(open);
        self.ending.begin();
    }
}

/// What is written down of this process for `delete`, which knows no more than the name of the sandbox and perhaps its
/// bundle.
struct StateRecord {
    state_dir: PathBuf,
    record: DaemonRecord,
}

impl StateRecord {
    /// Blocks.
    fn write(launch: &Launch, options: &Options) -> Result<Self, Error> {
        daemon_record::point_to(&launch.bundle, &options.state_root)
            .map_err(io("point to the state folder"))?;
        let record =
            DaemonRecord::of_this_process(&launch.socket).map_err(io("find this process"))?;
        let state_dir = state_dir(options, &launch.namespace, &launch.id);
        record.save(&state_dir)?;
        Ok(Self { state_dir, record })
    }

    /// Removes it, with whatever is left in the state folder. Another shim of this name may have come already; what
    /// is that one's stays. Blocks.
    fn remove(&self) {
        let removed = self.record.withdraw(&self.state_dir, LAST_LOCK);
        if let Err(error) = removed {
            log::warn!("{error}");
        }
    }
}

/// A shim that is asked to end by a signal while it holds containers stays: without it nobody would reap them, report
/// their exits or drain their output. Only containerd ends it, by the sandbox's or the last container's shutdown.
fn heed_signals(services: &services::Services, ending: &Arc<Ending>) -> io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (services, ending) = (services.clone(), Arc::clone(ending));
    tokio::spawn(async move {
        loop {
            let name = tokio::select! {
                Some(()) = terminate.recv() => "SIGTERM",
                Some(()) = interrupt.recv() => "SIGINT",
                else => return,
            };
            if services.in_use() {
                log::warn!("{name} is ignored: this shim holds containers");
            } else {
                log::info!("{name}: ending");
                ending.begin();
            }
        }
    });
    Ok(())
}
