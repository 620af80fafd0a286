//! What a container's pod has to say about it.

use std::path::{Path, PathBuf};

use async_trait::async_trait;
use mooring::{id::Id, nri::Event};

use super::PodError;

/// The pod that the containers belong to.
#[async_trait]
pub trait Pod: Send + Sync {
    /// Refuses (`FailedPrecondition`) once the sandbox stops. The guard is held while the container is created, so
    /// that a teardown waits for it.
    fn admit(&self, container: &Id) -> Result<Box<dyn Send>, PodError>;
    /// Adds what the pod gives to its containers to the specification; answers whether it changed it.
    async fn prepare(
        &self,
        container: &Id,
        bundle: &Path,
        spec: &mut serde_json::Value,
    ) -> Result<bool, PodError>;
    /// Refuses a container that was created as `spec` says and whose first process, which runs nothing of the image
    /// yet, is where the pod does not let it be.
    async fn verify(
        &self,
        container: &Id,
        pid: i32,
        spec: &serde_json::Value,
    ) -> Result<(), PodError>;
    /// Hears that a container is about to be started, and may refuse.
    async fn starts(&self, _container: &Id) -> Result<(), PodError> {
        Ok(())
    }
    /// Hears what became of a container: with its process's number, or the status of its end. Waits for nobody.
    fn became(&self, _event: Event, _container: &Id, _number: u32) {}
    /// Where the containers' records are kept.
    fn tasks_dir(&self) -> PathBuf;
}
