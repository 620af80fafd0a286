//! Network namespaces below /run/netns that no process and no living pod has, and the empty files of some that are gone.

use super::Look;
use crate::doctor::{finding::Finding, world::World};

pub struct Netns;

impl Look for Netns {
    fn name(&self) -> &'static str {
        "netns"
    }

    fn findings(&self, world: &World) -> Vec<Finding> {
        world.dangling_netns().into_iter().map(|(_, _, finding)| finding).collect()
    }
}
