//! Leases of sandboxes that are no more.

use super::Look;
use crate::doctor::{
    finding::{Finding, Sure, word},
    world::{Owner, World, records::Lease},
};

pub struct Leases;

impl Look for Leases {
    fn name(&self) -> &'static str {
        "lease"
    }

    fn findings(&self, world: &World) -> Vec<Finding> {
        let Some(records) = world.records() else { return Vec::new() };
        records.leases.iter().filter_map(|lease| self.judge(lease, world)).collect()
    }
}

impl Leases {
    fn judge(&self, lease: &Lease, world: &World) -> Option<Finding> {
        let Lease { namespace, id, expires, created } = lease;
        let finding = Finding::new(self.name(), format!("{id} in {namespace}"));
        let finding = finding.since(*created, world.now);
        match world.owner(namespace, id) {
            Owner::Lives | Owner::Doubtful | Owner::Recorded => return None,
            Owner::Left => return Some(finding.ours(format!("{namespace}/{id}"))),
            Owner::Unknown if *expires => return None,
            Owner::Unknown => {}
        }
        let command = format!("{} leases rm {}", world.places.ctr(namespace), word(id));
        // CRI makes a lease of a pod's name before anything else, and looks for it no more where it is killed then.
        let pods = id.len() == 64 && id.bytes().all(|digit| digit.is_ascii_hexdigit());
        let (sure, why) = if pods {
            (Sure::Likely, "named as a pod of CRI's, which containerd does not know")
        } else if Self::keeps_a_volume(lease, world) {
            (
                Sure::Likely,
                "named as a sandbox whose image volume is there, and nobody knows that one",
            )
        } else {
            // Whoever made it knows what for.
            return None;
        };
        Some(finding.because(sure, why).freed_by(command))
    }

    fn keeps_a_volume(lease: &Lease, world: &World) -> bool {
        let key = format!("mooring-{}-", lease.id);
        let mut all = world.records().into_iter().flat_map(|records| &records.snapshots);
        all.any(|(namespace, _, name)| *namespace == lease.namespace && name.starts_with(&key))
    }
}
