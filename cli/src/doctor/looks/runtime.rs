//! Containers without a shim: those that run on, and what their OCI runtime has written down.

use mooring::runtime::BUILTIN;

use super::Look;
use crate::doctor::{
    finding::{Finding, Sure, word},
    world::{Asked, Owner, State, World, processes::Process},
};

pub struct Containers;

impl Look for Containers {
    fn name(&self) -> &'static str {
        "container"
    }

    fn findings(&self, world: &World) -> Vec<Finding> {
        world.states.iter().filter_map(|state| self.judge(state, world)).collect()
    }
}

impl Containers {
    fn judge(&self, state: &State, world: &World) -> Option<Finding> {
        let owner = world.owner(&state.namespace, &state.id);
        if owner >= Owner::Doubtful {
            return None;
        }
        let running = state.running(&world.processes);
        let what = match running {
            Some(init) => format!(
                "process {}, {}, and its state {}",
                init.pid,
                init.name,
                state.folder.display()
            ),
            None => format!("state of a container that does not run, {}", state.folder.display()),
        };
        let since = running.and_then(Process::started).or(state.written);
        let whose = format!("{}/{}", state.namespace, state.id);
        let finding = Finding::new(self.name(), what).since(since, world.now);
        if owner == Owner::Left {
            return Some(finding.ours(whose));
        }
        let (sure, why) = match (running, &world.containerd) {
            (Some(init), _) if world.is_orphan(state) => (
                Sure::Certain,
                format!("it runs on without a shim: its parent is process {}", init.parent),
            ),
            // A shim's child, which no bundle names: the shim knows of it.
            (Some(_), _) => return None,
            (None, Asked::Records(_)) => {
                (Sure::Likely, "no shim serves it, and containerd has no task of this name".into())
            }
            (None, Asked::Not(_)) => {
                (Sure::Unsure, "no shim serves it; containerd was not asked".into())
            }
        };
        Some(finding.of(whose).because(sure, why).freed_by(removal(state)))
    }
}

/// The command with which an OCI runtime ends a container and removes what it has of it.
pub fn removal(state: &State) -> String {
    let root = word(state.root());
    let program = match state.runtime {
        BUILTIN => "containerd-shim-mooring-v1 oci",
        other => other,
    };
    format!("{program} --root {root} delete --force {}", word(&state.id))
}
