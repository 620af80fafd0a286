//! A look for each kind of thing.

mod bundles;
mod cgroups;
pub mod cni;
mod fifos;
mod files;
mod journals;
mod leases;
mod links;
mod netns;
mod runtime;
mod shims;
mod sockets;
mod volumes;

use super::{finding::Finding, world::World};

/// Judges one kind of thing.
pub trait Look: Sync {
    /// The kind, as findings name it.
    fn name(&self) -> &'static str;

    /// What belongs to no living sandbox.
    fn findings(&self, world: &World) -> Vec<Finding>;

    /// Whether a large tree has to be walked for it.
    fn is_slow(&self) -> bool {
        false
    }
}

/// All of them. What is freed by hand is in the order in which it has to be: what is mounted in a folder before it.
pub const LOOKS: &[&dyn Look] = &[
    &journals::Journals,
    &shims::Shims,
    &shims::Holders,
    &runtime::Containers,
    &links::Links,
    &netns::Netns,
    &cni::Results,
    &cni::Reservations,
    &volumes::Mounts,
    &volumes::Snapshots,
    &files::Shm,
    &files::Files,
    &bundles::Bundles,
    &cgroups::Cgroups,
    &leases::Leases,
    &fifos::Fifos,
    &sockets::Sockets,
];
