//! What keeps a pod's namespaces: a parked thread of the shim, the holder process, or pins.
//!
//! containerd builds every container's spec with `/proc/<id>/ns/…` of whatever stands for the pod. A thread of the
//! shim serves for the usual pod and costs no process. The kernel demands a process in two cases: a shared PID
//! namespace (its init) and a user namespace (`setns` refuses threads of a multi-threaded process, setns(2)). Where the
//! node's options say so, mounts of the namespaces' files stand in for the thread: then no number under /proc is the
//! pod's. Nothing but this module knows which of the three a pod has.

mod holder;
mod inside;
mod pinned;
pub mod sysctls;
mod thread;

use std::{io, path::PathBuf};

use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::time::Instant;

use crate::{
    error::{Code, Coded},
    process::Reaper,
    released::Released,
    sys::{pin::PinError, survivor::Survivors},
};
pub use holder::HolderProgram;
use sysctls::Sysctls;

/// One line of a user or group id map (`user_namespaces(7)`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMapping {
    pub container_id: u32,
    /// The first id on the node.
    pub host_id: u32,
    pub length: u32,
}

/// Which network namespace the keeper enters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Net {
    Host,
    /// The one at this path.
    Join(PathBuf),
    /// A new one, made inside the keeper's user namespace. Its owner pins it afterwards.
    New,
}

/// Which user namespace the keeper lives in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum User {
    Host,
    /// The one that owns the network namespace which the keeper joins.
    OwnerOfNet,
    /// A new one with these mappings.
    New {
        uids: Vec<IdMapping>,
        gids: Vec<IdMapping>,
    },
}

/// What keeps the namespaces of a pod that needs no process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Preference {
    /// A parked thread.
    #[default]
    Thread,
    /// Mounts.
    Pinned,
}

/// What a keeper is to hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The folder that the namespaces are to be pinned in, unless they need a process; none for a thread.
    pub pins: Option<PathBuf>,
    pub net: Net,
    pub user: User,
    /// Whether the pod has an IPC namespace of its own.
    pub ipc: bool,
    /// Whether the pod has a UTS namespace of its own, and then its hostname.
    pub uts: Option<String>,
    /// Whether all containers of the pod share one PID namespace.
    pub shared_pid: bool,
    /// Kernel parameters, set from inside.
    pub sysctls: Sysctls,
}

impl Wanted {
    /// Whether the kernel demands a process for this pod.
    pub fn needs_process(&self) -> bool {
        self.shared_pid || self.user != User::Host
    }

    /// What the journal is told before the keeper is made.
    pub fn planned(&self) -> KeeperRecord {
        match &self.pins {
            _ if self.needs_process() => KeeperRecord::Holder { identity: None },
            Some(folder) => KeeperRecord::Pinned { folder: folder.clone() },
            None => KeeperRecord::Thread,
        }
    }
}

/// Where a pod's namespaces are to be found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Under this number in /proc: all of them, the node's too where the pod has them.
    Process(u32),
    /// In this folder: those that are the pod's own, but the network's, which is pinned elsewhere.
    Pins(PathBuf),
}

impl Place {
    /// The file of the namespace that the kernel calls `kind`.
    pub fn path(&self, kind: &str) -> PathBuf {
        match self {
            Self::Process(pid) => format!("/proc/{pid}/ns/{kind}").into(),
            Self::Pins(folder) => folder.join(kind),
        }
    }
}

/// What the journal knows of a keeper.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeeperRecord {
    /// A thread of the shim: gone when the shim is gone.
    Thread,
    /// A process; `start_time` tells it from a later process of the same number. Unknown before it runs.
    Holder {
        /// Its number and start time, once it runs.
        identity: Option<(i32, u64)>,
    },
    /// Mounts in a folder: they are there when the shim is gone.
    Pinned { folder: PathBuf },
}

