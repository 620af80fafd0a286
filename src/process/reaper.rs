//! The one place that waits for children.

use std::{
    collections::HashMap,
    io,
    os::unix::process::CommandExt,
    process::Command,
    sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use nix::{
    errno::Errno,
    sys::wait::{Id as WaitId, WaitPidFlag, WaitStatus, waitid, waitpid},
    unistd::{Pid, getgid},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

/// How and when a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// The process's id.
    pub pid: i32,
    /// Its exit code, or 128 + the signal that killed it.
    pub status: i32,
    /// When it was reaped.
    pub at: SystemTime,
}

#[derive(Default)]
struct State {
    /// Children that somebody waits for.
    watched: HashMap<i32, watch::Sender<Option<Exit>>>,
    /// Exits of children nobody knew yet, kept while `expecting` says that their number is about to be learned.
    unclaimed: HashMap<i32, Exit>,
    /// Runtime calls in flight that will name a new child afterwards.
    expecting: usize,
}

/// Children belong to the process, so what is known of them does too.
static STATE: LazyLock<Arc<Mutex<State>>> = LazyLock::new(Arc::default);

/// Waits for every child of this process and hands each exit to whoever asked for it.
#[derive(Clone)]
pub struct Reaper {
    state: Arc<Mutex<State>>,
}

/// Kept while a call is in flight that leaves a child behind whose number is only known afterwards (`runc create`
/// and its pid file): no exit is discarded meanwhile.
pub struct Expecting {
    state: Arc<Mutex<State>>,
}

impl Drop for Expecting {
    fn drop(&mut self) {
        let mut state = lock(&self.state);
        state.expecting -= 1;
        if state.expecting == 0 {
            state.unclaimed.clear();
        }
    }
}

/// The exit of one child; can be waited for any number of times, and cloned.
#[derive(Clone, Debug)]
pub struct Exited {
    pid: i32,
    exit: watch::Receiver<Option<Exit>>,
}

impl Exited {
    /// The child's process id.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// The exit, if it has happened.
    pub fn now(&self) -> Option<Exit> {
        *self.exit.borrow()
    }

    /// Waits for the exit.
    pub async fn wait(&mut self) -> Exit {
        match self.exit.wait_for(Option::is_some).await {
            Ok(exit) => exit.unwrap_or_else(|| lost(self.pid)),
            Err(_) => lost(self.pid),
        }
    }
}

/// The exit of a child whose status nobody can know any more (the reaper itself was dropped).
fn lost(pid: i32) -> Exit {
    Exit { pid, status: 255, at: SystemTime::now() }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Reaper {
    /// Starts waiting for children, for as long as the tokio runtime that this is called in lives.
    pub fn start() -> io::Result<Self> {
        let mut children = signal(SignalKind::child())?;
        tokio::spawn(async move {
            while children.recv().await.is_some() {
                reap(&STATE);
            }
        });
        Ok(Self { state: Arc::clone(&STATE) })
    }

    /// Spawns `command` and watches its exit. `Child` is given up on purpose: only the reaper waits.
    pub fn spawn(&self, command: &mut Command) -> io::Result<(Exited, std::process::Child)> {
        // Held across the spawn so that the child's exit cannot be reaped before it is watched.
        let mut state = lock(&self.state);
        // Naming an id that it has anyway makes the standard library fork: libc's posix_spawn leaves the child with
        // signal 32 ignored, and a container's init would inherit that from the OCI runtime.
        let child = command.gid(getgid().as_raw()).spawn()?;
        let pid = i32::try_from(child.id()).map_err(io::Error::other)?;
        Ok((watch_pid(&mut state, pid), child))
    }

    /// Keeps the exits of unknown children until the answer is dropped.
    #[must_use]
    pub fn expecting(&self) -> Expecting {
        lock(&self.state).expecting += 1;
        Expecting { state: Arc::clone(&self.state) }
    }

    /// Watches a child that another program started on this process's behalf, such as a container's init.
    /// Its exit may have been reaped already, as long as [`Reaper::expecting`] was held since before its start.
    /// A pid that is not a child of this process never exits here.
    pub fn adopt(&self, pid: i32) -> Exited {
        watch_pid(&mut lock(&self.state), pid)
    }
}

#[cfg(test)]
impl Reaper {
    pub(super) fn has_unclaimed(&self, pid: i32) -> bool {
        lock(&self.state).unclaimed.contains_key(&pid)
    }
}

fn watch_pid(state: &mut State, pid: i32) -> Exited {
    if let Some(exit) = state.unclaimed.remove(&pid) {
        let (_, receiver) = watch::channel(Some(exit));
        return Exited { pid, exit: receiver };
    }
    let sender = state.watched.entry(pid).or_insert_with(|| watch::channel(None).0);
    Exited { pid, exit: sender.subscribe() }
}

/// Takes every exit that is ready. SIGCHLDs merge, so one signal may stand for many children.
fn reap(state: &Mutex<State>) {
    let mut state = lock(state);
    loop {
        // Peek first: a status that waitpid cannot name must still be consumed.
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        let pid = match waitid(WaitId::All, flags) {
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return,
            Ok(status) => status.pid(),
            Err(Errno::EINTR) => continue,
            Err(_) => None,
        };
        let exit = match waitpid(pid.unwrap_or(Pid::from_raw(-1)), Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) => {
                Exit { pid: pid.as_raw(), status: code, at: SystemTime::now() }
            }
            Ok(WaitStatus::Signaled(pid, signal, _)) => {
                Exit { pid: pid.as_raw(), status: 128 + signal as i32, at: SystemTime::now() }
            }
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return,
            Ok(_) | Err(Errno::EINTR) => continue,
            // A real-time signal: nix has no name for it, the child is gone all the same.
            Err(_) => match pid {
                Some(pid) => Exit { pid: pid.as_raw(), status: 255, at: SystemTime::now() },
                None => return,
            },
        };
        match state.watched.remove(&exit.pid) {
            Some(sender) => {
                sender.send_replace(Some(exit));
            }
            None if state.expecting > 0 => {
                state.unclaimed.insert(exit.pid, exit);
            }
            None => {}
        }
    }
}
