//! Which process a number means. The kernel gives numbers out again; a start time beside the number tells whether it
//! is still the same process, and a pidfd holds on to it.

use std::{
    fs, io,
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use rustix::{
    io::Errno,
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};
use tokio::io::Interest;

use super::{wait_readable, watched};

/// When process `pid` started, in clock ticks since boot. `None` when there is no such process; that it cannot be found
/// out (no descriptor is free, no memory) is an error and never "gone".
pub fn start_time(pid: i32) -> io::Result<Option<u64>> {
    Ok(stat(pid)?.map(|(_, start)| start))
}

/// Whether `pid` is a process that started at `start` and has not ended.
pub fn is_alive(pid: i32, start: u64) -> io::Result<bool> {
    Ok(stat(pid)?.is_some_and(|(state, begun)| begun == start && !matches!(state, 'Z' | 'X')))
}

fn stat(pid: i32) -> io::Result<Option<(char, u64)>> {
    match fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(text) => parse(&text).map(Some).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, format!("/proc/{pid}/stat: {text:?}"))
        }),
        // Read while it vanishes, the file is still there and its process is not.
        Err(error)
            if error.kind() == io::ErrorKind::NotFound
                || Errno::from_io_error(&error) == Some(Errno::SRCH) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

pub(super) fn parse(stat: &str) -> Option<(char, u64)> {
    // The name, in parentheses, may hold spaces and parentheses itself.
    let mut fields = stat.get(stat.rfind(')')? + 1..)?.split_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

/// A process held by a descriptor.
#[derive(Debug)]
pub struct Pinned(OwnedFd);

impl Pinned {
    /// Holds process `pid`, if it is the one that started at `start`, where that is known. `None`: it is gone, or
    /// another has its number. Anything else that keeps it from being held is an error.
    pub fn new(pid: i32, start: Option<u64>) -> io::Result<Option<Self>> {
        // No process has a number that is not positive.
        let Some(number) = Some(pid).filter(|pid| *pid > 0).and_then(Pid::from_raw) else {
            return Ok(None);
        };
        let pinned = match pidfd_open(number, PidfdFlags::empty()) {
            Ok(pinned) => pinned,
            Err(Errno::SRCH) => return Ok(None),
            // Also when the number is now a thread's, which cannot be held: that is another than was meant.
            Err(_) if start.is_some() && start_time(pid)? != start => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        // Asked once it is held: from here on the number cannot come to mean another.
        Ok((start.is_none() || start_time(pid)? == start).then_some(Self(pinned)))
    }

    /// Sends a signal. `Ok(false)`: the process has ended already.
    pub fn signal(&self, signal: Signal) -> io::Result<bool> {
        match pidfd_send_signal(&self.0, signal) {
            Ok(()) => Ok(true),
            Err(Errno::SRCH) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Kills it and waits for its end, for `limit` at most. Blocks. `Ok(false)`: it had ended already.
    pub fn kill_and_wait(&self, limit: Duration) -> io::Result<bool> {
        if !self.signal(Signal::KILL)? {
            return Ok(false);
        }
        if !wait_readable(&self.0, Instant::now() + limit)? {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(true)
    }

    /// Waits for its end, whoever's child it is.
    pub async fn ended(self) -> io::Result<()> {
        let watched = watched(self.0, Interest::READABLE)?;
        watched.readable().await.map(drop)
    }
}
