//! The Task engine: containers and their processes, from create to delete.
//!
//! [`Tasks`] has one method per RPC of the Task service, in plain types. Those that change something run as tasks of
//! their own, so that a client that goes away in mid-call leaves nothing half done. Kill, State, Wait, Pids and Stats
//! take no lock that is held across a call of the OCI runtime.

mod checkpoint;
mod container;
mod create;
mod error;
mod lifecycle;
pub mod metrics;
mod parties;
mod pod;
mod process;
mod publish;
mod restore;
mod spec;
mod stdio;
mod tasks;
#[cfg(test)]
mod tests;

use std::{path::PathBuf, time::SystemTime};

use mooring::{id::Id, mounts::Mount, runtime::RuntimeSettings};

pub use checkpoint::CheckpointRequest;
pub use error::{Error, PodError};
pub use pod::Pod;
pub use stdio::Streams;
pub use tasks::Tasks;

/// What a container is created from.
#[derive(Clone, Debug)]
pub struct CreateRequest {
    pub id: Id,
    pub bundle: PathBuf,
    /// What is mounted on `<bundle>/rootfs`; may be empty.
    pub rootfs: Vec<Mount>,
    pub streams: Streams,
    /// The folder of a checkpoint, which its start restores; empty for a container that starts anew.
    pub checkpoint: String,
    /// The runtime that creates it.
    pub runtime: RuntimeSettings,
}

/// A further process in a container.
#[derive(Clone, Debug)]
pub struct ExecRequest {
    pub id: Id,
    pub exec_id: Id,
    pub streams: Streams,
    /// The process, as JSON of an OCI specification.
    pub process: Vec<u8>,
}

/// The state of a process, with containerd's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Created = 1,
    Running = 2,
    Stopped = 3,
    Paused = 4,
    Pausing = 5,
}

/// How and when a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Its process id; 0 for a process that never started.
    pub pid: u32,
    /// Its exit code, or 128 + the signal that killed it.
    pub status: u32,
    pub at: SystemTime,
}

#[derive(Clone, Debug)]
pub struct State {
    pub bundle: PathBuf,
    /// The process's id; 0 before it is started.
    pub pid: u32,
    pub status: Status,
    pub streams: Streams,
    pub ended: Option<Ended>,
}

/// A process of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub pid: u32,
    /// The exec that it is, if it is one.
    pub exec_id: Option<Id>,
}
