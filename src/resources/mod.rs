//! Every kind of thing that a sandbox holds, and the plan that takes them down.
//!
//! A kind is a record with [`Kind`] (`kinds.rs`): name, step, what a reboot makes of it, release. How it is acquired
//! and released is in the file of the room that knows it. A kind without its line here does not compile.

mod kinds;
mod plan;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::{
    cgroup::pod::PodCgroupRecord,
    containerd::Containerd,
    keeper::KeeperRecord,
    mounts::{files::FilesRecord, shm::ShmRecord},
    network::{AttachmentRecord, CniPlugins, netns::NetnsRecord},
    nri::NriRecord,
    process::Reaper,
    released::Released,
    teardown::{Journaled, Step, StepError},
    volumes::{lease::LeaseRecord, volume::ImageVolumeRecord},
};
pub use plan::{Action, PLAN, WITHOUT_SHIM};

/// Something that a sandbox holds, as its journal names it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Resource {
    Cgroup(PodCgroupRecord),
    Files(FilesRecord),
    Shm(ShmRecord),
    /// A network namespace that the shim made.
    Netns(NetnsRecord),
    Keeper(KeeperRecord),
    /// That NRI plugins were told of the pod.
    Nri(Box<NriRecord>),
    Network(Box<AttachmentRecord>),
    ImageVolume(ImageVolumeRecord),
    /// The lease that keeps the sandbox's snapshots.
    Lease(LeaseRecord),
}

impl Resource {
    fn kind(&self) -> &dyn Kind {
        match self {
            Self::Cgroup(record) => record,
            Self::Files(record) => record,
            Self::Shm(record) => record,
            Self::Netns(record) => record,
            Self::Keeper(record) => record,
            Self::Nri(record) => &**record,
            Self::Network(record) => &**record,
            Self::ImageVolume(record) => record,
            Self::Lease(record) => record,
        }
    }

    /// Whether a record of another boot may name what is somebody else's now: then it is not to be touched.
    pub fn is_anothers_after_reboot(&self) -> bool {
        self.kind().declared().reboot == Reboot::NameReused
    }

    /// Releases it; the same whether the shim lives or not, and whether it is held or was only intended.
    pub async fn release(
        &self,
        parties: &Parties,
        deadline: Instant,
    ) -> Result<Released, StepError> {
        self.kind().release(parties, deadline).await
    }
}

impl Journaled for Resource {
    fn kind(&self) -> &'static str {
        Self::kind(self).declared().name
    }

    fn step(&self) -> Step {
        Self::kind(self).declared().step
    }

    fn outlives_reboot(&self) -> bool {
        Self::kind(self).declared().reboot == Reboot::Lasts
    }
}

/// What is said once of a kind.
struct Declared {
    /// As the journal has it.
    name: &'static str,
    /// Which step of [`PLAN`] releases it.
    step: Step,
    reboot: Reboot,
}

/// What a reboot makes of a kind.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reboot {
    /// It is still there.
    Lasts,
    /// It is gone; to look for it again does no harm.
    Ends,
    /// It is gone, and its name, a process id or a cgroup's path, may be somebody else's by now.
    NameReused,
}

#[async_trait]
trait Kind: Sync {
    fn declared(&self) -> Declared;

    /// Releases it, whether it is held or was only intended. May be repeated.
    async fn release(&self, parties: &Parties, deadline: Instant) -> Result<Released, StepError>;
}

/// Who is needed for a release, beside the kernel.
#[derive(Clone)]
pub struct Parties {
    pub containerd: Arc<dyn Containerd>,
    pub plugins: Arc<dyn CniPlugins>,
    /// Waits for this process's children.
    pub reaper: Reaper,
}
