//! The one place that waits for children.

use std::{
    collections::{BTreeSet, HashMap},
    io,
    os::unix::process::CommandExt,
    process::Command,
    sync::{LazyLock, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use rustix::{
    io::Errno,
    process::{Pid, WaitId, WaitIdOptions, WaitOptions, getgid, wait, waitid},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

/// How and when a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    pub pid: i32,
    /// Its exit code, or 128 + the signal that killed it.
    pub status: i32,
    pub at: SystemTime,
}

/// What is known of this process's children.
#[derive(Default)]
struct State {
    /// Children that somebody waits for.
    watched: HashMap<i32, watch::Sender<Option<Exit>>>,
    /// Exits of children nobody knew yet, by number, each with its place in the order of things.
    unclaimed: HashMap<i32, (u64, Exit)>,
    /// Calls in flight that will name a new child afterwards: when each began, in the same order.
    expecting: BTreeSet<u64>,
    /// The last place given out.
    order: u64,
}

impl State {
    fn next(&mut self) -> u64 {
        self.order += 1;
        self.order
    }

    fn expect(&mut self) -> u64 {
        let since = self.next();
        self.expecting.insert(since);
        since
    }

    fn expected(&mut self, since: u64) {
        self.expecting.remove(&since);
        // What was reaped before the oldest call began is no child of any of them, however they overlap.
        let oldest = self.expecting.first().copied();
        self.unclaimed.retain(|_, (at, _)| oldest.is_some_and(|oldest| *at > oldest));
    }

    fn ended(&mut self, exit: Exit) {
        if let Some(sender) = self.watched.remove(&exit.pid) {
            sender.send_replace(Some(exit));
        } else if !self.expecting.is_empty() {
            let at = self.next();
            self.unclaimed.insert(exit.pid, (at, exit));
        }
    }

    fn watch(&mut self, pid: i32) -> Exited {
        self.unclaimed.remove(&pid);
        let sender = self.watched.entry(pid).or_insert_with(|| watch::channel(None).0);
        Exited { pid, exit: sender.subscribe() }
    }

    /// Watches the child of a call that began at `since`. `there`: it has not been reaped, so an exit that was is that
    /// of an earlier process with its number.
    fn adopt(&mut self, since: u64, pid: i32, there: bool) -> Exited {
        match self.unclaimed.remove(&pid) {
            Some((at, exit)) if at > since && !there => {
                Exited { pid, exit: watch::channel(Some(exit)).1 }
            }
            _ => self.watch(pid),
        }
    }
}

/// Children belong to the process, so what is known of them does too.
static STATE: LazyLock<Mutex<State>> = LazyLock::new(Mutex::default);

fn state() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits for every child of this process and hands each exit to whoever asked for it.
#[derive(Clone)]
pub struct Reaper(());

/// Kept while a call is in flight that leaves a child behind whose number is only known afterwards (`runc create`
/// and its pid file): exits of unknown children are kept meanwhile.
#[derive(Debug)]
pub struct Expecting {
    since: u64,
}

impl Expecting {
    /// Watches the child that the call has left. It may have ended and been reaped already. A pid that is not a child
    /// of this process never exits here.
    pub fn adopt(&self, pid: i32) -> Exited {
        let mut state = state();
        // Nobody is reaped while the lock is held.
        state.adopt(self.since, pid, is_child(pid))
    }
}

impl Drop for Expecting {
    fn drop(&mut self) {
        state().expected(self.since);
    }
}

fn is_child(pid: i32) -> bool {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    Pid::from_raw(pid).is_some_and(|pid| waitid(WaitId::Pid(pid), options).is_ok())
}

/// The exit of one child; can be waited for any number of times, and cloned.
#[derive(Clone, Debug)]
pub struct Exited {
    pid: i32,
    exit: watch::Receiver<Option<Exit>>,
}

impl Exited {
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// The exit, if it has happened.
    pub fn now(&self) -> Option<Exit> {
        *self.exit.borrow()
    }

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

impl Reaper {
    /// Starts waiting for children, for as long as the tokio runtime that this is called in lives.
    pub fn start() -> io::Result<Self> {
        let mut children = signal(SignalKind::child())?;
        tokio::spawn(async move {
            while children.recv().await.is_some() {
                reap();
            }
        });
        Ok(Self(()))
    }

    /// Spawns `command` and watches its exit. `Child` is given up on purpose: only the reaper waits.
    pub fn spawn(&self, command: &mut Command) -> io::Result<(Exited, std::process::Child)> {
        // Held across the spawn so that the child's exit cannot be reaped before it is watched.
        let mut state = state();
        // Naming an id that it has anyway makes the standard library fork: libc's posix_spawn leaves the child with
        // signal 32 ignored, and a container's init would inherit that from the OCI runtime.
        let child = command.gid(getgid().as_raw()).spawn()?;
        let pid = i32::try_from(child.id()).map_err(io::Error::other)?;
        Ok((state.watch(pid), child))
    }

    /// Keeps the exits of unknown children until the answer is dropped.
    #[must_use]
    pub fn expecting(&self) -> Expecting {
        Expecting { since: state().expect() }
    }
}

/// Takes every exit that is ready. SIGCHLDs merge, so one signal may stand for many children.
fn reap() {
    let mut state = state();
    loop {
        let (pid, status) = match wait(WaitOptions::NOHANG) {
            Ok(Some(ended)) => ended,
            Err(Errno::INTR) => continue,
            Ok(None) | Err(_) => return,
        };
        let signal = status.terminating_signal().map(|signal| 128 + signal);
        // Neither: it was stopped or continued, which is not asked for.
        let Some(code) = status.exit_status().or(signal) else { continue };
        state.ended(Exit { pid: pid.as_raw_nonzero().get(), status: code, at: SystemTime::now() });
    }
}

#[cfg(test)]
mod tests {
    use rustix::process::Signal;

    use super::*;
    use crate::{process::testing::TestChild, sys::identity::Pinned};

    fn exit(pid: i32) -> Exit {
        Exit { pid, status: 1, at: SystemTime::UNIX_EPOCH }
    }

    #[test]
    fn an_exit_during_the_call_is_the_childs() {
        let mut state = State::default();
        let call = state.expect();
        state.ended(exit(7));
        assert_eq!(state.adopt(call, 7, false).now(), Some(exit(7)));
        assert_eq!(state.adopt(call, 7, false).now(), None, "it is claimed once");
    }

    #[test]
    fn overlapping_calls_keep_no_exit_that_a_later_process_of_that_number_would_claim() {
        let mut state = State::default();
        let mut last = state.expect();
        for pid in 1..100 {
            // An orphan of some container ends while there is always a call in flight.
            state.ended(exit(pid));
            let next = state.expect();
            assert_eq!(state.adopt(next, pid, false).now(), None, "it ended before the call");
            state.ended(exit(1000 + pid));
            state.expected(last);
            last = next;
            assert!(state.unclaimed.len() <= 1, "{:?}", state.unclaimed);
        }
        state.expected(last);
        assert!(state.unclaimed.is_empty());
    }

    #[test]
    fn the_exit_of_an_earlier_process_is_not_that_of_a_child_that_is_there() {
        let mut state = State::default();
        let call = state.expect();
        state.ended(exit(7));
        let child = state.adopt(call, 7, true);
        assert_eq!(child.now(), None);
        let own = Exit { status: 3, ..exit(7) };
        state.ended(own);
        assert_eq!(child.now(), Some(own));
    }

    #[test]
    fn a_spawned_child_has_its_own_exit_alone() {
        let mut state = State::default();
        let _call = state.expect();
        state.ended(exit(7));
        assert_eq!(state.watch(7).now(), None);
        assert!(state.unclaimed.is_empty());
    }

    #[test]
    fn children_are_told_from_other_processes() {
        let mut child = TestChild::start(Command::new("sleep").arg("60"));
        assert!(is_child(child.pid));
        assert!(!is_child(1) && !is_child(0));
        Pinned::new(child.pid, None).unwrap().unwrap().signal(Signal::KILL).unwrap();
        assert_eq!(child.status(), 128 + 9);
        assert!(!is_child(child.pid));
    }
}
