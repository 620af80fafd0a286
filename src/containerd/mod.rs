//! The calls back: what a sandbox asks of containerd.
//!
//! Every call has a deadline, and every error names the call and its object.

use std::{collections::BTreeMap, time::SystemTime};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::{id::Id, mounts::Mount, released::Released};

mod error;
mod failure;
#[cfg(any(test, feature = "fakes"))]
pub mod fake;
mod grpc;
mod image;
pub(crate) use image::hex;

pub use error::Error;
pub use grpc::Grpc;

/// The snapshotter of images where nobody names another.
pub const DEFAULT_SNAPSHOTTER: &str = "overlayfs";

/// What a sandbox asks of containerd, within containerd's namespace that the sandbox is in.
#[async_trait]
pub trait Containerd: Send + Sync {
    /// The containers whose record names `sandbox`, and whose runtime is Mooring.
    async fn containers_of(&self, sandbox: &Id, deadline: Instant) -> Result<Vec<Id>, Error>;

    /// Sends `signal` to a container's first process, or to all of its processes.
    async fn kill_task(
        &self,
        container: &Id,
        signal: u32,
        all: bool,
        deadline: Instant,
    ) -> Result<(), Error>;

    /// Waits until a container's first process has exited.
    async fn wait_task(&self, container: &Id, deadline: Instant) -> Result<TaskExit, Error>;

    /// How a container's task is.
    async fn task_status(&self, container: &Id, deadline: Instant) -> Result<TaskStatus, Error>;

    /// Deletes the task of a container that has exited.
    async fn delete_task(&self, container: &Id, deadline: Instant) -> Result<TaskExit, Error>;

    /// Makes a lease; one of that name may exist (`AlreadyExists`).
    async fn create_lease(
        &self,
        id: &str,
        labels: &BTreeMap<String, String>,
        deadline: Instant,
    ) -> Result<(), Error>;

    /// Deletes a lease; what only it kept is then containerd's to collect.
    async fn delete_lease(&self, id: &str, deadline: Instant) -> Result<Released, Error>;

    /// Whether the store of sandboxes has a record of `sandbox`.
    async fn knows_sandbox(&self, sandbox: &Id, deadline: Instant) -> Result<bool, Error>;

    /// Finds an image and the snapshot that holds its content, for this machine's platform.
    async fn image_chain(&self, reference: &str, deadline: Instant) -> Result<Image, Error>;

    /// Makes a read-only snapshot, or finds the one made before, and says how it is mounted.
    async fn view_snapshot(&self, view: &View, deadline: Instant) -> Result<Vec<Mount>, Error>;

    async fn remove_snapshot(
        &self,
        snapshotter: &str,
        key: &str,
        deadline: Instant,
    ) -> Result<Released, Error>;

    /// Closes the connection, if there is one: an idle pod keeps none. The next call opens another.
    async fn disconnect(&self);
}

/// The end of a container's first process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskExit {
    /// Its exit status, 128 and the signal's number for a killed one.
    pub status: u32,
    pub exited_at: SystemTime,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskStatus {
    Unknown,
    Created,
    Running,
    Stopped(TaskExit),
    Paused,
    Pausing,
}

/// An image that containerd has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// The digest that its name stands for.
    pub digest: String,
    /// The name of the snapshot with all of its layers; empty for an image without layers.
    pub chain: String,
}

/// A read-only snapshot that is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    pub snapshotter: String,
    pub key: String,
    /// The snapshot that it shows.
    pub parent: String,
    /// The lease that keeps it from being collected.
    pub lease: Option<String>,
}