/// A failure to make or end what stands for the pod.
#[derive(Debug, Error)]
pub enum KeeperError {
    /// A namespace could not be joined, made or set up.
    #[error("{during}: {source}")]
    Namespace { during: String, source: io::Error },
    /// A kernel parameter was refused.
    #[error("set sysctl {name:?} to {value:?}: {source}")]
    Sysctl { name: String, value: String, source: io::Error },
    /// The holder was killed and has not ended, since the last process of its PID namespace has not.
    #[error("holder {pid}: killed, and not ended: {survivors}")]
    Alive { pid: i32, survivors: Survivors },
    /// The holder did not come up.
    #[error("holder: {0}")]
    Holder(String),
    /// A namespace could not be pinned, or its pin not be removed.
    #[error("pin {}: {source}", path.display())]
    Pin { path: PathBuf, source: PinError },
    /// A thread was lost.
    #[error("{0}")]
    Lost(&'static str),
}

impl Coded for KeeperError {
    fn code(&self) -> Code {
        match self {
            Self::Sysctl { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                Code::InvalidArgument
            }
            Self::Sysctl { source, .. } if source.raw_os_error() == Some(22) => {
                Code::InvalidArgument
            }
            Self::Alive { .. } => Code::DeadlineExceeded,
            _ => Code::Unknown,
        }
    }
}

fn during(what: impl Into<String>) -> impl FnOnce(io::Error) -> KeeperError {
    let during = what.into();
    move |source| KeeperError::Namespace { during, source }
}

/// A running keeper. Dropping it ends a thread; a holder is ended by [`Keeper::end`] or by the shim's death, pins by
/// [`Keeper::end`] or [`release`] alone.
#[derive(Debug)]
pub enum Keeper {
    Thread(thread::Parked),
    Holder(holder::Holder),
    Pinned(pinned::Pins),
}

impl Keeper {
    /// Makes the namespaces and what keeps them.
    ///
    /// A holder must be started on the shim's main thread: it dies with the thread that started it.
    pub async fn start(
        wanted: Wanted,
        reaper: &Reaper,
        program: HolderProgram,
    ) -> Result<Self, KeeperError> {
        let made = match wanted.planned() {
            KeeperRecord::Holder { .. } => {
                return holder::Holder::start(wanted, reaper, program).await.map(Self::Holder);
            }
            KeeperRecord::Thread => tokio::task::spawn_blocking(move || {
                thread::Parked::start(&wanted).map(Self::Thread)
            }),
            KeeperRecord::Pinned { folder } => tokio::task::spawn_blocking(move || {
                pinned::Pins::make(&wanted, &folder).map(Self::Pinned)
            }),
        };
        made.await.unwrap_or_else(|error| Err(KeeperError::Holder(error.to_string())))
    }

    /// The number under /proc whose namespaces are the pod's; 0 where there is none.
    pub fn pid(&self) -> u32 {
        match self {
            Self::Thread(parked) => parked.tid(),
            Self::Holder(holder) => holder.pid(),
            Self::Pinned(_) => 0,
        }
    }

    /// Where the pod's namespaces are.
    pub fn place(&self) -> Place {
        match self {
            Self::Thread(_) | Self::Holder(_) => Place::Process(self.pid()),
            Self::Pinned(pins) => Place::Pins(pins.folder().to_owned()),
        }
    }

    /// What the journal keeps of it.
    pub fn record(&self) -> KeeperRecord {
        match self {
            Self::Thread(_) => KeeperRecord::Thread,
            Self::Holder(holder) => KeeperRecord::Holder { identity: Some(holder.identity()) },
            Self::Pinned(pins) => KeeperRecord::Pinned { folder: pins.folder().to_owned() },
        }
    }

    /// Resolves when a holder ends by itself or by somebody's hand; never for a thread or pins.
    pub fn exited(&self) -> Option<crate::process::Exited> {
        match self {
            Self::Thread(_) | Self::Pinned(_) => None,
            Self::Holder(holder) => Some(holder.exited()),
        }
    }

    /// Ends the keeper and waits until it holds no namespace any more, a holder until `deadline`. What is left then is
    /// for [`release`] by its record. Returns the exit status: the holder's own, else 0.
    pub async fn end(self, deadline: Instant) -> Result<i32, KeeperError> {
        match self {
            Self::Thread(parked) => {
                // A join may take as long as the thread takes to wake: not on the async thread.
                let _ = tokio::task::spawn_blocking(move || parked.end()).await;
                Ok(0)
            }
            Self::Holder(holder) => holder.end(deadline).await,
            Self::Pinned(pins) => {
                let ended = tokio::task::spawn_blocking(move || pinned::release(pins.folder()));
                let lost = |_| Err(KeeperError::Lost("the thread that unpins was lost"));
                ended.await.unwrap_or_else(lost).map(|_| 0)
            }
        }
    }
}

/// Ends what a dead shim's keeper left: nothing for a thread, the process of that identity for a holder, the mounts of
/// pins.
pub fn release(record: &KeeperRecord) -> Result<Released, KeeperError> {
    match record {
        KeeperRecord::Thread | KeeperRecord::Holder { identity: None } => Ok(Released::AlreadyGone),
        KeeperRecord::Holder { identity: Some((pid, start_time)) } => {
            holder::kill_by_identity(*pid, *start_time)
        }
        KeeperRecord::Pinned { folder } => pinned::release(folder),
    }
}
