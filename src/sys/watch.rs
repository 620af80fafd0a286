//! Waiting for a descriptor, without blocking and with.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    time::Instant,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};
use tokio::io::{Interest, unix::AsyncFd};

/// A descriptor whose becoming ready can be waited for. It must not block when it is used.
pub fn watched(descriptor: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // The successor of this constructor is unsafe for types whose descriptor may change; an `OwnedFd`'s cannot.
    #[expect(deprecated, reason = "the only safe constructor, and sound for OwnedFd")]
    AsyncFd::with_interest(descriptor, interest)
}

/// Waits until `descriptor` is readable or `deadline` is past; answers whether it is readable. Blocks. A signal that
/// arrives meanwhile ends poll(2) whatever its handler asked for, and does not end the wait.
pub fn wait_readable(descriptor: &impl AsFd, deadline: Instant) -> io::Result<bool> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let limit = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        };
        match poll(&mut [PollFd::new(descriptor, PollFlags::IN)], Some(&limit)) {
            Ok(ready) => return Ok(ready > 0),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{os::unix::thread::JoinHandleExt, time::Duration};

    use nix::sys::{pthread::pthread_kill, signal::Signal};
    use tokio::{runtime, signal::unix};

    use super::*;

    #[test]
    fn a_signal_does_not_end_the_wait() {
        let runtime = runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _inside = runtime.enter();
        let _handled = unix::signal(unix::SignalKind::window_change()).unwrap();
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let waiting = std::thread::spawn(move || {
            wait_readable(&reader, Instant::now() + Duration::from_millis(100)).unwrap()
                || wait_readable(&reader, Instant::now() + Duration::from_mins(1)).unwrap()
        });
        for _ in 0..40 {
            std::thread::sleep(Duration::from_millis(5));
            pthread_kill(waiting.as_pthread_t(), Signal::SIGWINCH).unwrap();
        }
        assert!(!waiting.is_finished(), "the second wait has not ended");
        rustix::io::write(&writer, b"x").unwrap();
        assert!(waiting.join().unwrap());
    }
}
