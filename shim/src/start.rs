//! `start`: finds the shim that serves a sandbox or container, or becomes it.
//!
//! The daemon is forked from this process while it has one thread, and the socket takes connections before containerd
//! learns its address.

use std::{
    env, fs, io,
    io::{Read, Write},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use containerd_shim_protos::{bootstrap_api::BootstrapResult, protobuf::Message};
use log::LevelFilter;
use mooring::id::{Id, InvalidId};
use nix::unistd::{ForkResult, fork, pipe2};
use thiserror::Error;

use crate::{
    args::Args,
    boot::{self, Boot},
    daemon, detach,
    launch::{Launch, READY},
    socket::{self, Bound},
};

/// The version of the shim's interface: from this one on, containerd reaches a sandbox's containers by its socket.
const VERSION: i32 = 3;
const PROTOCOL: &str = "ttrpc";
/// Containers with the same value of one of these share a shim, the first one found counts.
const GROUPS: [&str; 2] = ["io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id"];

/// `start` failed; nothing of it is left.
#[derive(Debug, Error)]
pub enum Error {
    #[error(transparent)]
    Input(#[from] boot::Error),
    /// The answer does not encode.
    #[error("encode the answer: {0}")]
    Answer(containerd_shim_protos::protobuf::Error),
    /// A file of the bundle names something that is no identifier.
    #[error("{place}: {source}")]
    Group {
        place: String,
        /// What is wrong with it.
        source: InvalidId,
    },
    /// A file of the bundle cannot be read.
    #[error("read {path}: {source}", path = path.display())]
    Bundle {
        path: PathBuf,
        /// What is wrong with it.
        source: io::Error,
    },
    /// The container belongs to a sandbox whose shim is gone.
    #[error("the shim of sandbox \"{0}\" does not answer")]
    SandboxGone(Id),
    /// No socket could be made.
    #[error(transparent)]
    Socket(#[from] socket::Error),
    /// The kernel refused a process.
    #[error("{operation}: {source}")]
    Fork { operation: &'static str, source: io::Error },
    /// The daemon could not set itself up.
    #[error("{0}")]
    Daemon(String),
}

/// Finds or starts the shim; the answer is what containerd wants to read.
pub fn run(args: Args) -> Result<Vec<u8>, Error> {
    let input = boot::read_input(io::stdin().lock())?;
    let bundle = env::current_dir().map_err(|source| Error::Bundle { path: ".".into(), source })?;
    // The arguments were checked to have both.
    let (Some(namespace), Some(id)) = (args.namespace, args.id) else {
        return Err(Error::Daemon("start needs a namespace and an id".into()));
    };
    let boot = Boot::read(&input, &namespace, &id)?;
    drop(input);

    let folder = boot.socket_folder.unwrap_or_else(|| socket::FOLDER.into());
    // The flag first: `delete` knows nothing else, and must find the same socket.
    let grpc_address =
        Some(args.address).filter(|a| !a.as_os_str().is_empty()).or(boot.grpc_address);
    let grpc_address = grpc_address.unwrap_or_default();
    let path = |id: &Id| socket::path(&folder, &grpc_address, namespace.as_str(), id.as_str());
    if let Some(sandbox) = sandbox_of(&bundle)? {
        let path = path(&sandbox);
        if socket::serves(&path) {
            return answer(&path, boot.bootstrap);
        }
        return Err(Error::SandboxGone(sandbox));
    }
    let socket = path(&group_of(&bundle)?.unwrap_or_else(|| id.clone()));

    let ttrpc_address = boot
        .ttrpc_address
        .or_else(|| env::var_os("TTRPC_ADDRESS").filter(|a| !a.is_empty()).map(PathBuf::from))
        .unwrap_or_else(|| {
            let mut beside = grpc_address.clone().into_os_string();
            beside.push(".ttrpc");
            beside.into()
        });
    let level = boot.level.unwrap_or(LevelFilter::Info);
    let level = if args.debug { level.max(LevelFilter::Debug) } else { level };
    let answer = answer(&socket, boot.bootstrap)?;
    let launch = Launch {
        namespace,
        id,
        bundle,
        socket: socket.clone(),
        grpc_address,
        ttrpc_address,
        profile: args.profile,
        options: boot.options,
        level,
        bootstrap: boot.bootstrap,
    };
    become_two(launch).inspect_err(|_| {
        // The address leads nowhere now. Failing to remove it changes nothing: the next start replaces it.
        let _ = socket::remove_dead(&socket);
    })?;
    Ok(answer)
}

/// Forks the daemon and waits until it serves, or has found that somebody does.
///
/// It is the daemon that makes the socket: containerd may kill this process at any moment, when its client loses
/// patience, and nobody would remove the socket then.
fn become_two(launch: Launch) -> Result<(), Error> {
    let failed =
        |operation| move |errno: nix::Error| Error::Fork { operation, source: errno.into() };
    let (heard, say) = pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(failed("make a pipe"))?;
    let parent_score = detach::oom_score_of_parent();
    // SAFETY: this process has a single thread, so the child finds every lock free and the heap whole.
    match unsafe { fork() }.map_err(failed("fork the daemon"))? {
        ForkResult::Child => {
            drop(heard);
            match socket::bind(&launch.socket) {
                Ok(Bound::Ours(listener)) => daemon::run(launch, listener, say, parent_score),
                Ok(Bound::Served) => exit_saying(say, READY, 0),
                Err(error) => exit_saying(say, error.to_string().as_bytes(), 1),
            }
        }
        ForkResult::Parent { child } => {
            drop(say);
            let mut said = Vec::new();
            let read = fs::File::from(heard).read_to_end(&mut said);
            if read.is_ok() && said == READY {
                return Ok(());
            }
            // It ends by itself after having said why; one that says nothing is dead already.
            let _ = nix::sys::wait::waitpid(child, None);
            let said = String::from_utf8_lossy(&said).into_owned();
            let silent = || format!("the shim of {child} ended before it was ready");
            Err(Error::Daemon(if said.is_empty() { silent() } else { said }))
        }
    }
}

/// Ends the forked process, telling the one that it was forked from how it went.
fn exit_saying(say: OwnedFd, text: &[u8], code: i32) -> ! {
    // When that one is gone there is nobody to tell.
    let _ = fs::File::from(say).write_all(text);
    std::process::exit(code)
}

/// Where the shim listens, in the form that the question had: protobuf for bootstrap parameters, else JSON.
fn answer(socket: &Path, bootstrap: bool) -> Result<Vec<u8>, Error> {
    let address = socket::address(socket);
    if bootstrap {
        let result = BootstrapResult {
            version: VERSION,
            address,
            protocol: PROTOCOL.into(),
            ..BootstrapResult::default()
        };
        return result.write_to_bytes().map_err(Error::Answer);
    }
    let answer = serde_json::json!({"version": VERSION, "address": address, "protocol": PROTOCOL});
    Ok(answer.to_string().into_bytes())
}

/// The sandbox that this bundle's container belongs to, where containerd has noted one.
pub fn sandbox_of(bundle: &Path) -> Result<Option<Id>, Error> {
    let path = bundle.join("sandbox");
    let Some(text) = read_if_there(&path)? else { return Ok(None) };
    let place = path.display().to_string();
    Id::new(String::from_utf8_lossy(&text).trim())
        .map(Some)
        .map_err(|source| Error::Group { place, source })
}

/// The group of containers that share one shim, as the annotations of the bundle's spec have it.
pub fn group_of(bundle: &Path) -> Result<Option<Id>, Error> {
    #[derive(serde::Deserialize)]
    struct Spec {
        #[serde(default)]
        annotations: Option<std::collections::HashMap<String, String>>,
    }
    let path = bundle.join("config.json");
    let Some(text) = read_if_there(&path)? else { return Ok(None) };
    // A spec that cannot be read is reported by Create, which knows what it is about.
    let Ok(Spec { annotations: Some(annotations) }) = serde_json::from_slice(&text) else {
        return Ok(None);
    };
    let Some((key, group)) = GROUPS.iter().find_map(|key| annotations.get_key_value(*key)) else {
        return Ok(None);
    };
    let place = format!("annotation {key:?} in {}", path.display());
    Id::new(group).map(Some).map_err(|source| Error::Group { place, source })
}

fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>, Error> {
    match fs::read(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::Bundle { path: path.into(), source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_of_one_group_share_a_shim() {
        let bundle = tempfile::tempdir().unwrap();
        let write = |spec: &str| fs::write(bundle.path().join("config.json"), spec).unwrap();
        assert_eq!(group_of(bundle.path()).unwrap(), None);
        write(r#"{"annotations":{"io.kubernetes.cri.sandbox-id":"pod"}}"#);
        assert_eq!(group_of(bundle.path()).unwrap().unwrap().as_str(), "pod");
        write(r#"{"annotations":{"io.kubernetes.cri.sandbox-id":"../pod"}}"#);
        assert!(group_of(bundle.path()).unwrap_err().to_string().contains("../pod"));
        for spec in ["{}", r#"{"annotations":null}"#, "no json", r#"{"annotations":{"a":"b"}}"#] {
            write(spec);
            assert_eq!(group_of(bundle.path()).unwrap(), None, "{spec}");
        }
    }

    #[test]
    fn the_sandbox_of_a_container_is_noted_in_its_bundle() {
        let bundle = tempfile::tempdir().unwrap();
        assert_eq!(sandbox_of(bundle.path()).unwrap(), None);
        fs::write(bundle.path().join("sandbox"), "pod\n").unwrap();
        assert_eq!(sandbox_of(bundle.path()).unwrap().unwrap().as_str(), "pod");
    }
}
