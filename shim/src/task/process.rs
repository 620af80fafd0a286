//! One process of a container: its init, or an exec.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mooring::{
    container::Pinned,
    process::{Exited, Expecting},
};
use rustix::process::Signal;
use serde_json::Value;
use tokio::sync::watch;

use super::{Ended, Error, Streams, stdio::Io};

/// A process that has been started by the runtime.
pub(super) struct Live {
    pub(super) pid: i32,
    /// Absent when it had ended before it could be held, or could not be held then.
    pinned: Option<Pinned>,
    exited: Exited,
}

/// Where a process is in its life.
#[derive(Clone)]
pub(super) enum Life {
    /// An exec that was added, or an init that is to be restored, and not started: what the exec is to be.
    Added(Arc<Value>),
    /// An init that waits to be started.
    Created(Arc<Live>),
    Running(Arc<Live>),
    /// Ended, and its exit published.
    Stopped(Ended),
}

pub(super) struct Process {
    pub(super) streams: Streams,
    life: Mutex<Life>,
    /// Held while the process is started, until that has been published: its exit is not published before.
    pub(super) gate: tokio::sync::Mutex<()>,
    ended: watch::Sender<Option<Ended>>,
    io: Mutex<Option<Io>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Live {
    /// Takes over process `pid`, which a call of the runtime has just started.
    pub(super) fn adopt(pid: i32, call: &Expecting) -> (Arc<Self>, Exited) {
        // Where it cannot be held now, it is tried again when it is to be signalled.
        let pinned = Pinned::new(pid, None).ok().flatten();
        let exited = call.adopt(pid);
        // One that was reaped before it was held has left its number to anybody.
        let pinned = pinned.filter(|_| exited.now().is_none());
        (Arc::new(Self { pid, pinned, exited: exited.clone() }), exited)
    }

    pub(super) fn signal(&self, signal: Signal) -> Result<(), Error> {
        let failed = || Error::at("signal", format!("process {}", self.pid));
        let late;
        let pinned = if let Some(pinned) = &self.pinned {
            pinned
        } else {
            late = Pinned::new(self.pid, None).map_err(failed())?;
            // Only while it is not reaped the number is its own, and held it stays so.
            let held = late.as_ref().filter(|_| self.exited.now().is_none());
            held.ok_or(Error::Finished)?
        };
        if pinned.signal(signal).map_err(failed())? { Ok(()) } else { Err(Error::Finished) }
    }
}

impl Process {
    pub(super) fn new(streams: Streams, life: Life, io: Option<Io>) -> Self {
        let gate = tokio::sync::Mutex::new(());
        Self {
            streams,
            life: Mutex::new(life),
            gate,
            ended: watch::channel(None).0,
            io: Mutex::new(io),
        }
    }

    pub(super) fn life(&self) -> Life {
        lock(&self.life).clone()
    }

    pub(super) fn set_life(&self, life: Life) {
        *lock(&self.life) = life;
    }

    /// Records the end and wakes everybody who waits for it.
    pub(super) fn stop(&self, ended: Ended) {
        self.set_life(Life::Stopped(ended));
        self.ended.send_replace(Some(ended));
    }

    /// Wakes everybody who waits for the end of a process that could not be started, and stays as it was.
    pub(super) fn release(&self, ended: Ended) {
        self.ended.send_replace(Some(ended));
    }

    /// Records that it runs, from now on.
    pub(super) fn run(&self, live: Arc<Live>) {
        self.ended.send_replace(None);
        self.set_life(Life::Running(live));
    }

    pub(super) async fn wait(&self) -> Ended {
        let mut ended = self.ended.subscribe();
        loop {
            if let Some(ended) = *ended.borrow_and_update() {
                return ended;
            }
            if ended.changed().await.is_err() {
                // The sender lives as long as this process does.
                std::future::pending::<()>().await;
            }
        }
    }

    pub(super) fn live(&self) -> Option<Arc<Live>> {
        match self.life() {
            Life::Created(live) | Life::Running(live) => Some(live),
            Life::Added(_) | Life::Stopped(_) => None,
        }
    }

    pub(super) fn set_io(&self, io: Io) {
        *lock(&self.io) = Some(io);
    }

    pub(super) fn take_io(&self) -> Option<Io> {
        lock(&self.io).take()
    }

    /// Closes the streams of a process that has ended and has no output on its way. Who reads them still gets what is in
    /// them, and then their end.
    pub(super) fn close_if_over(&self) {
        if matches!(self.life(), Life::Stopped(_)) {
            lock(&self.io).take_if(|io| io.is_over());
        }
    }

    pub(super) fn close_stdin(&self) {
        if let Some(io) = lock(&self.io).as_ref() {
            io.close_stdin();
        }
    }

    pub(super) fn resize(&self, width: u16, height: u16) -> Option<std::io::Result<()>> {
        lock(&self.io).as_ref().and_then(|io| io.resize(width, height))
    }
}

/// The signal of that number.
pub(super) fn signal(number: u32) -> Result<Signal, Error> {
    let raw = i32::try_from(number).unwrap_or(-1);
    if let Some(signal) = Signal::from_named_raw(raw) {
        return Ok(signal);
    }
    if (libc::SIGRTMIN()..=libc::SIGRTMAX()).contains(&raw) {
        // SAFETY: the number is a valid signal, and it is only handed to the kernel for another process: nothing is
        // installed for it in this one.
        return Ok(unsafe { Signal::from_raw_unchecked(raw) });
    }
    Err(Error::Invalid(format!("{number} is no signal")))
}
