//! What may happen to a container between its creation and its end.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, SystemTime},
};

use mooring::{
    container,
    id::Id,
    nri::Event,
    process::Expecting,
    runtime::{self, Exec, quick},
};
use rustix::process::Signal;
use serde_json::Value;
use tokio::time::{Instant, timeout};

use super::{
    Ended, Error, ExecRequest,
    container::{Container, Frozen, SURVIVES, lock},
    create::expect_move,
    parties::Parties,
    process::{Life, Live, Process},
    publish, spec,
    stdio::{self, Io, Listener, Mode, Owner},
};

/// How long a deletion waits for what has been killed to be gone.
const DELETE: Duration = Duration::from_secs(10);
/// How long a repeated kill waits for the end that did not come after the first.
const LAST_MOMENT: Duration = Duration::from_secs(1);

impl Container {
    pub(super) async fn start(&self, parties: &Parties) -> Result<u32, Error> {
        let _order = self.order.lock().await;
        let live = match self.init.life() {
            Life::Created(live) => live,
            Life::Stopped(_) => {
                return Err(Error::state(&self.id, "cannot start a process that has ended"));
            }
            Life::Added(_) | Life::Running(_) => {
                return Err(Error::state(&self.id, "it is started already"));
            }
        };
        parties.pod.starts(&self.id).await?;
        let _gate = self.init.gate.lock().await;
        let mut ending = self.exited.clone();
        if !quick::start(&self.record.runtime, &self.id, &self.exited).await? {
            tokio::select! {
                done = self.runtime.start(&self.id, &self.bundle) => done?,
                // A runtime that waits for an init which is gone waits for ever.
                () = async { ending.wait().await; tokio::time::sleep(Duration::from_secs(2)).await } => {
                    return Err(runtime::Error::Ended.into());
                }
            }
        }
        let pid = live.pid.unsigned_abs();
        self.init.set_life(Life::Running(live));
        publish::started(&*parties.events, &self.id, pid);
        parties.pod.became(Event::PostStartContainer, &self.id, pid);
        if self.owns_cgroup_namespace {
            self.cgroup.delegate();
        }
        Ok(pid)
    }

    /// Task.Exec: adds a process, which [`Container::start_exec`] starts. As long as State says that the container runs
    /// one may be added, though the init may have ended and its exit wait to be told: the start says so then.
    pub(super) fn add_exec(&self, parties: &Parties, request: ExecRequest) -> Result<(), Error> {
        if !matches!(self.init.life(), Life::Created(_) | Life::Running(_)) {
            return Err(Error::state(&self.id, "cannot exec in a container that has ended"));
        }
        let mut process: Value = serde_json::from_slice(&request.process).map_err(|error| {
            Error::Invalid(format!("process of exec \"{}\": {error}", request.exec_id))
        })?;
        let Some(fields) = process.as_object_mut() else {
            return Err(Error::Invalid(format!(
                "process of exec \"{}\" is no object",
                request.exec_id
            )));
        };
        fields.insert("terminal".into(), request.streams.terminal.into());
        let mut execs = lock(&self.execs);
        if request.exec_id == self.id || execs.contains_key(&request.exec_id) {
            return Err(Error::Exists(format!(
                "exec \"{}\" of task \"{}\"",
                request.exec_id, self.id
            )));
        }
        // Nobody deletes the execs of a client that died: containerd's CRI, in every restart. Their exits stay known, but
        // their descriptors would add up.
        execs.values().for_each(|earlier| earlier.close_if_over());
        let added = Process::new(request.streams, Life::Added(Arc::new(process)), None);
        execs.insert(request.exec_id.clone(), Arc::new(added));
        publish::exec_added(&*parties.events, &self.id, &request.exec_id);
        // Who adds one starts it next. The built-in runtime moves none.
        if !self.record.runtime.is_builtin() {
            expect_move();
        }
        Ok(())
    }

