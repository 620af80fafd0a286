//! Image volumes: mounted once per pod, on behalf of the first container that asks.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use serde_json::Value;
use tokio::time::Instant;

use super::{Error, Pod, Sandbox, blocking};
use crate::{
    mounts::kernel::{Kernel, System},
    resources::Resource,
    teardown::journal::{Entry, Stage},
    volumes::{
        image_mount, lease,
        volume::{self, ImageVolumeRecord},
    },
};

/// How long containerd may take to give an image's snapshot.
const PATIENCE: Duration = Duration::from_secs(30);

impl Sandbox {
    /// Mounts the images that `document` asks for, and makes its mounts plain bind mounts of them.
    pub(super) async fn mount_images(&self, pod: &Pod, document: &mut Value) -> Result<(), Error> {
        let wanted = image_mount::find(document)?;
        if wanted.is_empty() {
            return Ok(());
        }
        let _one_at_a_time = pod.volumes.lock().await;
        let deadline = Instant::now() + PATIENCE;
        self.take_lease(pod, deadline).await?;
        let run_dir = self.env.run_dir();
        let mut sources: BTreeMap<String, PathBuf> = BTreeMap::new();
        for wish in &wanted {
            let lease = Some(self.id().as_str());
            let snapshotter = wish.snapshotter.as_deref();
            let record =
                ImageVolumeRecord::plan(&run_dir, self.id(), &wish.reference, snapshotter, lease);
            self.acquire_volume(pod, &record, deadline).await?;
            let sub_path = wish.sub_path.clone();
            let source = blocking(move || volume::resolve(&record, sub_path.as_deref())).await??;
            sources.insert(wish.destination.clone(), source);
        }
        self.env.containerd.disconnect().await;
        image_mount::replace(document, |volume| {
            // Every volume that is found above has its source here.
            Ok(sources.get(&volume.destination).cloned().unwrap_or_default())
        })?;
        Ok(())
    }

    /// The lease under which the pod's snapshots live; CRI has made one of that name, other clients have not.
    async fn take_lease(&self, pod: &Pod, deadline: Instant) -> Result<(), Error> {
        if pod.has(|resource| matches!(resource, Resource::Lease(_))) {
            return Ok(());
        }
        let id = self.id().to_string();
        let planned = lease::LeaseRecord { id: id.clone(), found: false };
        let entry = pod.intend(Resource::Lease(planned)).await?;
        let record = lease::acquire(&*self.env.containerd, &id, &BTreeMap::new(), deadline).await?;
        pod.held(entry, Resource::Lease(record)).await
    }

    async fn acquire_volume(
        &self,
        pod: &Pod,
        record: &ImageVolumeRecord,
        deadline: Instant,
    ) -> Result<(), Error> {
        if pod.has(|resource| *resource == Resource::ImageVolume(record.clone())) {
            return Ok(());
        }
        let kernel: Arc<dyn Kernel> = Arc::new(System);
        let entry = pod.intend(Resource::ImageVolume(record.clone())).await?;
        match volume::acquire(&*self.env.containerd, &kernel, record, deadline).await {
            Ok(()) => pod.held(entry, Resource::ImageVolume(record.clone())).await,
            Err(error) => {
                match volume::release(&*self.env.containerd, &kernel, record, deadline).await {
                    Ok(_) => {
                        if let Err(unwritten) = pod.released(entry).await {
                            log::warn!("sandbox {}: {unwritten}", self.id());
                        }
                    }
                    // The teardown tries again.
                    Err(left) => log::warn!("sandbox {}: {left}", self.id()),
                }
                Err(error.into())
            }
        }
    }
}

impl Pod {
    /// Whether a resource that is held is one that `wanted` says.
    fn has(&self, wanted: impl Fn(&Resource) -> bool) -> bool {
        let held = |entry: &Entry<Resource>| entry.stage == Stage::Held && wanted(&entry.resource);
        self.store.look(|journal| journal.entries.iter().any(held))
    }
}
