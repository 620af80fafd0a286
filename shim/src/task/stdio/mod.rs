//! A process's input and output.
//!
//! **Fifos are not copied.** containerd's client makes fifos and reads them; the process gets the fifo itself. The
//! shim opens it for reading and writing for a moment (which never blocks and lets the client's own opening succeed),
//! takes a writing description for the process, keeps one that reads, and closes the first. Then
//! - a client that goes away does not end the process by SIGPIPE: the shim's end still reads, in name;
//! - the client sees the end of the output when the last process that holds it ends: the shim never writes;
//! - of standard input the shim keeps a writing end until `CloseIO`, so that clients may come and go.
//!
//! No thread, no buffer, no copy. A `binary://` program gets the reading ends of pipes.
//!
//! **What is copied**, by the shim's one thread, a piece at a time:
//! - the output of execs ([`Mode::RelayOutput`]): what an exec leaves behind may hold its output for ever, and Delete
//!   must be able to close what the client reads;
//! - everything of a process under an SELinux label, or under an AppArmor profile other than containerd's own, which
//!   would have its use of an inherited fifo judged by the fifo's path ([`Mode::Relay`]);
//! - what goes to a file: whoever holds a log itself can truncate and forge it;
//! - a terminal, between its master and the fifos.
//!
//! Copies run until their source ends; Delete waits for them, at most ten seconds.

mod binary;
mod console;
mod copy;
mod fifo;
mod uri;

use std::{
    fs::File,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use mooring::{process::Reaper, runtime, sys::watched};
use rustix::fs::{Gid, Uid};
use tokio::{
    io::Interest,
    task::{AbortHandle, JoinHandle},
    time::timeout,
};

use console::Console;
pub(super) use console::Listener;
use copy::{Awaited, Lingering, Sink};
use fifo::Output;
use uri::Target;

use super::Error;

/// How long Delete waits for output that is still on its way.
const DRAIN: Duration = Duration::from_secs(10);

/// Where a process's input comes from and its output goes, as the client says it: paths of fifos, or URIs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Streams {
    /// Standard input; empty for none.
    pub stdin: String,
    /// Standard output; empty for none.
    pub stdout: String,
    /// Standard error; empty for none.
    pub stderr: String,
    /// Whether the process has a terminal.
    pub terminal: bool,
}

/// How a process without a terminal is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// It gets the fifos themselves.
    Direct,
    /// It gets the fifo of its input; its output is copied.
    RelayOutput,
    /// It gets pipes, and the shim copies.
    Relay,
}

/// Whom the streams are for.
pub(super) struct Owner<'a> {
    pub(super) namespace: &'a str,
    pub(super) container: &'a str,
    /// The ids that the process runs under on the host, if the fifos are to be given to them.
    pub(super) ids: Option<(u32, u32)>,
}

/// What the shim keeps of a process's streams until Delete.
#[derive(Default)]
pub(super) struct Io {
    stdin: Mutex<Option<OwnedFd>>,
    readers: Vec<OwnedFd>,
    copies: Vec<JoinHandle<()>>,
    lingering: Lingering,
    logger: Option<binary::Logger>,
    console: Option<Console>,
}

