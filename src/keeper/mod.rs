//! What keeps a pod's namespaces: a parked thread of the shim, or the holder process.
//!
//! containerd builds every container's spec with `/proc/<id>/ns/…` of whatever stands for the pod. A thread of the
//! shim serves for the usual pod and costs no process. The kernel demands a process in two cases: a shared PID
//! namespace (its init) and a user namespace (`setns` refuses threads of a multi-threaded process, setns(2)).
//! Nothing but this module knows which of the two a pod has; pinned namespaces can become a third way here.

mod holder;
mod inside;
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
    sys::survivor::Survivors,
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

/// What a keeper is to hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
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

/// A running keeper. Dropping it ends a thread; a holder is ended by [`Keeper::end`] or by the shim's death.
#[derive(Debug)]
pub enum Keeper {
    Thread(thread::Parked),
    Holder(holder::Holder),
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
        if wanted.needs_process() {
            return holder::Holder::start(wanted, reaper, program).await.map(Self::Holder);
        }
        let parked = tokio::task::spawn_blocking(move || thread::Parked::start(&wanted)).await;
        parked.unwrap_or_else(|error| Err(KeeperError::Holder(error.to_string()))).map(Self::Thread)
    }

    /// The number under /proc whose namespaces are the pod's.
    pub fn pid(&self) -> u32 {
        match self {
            Self::Thread(parked) => parked.tid(),
            Self::Holder(holder) => holder.pid(),
        }
    }

    /// What the journal keeps of it.
    pub fn record(&self) -> KeeperRecord {
        match self {
            Self::Thread(_) => KeeperRecord::Thread,
            Self::Holder(holder) => KeeperRecord::Holder { identity: Some(holder.identity()) },
        }
    }

    /// Resolves when a holder ends by itself or by somebody's hand; never for a thread.
    pub fn exited(&self) -> Option<crate::process::Exited> {
        match self {
            Self::Thread(_) => None,
            Self::Holder(holder) => Some(holder.exited()),
        }
    }

    /// Ends the keeper and waits until it holds no namespace any more, a holder until `deadline`. What is left then is
    /// for [`release`] by its record. Returns the exit status: 0 for a thread that ended as told, the holder's own
    /// otherwise.
    pub async fn end(self, deadline: Instant) -> Result<i32, KeeperError> {
        match self {
            Self::Thread(parked) => {
                // A join may take as long as the thread takes to wake: not on the async thread.
                let _ = tokio::task::spawn_blocking(move || parked.end()).await;
                Ok(0)
            }
            Self::Holder(holder) => holder.end(deadline).await,
        }
    }
}

/// Ends what a dead shim's keeper left: nothing for a thread, the process of that identity for a holder.
pub fn release(record: &KeeperRecord) -> Result<Released, KeeperError> {
    match record {
        KeeperRecord::Thread | KeeperRecord::Holder { identity: None } => Ok(Released::AlreadyGone),
        KeeperRecord::Holder { identity: Some((pid, start_time)) } => {
            holder::kill_by_identity(*pid, *start_time)
        }
    }
}