    pub(super) async fn start_exec(
        self: &Arc<Self>,
        parties: &Parties,
        exec_id: &str,
    ) -> Result<u32, Error> {
        let process = self.exec(exec_id)?;
        let exec_id = Id::new(exec_id)?;
        let _gate = process.gate.lock().await;
        let Life::Added(spec) = process.life() else {
            return Err(Error::state(&self.id, format!("exec \"{exec_id}\" is started already")));
        };
        if self.ending.load(Ordering::SeqCst) || !matches!(self.init.life(), Life::Running(_)) {
            return Err(Error::state(&self.id, "cannot exec in a container that is not running"));
        }
        let expecting = parties.reaper.expecting();
        let started = self.run_exec(parties, &expecting, &exec_id, &process, &spec).await;
        let (pid, io) = match started {
            Ok(started) => started,
            Err(error) => {
                // Whoever waits for it must not wait for ever. It may be started again.
                process.release(Ended { pid: 0, status: 255, at: SystemTime::now() });
                return Err(error);
            }
        };
        let (live, exited) = Live::adopt(pid, &expecting);
        process.set_io(io);
        process.run(live);
        publish::exec_started(&*parties.events, &self.id, &exec_id, pid.unsigned_abs());
        self.watch_exec(exec_id, Arc::clone(&process), exited, Arc::clone(&parties.events));
        Ok(pid.unsigned_abs())
    }

    async fn run_exec(
        &self,
        parties: &Parties,
        expecting: &Expecting,
        exec_id: &Id,
        process: &Process,
        spec: &Value,
    ) -> Result<(i32, Io), Error> {
        let settings = &self.record.runtime;
        let given = (settings.io_uid != 0 || settings.io_gid != 0)
            .then_some((settings.io_uid, settings.io_gid));
        let owner = Owner {
            namespace: &parties.namespace,
            container: self.id.as_str(),
            ids: spec::mapped_owner(&self.mappings, spec).or(given),
        };
        let streams = &process.streams;
        if streams.terminal {
            let listener = Listener::new(&parties.consoles(&self.id))?;
            let stdio = runtime::Stdio::default();
            let exec = Exec { process: spec.clone(), stdio, console: Some(listener.path()) };
            let (pid, master) = listener
                .during(async {
                    Ok(self.runtime.exec(&self.id, exec_id, &self.bundle, exec).await?)
                })
                .await?;
            match stdio::open_terminal(streams, master, &owner, &parties.reaper).await {
                Ok(io) => return Ok((pid, io)),
                Err(error) => {
                    // It runs already; without its streams it must not go on.
                    let _ = Live::adopt(pid, expecting).0.signal(Signal::KILL);
                    return Err(error);
                }
            }
        }
        let mode = if spec::needs_relay(spec) { Mode::Relay } else { Mode::RelayOutput };
        let (stdio, io) = stdio::open(streams, mode, &owner, &parties.reaper).await?;
        let exec = Exec { process: spec.clone(), stdio, console: None };
        Ok((self.runtime.exec(&self.id, exec_id, &self.bundle, exec).await?, io))
    }

    pub(super) async fn pause(&self, parties: &Parties) -> Result<(), Error> {
        let _order = self.order.lock().await;
        self.must_run()?;
        *lock(&self.frozen) = Frozen::Becoming;
        let paused = self.runtime.pause(&self.id, &self.bundle).await;
        *lock(&self.frozen) = if paused.is_ok() { Frozen::Yes } else { Frozen::No };
        paused?;
        publish::paused(&*parties.events, &self.id);
        Ok(())
    }

    pub(super) async fn resume(&self, parties: &Parties) -> Result<(), Error> {
        let _order = self.order.lock().await;
        self.must_run()?;
        self.runtime.resume(&self.id, &self.bundle).await?;
        *lock(&self.frozen) = Frozen::No;
        publish::resumed(&*parties.events, &self.id);
        Ok(())
    }

    pub(super) async fn update(&self, resources: &[u8]) -> Result<(), Error> {
        let _order = self.order.lock().await;
        if serde_json::from_slice::<Value>(resources).map_or(true, |value| !value.is_object()) {
            return Err(Error::Invalid(format!(
                "resources of task \"{}\" are no JSON object",
                self.id
            )));
        }
        Ok(self.runtime.update(&self.id, &self.bundle, resources).await?)
    }

