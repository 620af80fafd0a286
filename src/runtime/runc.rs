//! runc's command line, which crun has too.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use async_trait::async_trait;
use rustix::process::Signal;

use super::{
    Checkpoint, Create, Error, Exec, OciRuntime, Restore, RuntimeSettings, checkpoint, criu,
    launch::{Call, Stdio, program},
    quick,
};
use crate::{id::Id, process::Reaper, sys::identity::Pinned};

/// A runtime with runc's command line.
#[derive(Clone)]
pub struct Runc {
    settings: RuntimeSettings,
    reaper: Reaper,
}

impl Runc {
    /// The runtime that `settings` name; its calls are children of this process.
    pub fn new(settings: RuntimeSettings, reaper: Reaper) -> Self {
        Self { settings, reaper }
    }

    pub fn settings(&self) -> &RuntimeSettings {
        &self.settings
    }

    /// A call in the bundle, as containerd's own shims make it: wrappers of a runtime rely on it. A bundle that is gone
    /// is no place.
    fn call<'a>(
        &self,
        verb: &'static str,
        id: &'a Id,
        bundle: &Path,
        log: Option<&'a Path>,
    ) -> Call<'a> {
        let mut command = program(&self.settings.binary);
        command.current_dir(if bundle.is_dir() { bundle } else { Path::new("/") });
        command.arg("--root").arg(&self.settings.root);
        if let Some(log) = log {
            command.arg("--log").arg(log).args(["--log-format", "json"]);
        }
        if self.settings.systemd_cgroup {
            command.arg("--systemd-cgroup");
        }
        command.arg(verb);
        Call { verb, id, limit: self.settings.timeout, command, log }
    }

    async fn simple(
        &self,
        verb: &'static str,
        id: &Id,
        bundle: &Path,
        arguments: &[&str],
        input: &[u8],
    ) -> Result<(), Error> {
        let log = log_of(bundle);
        let mut call = self.call(verb, id, bundle, log.as_deref());
        call.command.args(arguments.iter().take_while(|one| one.starts_with('-')));
        call.command.arg(id.as_str());
        call.command.args(arguments.iter().skip_while(|one| one.starts_with('-')));
        call.run(&self.reaper, input).await
    }
}

impl Runc {
    /// The built-in runtime has no checkpoints.
    fn can_checkpoint(&self, verb: &'static str) -> Result<(), Error> {
        if self.settings.is_builtin() {
            return Err(Error::NoCheckpoints { verb, binary: self.settings.binary.clone() });
        }
        Ok(())
    }

    /// Kills what an exec has left that failed after it had started its process. Its number counts only while it is in
    /// the container's group.
    fn end_left(&self, id: &Id, pid: i32) {
        let Some(state) = quick::State::read(&self.settings, id) else { return };
        let killed = Pinned::new(pid, None).and_then(|pinned| match pinned {
            Some(pinned) if state.cgroup().pids().is_ok_and(|all| all.contains(&pid)) => {
                pinned.signal(Signal::KILL)
            }
            _ => Ok(false),
        });
        if let Err(error) = killed {
            log::warn!("container {id}: kill process {pid} of an exec that failed: {error}");
        }
    }
}

/// The runtime's log in the bundle, if there is a bundle still: `delete` may come after it has gone.
fn log_of(bundle: &Path) -> Option<PathBuf> {
    bundle.is_dir().then(|| bundle.join("log.json"))
}

/// A file for one call, gone afterwards.
pub(super) struct Scratch(pub(super) PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        // The runtime may never have come to write it.
        let _ = fs::remove_file(&self.0);
    }
}

/// The same failure with what criu's own log says of it: the runtime knows only that criu failed.
fn with_log_of_criu(error: Error, log: &Path) -> Error {
    let Error::Refused { verb, complaint } = error else { return error };
    let Some(said) = checkpoint::complaints(log) else {
        return Error::Refused { verb, complaint };
    };
    let first = complaint.lines().next().unwrap_or_default();
    Error::Refused { verb, complaint: format!("{first}: {said} (log: {})", log.display()) }
}

fn read_pid(verb: &'static str, path: &Path) -> Result<i32, Error> {
    let text = fs::read_to_string(path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => {
            Error::Garbage { verb, what: "it reported success and wrote no process id".into() }
        }
        _ => Error::File { verb, action: "read", path: path.to_owned(), source },
    })?;
    match text.trim().parse() {
        Ok(pid) if pid > 0 => Ok(pid),
        _ => Err(Error::Garbage {
            verb,
            what: format!("{:?} is no process id", text.chars().take(40).collect::<String>()),
        }),
    }
}

#[async_trait]
impl OciRuntime for Runc {
    async fn create(&self, id: &Id, bundle: &Path, create: Create) -> Result<i32, Error> {
        let (log, pid) = (bundle.join("log.json"), bundle.join("init.pid"));
        let mut call = self.call("create", id, bundle, Some(&log));
        call.command.env(super::CREATES, id.as_str());
        call.command.arg("--bundle").arg(bundle).arg("--pid-file").arg(&pid);
        if self.settings.no_pivot_root {
            call.command.arg("--no-pivot");
        }
        if self.settings.no_new_keyring {
            call.command.arg("--no-new-keyring");
        }
        if let Some(console) = &create.console {
            call.command.arg("--console-socket").arg(console);
        }
        call.command.arg(id.as_str());
        call.run_with(&self.reaper, create.stdio).await?;
        read_pid("create", &pid)
    }

