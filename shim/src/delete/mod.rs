//! `delete`: cleans up after a shim that is gone.
//!
//! containerd gives it five seconds. The work itself is done by a process of its own, the finisher, which holds the
//! state folder's lock. `delete` answers as soon as no container is left; what takes longer (a slow CNI plugin) goes on
//! in the finisher. Everything is read from the state folder; the bundle may be gone, and the node's configuration may
//! be another than when the pod was started, or broken.

mod finisher;
mod living;

use std::{
    fs::File,
    io::{self, Read, Write},
    os::fd::AsFd,
    path::{Path, PathBuf},
    process::exit,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use containerd_shim_protos::{
    api::DeleteResponse,
    protobuf::{Message, MessageField},
};
use mooring::{
    container,
    id::Id,
    options::{Options, Profile},
    sandbox::daemon_record::{self, DaemonRecord},
    sys,
};
use nix::unistd::{ForkResult, fork, pipe};
use thiserror::Error;

use crate::{args::Args, detach, socket};
use finisher::Finisher;

/// When the answer is given, whatever the finisher still has to do. containerd kills `delete` after 5 s.
const ANSWER: Duration = Duration::from_millis(4200);
/// Ends what the finisher says of a failure that it does not take for the last word.
const AGAIN: &str = "; trying again\n";
/// What the finisher says once no container is left.
const DEAD: char = '\0';
/// What is said of a container that was killed.
const KILLED: u32 = 137;

/// Nothing could be cleaned up.
#[derive(Debug, Error)]
pub enum Error {
    /// containerd did not say whose shim is gone.
    #[error("delete needs the flags -namespace and -id")]
    Nobody,
    /// The record of the shim cannot be read.
    #[error("read the shim's record in {folder}: {source}", folder = folder.display())]
    Record { folder: PathBuf, source: io::Error },
    /// A process or pipe could not be made.
    #[error("{action}: {source}")]
    Io { action: &'static str, source: io::Error },
    /// The answer does not encode.
    #[error("encode the answer: {0}")]
    Encode(#[from] containerd_shim_protos::protobuf::Error),
}

fn failed(action: &'static str) -> impl FnOnce(nix::Error) -> Error {
    move |source| Error::Io { action, source: source.into() }
}

/// Cleans up, and answers with the protobuf that containerd reads. Complaints go to standard error, which becomes a
/// warning in containerd's log.
pub fn run(args: &Args) -> Result<Vec<u8>, Error> {
    let (Some(namespace), Some(id)) = (args.namespace.clone(), args.id.clone()) else {
        return Err(Error::Nobody);
    };
    let started = Instant::now();
    let work =
        Work::find(args.profile.as_ref(), &args.bundle, namespace, id, args.address.clone())?;
    let pid = work.shim.as_ref().map_or(0, |shim| shim.pid);
    if work.nothing_left() {
        // The usual end: containerd calls this after every shutdown, too.
        return answer(pid);
    }

    let (told, tell) = pipe().map_err(failed("make a pipe"))?;
    // SAFETY: this process has one thread; the child may do whatever this process may.
    match unsafe { fork() }.map_err(failed("fork"))? {
        ForkResult::Child => {
            drop(told);
            let tell = Arc::new(File::from(tell));
            let done = match detach::leave(&[tell.as_fd()]) {
                Ok(()) => Finisher::new(work, Arc::clone(&tell)).run(),
                Err(error) => Err(finisher::Error::Daemon(error)),
            };
            if let Err(error) = &done {
                // Whoever started this may have given its answer already.
                let _ = write!(&*tell, "{error}");
            }
            exit(i32::from(done.is_err()))
        }
        ForkResult::Parent { .. } => drop(tell),
    }
    let (complaint, heard) = hear(&File::from(told), started + ANSWER);
    if !complaint.is_empty() {
        eprintln!("delete: {}", complaint.trim_end());
    }
    if heard == Heard::Late {
        eprintln!("delete: the teardown takes longer and goes on in the background");
    }
    answer(pid)
}

fn answer(pid: i32) -> Result<Vec<u8>, Error> {
    let answer = DeleteResponse {
        pid: pid.unsigned_abs(),
        exit_status: KILLED,
        exited_at: MessageField::some(SystemTime::now().into()),
        ..DeleteResponse::default()
    };
    Ok(answer.write_to_bytes()?)
}

/// Why listening to the finisher came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Heard {
    /// It has ended, or no container is left.
    Enough,
    /// It goes on, and containers may too.
    Late,
}

/// What the finisher has said by `deadline`. It speaks up when no container is left, and when something does not work at
/// once: then there is nothing to wait for, since what it waits for may be containerd, which waits for this answer.
fn hear(mut told: &File, deadline: Instant) -> (String, Heard) {
    let mut text = String::new();
    let mut piece = [0; 1024];
    loop {
        match sys::wait_readable(&told, deadline) {
            Ok(true) => {}
            Ok(false) => return (text, Heard::Late),
            Err(error) => return (format!("{text}wait for the finisher: {error}"), Heard::Enough),
        }
        match told.read(&mut piece) {
            Ok(0) => return (text, Heard::Enough),
            Ok(length) => {
                text.push_str(&String::from_utf8_lossy(piece.get(..length).unwrap_or_default()));
                if let Some(at) = text.find(DEAD) {
                    text.truncate(at);
                    return (text, Heard::Enough);
                }
                if text.ends_with(AGAIN) {
                    return (text, Heard::Late);
                }
            }
            Err(error) => return (format!("{text}hear the finisher: {error}"), Heard::Enough),
        }
    }
}

/// What is to be cleaned up.
struct Work {
    namespace: Id,
    id: Id,
    address: PathBuf,
    state_dir: PathBuf,
    /// The shim of that name as it is recorded now. Later there may be another.
    shim: Option<DaemonRecord>,
    /// Where the shim has no state folder of that name: the record of a container in another one's.
    member: Option<(PathBuf, container::Record)>,
}

impl Work {
    fn find(
        profile: Option<&Profile>,
        bundle: &Path,
        namespace: Id,
        id: Id,
        address: PathBuf,
    ) -> Result<Self, Error> {
        let mut work =
            Self { state_dir: PathBuf::new(), namespace, id, address, shim: None, member: None };
        for root in state_roots(bundle, profile) {
            let namespace_dir = root.join(&work.namespace);
            let state_dir = namespace_dir.join(&work.id);
            if state_dir.exists() {
                let shim = DaemonRecord::load(&state_dir);
                let failed = |source| Error::Record { folder: state_dir.clone(), source };
                return Ok(Self { shim: shim.map_err(failed)?, state_dir, ..work });
            }
            work.member = container::find(&namespace_dir, &work.id);
            if work.member.is_some() || work.state_dir.as_os_str().is_empty() {
                work.state_dir = state_dir;
            }
            if work.member.is_some() {
                break;
            }
        }
        Ok(work)
    }

    fn socket(&self) -> PathBuf {
        if let Some(socket) = self.shim.as_ref().and_then(|shim| shim.socket.clone()) {
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
        self.member.is_none() && !self.state_dir.exists() && !self.socket().exists()
    }
}

/// Where the state folder may be, the likeliest place first: where the bundle says. The bundle may be gone; then where
/// the node's configuration says now, and where it is without any.
fn state_roots(bundle: &Path, profile: Option<&Profile>) -> Vec<PathBuf> {
    let configured = match Options::load(profile, None) {
        Ok((options, _)) => Some(options.state_root),
        Err(error) => {
            eprintln!("delete: {error}; going on without it");
            None
        }
    };
    let mut roots = Vec::new();
    let default = Options::default().state_root;
    for root in daemon_record::state_root(bundle).into_iter().chain(configured).chain([default]) {
        if !roots.contains(&root) {
            roots.push(root);
        }
    }
    roots
}
