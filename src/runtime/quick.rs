//! What runc does by a few system calls, done without running runc.
//!
//! Both functions look at runc's state folder first and decline (`Ok(false)`) when anything in it is not as they know
//! it: then the runtime itself is called.

use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Deserialize;
use serde_json::Value;
use tokio::{
    net::unix::pipe,
    time::{Instant, sleep},
};

use super::{Error, RuntimeSettings};
use crate::{cgroup::Cgroup, id::Id, process::Exited, sys::identity::is_alive};

/// How long an init that has been told to may take to become its program before it counts as started all the same.
const BECOMES: Duration = Duration::from_millis(200);

/// What is read of runc's `state.json`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct State {
    pub init_process_pid: i32,
    /// Its start time, in clock ticks since boot: field 22 of `/proc/PID/stat`.
    pub init_process_start: u64,
    cgroup_paths: std::collections::BTreeMap<String, PathBuf>,
    intel_rdt_path: String,
    rootless: bool,
    config: Config,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Config {
    #[serde(rename = "Hooks")]
    hooks: Value,
    #[serde(rename = "intelRdt")]
    intel_rdt: Value,
    cgroups: Value,
}

impl State {
    /// Reads runc's state of a container. `None` when there is none, or none that is understood.
    pub fn read(settings: &RuntimeSettings, id: &Id) -> Option<Self> {
        Self::find(settings, id).ok().flatten()
    }

    /// The same, where it matters that a state which cannot be read is not taken for none.
    pub fn find(settings: &RuntimeSettings, id: &Id) -> std::io::Result<Option<Self>> {
        match fs::read(settings.root.join(id).join("state.json")) {
            Ok(text) => Ok(serde_json::from_slice(&text).ok()),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The container's groups as runc made them.
    pub fn cgroup(&self) -> Cgroup {
        let mut group = Cgroup::default();
        for (controller, path) in &self.cgroup_paths {
            // A hierarchy's own root is never a container's.
            if !path.join("cgroup.procs").exists()
                || !path.parent().is_some_and(|up| up.join("cgroup.procs").exists())
            {
                continue;
            }
            if controller.is_empty() {
                group.v2 = Some(path.clone());
            } else {
                group.v1.insert(controller.clone(), path.clone());
            }
        }
        group
    }

    fn has_hook(&self, names: &[&str]) -> bool {
        names.iter().any(|name| {
            self.config.hooks.get(name).is_some_and(|hooks| match hooks {
                Value::Null => false,
                Value::Array(list) => !list.is_empty(),
                _ => true,
            })
        })
    }

    fn is_plain(&self) -> bool {
        let systemd = ["systemd", "Systemd"].iter().any(|key| {
            self.config.cgroups.get(key).is_some_and(|value| value != &Value::Bool(false))
        });
        self.init_process_pid > 0
            && !systemd
            && !self.rootless
            && self.intel_rdt_path.is_empty()
            && self.config.intel_rdt.is_null()
    }
}

/// What a process is called, which changes with its program; nothing once it has ended. Neither a file system nor the
/// process's memory is looked at, so that no container can delay it.
fn name(pid: i32) -> Option<Vec<u8>> {
    fs::read(format!("/proc/{pid}/comm")).ok()
}

/// Starts a container that runc created: its init waits until somebody reads from a fifo, and `runc start` is
/// that reader. Fails with [`Error::Ended`] when the init ends first.
pub async fn start(settings: &RuntimeSettings, id: &Id, init: &Exited) -> Result<bool, Error> {
    let fifo = settings.root.join(id).join("exec.fifo");
    match State::read(settings, id) {
        Some(state)
            if state.init_process_pid == init.pid()
                && !state.has_hook(&["poststart", "startContainer"]) => {}
        _ => return Ok(false),
    }
    let before = name(init.pid());
    let late = sleep(settings.timeout);
    tokio::pin!(late);
    // Opened without waiting; it becomes readable when the init has opened its end and written.
    let Ok(reader) = pipe::OpenOptions::new().open_receiver(&fifo) else { return Ok(false) };
    let mut init = init.clone();
    let mut byte = [0; 16];
    loop {
        let ended = tokio::select! {
            ready = reader.readable() => ready.map(|()| false).map_err(|source| failed("read", &fifo, source))?,
            _ = init.wait() => true,
            () = &mut late => return Err(Error::late("start", id, settings.timeout)),
        };
        // An init that has ended may have been started first, and been quick: then its byte is here.
        let read = if ended {
            rustix::io::read(&reader, &mut byte).map_err(Into::into)
        } else {
            reader.try_read(&mut byte)
        };
        match read {
            Ok(1..) => break,
            Err(error) if error.kind() == ErrorKind::WouldBlock && !ended => {}
            Err(source) if source.kind() != ErrorKind::WouldBlock => {
                return Err(failed("read", &fifo, source));
            }
            // It closed its end and wrote nothing: it is ending.
            Ok(0) | Err(_) => {
                init.wait().await;
                return Err(Error::Ended);
            }
        }
    }
    // Who is told that the container runs may freeze or checkpoint it at once, and shall find the program.
    let until = Instant::now() + BECOMES;
    while name(init.pid()) == before && Instant::now() < until {
        sleep(Duration::from_millis(1)).await;
    }
    match fs::remove_file(&fifo) {
        Err(source) if source.kind() != ErrorKind::NotFound => Err(failed("remove", &fifo, source)),
        _ => Ok(true),
    }
}

/// Removes what runc holds of a container whose init has ended: its groups, with whatever is left in them, and its
/// state folder.
pub async fn delete(settings: &RuntimeSettings, id: &Id, deadline: Instant) -> Result<bool, Error> {
    if settings.systemd_cgroup {
        return Ok(false);
    }
    let Some(state) = State::read(settings, id) else { return Ok(false) };
    if !state.is_plain() || state.has_hook(&["poststop"]) {
        return Ok(false);
    }
    let group = state.cgroup();
    let alive = is_alive(state.init_process_pid, state.init_process_start);
    // What cannot be found out is the runtime's to find out.
    if !matches!(alive, Ok(false)) {
        return Ok(false);
    }
    if group.pids()?.is_empty() {
        // The usual case: everything ended with the init.
    } else {
        group.kill_all()?;
    }
    group.remove(deadline).await?;
    let folder = settings.root.join(id);
    match fs::remove_dir_all(&folder) {
        Err(source) if source.kind() != ErrorKind::NotFound => {
            Err(Error::File { verb: "delete", action: "remove", path: folder, source })
        }
        _ => Ok(true),
    }
}

fn failed(action: &'static str, path: &Path, source: std::io::Error) -> Error {
    Error::File { verb: "start", action, path: path.to_owned(), source }
}
