//! One container: its processes, and what watches them.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use mooring::{
    cgroup::{Cgroup, OomWatch},
    container::Record,
    id::Id,
    nri::Event,
    process::{Exit, Exited},
    runtime::{OciRuntime, checkpoint::StreamFiles},
    sys::survivor::Survivors,
};
use rustix::process::Signal;
use serde_json::Value;
use tokio::time::{Instant, timeout};

use super::{
    Ended, Error, Pod, Status,
    parties::Parties,
    process::{Life, Live, Process},
    publish,
};
use crate::events::Events;

/// How long the exit of an init waits for those of the container's other processes, all of which were killed.
const STRAGGLERS: Duration = Duration::from_secs(10);

/// How long the init may take to end after SIGKILL. One with much memory to give back takes a while.
pub(super) const SURVIVES: Duration = Duration::from_secs(10);

/// The exit status of a process that SIGKILL ended.
const BY_SIGKILL: i32 = 128 + Signal::KILL.as_raw();

/// Whether the container is frozen.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Frozen {
    No,
    Becoming,
    Yes,
}

pub(super) struct Container {
    pub(super) id: Id,
    pub(super) bundle: PathBuf,
    pub(super) record: Record,
    pub(super) runtime: Arc<dyn OciRuntime>,
    /// Orders what may not happen at once: start, exec, pause, resume, update, delete.
    pub(super) order: tokio::sync::Mutex<()>,
    pub(super) init: Arc<Process>,
    pub(super) exited: Exited,
    /// What its init was given of the client's.
    pub(super) streams: StreamFiles,
    pub(super) execs: Mutex<BTreeMap<Id, Arc<Process>>>,
    pub(super) cgroup: Cgroup,
    pub(super) frozen: Mutex<Frozen>,
    /// Whether the kernel ends every other process with the init.
    pub(super) owns_pid_namespace: bool,
    pub(super) owns_cgroup_namespace: bool,
    /// The specification's id mappings, for the streams of execs.
    pub(super) mappings: Value,
    /// When the init was first sent SIGKILL.
    pub(super) killed: Mutex<Option<Instant>>,
    /// Set when the init has ended: no further process is started.
    pub(super) ending: AtomicBool,
    /// Set when nothing of it is left.
    pub(super) deleted: AtomicBool,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn ended(exit: Exit) -> Ended {
    Ended { pid: exit.pid.unsigned_abs(), status: exit.status.unsigned_abs(), at: exit.at }
}

impl Container {
    pub(super) fn exec(&self, exec_id: &str) -> Result<Arc<Process>, Error> {
        let execs = lock(&self.execs);
        let found = execs.iter().find(|(id, _)| id.as_str() == exec_id);
        found
            .map(|(_, process)| Arc::clone(process))
            .ok_or_else(|| Error::NoProcess { task: self.id.clone(), exec: exec_id.to_owned() })
    }

    /// The init for an empty id, else the exec.
    pub(super) fn process(&self, exec_id: &str) -> Result<Arc<Process>, Error> {
        if exec_id.is_empty() { Ok(Arc::clone(&self.init)) } else { self.exec(exec_id) }
    }

    pub(super) fn status(&self, process: &Process) -> Status {
        match process.life() {
            Life::Added(_) | Life::Created(_) => Status::Created,
            Life::Stopped(_) => Status::Stopped,
            Life::Running(_) => match *lock(&self.frozen) {
                Frozen::No => Status::Running,
                Frozen::Becoming => Status::Pausing,
                Frozen::Yes => Status::Paused,
            },
        }
    }

    /// Sends the init a signal. Where a security profile holds back even SIGKILL (AppArmor's `deny signal`), the kernel
    /// is asked to end the whole group, for which it consults no profile.
    pub(super) fn signal_init(&self, live: &Live, signal: Signal) -> Result<(), Error> {
        match live.signal(signal) {
            Err(error) if signal == Signal::KILL && error.is_denied() => {
                self.cgroup.kill_all().map(drop).map_err(Error::from)
            }
            outcome => outcome,
        }
    }

    /// What of it has not ended.
    pub(super) async fn survivors(&self) -> Survivors {
        let record = self.record.clone();
        Survivors::seen(move || mooring::container::survivors(&record)).await
    }

