//! `binary://`: a program that takes the output of a container.

use std::{
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::process::CommandExt,
    },
    process::{Command, Stdio},
    time::Duration,
};

use mooring::{
    container::Pinned,
    process::{Exited, Reaper},
    sys::watched,
};
use rustix::{io::fcntl_dupfd_cloexec, process::Signal};
use tokio::{io::Interest, time::timeout};

use super::super::Error;
use super::{Owner, uri::Program};

/// How long it may take to say that it is ready.
const READY: Duration = Duration::from_secs(10);
/// How long it may take to end by itself, once all output has been written.
const FINISH: Duration = Duration::from_secs(1);
/// How long it may take to end when it is asked to.
const PATIENCE: Duration = Duration::from_secs(12);

pub(super) struct Logger {
    exited: Exited,
    process: Option<Pinned>,
}

impl Logger {
    /// Starts it with the reading ends as descriptors 3 and 4, and waits until it is ready.
    pub(super) async fn start(
        program: &Program,
        stdout: &OwnedFd,
        stderr: &OwnedFd,
        owner: &Owner<'_>,
        reaper: &Reaper,
    ) -> Result<Self, Error> {
        let (ready, tell) = rustix::pipe::pipe_with(
            rustix::pipe::PipeFlags::CLOEXEC | rustix::pipe::PipeFlags::NONBLOCK,
        )
        .map_err(|error| Error::at("make", "pipe")(error.into()))?;
        let fail = |action| Error::at(action, &program.path);
        // Out of the way of the numbers that they are to get.
        let high = |fd: &OwnedFd| {
            fcntl_dupfd_cloexec(fd, 16).map_err(|error| fail("start log program")(error.into()))
        };
        let ends = [high(stdout)?, high(stderr)?, high(&tell)?];
        let mut command = Command::new(&program.path);
        command
            .args(&program.arguments)
            .env_clear()
            .env("CONTAINER_ID", owner.container)
            .env("CONTAINER_NAMESPACE", owner.namespace)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0);
        let numbers = ends.each_ref().map(AsRawFd::as_raw_fd);
        // SAFETY: between fork and exec only dup2 is called, which is async-signal-safe; the descriptors are open
        // in the parent until after the spawn, and none of them is one of the three targets.
        unsafe {
            command.pre_exec(move || {
                for (from, to) in numbers.into_iter().zip(3..) {
                    if libc::dup2(from, to) < 0 {
                        return Err(io::Error::last_os_error());
                    }
                }
                Ok(())
            });
        }
        let (exited, child) = reaper.spawn(&mut command).map_err(fail("start log program"))?;
        drop((child, ends, tell));
        let process = Pinned::new(exited.pid(), None).map_err(fail("hold log program"))?;
        let logger = Self { exited, process };
        let spoke = timeout(READY, first_byte(ready)).await;
        match spoke {
            Ok(Ok(true)) => Ok(logger),
            Ok(Ok(false)) if !program.speaks => Ok(logger),
            Ok(Err(error)) => Err(fail("wait for log program")(error)),
            Ok(Ok(false)) => Err(fail("wait for log program")(io::Error::other(
                "it did not say that it is ready",
            ))),
            Err(_) => {
                Err(Error::Late(format!("readiness of log program {}", program.path.display())))
            }
        }
    }

    /// Lets it end: it has seen the end of its input by now, unless somebody else holds the output.
    pub(super) async fn end(mut self) {
        if timeout(FINISH, self.exited.wait()).await.is_ok() {
            return;
        }
        self.signal(Signal::TERM);
        if timeout(PATIENCE, self.exited.wait()).await.is_err() {
            self.signal(Signal::KILL);
        }
    }

    fn signal(&self, signal: Signal) {
        if let Some(process) = self.process.as_ref().filter(|_| self.exited.now().is_none())
            && let Err(error) = process.signal(signal)
        {
            log::warn!("signal log program: {error}");
        }
    }
}

impl Drop for Logger {
    fn drop(&mut self) {
        // Given up before its end: nobody would ever end it.
        self.signal(Signal::TERM);
    }
}

async fn first_byte(ready: OwnedFd) -> io::Result<bool> {
    let ready = watched(ready, Interest::READABLE)?;
    loop {
        let mut guard = ready.readable().await?;
        if let Ok(read) = guard.try_io(|end| Ok(rustix::io::read(end.get_ref(), &mut [0; 1])?)) {
            return read.map(|count| count > 0);
        }
    }
}
