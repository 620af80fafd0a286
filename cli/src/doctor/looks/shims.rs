//! Shims that containerd does not know, and holders without their shim.

use std::path::Path;

use super::Look;
use crate::doctor::{
    finding::{Finding, Sure},
    world::{
        World,
        processes::{Process, ShimCall},
        records::Records,
    },
};

/// The name that a holder gives itself.
const HOLDER: &str = "mooring-pod";

pub struct Shims;

impl Look for Shims {
    fn name(&self) -> &'static str {
        "shim"
    }

    fn findings(&self, world: &World) -> Vec<Finding> {
        // Without containerd's word nobody can say that it does not know a shim.
        let Some(records) = world.records() else { return Vec::new() };
        let all = world.processes.values();
        all.filter_map(|process| {
            let shim = process.shim()?;
            let is_unknown = Self::is_unknown(&shim, world, records)
                && !Self::serves_a_known_one(process, world, records);
            is_unknown.then(|| self.finding(process, &shim, world))
        })
        .collect()
    }
}

impl Shims {
    fn is_unknown(shim: &ShimCall<'_>, world: &World, records: &Records) -> bool {
        // Another containerd's shims are not ours to judge, and `delete` ends by itself.
        if Path::new(shim.address) != world.places.containerd.address || shim.action == "delete" {
            return false;
        }
        let knows = |id: &str| {
            let name = (shim.namespace.to_owned(), id.to_owned());
            records.tasks.contains(&name)
                || records.containers.contains(&name)
                || records.sandboxes.contains(&name)
        };
        let found = world.found.iter().find(|found| {
            found.namespace.as_str() == shim.namespace && found.id.as_str() == shim.id
        });
        let mut containers = found.into_iter().flat_map(|found| &found.containers);
        // What it serves lies in bundles: a shim of a group has the first one's name.
        !knows(shim.id) && !containers.any(|one| knows(one.id.as_str()))
    }

    /// Whether it is the parent of a container that containerd knows: a shim of a group keeps the name of its first
    /// container when that is gone.
    fn serves_a_known_one(process: &Process, world: &World, records: &Records) -> bool {
        let mut children = world.states.iter().filter(|state| {
            let init = state.running(&world.processes);
            init.is_some_and(|init| init.parent == process.pid)
        });
        children.any(|state| {
            let name = (state.namespace.clone(), state.id.clone());
            records.tasks.contains(&name) || records.containers.contains(&name)
        })
    }

    fn finding(&self, process: &Process, shim: &ShimCall<'_>, world: &World) -> Finding {
        let Process { pid, .. } = process;
        let then = if shim.is_ours { " && mooring gc --yes" } else { "" };
        Finding::new(self.name(), format!("process {pid}, {}", process.program()))
            .of(format!("{}/{}", shim.namespace, shim.id))
            .since(process.started(), world.now)
            .because(
                Sure::Likely,
                "containerd has no sandbox, no container and no task of this name",
            )
            .freed_by(format!("kill -9 {pid}{then}"))
    }
}

pub struct Holders;

impl Look for Holders {
    fn name(&self) -> &'static str {
        "holder"
    }

    fn findings(&self, world: &World) -> Vec<Finding> {
        let orphans = world.processes.values().filter(|process| {
            let parent = world.processes.get(&process.parent).and_then(Process::shim);
            process.program() == HOLDER
                && process.arguments.len() == 1
                && !parent.is_some_and(|parent| parent.is_ours)
        });
        orphans
            .map(|process| {
                Finding::new(self.name(), format!("process {}, {HOLDER}", process.pid))
                    .since(process.started(), world.now)
                    .because(Sure::Likely, "a holder ends with its shim, and its parent is none")
                    .freed_by(format!("kill -9 {}", process.pid))
            })
            .collect()
    }
}
