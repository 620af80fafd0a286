//! `delete`: cleans up after a shim that is gone.
//!
//! containerd gives it five seconds. The work itself is done by a process of its own, the finisher, which holds the
//! journal's lock: what takes longer (a slow CNI plugin) goes on in it after `delete` has answered. Everything is
//! read from the state folder; the bundle may be gone.

use std::{
    fs::File,
    io::{self, Read, Write},
    path::{Path, PathBuf},
    process::exit,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use containerd_shim_protos::{
    api::DeleteResponse,
    events::task::TaskExit,
    protobuf::{Message, MessageDyn, MessageField},
};
use mooring::{
    container::{self, Record},
    containerd::Grpc,
    id::Id,
    network::ExecPlugins,
    options::{self, Options},
    process::Reaper,
    sandbox::{
        daemon_record::{self, DaemonRecord},
        recover::{self, ContainerEnded, Recovery},
        state_dir,
    },
};
use nix::unistd::{ForkResult, fork, pipe};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use thiserror::Error;

use crate::{args::Args, detach, events::Events, publisher::Publisher, services::status, socket};

/// When the answer is given, whatever the finisher still has to do. containerd kills `delete` after 5 s.
const ANSWER: Duration = Duration::from_millis(4200);
/// How long the containers of the dead shim may take to end.
const CONTAINERS: Duration = Duration::from_mins(1);
/// How often the finisher takes up a teardown that failed, and its first pause; the pauses double.
const ATTEMPTS: u32 = 10;
const PAUSE: Duration = Duration::from_millis(200);
/// Ends what the finisher says of a failure that it does not take for the last word.
const AGAIN: &str = "; trying again\n";
/// How long containerd may take to take the exits.
const EVENTS: Duration = Duration::from_secs(30);
/// What is said of a container that was killed.
const KILLED: u32 = 137;

/// Nothing could be cleaned up.
#[derive(Debug, Error)]
pub enum Error {
    /// containerd did not say whose shim is gone.
    #[error("delete needs the flags -namespace and -id")]
    Nobody,
    /// The options of the node cannot be read.
    #[error(transparent)]
    Options(#[from] options::Error),
    /// A process or pipe could not be made.
    #[error("{deed}: {source}")]
    Io {
        /// What was being done.
        deed: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The answer does not encode.
    #[error("encode the answer: {0}")]
    Encode(#[from] containerd_shim_protos::protobuf::Error),
}

fn failed(deed: &'static str) -> impl FnOnce(nix::Error) -> Error {
    move |source| Error::Io { deed, source: source.into() }
}

/// Cleans up, and answers with the protobuf that containerd reads. Complaints go to standard error, which becomes a
/// warning in containerd's log.
pub fn run(args: &Args) -> Result<Vec<u8>, Error> {
    let (Some(namespace), Some(id)) = (args.namespace.clone(), args.id.clone()) else {
        return Err(Error::Nobody);
    };
    let started = Instant::now();
    let (options, _) = Options::load(None)?;
    let state_root =
        daemon_record::state_root(&args.bundle).unwrap_or_else(|| options.state_root.clone());
    let options = Options { state_root, ..options };
    let work = Work { options, namespace, id, address: args.address.clone() };
    let pid = work.daemon().map_or(0, |daemon| daemon.pid);
    if work.nothing_left() {
        // The usual end: containerd calls this after every shutdown, too.
        return answer(pid);
    }

    let (told, tell) = pipe().map_err(failed("make a pipe"))?;
    // SAFETY: this process has one thread; the child may do whatever this process may.
    match unsafe { fork() }.map_err(failed("fork"))? {
        ForkResult::Child => {
            drop(told);
            let mut tell = File::from(tell);
            let done = match detach::leave(&[std::os::fd::AsFd::as_fd(&tell)]) {
                Ok(()) => work.finish(&mut tell),
                Err(error) => Err(format!("become a daemon: {error}")),
            };
            let text = done.as_ref().err().map_or("", String::as_str);
            // Whoever started this may have given its answer already.
            let _ = tell.write_all(text.as_bytes());
            exit(i32::from(done.is_err()))
        }
        ForkResult::Parent { .. } => drop(tell),
    }
    let (complaint, ended) = hear(&File::from(told), started + ANSWER);
    if !complaint.is_empty() {
        eprintln!("delete: {complaint}");
    }
    if !ended {
        eprintln!("delete: the teardown takes longer and goes on in the background");
    }
    answer(pid)
}

fn answer(pid: i32) -> Result<Vec<u8>, Error> {
    let answer = DeleteResponse {
        pid: pid.unsigned_abs(),
        exit_status: KILLED,
        exited_at: MessageField::some(status::timestamp(SystemTime::now())),
        ..DeleteResponse::default()
    };
    Ok(answer.write_to_bytes()?)
}

/// What the finisher has said by `deadline`, and whether it has ended. It speaks up when something does not work at
/// once; then there is nothing to wait for: what it waits for may be containerd, which waits for this answer.
fn hear(mut told: &File, deadline: Instant) -> (String, bool) {
    let mut text = String::new();
    let mut piece = [0; 1024];
    loop {
        let Some(left) = deadline.checked_duration_since(Instant::now()) else {
            return (text, false);
        };
        let seconds = i64::try_from(left.as_secs()).unwrap_or(i64::MAX);
        let limit = Timespec { tv_sec: seconds, tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::new(&told, PollFlags::IN)], Some(&limit)) {
            Ok(0) => return (text, false),
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return (format!("{text}wait for the finisher: {error}"), true),
        }
        match told.read(&mut piece) {
            Ok(0) => return (text, true),
            Ok(length) => {
                text.push_str(&String::from_utf8_lossy(piece.get(..length).unwrap_or_default()));
                if text.ends_with(AGAIN) {
                    return (text, false);
                }
            }
            Err(error) => return (format!("{text}hear the finisher: {error}"), true),
        }
    }
}

/// What is to be cleaned up.
struct Work {
    options: Options,
    namespace: Id,
    id: Id,
    address: PathBuf,
}

/// The exits of the containers that the finisher ended.
struct Exits {
    publisher: Publisher,
    /// containerd itself reports the exit of the one that it called `delete` for.
    except: Id,
    published: Mutex<usize>,
}

impl ContainerEnded for Exits {
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
            exited_at: MessageField::some(status::timestamp(SystemTime::now())),
            ..TaskExit::default()
        };
        self.publisher.publish("/tasks/exit", &exit as &dyn MessageDyn);
    }
}

impl Work {
    fn state_dir(&self) -> PathBuf {
        state_dir(&self.options, &self.namespace, &self.id)
    }

    fn daemon(&self) -> Option<DaemonRecord> {
        DaemonRecord::load(&self.state_dir())
    }

    fn socket(&self) -> PathBuf {
        if let Some(socket) = self.daemon().and_then(|daemon| daemon.socket) {
            return socket;
        }
        socket::path(
            Path::new(socket::FOLDER),
            &self.address,
            self.namespace.as_str(),
            self.id.as_str(),
        )
    }

    /// Whether the shim has cleaned up after itself.
    fn nothing_left(&self) -> bool {
        let namespace_dir = self.options.state_root.join(&self.namespace);
        !self.state_dir().exists()
            && !self.socket().exists()
            && container::find(&namespace_dir, &self.id).is_none()
    }

    /// Takes everything down. Runs in the finisher.
    fn finish(&self, tell: &mut File) -> Result<(), String> {
        // Read now: the record goes with the state folder.
        let path = self.socket();
        if let Some(daemon) = self.daemon() {
            // containerd has given it up; two must not work on one sandbox.
            daemon.kill().map_err(|error| format!("end the shim {}: {error}", daemon.pid))?;
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| format!("start the runtime: {error}"))?;
        let result = runtime.block_on(self.take_down(tell));
        // Blocking calls that hang must not keep this process.
        runtime.shutdown_background();
        if !socket::serves(&path)
            && let Err(error) = socket::remove(&path)
        {
            return Err(format!("remove the socket {}: {error}", path.display()));
        }
        result
    }

    async fn take_down(&self, tell: &mut File) -> Result<(), String> {
        let reaper =
            Reaper::start().map_err(|error| format!("watch for ended children: {error}"))?;
        let ttrpc = std::env::var_os("TTRPC_ADDRESS").map(PathBuf::from);
        let publisher = Publisher::start(ttrpc.unwrap_or_default(), &self.namespace);
        let listener = Arc::new(Exits {
            publisher: publisher.clone(),
            except: self.id.clone(),
            published: Mutex::new(0),
        });
        let recovery = Recovery {
            reaper: reaper.clone(),
            containerd: Arc::new(Grpc::new(
                &self.address.to_string_lossy(),
                self.namespace.clone(),
            )),
            plugins: Arc::new(ExecPlugins::new(reaper)),
            listener: listener.clone(),
        };
        let mut pause = PAUSE;
        let mut attempt = 1;
        let result = loop {
            match self.attempt(&recovery).await {
                Err(error) if attempt < ATTEMPTS => {
                    // While somebody still listens: later failures are known to nobody.
                    let _ = write!(tell, "{error}{AGAIN}");
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

    async fn attempt(&self, recovery: &Recovery) -> Result<(), String> {
        let state_dir = self.state_dir();
        let folder = state_dir.clone();
        let opened = tokio::task::spawn_blocking(move || recover::open(&folder)).await;
        let store = match opened {
            Ok(Ok(store)) => store,
            Ok(Err(error)) => {
                // Without a journal its containers still have their own records, and need not go on.
                let deadline = tokio::time::Instant::now() + CONTAINERS;
                let ended = recovery.end_containers(&state_dir, deadline).await;
                let more = ended.err().map(|error| format!("; {error}")).unwrap_or_default();
                return Err(format!("{error}{more}"));
            }
            Err(error) => return Err(error.to_string()),
        };
        if let Some(store) = store {
            return recovery.take_down(store).await.map_err(|error| error.to_string());
        }
        // A task without sandbox: of a shim of its own, or of one that it shared.
        let deadline = tokio::time::Instant::now() + CONTAINERS;
        if state_dir.exists() {
            recovery
                .end_containers(&state_dir, deadline)
                .await
                .map_err(|error| error.to_string())?;
            return mooring::teardown::journal::remove_folder(&state_dir)
                .map_err(|error| error.to_string());
        }
        let parent = self.options.state_root.join(&self.namespace);
        let Some((folder, record)) = container::find(&parent, &self.id) else { return Ok(()) };
        container::release(&record, &recovery.reaper, deadline)
            .await
            .map_err(|error| error.to_string())?;
        Record::remove(&folder, &record.id).map_err(|error| error.to_string())
    }
}
