//! An OCI runtime whose containers are a sleeping process each, and a state like runc's.

use std::{
    fs, io,
    os::fd::OwnedFd,
    path::Path,
    process::{Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;
use mooring::{
    container::start_time,
    id::Id,
    runtime::{Checkpoint, Create, Error, Exec, OciRuntime, Restore, RuntimeSettings},
};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde_json::json;

use super::confined::PROGRAM;

/// How long a process sleeps that nobody ends, in seconds.
const SLEEP: &str = "20";

/// The processes of one conversation.
#[derive(Clone, Default)]
pub struct Sleepers(Arc<Mutex<Vec<OwnedFd>>>);

impl Sleepers {
    /// Ends all, as if by themselves.
    pub fn end(&self) {
        for process in self.0.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            // One that has ended already is as it should be.
            let _ = pidfd_send_signal(process, Signal::KILL);
        }
    }

    fn start(&self, verb: &'static str) -> Result<i32, Error> {
        let mut command = Command::new(PROGRAM);
        command.arg(SLEEP).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().map_err(refused(verb))?;
        let pid =
            i32::try_from(child.id()).map_err(|error| refused(verb)(io::Error::other(error)))?;
        // Whether or not it has been reaped since, this is it or nothing.
        let held = Pid::from_raw(pid).map(|pid| pidfd_open(pid, PidfdFlags::empty()));
        let held = held.and_then(Result::ok);
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend(held);
        Ok(pid)
    }
}

pub struct Sleeping {
    pub settings: RuntimeSettings,
    pub sleepers: Sleepers,
}

fn refused(verb: &'static str) -> impl Fn(io::Error) -> Error {
    move |error| Error::Refused { verb, complaint: error.to_string() }
}

#[async_trait]
impl OciRuntime for Sleeping {
    async fn create(&self, id: &Id, _: &Path, create: Create) -> Result<i32, Error> {
        let refused = refused("create");
        if create.console.is_some() {
            return Err(refused(io::Error::other("there are no terminals here")));
        }
        let state = self.settings.root.join(id);
        // Only in the place's folder; wherever else a client wants it, it cannot be made.
        fs::create_dir_all(&state).map_err(&refused)?;
        let pid = self.sleepers.start("create")?;
        let start = start_time(pid).map_err(&refused)?;
        let text =
            json!({"init_process_pid": pid, "init_process_start": start, "cgroup_paths": {}});
        fs::write(state.join("state.json"), text.to_string()).map_err(&refused)?;
        Ok(pid)
    }

    async fn start(&self, _: &Id, _: &Path) -> Result<(), Error> {
        Ok(())
    }

    async fn checkpoint(&self, _: &Id, _: &Path, _: &Checkpoint) -> Result<(), Error> {
        Ok(())
    }

    async fn restore(&self, _: &Id, _: &Path, _: Restore) -> Result<i32, Error> {
        Err(refused("restore")(io::Error::other("there are no checkpoints here")))
    }

    async fn kill(&self, _: &Id, _: &Path, _: i32, _: bool) -> Result<(), Error> {
        Ok(())
    }

    async fn delete(&self, id: &Id, _: &Path) -> Result<(), Error> {
        fs::remove_dir_all(self.settings.root.join(id)).map_err(refused("delete"))
    }

    async fn exec(&self, _: &Id, _: &Id, _: &Path, exec: Exec) -> Result<i32, Error> {
        if exec.console.is_some() {
            return Err(refused("exec")(io::Error::other("there are no terminals here")));
        }
        self.sleepers.start("exec")
    }

    async fn pause(&self, _: &Id, _: &Path) -> Result<(), Error> {
        Ok(())
    }

    async fn resume(&self, _: &Id, _: &Path) -> Result<(), Error> {
        Ok(())
    }

    async fn update(&self, _: &Id, _: &Path, _: &[u8]) -> Result<(), Error> {
        Ok(())
    }
}
