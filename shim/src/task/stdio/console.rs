//! Terminals: the OCI runtime makes one inside the container and sends its master over a socket.

use std::{
    fs, io,
    io::IoSliceMut,
    mem::MaybeUninit,
    os::{fd::OwnedFd, unix::fs::DirBuilderExt},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use rustix::{
    net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg},
    termios::{Winsize, tcsetwinsize},
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    net::UnixListener,
    task::JoinHandle,
    time::timeout,
};

use super::super::Error;

/// How long the runtime's terminal may take to arrive once the runtime has succeeded.
const TERMINAL: Duration = Duration::from_secs(10);

/// Tells the sockets of this process apart.
static NUMBER: AtomicU32 = AtomicU32::new(0);

/// A socket that waits for one terminal.
pub(in super::super) struct Listener {
    socket: UnixListener,
    path: PathBuf,
}

impl Listener {
    /// Makes the socket in `folder`, which is made where it is missing: a bundle's path can be longer than a socket's
    /// may be. The folder goes with its last socket, or with the release of the container.
    pub(in super::super) fn new(folder: &Path) -> Result<Self, Error> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(Error::at("make", folder))?;
        let path = folder.join(NUMBER.fetch_add(1, Ordering::Relaxed).to_string());
        let bound = UnixListener::bind(&path).or_else(|error| match error.kind() {
            // An earlier shim of the same container was killed before it took its terminal.
            io::ErrorKind::AddrInUse => {
                fs::remove_file(&path)?;
                UnixListener::bind(&path)
            }
            _ => Err(error),
        });
        match bound {
            Ok(socket) => Ok(Self { socket, path }),
            Err(error) => Err(Error::at("bind console socket", path)(error)),
        }
    }

    /// Runs a call of the runtime that sends a terminal; answers what it started, and the terminal.
    pub(in super::super) async fn during<F>(&self, call: F) -> Result<(i32, OwnedFd), Error>
    where
        F: Future<Output = Result<i32, Error>> + Send,
    {
        tokio::pin!(call);
        let receive = self.receive();
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

    pub(in super::super) fn path(&self) -> PathBuf {
        self.path.clone()
    }

    /// Waits for the terminal's master.
    async fn receive(&self) -> Result<OwnedFd, Error> {
        let fail = || Error::at("receive a terminal from", self.path());
        let (stream, _) = self.socket.accept().await.map_err(fail())?;
        stream
            .async_io(Interest::READABLE, || {
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
                let mut control = RecvAncillaryBuffer::new(&mut space);
                // The runtime sends the terminal's name along, of which nothing is made.
                let mut name = [0; 4096];
                recvmsg(
                    &stream,
                    &mut [IoSliceMut::new(&mut name)],
                    &mut control,
                    RecvFlags::CMSG_CLOEXEC,
                )?;
                let sent = control.drain().find_map(|message| match message {
                    RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
                    _ => None,
                });
                sent.ok_or_else(|| {
                    io::Error::new(io::ErrorKind::InvalidData, "no descriptor was sent")
                })
            })
            .await
            .map_err(fail())
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // What is left over goes with the container.
        let _ = fs::remove_file(&self.path);
        // Another terminal of the container may be on its way.
        let _ = self.path.parent().map(fs::remove_dir);
    }
}

/// A process's terminal. Dropping it (and the copies) hangs up.
pub(super) struct Console(Arc<AsyncFd<OwnedFd>>, Option<JoinHandle<()>>);

impl Console {
    pub(super) fn new(master: Arc<AsyncFd<OwnedFd>>, typed: Option<JoinHandle<()>>) -> Self {
        Self(master, typed)
    }

    pub(super) fn resize(&self, width: u16, height: u16) -> io::Result<()> {
        let size = Winsize { ws_row: height, ws_col: width, ws_xpixel: 0, ws_ypixel: 0 };
        Ok(tcsetwinsize(self.0.get_ref(), size)?)
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        if let Some(typed) = &self.1 {
            typed.abort();
        }
    }
}
