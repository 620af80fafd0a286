//! The server's connections, watched: when containerd connects it is there again, and an answer that ends this
//! process must have left it before.

use std::{
    io,
    os::fd::AsRawFd,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_core::Stream;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{UnixListener, UnixStream},
    sync::Notify,
    time::{Sleep, sleep, timeout},
};

use crate::{memory, watchdog};

/// How long to wait before connections are taken again after the kernel had no room for one.
const NO_ROOM: Duration = Duration::from_millis(100);

/// The answer that must be sent before the process ends.
#[derive(Default)]
pub struct LastAnswer {
    /// The stream that it belongs to; no client uses 0.
    stream: AtomicU32,
    sent: Notify,
    /// The client that got it has closed its connection.
    taken: Notify,
}

impl LastAnswer {
    /// The next answer on `stream` is the last one.
    pub fn expect(&self, stream: u32) {
        self.stream.store(stream, Ordering::Relaxed);
    }

    /// Waits until it is sent, if one is expected, and its client has closed the connection, as containerd does then. At
    /// most for `limit`: a client that is gone takes no answer, and another may never close.
    ///
    /// A Go client whose connection ends before it has looked at the answer may take the end for the outcome: its call
    /// fails although it was answered.
    pub async fn sent(&self, limit: Duration) {
        if self.stream.load(Ordering::Relaxed) == 0 {
            return;
        }
        let taken = async {
            self.sent.notified().await;
            self.taken.notified().await;
        };
        let _ = timeout(limit, taken).await;
    }

    /// Whether a frame of `stream` that was sent just now is the last answer.
    fn frame(&self, stream: u32) -> bool {
        let last = stream != 0 && self.stream.load(Ordering::Relaxed) == stream;
        if last {
            self.sent.notify_one();
        }
        last
    }
}

/// The connections that come in.
pub struct Incoming<F> {
    listener: UnixListener,
    last: Arc<LastAnswer>,
    arrived: F,
    pause: Option<Pin<Box<Sleep>>>,
}

impl<F: FnMut()> Incoming<F> {
    /// Takes connections from `listener`.
    pub fn new(listener: UnixListener, last: Arc<LastAnswer>, arrived: F) -> Self {
        Self { listener, last, arrived, pause: None }
    }
}

impl<F: FnMut() + Unpin> Stream for Incoming<F> {
    type Item = io::Result<Watched>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(pause) = &mut self.pause {
                ready!(pause.as_mut().poll(cx));
                self.pause = None;
            }
            match ready!(self.listener.poll_accept(cx)) {
                Ok((stream, _)) => {
                    (self.arrived)();
                    let last = Arc::clone(&self.last);
                    return Poll::Ready(Some(Ok(Watched::new(stream, last))));
                }
                // Too many open files, or no memory: the server would ask again at once.
                Err(error) => {
                    log::warn!("accept a connection: {error}");
                    self.pause = Some(Box::pin(sleep(NO_ROOM)));
                }
            }
        }
    }
}

pub struct Watched {
    /// Dropped before the descriptor is closed.
    _unread: watchdog::Connection,
    stream: UnixStream,
    frames: Frames,
    last: Arc<LastAnswer>,
    /// Whether the last answer went over this connection.
    answered: bool,
}

impl Watched {
    fn new(stream: UnixStream, last: Arc<LastAnswer>) -> Self {
        let unread = watchdog::Connection::new(stream.as_raw_fd());
        Self { _unread: unread, stream, frames: Frames::default(), last, answered: false }
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = ready!(Pin::new(&mut self.stream).poll_read(cx, buffer));
        memory::worked();
        if self.answered && (read.is_err() || buffer.filled().len() == before) {
            self.last.taken.notify_one();
        }
        Poll::Ready(read)
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let Self { stream, frames, last, answered, .. } = &mut *self;
        let written = ready!(Pin::new(stream).poll_write(cx, bytes))?;
        memory::worked();
        let sent = bytes.get(..written).unwrap_or(bytes);
        frames.pass(sent, |stream| *answered |= last.frame(stream));
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Follows the frames of ttrpc in a stream of bytes: four bytes of length, four of the stream's number, two more,
/// then the message.
#[derive(Default)]
struct Frames {
    header: [u8; 10],
    have: usize,
    body: usize,
}

impl Frames {
    /// Calls `whole` with the number of each stream whose frame ends in `bytes`.
    fn pass(&mut self, mut bytes: &[u8], mut whole: impl FnMut(u32)) {
        while let Some((first, rest)) = bytes.split_first() {
            if let Some(place) = self.header.get_mut(self.have) {
                *place = *first;
                self.have += 1;
                bytes = rest;
                let [a, b, c, d, ..] = self.header;
                self.body = u32::from_be_bytes([a, b, c, d]) as usize;
            } else {
                let take = self.body.min(bytes.len());
                self.body -= take;
                bytes = bytes.get(take..).unwrap_or_default();
            }
            if self.have == self.header.len() && self.body == 0 {
                let [_, _, _, _, e, f, g, h, ..] = self.header;
                whole(u32::from_be_bytes([e, f, g, h]));
                self.have = 0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn frames_are_followed_however_they_are_cut(
            frames in proptest::collection::vec((any::<u32>(), 0_usize..40), 0..20),
            cut in 1_usize..50,
        ) {
            let mut bytes = Vec::new();
            for (stream, length) in &frames {
                bytes.extend(u32::try_from(*length).unwrap().to_be_bytes());
                bytes.extend(stream.to_be_bytes());
                bytes.extend([2, 0]);
                bytes.extend(vec![0xff; *length]);
            }
            let (mut follower, mut seen) = (Frames::default(), Vec::new());
            bytes.chunks(cut).for_each(|chunk| follower.pass(chunk, |stream| seen.push(stream)));
            prop_assert_eq!(seen, frames.iter().map(|(stream, _)| *stream).collect::<Vec<_>>());
        }
    }

    #[tokio::test]
    async fn the_last_answer_is_known_to_be_sent_and_taken() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let last = Arc::new(LastAnswer::default());
        let (stream, peer) = UnixStream::pair().unwrap();
        let mut watched = Watched::new(stream, Arc::clone(&last));
        let waiting = tokio::spawn({
            let last = Arc::clone(&last);
            last.expect(3);
            async move { last.sent(Duration::from_mins(1)).await }
        });
        watched.write_all(&[0, 0, 0, 1, 0, 0, 0, 5, 2, 0, 9]).await.unwrap();
        watched.write_all(&[0, 0, 0, 1, 0, 0, 0, 3, 2, 0, 9]).await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(!waiting.is_finished(), "its client has not closed yet");
        drop(peer);
        let _ = watched.read(&mut [0; 8]).await;
        timeout(Duration::from_secs(5), waiting).await.unwrap().unwrap();
    }
}