impl Io {
    /// Closes the process's standard input.
    pub(super) fn close_stdin(&self) {
        self.stdin.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Sets the terminal's size. `None`: there is no terminal.
    pub(super) fn resize(&self, width: u16, height: u16) -> Option<std::io::Result<()>> {
        self.console.as_ref().map(|console| console.resize(width, height))
    }

    fn keep_stdin(&self, writer: OwnedFd) {
        *self.stdin.lock().unwrap_or_else(PoisonError::into_inner) = Some(writer);
    }

    /// Where a copy to a fifo goes.
    fn fifo(
        &mut self,
        writer: OwnedFd,
        kept: OwnedFd,
        met: bool,
        path: &Path,
    ) -> Result<Sink, Error> {
        copy::set_nonblocking(&writer, path)?;
        let awaited = if met {
            self.readers.push(kept);
            None
        } else {
            Some(Awaited { kept, lingering: Arc::clone(&self.lingering) })
        };
        Sink::descriptor(writer, awaited, path)
    }

    /// Whether everything that the process has put out has been carried to where it goes, and its client has come.
    pub(super) fn is_over(&self) -> bool {
        let lingering = self.lingering.lock().unwrap_or_else(PoisonError::into_inner);
        self.logger.is_none()
            && self.copies.iter().all(JoinHandle::is_finished)
            && lingering.iter().all(AbortHandle::is_finished)
    }

    /// Waits for output that is on its way, then lets go of everything.
    pub(super) async fn drain(mut self) {
        self.close_stdin();
        let copies = std::mem::take(&mut self.copies);
        let stops: Vec<_> = copies.iter().map(JoinHandle::abort_handle).collect();
        let all = async {
            for copy in copies {
                // A copy that panicked has nothing more to bring.
                let _ = copy.await;
            }
        };
        if timeout(DRAIN, all).await.is_err() {
            log::warn!("output was still coming after {DRAIN:?}; it is cut off");
        }
        stops.iter().for_each(AbortHandle::abort);
        self.readers.clear();
        if let Some(logger) = self.logger.take() {
            logger.end().await;
        }
    }
}

impl Drop for Io {
    fn drop(&mut self) {
        for copy in &self.copies {
            copy.abort();
        }
        let lingering = self.lingering.lock().unwrap_or_else(PoisonError::into_inner);
        lingering.iter().for_each(AbortHandle::abort);
    }
}

/// Opens the streams of a process without a terminal: what the process gets, and what the shim keeps.
pub(super) async fn open(
    streams: &Streams,
    mode: Mode,
    owner: &Owner<'_>,
    reaper: &Reaper,
) -> Result<(runtime::Stdio, Io), Error> {
    let mut stdio = runtime::Stdio::default();
    let mut io = Io::default();
    if !streams.stdin.is_empty() {
        let path = fifo_path(&streams.stdin)?;
        let (input, keeper) = fifo::input(&path)?;
        if let Some(keeper) = keeper {
            io.keep_stdin(keeper);
        }
        give(&input, owner)?;
        stdio.stdin = Some(match mode {
            Mode::Direct | Mode::RelayOutput => input,
            Mode::Relay => {
                let (read, write) = pipe(owner)?;
                copy::set_nonblocking(&input, &path)?;
                copy::set_nonblocking(&write, &path)?;
                io.copies.push(copy::start(input, Sink::descriptor(write, None, &path)?, &path)?);
                read
            }
        });
    }
    if let Target::Binary(program) = uri::parse(&streams.stdout)? {
        let (out_read, out_write) = pipe(owner)?;
        let (err_read, err_write) = pipe(owner)?;
        io.logger =
            Some(binary::Logger::start(&program, &out_read, &err_read, owner, reaper).await?);
        io.readers.extend([out_read, err_read]);
        stdio.stdout = Some(out_write);
        stdio.stderr = Some(err_write);
        return Ok((stdio, io));
    }
    stdio.stdout = output(&streams.stdout, mode, owner, &mut io).await?;
    stdio.stderr = output(&streams.stderr, mode, owner, &mut io).await?;
    Ok((stdio, io))
}

async fn output(
    uri: &str,
    mode: Mode,
    owner: &Owner<'_>,
    io: &mut Io,
) -> Result<Option<OwnedFd>, Error> {
    let (path, output) = match uri::parse(uri)? {
        Target::Nothing => return Ok(None),
        Target::Binary(_) => {
            return Err(Error::Invalid(format!(
                "stderr {uri:?}: a log program is named by stdout"
            )));
        }
        Target::File(path) => (path.clone(), Output::File(file(path).await?)),
        Target::Fifo(path) => {
            let output = fifo::output(&path)?;
            (path, output)
        }
    };
    let sink = match output {
        Output::Fifo { writer, kept, met } => {
            give(&writer, owner)?;
            // To a client that may come after the end of it all the output is carried.
            if mode == Mode::Direct && met {
                io.readers.push(kept);
                return Ok(Some(writer));
            }
            io.fifo(writer, kept, met, &path)?
        }
        Output::File(file) => Sink::File(Arc::new(file)),
    };
    let (read, write) = pipe(owner)?;
    copy::set_nonblocking(&read, &path)?;
    io.copies.push(copy::start(read, sink, &path)?);
    Ok(Some(write))
}

async fn file(path: PathBuf) -> Result<File, Error> {
    tokio::task::spawn_blocking(move || fifo::file(&path)).await?
}

/// Connects a terminal: its master is copied from and to where the streams say. One descriptor serves for both ways and
/// for the terminal's size.
pub(super) async fn open_terminal(
    streams: &Streams,
    master: OwnedFd,
    owner: &Owner<'_>,
    reaper: &Reaper,
) -> Result<Io, Error> {
    let terminal = Path::new("terminal");
    copy::set_nonblocking(&master, terminal)?;
    let master = watched(master, Interest::READABLE | Interest::WRITABLE);
    let master = Arc::new(master.map_err(Error::at("watch", terminal))?);
    let mut io = Io::default();
    let sink = match uri::parse(&streams.stdout)? {
        Target::Nothing => Sink::Nowhere,
        Target::Binary(program) => {
            let (out_read, out_write) = pipe(owner)?;
            let (err_read, _) = pipe(owner)?;
            io.logger =
                Some(binary::Logger::start(&program, &out_read, &err_read, owner, reaper).await?);
            io.readers.push(out_read);
            copy::set_nonblocking(&out_write, terminal)?;
            Sink::descriptor(out_write, None, terminal)?
        }
        Target::File(path) => Sink::File(Arc::new(file(path).await?)),
        Target::Fifo(path) => match fifo::output(&path)? {
            Output::Fifo { writer, kept, met } => io.fifo(writer, kept, met, &path)?,
            Output::File(file) => Sink::File(Arc::new(file)),
        },
    };
    io.copies.push(copy::carry_all(Arc::clone(&master), sink));
    if streams.stdin.is_empty() {
        io.console = Some(Console::new(master, None));
        return Ok(io);
    }
    let path = fifo_path(&streams.stdin)?;
    let (input, keeper) = fifo::input(&path)?;
    if let Some(keeper) = keeper {
        io.keep_stdin(keeper);
    }
    copy::set_nonblocking(&input, &path)?;
    // Input never ends by itself, and nobody waits for it.
    let typed = copy::start(input, Sink::Descriptor(Arc::clone(&master), None), &path)?;
    io.console = Some(Console::new(master, Some(typed)));
    Ok(io)
}

fn fifo_path(uri: &str) -> Result<PathBuf, Error> {
    match uri::parse(uri)? {
        Target::Fifo(path) | Target::File(path) => Ok(path),
        Target::Nothing | Target::Binary(_) => {
            Err(Error::Invalid(format!("stdin {uri:?} is no fifo")))
        }
    }
}

fn pipe(owner: &Owner<'_>) -> Result<(OwnedFd, OwnedFd), Error> {
    let ends = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .map_err(|error| Error::at("make", "pipe")(error.into()))?;
    give(&ends.0, owner)?;
    Ok(ends)
}

/// Gives a fifo or pipe to the ids that the process runs under, so that it can open `/dev/stdout` again.
fn give(descriptor: &OwnedFd, owner: &Owner<'_>) -> Result<(), Error> {
    let Some((uid, gid)) = owner.ids else { return Ok(()) };
    rustix::fs::fchown(descriptor, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
        .map_err(|error| Error::at("change the owner of", "a stream")(error.into()))
}
