//! Copying, where it cannot be avoided.

use std::{
    fs::File,
    io::{self, Write as _},
    os::fd::OwnedFd,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use mooring::sys::watched;
use rustix::{
    event::{PollFd, PollFlags, poll},
    fs::{OFlags, fcntl_getfl, fcntl_setfl},
    io::Errno,
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    task::{AbortHandle, JoinHandle},
    time::{Instant, sleep},
};

use super::super::Error;

/// How long a client may take to open the fifo of an output that has ended.
const LINGER: Duration = Duration::from_mins(1);
/// What is carried at a time. The buffer lives only while there is something to carry.
const CHUNK: usize = 8 << 10;

/// What waits for clients that have not come yet.
pub(super) type Lingering = Arc<Mutex<Vec<AbortHandle>>>;

/// A fifo's client that has not opened it yet.
pub(super) struct Awaited {
    /// A reading end of ours.
    pub(super) kept: OwnedFd,
    pub(super) lingering: Lingering,
}

pub(super) enum Sink {
    /// A pipe, fifo or terminal. A terminal's is its source's as well.
    Descriptor(Arc<AsyncFd<OwnedFd>>, Option<Awaited>),
    /// A file, which is always ready, as slow as its disk is.
    File(Arc<File>),
    /// Nowhere: the source must be emptied all the same.
    Nowhere,
}

impl Sink {
    pub(super) fn descriptor(
        descriptor: OwnedFd,
        awaited: Option<Awaited>,
        name: &Path,
    ) -> Result<Self, Error> {
        watched(descriptor, Interest::WRITABLE)
            .map(|watched| Self::Descriptor(Arc::new(watched), awaited))
            .map_err(Error::at("watch", name))
    }

    /// The source has ended. Who opens a fifo for reading waits until somebody writes: were the last writing end closed
    /// before the client has come, it would wait for ever for the end of what it would have to read.
    fn end(self) {
        if let Self::Descriptor(to, Some(Awaited { kept, lingering })) = self {
            drop(kept);
            let mut all = lingering.lock().unwrap_or_else(PoisonError::into_inner);
            all.push(tokio::spawn(linger(to)).abort_handle());
        }
    }

    async fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Nowhere => Ok(()),
            Self::File(file) => {
                let (file, bytes) = (Arc::clone(file), bytes.to_vec());
                let written = tokio::task::spawn_blocking(move || (&*file).write_all(&bytes));
                if let Err(error) = written.await.unwrap_or_else(|error| Err(error.into())) {
                    // A full disk is no reason to end whoever writes: this piece is lost, the next may fit.
                    log::warn!("append to a log: {error}");
                }
                Ok(())
            }
            Self::Descriptor(to, _) => {
                while !bytes.is_empty() {
                    let mut ready = to.writable().await?;
                    match ready.try_io(|to| Ok(rustix::io::write(to.get_ref(), bytes)?)) {
                        Ok(Ok(count)) => bytes = bytes.get(count..).unwrap_or_default(),
                        Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                        Ok(Err(error)) => return Err(error),
                        Err(_would_block) => {}
                    }
                }
                Ok(())
            }
        }
    }
}

/// Copies from `source`, which does not block, until it ends.
pub(super) fn start(source: OwnedFd, mut sink: Sink, name: &Path) -> Result<JoinHandle<()>, Error> {
    let regular = rustix::fs::fstat(&source).is_ok_and(|known| {
        rustix::fs::FileType::from_raw_mode(known.st_mode) == rustix::fs::FileType::RegularFile
    });
    if regular {
        // A file as input: there is no readiness to wait for. What it goes to is the process's.
        return Ok(tokio::spawn(async move {
            let mut buffer = vec![0; CHUNK];
            while let Ok(count @ 1..) = rustix::io::read(&source, &mut buffer[..]) {
                if sink.write(buffer.get(..count).unwrap_or_default()).await.is_err() {
                    return;
                }
            }
        }));
    }
    let source = watched(source, Interest::READABLE).map_err(Error::at("watch", name))?;
    Ok(carry_all(Arc::new(source), sink))
}

/// Copies from what is watched already, until it ends.
pub(super) fn carry_all(source: Arc<AsyncFd<OwnedFd>>, mut sink: Sink) -> JoinHandle<()> {
    tokio::spawn(async move {
        // An error is the other side's end.
        while let Ok(true) = carry(&source, &mut sink).await {}
        sink.end();
    })
}

/// Reads what there is. A terminal that is hung up answers EIO, but the kernel says so at times while it still carries what
/// was written last from one of its buffers to the next (one of 370 on a busy machine): the next read waits for that, so
/// that only a second EIO is the end.
fn read(mut once: impl FnMut() -> rustix::io::Result<usize>) -> rustix::io::Result<usize> {
    match once() {
        Err(Errno::IO) => once(),
        other => other,
    }
}

/// Keeps a fifo's writing end until there is a reader, or for [`LINGER`].
async fn linger(to: Arc<AsyncFd<OwnedFd>>) {
    let until = Instant::now() + LINGER;
    let mut pause = Duration::from_millis(1);
    while !has_reader(to.get_ref()) && Instant::now() < until {
        // There is no event for it.
        sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(1));
    }
}

/// Whether somebody reads, or waits in opening for reading.
fn has_reader(writer: &OwnedFd) -> bool {
    let mut asked = [PollFd::new(writer, PollFlags::empty())];
    let answered = poll(&mut asked, Some(&rustix::fs::Timespec::default()));
    !(answered.is_ok() && asked.iter().any(|one| one.revents().contains(PollFlags::ERR)))
}

/// Waits until there is something and carries all of it. Answers false at the end.
async fn carry(source: &AsyncFd<OwnedFd>, sink: &mut Sink) -> io::Result<bool> {
    let mut ready = source.readable().await?;
    let mut buffer = vec![0; CHUNK];
    loop {
        match ready.try_io(|from| Ok(read(|| rustix::io::read(from.get_ref(), &mut buffer[..]))?)) {
            Ok(Ok(0)) => return Ok(false),
            Ok(Ok(count)) => sink.write(buffer.get(..count).unwrap_or_default()).await?,
            Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(Err(error)) => return Err(error),
            Err(_would_block) => return Ok(true),
        }
    }
}

pub(super) fn set_nonblocking(descriptor: &OwnedFd, name: &Path) -> Result<(), Error> {
    fcntl_getfl(descriptor)
        .and_then(|flags| fcntl_setfl(descriptor, flags | OFlags::NONBLOCK))
        .map_err(|error| Error::at("set up", name)(error.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_second_eio_is_the_end_of_a_terminal() {
        let of = |answers: &[rustix::io::Result<usize>]| {
            let mut answers = answers.iter();
            let answer = read(|| *answers.next().unwrap());
            assert!(answers.next().is_none(), "it reads no more than it has to");
            answer
        };
        assert_eq!(of(&[Err(Errno::IO), Ok(4095)]), Ok(4095));
        assert_eq!(of(&[Err(Errno::IO), Err(Errno::IO)]), Err(Errno::IO));
        assert_eq!(of(&[Err(Errno::IO), Err(Errno::AGAIN)]), Err(Errno::AGAIN));
        assert_eq!(of(&[Ok(7)]), Ok(7));
        assert_eq!(of(&[Err(Errno::AGAIN)]), Err(Errno::AGAIN));
    }
}