    async fn start(&self, id: &Id, bundle: &Path) -> Result<(), Error> {
        self.simple("start", id, bundle, &[], b"").await
    }

    async fn checkpoint(
        &self,
        id: &Id,
        bundle: &Path,
        checkpoint: &Checkpoint,
    ) -> Result<(), Error> {
        self.can_checkpoint("checkpoint")?;
        let log = log_of(bundle);
        let mut call = self.call("checkpoint", id, bundle, log.as_deref());
        let _config = criu::configure(
            &mut call,
            &self.settings,
            &checkpoint.config,
            &checkpoint.work,
            &checkpoint.config_text(),
        )?;
        criu::check_built_in(&self.settings, &self.reaper, "checkpoint").await?;
        call.command.arg("--image-path").arg(&checkpoint.images);
        call.command.arg("--work-path").arg(&checkpoint.work);
        if let Some(parent) = &checkpoint.parent {
            call.command.arg("--parent-path").arg(parent);
        }
        if checkpoint.leave_running {
            call.command.arg("--leave-running");
        }
        if let Some(mode) = &checkpoint.cgroups_mode {
            call.command.arg(format!("--manage-cgroups-mode={mode}"));
        }
        call.command.args(checkpoint.kept.arguments()).arg(id.as_str());
        let done = call.run(&self.reaper, b"").await;
        done.map_err(|error| with_log_of_criu(error, &checkpoint.work.join("dump.log")))
    }

    async fn restore(&self, id: &Id, bundle: &Path, restore: Restore) -> Result<i32, Error> {
        self.can_checkpoint("restore")?;
        let (log, pid) = (bundle.join("log.json"), bundle.join("init.pid"));
        let mut call = self.call("restore", id, bundle, Some(&log));
        let _config = criu::configure(
            &mut call,
            &self.settings,
            &restore.config,
            &restore.work,
            &restore.config_text(),
        )?;
        criu::check_built_in(&self.settings, &self.reaper, "restore").await?;
        // The number that an earlier attempt has left is nobody's.
        drop(Scratch(pid.clone()));
        call.command.arg("--image-path").arg(&restore.images).arg("--work-path").arg(&restore.work);
        call.command.arg("--bundle").arg(bundle).arg("--pid-file").arg(&pid).arg("--detach");
        if self.settings.no_pivot_root {
            call.command.arg("--no-pivot");
        }
        if let Some(console) = &restore.console {
            call.command.arg("--console-socket").arg(console);
        }
        call.command.args(restore.note.kept.arguments()).arg(id.as_str());
        let done = call.run_with(&self.reaper, restore.stdio).await;
        done.map_err(|error| with_log_of_criu(error, &restore.work.join("restore.log")))?;
        read_pid("restore", &pid)
    }

    async fn kill(&self, id: &Id, bundle: &Path, signal: i32, all: bool) -> Result<(), Error> {
        let signal = signal.to_string();
        let arguments: &[&str] = if all { &["--all", &signal] } else { &[&signal] };
        self.simple("kill", id, bundle, arguments, b"").await
    }

    async fn delete(&self, id: &Id, bundle: &Path) -> Result<(), Error> {
        match self.simple("delete", id, bundle, &["--force"], b"").await {
            Err(Error::Refused { complaint, .. }) if complaint.contains("does not exist") => Ok(()),
            answer => answer,
        }
    }

    async fn exec(&self, id: &Id, exec_id: &Id, bundle: &Path, exec: Exec) -> Result<i32, Error> {
        let file = |suffix: &str| Scratch(bundle.join(format!("exec-{exec_id}.{suffix}")));
        let (process, pid, log) = (file("json"), file("pid"), file("log"));
        let text = exec.process.to_string();
        fs::write(&process.0, text).map_err(|source| Error::File {
            verb: "exec",
            action: "write",
            path: process.0.clone(),
            source,
        })?;
        let mut call = self.call("exec", id, bundle, Some(&log.0));
        call.command.arg("--process").arg(&process.0).arg("--pid-file").arg(&pid.0).arg("--detach");
        if let Some(console) = &exec.console {
            call.command.arg("--console-socket").arg(console);
        }
        call.command.arg(id.as_str());
        let ran = call.run_with(&self.reaper, exec.stdio).await;
        let started = read_pid("exec", &pid.0);
        if let (Err(_), Ok(pid)) = (&ran, &started) {
            self.end_left(id, *pid);
        }
        ran.and(started)
    }

    async fn pause(&self, id: &Id, bundle: &Path) -> Result<(), Error> {
        self.simple("pause", id, bundle, &[], b"").await
    }

    async fn resume(&self, id: &Id, bundle: &Path) -> Result<(), Error> {
        self.simple("resume", id, bundle, &[], b"").await
    }

    async fn update(&self, id: &Id, bundle: &Path, resources: &[u8]) -> Result<(), Error> {
        self.simple("update", id, bundle, &["--resources=-"], resources).await
    }
}

impl From<Stdio> for Create {
    fn from(stdio: Stdio) -> Self {
        Self { stdio, console: None }
    }
}
