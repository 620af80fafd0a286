//! Terminals: the OCI runtime makes one inside the container and sends its master over a socket.

use std::{
    fs, io,
    io::IoSliceMut,
    mem::MaybeUninit,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use rustix::{
    net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg},
    termios::{Winsize, tcsetwinsize},
};
use tokio::{io::Interest, net::UnixListener, task::JoinHandle};

use super::super::Error;

/// A socket that waits for one terminal. Its folder is only ours, and goes with it.
pub(in super::super) struct Listener {
    socket: UnixListener,
    folder: PathBuf,
}

impl Listener {
    /// Makes the socket in a new folder below `run`: a bundle's path can be longer than a socket's may be.
    pub(in super::super) fn new(run: &Path) -> Result<Self, Error> {
        fs::create_dir_all(run).map_err(Error::at("make", run))?;
        let template = run.join("tty-XXXXXX");
        let folder = nix::unistd::mkdtemp(&template)
            .map_err(|error| Error::at("make", &template)(error.into()))?;
        let path = folder.join("s");
        match UnixListener::bind(&path) {
            Ok(socket) => Ok(Self { socket, folder }),
            Err(error) => {
                // Nothing is in it.
                let _ = fs::remove_dir(&folder);
                Err(Error::at("bind console socket", path)(error))
            }
        }
    }

    pub(in super::super) fn path(&self) -> PathBuf {
        self.folder.join("s")
    }

    /// Waits for the terminal's master.
    pub(in super::super) async fn receive(&self) -> Result<OwnedFd, Error> {
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
        // What is left over is an empty folder in a volatile place.
        let _ = fs::remove_file(self.path());
        let _ = fs::remove_dir(&self.folder);
    }
}

/// A process's terminal. Dropping it (and the copies) hangs up.
pub(super) struct Console(OwnedFd, Option<JoinHandle<()>>);

impl Console {
    pub(super) fn new(master: OwnedFd, typed: Option<JoinHandle<()>>) -> Self {
        Self(master, typed)
    }

    pub(super) fn resize(&self, width: u16, height: u16) -> io::Result<()> {
        let size = Winsize { ws_row: height, ws_col: width, ws_xpixel: 0, ws_ypixel: 0 };
        Ok(tcsetwinsize(&self.0, size)?)
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        if let Some(typed) = &self.1 {
            typed.abort();
        }
    }
}
