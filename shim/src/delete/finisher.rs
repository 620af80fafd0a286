//! The finisher: the process that does what `delete` is called for, for as long as it takes.

use std::{
    fs::File,
    io::{self, Write},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use containerd_shim_protos::{
    events::task::TaskExit,
    protobuf::{MessageDyn, MessageField},
};
use mooring::{
    container::{self, Record},
    containerd::Grpc,
    id::Id,
    network::{ExecPlugins, Observed},
    process::Reaper,
    sandbox::{
        daemon_record::DaemonRecord,
        recover::{Listener, RecoverError, Recovery, Remains, Takeover},
    },
    sys::survivor::Survivors,
    teardown::journal,
    telemetry::{
        Spans,
        trace::{Kind, Span},
    },
};
use thiserror::Error;

use super::{
    AGAIN, DEAD, KILLED, Work,
    living::{Living, Refused},
};
use crate::{events::Events, publisher::Publisher, socket, traces::Traces};

/// How often a teardown that failed is taken up, and the first pause; the pauses double.
const ATTEMPTS: u32 = 10;
const PAUSE: Duration = Duration::from_millis(200);
/// How long one attempt waits for another finisher.
const ANOTHER: Duration = Duration::from_secs(5);
/// How long a shim that was asked to may take to be gone.
const END: Duration = Duration::from_secs(5);
/// How long one container may take to be gone.
const CONTAINER: Duration = Duration::from_mins(1);
/// How long the receiver of traces may take to take the spans.
const SPANS: Duration = Duration::from_secs(1);
/// How long containerd may take to take the exits.
const EVENTS: Duration = Duration::from_secs(30);

/// The finisher could not finish.
#[derive(Debug, Error)]
pub enum Error {
    /// It could not leave the process that it was forked from.
    #[error("become a daemon: {0}")]
    Daemon(io::Error),
    /// The async runtime or the reaper could not be set up.
    #[error("{action}: {source}")]
    SetUp { action: &'static str, source: io::Error },
    /// A shim that does not answer could not be ended.
    #[error("end the shim {pid}: {source}")]
    Shim { pid: i32, source: io::Error },
    /// A shim that answers does not let go.
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error(transparent)]
    Recover(#[from] RecoverError),
    /// A container of a shim that goes on, or its record.
    #[error(transparent)]
    Container(#[from] container::Error),
    /// The dead shim's socket is still there.
    #[error("remove the socket {path}: {source}", path = path.display())]
    Socket { path: PathBuf, source: io::Error },
}

/// The exits of the containers that the finisher ended, and word to `delete` that they have.
struct Exits {
    publisher: Publisher,
    /// containerd itself reports the exit of the one that it called `delete` for.
    except: Id,
    published: Mutex<usize>,
    tell: Arc<File>,
}

impl Listener for Exits {
    fn ended(&self, record: &Record) {
        if record.id == self.except {
            return;
        }
        *self.published.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        let pid = record.init.map_or(0, |init| init.pid.unsigned_abs());
        let exit = TaskExit {
            container_id: record.id.to_string(),
            id: record.id.to_string(),
            pid,
            exit_status: KILLED,
            exited_at: MessageField::some(SystemTime::now().into()),
            ..TaskExit::default()
        };
        self.publisher.publish("/tasks/exit", &exit as &dyn MessageDyn);
    }

    fn outlives(&self, record: &Record, survivors: &Survivors) {
        // Said once for each attempt; whoever listens hears the first.
        let id = record.id.as_str();
        let _ = writeln!(&*self.tell, "container {id:?}: killed, and not ended: {survivors}");
    }

    fn all_ended(&self) {
        // Whoever started this may have given its answer already.
        let _ = write!(&*self.tell, "{DEAD}");
    }
}

/// Does the work of one `delete`.
pub struct Finisher {
    work: Work,
    tell: Arc<File>,
}

impl Finisher {
    /// Complaints, and word that no container is left, go to `tell`.
    pub fn new(work: Work, tell: Arc<File>) -> Self {
        Self { work, tell }
    }

    /// Does it. Blocks until it is done, or given up.
    pub fn run(self) -> Result<(), Error> {
        let set_up = |action| move |source| Error::SetUp { action, source };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(set_up("start the async runtime"))?;
        let result = runtime.block_on(async {
            let reaper = Reaper::start().map_err(set_up("watch for ended children"))?;
            self.traced(reaper).await
        });
        // Blocking calls that hang must not keep this process.
        runtime.shutdown_background();
        result
    }

    /// Does it, in a trace of its own where there are any: nobody's call has led here.
    async fn traced(&self, reaper: Reaper) -> Result<(), Error> {
        // The shim has said what it could not do as it was asked.
        let traces = Traces::start(&self.work.namespace, |_| {});
        let open = traces.as_ref().map(|all| all.tracer.entry("delete", Kind::Internal, None));
        let span = open.as_deref().cloned().unwrap_or_default();
        span.set(
            if self.work.member.is_none() { "sandbox.id" } else { "container.id" },
            self.work.id.as_str(),
        );
        let done = span.within(self.persist(reaper)).await;
        if let Err(error) = &done {
            span.fail(error);
        }
        drop(open);
        if let Some(traces) = traces {
            traces.drain(SPANS).await;
        }
        done
    }

    /// Tries until it is done.
    async fn persist(&self, reaper: Reaper) -> Result<(), Error> {
        let ttrpc = std::env::var_os("TTRPC_ADDRESS").map(PathBuf::from);
        let publisher = Publisher::start(ttrpc.unwrap_or_default(), &self.work.namespace);
        let listener = Arc::new(Exits {
            publisher: publisher.clone(),
            except: self.work.id.clone(),
            published: Mutex::new(0),
            tell: Arc::clone(&self.tell),
        });
        let recovery = Recovery {
            reaper: reaper.clone(),
            containerd: Arc::new(Grpc::new(
                &self.work.address.to_string_lossy(),
                self.work.namespace.clone(),
            )),
            plugins: Arc::new(Observed::new(ExecPlugins::new(reaper), Arc::new(Spans))),
            listener: listener.clone(),
        };
        let mut takeover = recovery.clone().take_over(Remains {
            state_dir: self.work.state_dir.clone(),
            shim: self.work.shim.clone(),
            patience: ANOTHER,
        });
        let mut pause = PAUSE;
        let mut attempt = 1;
        let result = loop {
            match self.attempt(&recovery, &mut takeover).await {
                Err(error) if attempt < ATTEMPTS => {
                    Span::current().event("an attempt failed");
                    // While somebody still listens: later failures are known to nobody.
                    let _ = write!(&*self.tell, "{error}{AGAIN}");
                    tokio::time::sleep(pause).await;
                    pause *= 2;
                    attempt += 1;
                }
                result => break result,
            }
        };
        let count = *listener.published.lock().unwrap_or_else(PoisonError::into_inner);
        if count > 0 {
            publisher.drain(EVENTS).await;
        }
        result
    }

    async fn attempt(&self, recovery: &Recovery, takeover: &mut Takeover) -> Result<(), Error> {
        if let Some((folder, record)) = &self.work.member {
            return self.end_member(recovery, folder, record).await;
        }
        if !self.end_shim(recovery).await? {
            return Ok(());
        }
        takeover.attempt().await?;
        let path = self.work.socket();
        socket::remove_dead(&path).map_err(|source| Error::Socket { path, source })
    }

    /// Sees to it that the shim is gone. `Ok(false)`: it lives, serves others, and holds nothing of this id any more.
    async fn end_shim(&self, recovery: &Recovery) -> Result<bool, Error> {
        let Work { id, state_dir, shim: Some(shim), .. } = &self.work else { return Ok(true) };
        let folder = state_dir.clone();
        let is_sandbox = blocking(move || Ok(journal::exists(&folder))).await?;
        let failed = |source| Error::Shim { pid: shim.pid, source };
        let mut refused = None;
        if let Some(living) = Living::find(shim, id).await {
            let asked = if is_sandbox {
                living.let_go_sandbox(id).await
            } else {
                living.let_go_container(id).await
            };
            refused = asked.err();
            if refused.is_none() && shim.ended_within(END).await.map_err(failed)? {
                return Ok(true);
            }
        }
        let pid = shim.pid;
        if !is_sandbox && shim.is_alive().map_err(failed)? {
            let tasks_dir = state_dir.join("tasks");
            let records = {
                let folder = tasks_dir.clone();
                blocking(move || container::load_all(&folder)).await?
            };
            let (own, others): (Vec<_>, Vec<_>) =
                records.into_iter().partition(|record| record.as_ref().is_ok_and(|r| r.id == *id));
            if !others.is_empty() {
                for record in own.into_iter().flatten() {
                    release(recovery, &tasks_dir, &record).await?;
                }
                recovery.listener.all_ended();
                return Ok(false);
            }
        }
        if let Some(refused) = refused.filter(|_| is_sandbox) {
            // Its own teardown fails: another process would fail at the same.
            return Err(refused.into());
        }
        // It does not answer, or holds nothing: two must not work on one sandbox.
        let shim = shim.clone();
        let killed = tokio::task::spawn_blocking(move || shim.kill()).await;
        let killed = killed.unwrap_or_else(|error| Err(io::Error::other(error)));
        killed.map_err(|source| Error::Shim { pid, source })?;
        Ok(true)
    }

    /// A container in the folder of another shim's sandbox or group: that shim lets it go where it answers.
    async fn end_member(
        &self,
        recovery: &Recovery,
        tasks_dir: &std::path::Path,
        record: &Record,
    ) -> Result<(), Error> {
        let state_dir = tasks_dir.parent().unwrap_or(tasks_dir).to_owned();
        let shim = blocking(move || {
            DaemonRecord::load(&state_dir).map_err(|source| container::Error::File {
                action: "read the shim's record in",
                path: state_dir,
                source,
            })
        })
        .await?;
        if let Some(shim) = shim
            && let Some(living) = Living::find(&shim, &self.work.id).await
            && living.let_go_container(&self.work.id).await.is_ok()
        {
            return Ok(());
        }
        release(recovery, tasks_dir, record).await
    }
}

async fn release(
    recovery: &Recovery,
    tasks_dir: &std::path::Path,
    record: &Record,
) -> Result<(), Error> {
    let deadline = tokio::time::Instant::now() + CONTAINER;
    container::release(record, &recovery.reaper, deadline).await?;
    Ok(Record::remove(tasks_dir, &record.id)?)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, container::Error> + Send + 'static,
) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => Ok(result?),
        Err(error) => Err(RecoverError::Lost(error).into()),
    }
}
