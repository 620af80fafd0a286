//! The kinds: what is said once of each, and how the room that knows it releases it.

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use tokio::time::Instant;

use super::{Declared, Kind, PLAN, Parties, Reboot};
use crate::{
    cgroup::pod::{self, PodCgroupRecord},
    error::{Code, Coded},
    keeper::{self, KeeperRecord},
    mounts::{
        files::{self, FilesRecord},
        kernel::{Kernel, System},
        shm::{self, ShmRecord},
    },
    network::{
        self, AttachmentRecord,
        netns::{self, NetnsRecord},
    },
    nri::NriRecord,
    released::Released,
    teardown::{StepError, releasing},
    volumes::{
        lease::{self, LeaseRecord},
        volume::{self, ImageVolumeRecord},
    },
};

type Outcome = Result<Released, StepError>;

#[async_trait]
impl Kind for KeeperRecord {
    fn declared(&self) -> Declared {
        let step = const { releasing(PLAN, "keeper") };
        let reboot = match self {
            Self::Thread | Self::Holder { .. } => Reboot::NameReused,
            // The mounts are gone; the files may be there.
            Self::Pinned { .. } => Reboot::Ends,
        };
        Declared { name: "keeper", step, reboot }
    }

    async fn release(&self, _: &Parties, _: Instant) -> Outcome {
        let record = self.clone();
        blocking(move || keeper::release(&record)).await
    }
}

#[async_trait]
impl Kind for NriRecord {
    fn declared(&self) -> Declared {
        let step = const { releasing(PLAN, "nri") };
        // The plugins that were told are gone, and others are told what there is when they come.
        Declared { name: "nri", step, reboot: Reboot::NameReused }
    }

    async fn release(&self, parties: &Parties, deadline: Instant) -> Outcome {
        Ok(Self::release(self, &parties.reaper, deadline).await)
    }
}

#[async_trait]
impl Kind for AttachmentRecord {
    fn declared(&self) -> Declared {
        let step = const { releasing(PLAN, "network") };
        // Its address is a file of the IPAM plugin.
        Declared { name: "network", step, reboot: Reboot::Lasts }
    }

    async fn release(&self, parties: &Parties, deadline: Instant) -> Outcome {
        let path = self.netns.clone();
        let open = blocking(move || Ok::<_, netns::Error>(netns::is_open(&path))).await?;
        // It knows itself which DEL is owed and which is only tried: an ADD may have ended in any way.
        Ok(network::detach(&*parties.plugins, self, open, Some(deadline)).await?)
    }
}

#[async_trait]
impl Kind for NetnsRecord {
    fn declared(&self) -> Declared {
        let step = const { releasing(PLAN, "netns") };
        Declared { name: "netns", step, reboot: Reboot::Ends }
    }

    async fn release(&self, _: &Parties, _: Instant) -> Outcome {
        let record = self.clone();
        blocking(move || netns::release(&record)).await
    }
}

#[async_trait]
impl Kind for ImageVolumeRecord {
    fn declared(&self) -> Declared {
        let step = const { releasing(PLAN, "image_volumes") };
        // Its snapshot is containerd's.
        Declared { name: "image_volume", step, reboot: Reboot::Lasts }
    }

    async fn release(&self, parties: &Parties, deadline: Instant) -> Outcome {
        let kernel: Arc<dyn Kernel> = Arc::new(System);
        Ok(volume::release(&*parties.containerd, &kernel, self, deadline).await?)
    }
}

#[async_trait]
impl Kind for ShmRecord {
    fn declared(&self) -> Declared {
        let step = const { releasing(PLAN, "shm") };
        Declared { name: "shm", step, reboot: Reboot::Ends }
    }

    async fn release(&self, _: &Parties, _: Instant) -> Outcome {
        let record = self.clone();
        blocking(move || shm::release(&System, &record)).await
    }
}

#[async_trait]
impl Kind for FilesRecord {
    fn declared(&self) -> Declared {
        let step = const { releasing(PLAN, "files") };
        Declared { name: "files", step, reboot: Reboot::Ends }
    }

    async fn release(&self, _: &Parties, _: Instant) -> Outcome {
        let record = self.clone();
        blocking(move || files::release(&record)).await
    }
}

#[async_trait]
impl Kind for PodCgroupRecord {
    fn declared(&self) -> Declared {
        let step = const { releasing(PLAN, "cgroup") };
        Declared { name: "cgroup", step, reboot: Reboot::NameReused }
    }

    async fn release(&self, _: &Parties, _: Instant) -> Outcome {
        let record = self.clone();
        blocking(move || pod::release(&record)).await
    }
}

#[async_trait]
impl Kind for LeaseRecord {
    fn declared(&self) -> Declared {
        let step = const { releasing(PLAN, "lease") };
        Declared { name: "lease", step, reboot: Reboot::Lasts }
    }

    async fn release(&self, parties: &Parties, deadline: Instant) -> Outcome {
        Ok(lease::release(&*parties.containerd, self, deadline).await?)
    }
}

async fn blocking<T: Send + 'static, E: Coded + fmt::Display + Send + 'static>(
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, StepError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => Ok(result?),
        // A panic in the work, or the end of the runtime.
        Err(error) => Err(StepError { code: Code::Unknown, message: error.to_string() }),
    }
}
