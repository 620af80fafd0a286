//! The sandbox's lease: what keeps its snapshots from containerd's garbage collection.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::{
    containerd::{Containerd, Error},
    released::Released,
};

/// A lease that the sandbox uses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseRecord {
    pub id: String,
    /// Whether it was there before: then whoever made it (containerd's CRI plugin) deletes it too.
    pub found: bool,
}

/// Makes the lease `id`, or takes the one that is there.
pub async fn acquire(
    containerd: &dyn Containerd,
    id: &str,
    labels: &BTreeMap<String, String>,
    deadline: Instant,
) -> Result<LeaseRecord, Error> {
    let found = match containerd.create_lease(id, labels, deadline).await {
        Ok(()) => false,
        Err(Error::AlreadyExists { .. }) => true,
        Err(error) => return Err(error),
    };
    Ok(LeaseRecord { id: id.to_owned(), found })
}

/// Deletes the lease, if it was made for the sandbox.
pub async fn release(
    containerd: &dyn Containerd,
    record: &LeaseRecord,
    deadline: Instant,
) -> Result<Released, Error> {
    if record.found {
        return Ok(Released::AlreadyGone);
    }
    containerd.delete_lease(&record.id, deadline).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::containerd::fake::FakeContainerd;

    fn soon() -> Instant {
        Instant::now() + std::time::Duration::from_secs(1)
    }

    #[tokio::test]
    async fn a_lease_is_made_once_and_deleted_once() {
        let containerd = FakeContainerd::default();
        let labels = BTreeMap::new();
        let record = acquire(&containerd, "pod", &labels, soon()).await.unwrap();
        assert!(!record.found);
        assert_eq!(release(&containerd, &record, soon()).await.unwrap(), Released::Done);
        assert_eq!(release(&containerd, &record, soon()).await.unwrap(), Released::AlreadyGone);
    }

    #[tokio::test]
    async fn a_lease_of_the_client_stays_the_clients() {
        let containerd = FakeContainerd::default();
        let labels = BTreeMap::new();
        containerd.create_lease("pod", &labels, soon()).await.unwrap();
        let record = acquire(&containerd, "pod", &labels, soon()).await.unwrap();
        assert!(record.found);
        assert_eq!(release(&containerd, &record, soon()).await.unwrap(), Released::AlreadyGone);
        assert_eq!(containerd.leases(), ["pod"]);
    }
}