    pub(super) fn must_run(&self) -> Result<(), Error> {
        match self.init.life() {
            Life::Running(_) => Ok(()),
            _ => Err(Error::state(&self.id, "it is not running")),
        }
    }

    /// Task.Kill. SIGKILL for an init that was sent it a while ago and goes on is sent again, and answered with what keeps
    /// it: whoever kills again wants to know.
    pub(super) async fn kill(
        self: &Arc<Self>,
        exec_id: &str,
        signal: Signal,
        all: bool,
    ) -> Result<(), Error> {
        self.send(exec_id, signal, all)?;
        if signal != Signal::KILL || !exec_id.is_empty() {
            return Ok(());
        }
        let since = self.watch_killed();
        // What kept it may just have let it go.
        if since.elapsed() < SURVIVES || timeout(LAST_MOMENT, self.init.wait()).await.is_ok() {
            return Ok(());
        }
        let survivors = self.survivors().await;
        Err(Error::Survives {
            task: self.id.clone(),
            seconds: since.elapsed().as_secs(),
            survivors,
        })
    }

    fn send(&self, exec_id: &str, signal: Signal, all: bool) -> Result<(), Error> {
        let process = self.process(exec_id)?;
        match process.life() {
            Life::Stopped(_) => return Err(Error::Finished),
            Life::Added(_) => return Err(Error::state(&self.id, "process is not started")),
            Life::Created(_) | Life::Running(_) => {}
        }
        if all && exec_id.is_empty() {
            let reached = self.cgroup.signal_all(signal)?;
            if reached > 0 {
                self.thaw_for(signal);
                return Ok(());
            }
        }
        let live = process.live().ok_or(Error::Finished)?;
        if exec_id.is_empty() {
            self.signal_init(&live, signal)?;
        } else {
            live.signal(signal)?;
        }
        self.thaw_for(signal);
        Ok(())
    }

    /// A v1 freezer holds back even SIGKILL: what is killed is let go, to die, whoever froze it.
    pub(super) fn thaw_for(&self, signal: Signal) {
        if signal == Signal::KILL {
            self.cgroup.thaw();
            *lock(&self.frozen) = Frozen::No;
        }
    }

    pub(super) async fn delete_exec(&self, exec_id: &str) -> Result<Ended, Error> {
        let process = self.exec(exec_id)?;
        let ended = {
            let _gate = process.gate.lock().await;
            match process.life() {
                Life::Stopped(ended) => ended,
                Life::Added(_) => {
                    let ended = Ended { pid: 0, status: 0, at: SystemTime::now() };
                    process.stop(ended);
                    ended
                }
                Life::Created(_) | Life::Running(_) => {
                    return Err(Error::state(&self.id, format!("exec \"{exec_id}\" is running")));
                }
            }
        };
        if let Some(io) = process.take_io() {
            io.drain().await;
        }
        lock(&self.execs).retain(|id, _| id.as_str() != exec_id);
        Ok(ended)
    }

    /// Task.Delete of the container, but for its name.
    pub(super) async fn delete(&self, parties: &Parties) -> Result<Ended, Error> {
        let _order = self.order.lock().await;
        if self.deleted.load(Ordering::SeqCst) {
            // By a call at the same time; what bears the name now may be another container.
            return Err(Error::NoTask(self.id.to_string()));
        }
        let ended = match self.init.life() {
            Life::Stopped(ended) => ended,
            Life::Created(live) => {
                // Never started: nothing of the client's runs in it.
                match self.signal_init(&live, Signal::KILL) {
                    Ok(()) | Err(Error::Finished) => {}
                    Err(error) => return Err(error),
                }
                self.init.wait().await
            }
            Life::Added(_) | Life::Running(_) => {
                return Err(Error::state(&self.id, "cannot delete a running process"));
            }
        };
        if let Some(io) = self.init.take_io() {
            io.drain().await;
        }
        let deadline = Instant::now() + DELETE;
        let dir = parties.pod.tasks_dir();
        container::end(&self.record, &dir, &parties.reaper, deadline).await?;
        self.deleted.store(true, Ordering::SeqCst);
        parties.pod.became(Event::RemoveContainer, &self.id, 0);
        Ok(ended)
    }
}
