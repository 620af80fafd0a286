//! Image volumes: their mounts in the pods' folders, and their snapshots in containerd.

use super::{Look, files};
use crate::doctor::{
    finding::{Finding, Sure, word},
    world::{Owner, World},
};

pub struct Mounts;

impl Look for Mounts {
    fn name(&self) -> &'static str {
        "image volume"
    }

    fn findings(&self, world: &World) -> Vec<Finding> {
        files::mounts(world, self.name(), |below| below.starts_with("images"))
    }
}

pub struct Snapshots;

impl Look for Snapshots {
    fn name(&self) -> &'static str {
        "snapshot"
    }

    fn findings(&self, world: &World) -> Vec<Finding> {
        let Some(records) = world.records() else { return Vec::new() };
        let judged = records.snapshots.iter().filter_map(|(namespace, snapshotter, key)| {
            let finding =
                Finding::new(self.name(), format!("{key} of {snapshotter} in {namespace}"));
            // `mooring-ID-HASH`: the hash has no dash, ids may have some.
            let (id, _) = key.strip_prefix("mooring-")?.rsplit_once('-')?;
            let whose = format!("{namespace}/{id}");
            match world.owner(namespace, id) {
                Owner::Lives | Owner::Doubtful => None,
                Owner::Left => Some(finding.ours(whose)),
                Owner::Recorded | Owner::Unknown => {
                    let command = format!(
                        "{} snapshots --snapshotter {} rm {}",
                        world.places.ctr(namespace),
                        word(snapshotter),
                        word(key)
                    );
                    let why = "named as an image volume's, and there is no journal of its sandbox";
                    Some(finding.of(whose).because(Sure::Likely, why).freed_by(command))
                }
            }
        });
        judged.collect()
    }
}