    /// Sends SIGKILL to everything in the container.
    pub(super) fn kill_everything(self: &Arc<Self>) -> Result<(), Error> {
        self.watch_killed();
        let group = self.cgroup.kill_all();
        if let Some(live) = self.init.live() {
            match self.signal_init(&live, Signal::KILL) {
                Ok(()) | Err(Error::Finished) => {}
                Err(error) => return Err(error),
            }
        }
        group.map(drop).map_err(Error::from)
    }

    /// When the init was first sent SIGKILL, which is now unless it was before. Where it does not end of it, what keeps it
    /// is logged, once.
    pub(super) fn watch_killed(self: &Arc<Self>) -> Instant {
        let mut killed = lock(&self.killed);
        if let Some(since) = *killed {
            return since;
        }
        let now = Instant::now();
        *killed = Some(now);
        let container = Arc::clone(self);
        tokio::spawn(async move {
            if timeout(SURVIVES, container.init.wait()).await.is_err() {
                let (id, survivors) = (container.id.clone(), container.survivors().await);
                log::warn!(
                    "{}",
                    Error::Survives { task: id, seconds: SURVIVES.as_secs(), survivors }
                );
            }
        });
        now
    }

    /// Watches the init, and out-of-memory kills.
    pub(super) fn watch(self: &Arc<Self>, parties: &Parties) {
        let kills = OomWatch::new(&self.cgroup, &parties.oom_kills).unwrap_or_else(|error| {
            log::warn!("task {}: out-of-memory kills go unseen: {error}", self.id);
            None
        });
        let (container, events) = (Arc::clone(self), Arc::clone(&parties.events));
        let pod = Arc::clone(&parties.pod);
        tokio::spawn(async move {
            let exit = container.init_exited(&*events, kills).await;
            container.init_ended(exit, &*events, &*pod).await;
        });
    }

    /// Waits for the init's exit, and tells of out-of-memory kills until then. One that explains the exit is told before it.
    async fn init_exited(&self, events: &dyn Events, kills: Option<OomWatch>) -> Exit {
        let mut exited = self.exited.clone();
        let Some(mut kills) = kills else { return exited.wait().await };
        loop {
            tokio::select! {
                exit = exited.wait() => {
                    if kills.missed(exit.status == BY_SIGKILL) {
                        publish::oom(events, &self.id);
                    }
                    return exit;
                }
                () = kills.next() => publish::oom(events, &self.id),
            }
        }
    }

    async fn init_ended(&self, exit: Exit, events: &dyn Events, pod: &dyn Pod) {
        let _started = self.init.gate.lock().await;
        self.ending.store(true, Ordering::SeqCst);
        if !self.owns_pid_namespace
            && let Err(error) = self.cgroup.kill_all()
        {
            log::warn!("task {}: kill what the init left: {error}", self.id);
        }
        let execs: Vec<_> = lock(&self.execs).values().cloned().collect();
        let others = async {
            for exec in execs {
                // One that is just being started is started first.
                drop(exec.gate.lock().await);
                if let Life::Running(live) = exec.life() {
                    // Ended already: its exit is about to be published.
                    let _ = live.signal(Signal::KILL);
                    exec.wait().await;
                }
            }
        };
        if timeout(STRAGGLERS, others).await.is_err() {
            log::warn!("task {}: a process outlives its container", self.id);
        }
        let ended = ended(exit);
        *lock(&self.frozen) = Frozen::No;
        publish::exited(events, &self.id, None, &ended);
        // Before anybody who waits for the end goes on.
        pod.became(Event::StopContainer, &self.id, ended.status);
        self.init.stop(ended);
    }

    pub(super) fn watch_exec(
        self: &Arc<Self>,
        exec_id: Id,
        process: Arc<Process>,
        mut exited: Exited,
        events: Arc<dyn Events>,
    ) {
        let id = self.id.clone();
        tokio::spawn(async move {
            let ended = ended(exited.wait().await);
            let _started = process.gate.lock().await;
            publish::exited(&*events, &id, Some(&exec_id), &ended);
            process.stop(ended);
        });
    }
}
