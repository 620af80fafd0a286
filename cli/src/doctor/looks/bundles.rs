//! Bundles whose shim is gone: containerd removes them once it has run `delete`, if it gets that far.

use std::fs;

use super::Look;
use crate::doctor::{
    finding::{Finding, Sure, word},
    world::{Asked, Owner, World, bundles::Bundle},
};

pub struct Bundles;

impl Look for Bundles {
    fn name(&self) -> &'static str {
        "bundle"
    }

    fn findings(&self, world: &World) -> Vec<Finding> {
        world.bundles.iter().filter_map(|bundle| self.judge(bundle, world)).collect()
    }
}

impl Bundles {
    fn judge(&self, bundle: &Bundle, world: &World) -> Option<Finding> {
        // containerd renames one before it removes it, and skips what is named so when it starts.
        let hidden = bundle.id.starts_with('.');
        let id = bundle.id.trim_start_matches('.');
        let owner = world.owner(&bundle.namespace, id);
        if bundle.is_served || (!hidden && owner >= Owner::Doubtful) {
            return None;
        }
        let modified = fs::metadata(&bundle.path).and_then(|about| about.modified()).ok();
        let finding = Finding::new(self.name(), bundle.path.display().to_string())
            .of(format!("{}/{id}", bundle.namespace))
            .since(modified, world.now);
        let path = word(&bundle.path);
        let mounted =
            world.mounts.iter().rev().filter(|mount| mount.target.starts_with(&bundle.path));
        let mut steps: Vec<String> =
            mounted.map(|mount| format!("umount {}", word(&mount.target))).collect();
        steps.push(format!("rm -r --one-file-system {path}"));
        let command = steps.join("; ");
        Some(match &world.containerd {
            _ if hidden => {
                let why =
                    "containerd had begun to remove it, and does not look at such names again";
                finding.because(Sure::Likely, why).freed_by(command)
            }
            Asked::Records(_) => {
                let why = "nobody serves its socket, and containerd has no task of this name";
                finding.because(Sure::Likely, why).freed_by(command)
            }
            Asked::Not(_) => {
                let why = "nobody serves its socket; containerd removes it at its next start";
                finding.because(Sure::Likely, why).freed_by("systemctl restart containerd")
            }
        })
    }
}
