//! The plan: what is taken down, in which order, and what a failure means. docs/teardown.md tells it in words.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::journal::Resource;

/// A step of the teardown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Refuse new tasks.
    Door,
    /// Stop every container of the sandbox.
    Containers,
    /// End what stands for the pod.
    Keeper,
    /// Tell NRI.
    Nri,
    /// CNI DEL.
    Network,
    /// Remove the network namespace that the shim made.
    Netns,
    /// Unmount image volumes and remove their snapshots.
    ImageVolumes,
    /// Unmount the pod's /dev/shm.
    Shm,
    /// Remove the pod's files.
    Files,
    /// Remove the pod's cgroup.
    Cgroup,
    /// Drop the lease.
    Lease,
}

impl Step {
    /// The step's name in errors, logs, metrics and failpoints.
    pub fn name(self) -> &'static str {
        match self {
            Self::Door => "door",
            Self::Containers => "containers",
            Self::Keeper => "keeper",
            Self::Nri => "nri",
            Self::Network => "network",
            Self::Netns => "netns",
            Self::ImageVolumes => "image_volumes",
            Self::Shm => "shm",
            Self::Files => "files",
            Self::Cgroup => "cgroup",
            Self::Lease => "lease",
        }
    }
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// What a step's failure does to the teardown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// It ends here with the error; the next run resumes at this step.
    Abort,
    /// It is logged and the teardown goes on.
    Warn,
}

/// One line of the plan.
#[derive(Clone, Copy, Debug)]
pub struct StepSpec {
    /// Which step.
    pub step: Step,
    /// The journaled resources that it releases; a step that has such a kind is passed over where there are none.
    pub releases: Option<fn(&Resource) -> bool>,
    /// How long it may take.
    pub budget: Duration,
    /// What a failure means.
    pub policy: Policy,
}

const fn line(
    step: Step,
    releases: Option<fn(&Resource) -> bool>,
    seconds: u64,
    policy: Policy,
) -> StepSpec {
    StepSpec { step, releases, budget: Duration::from_secs(seconds), policy }
}

/// The teardown, in the reference's order.
pub const PLAN: &[StepSpec] = &[
    line(Step::Door, None, 10, Policy::Warn),
    line(Step::Containers, None, 30, Policy::Abort),
    line(Step::Keeper, Some(|r| matches!(r, Resource::Keeper(_))), 10, Policy::Abort),
    line(Step::Nri, None, 5, Policy::Warn),
    line(Step::Network, Some(|r| matches!(r, Resource::Network(_))), 180, Policy::Abort),
    line(Step::Netns, Some(|r| matches!(r, Resource::Netns(_))), 10, Policy::Abort),
    line(Step::ImageVolumes, Some(|r| matches!(r, Resource::ImageVolume(_))), 30, Policy::Abort),
    line(Step::Shm, Some(|r| matches!(r, Resource::Shm(_))), 10, Policy::Abort),
    line(Step::Files, Some(|r| matches!(r, Resource::Files(_))), 10, Policy::Abort),
    line(Step::Cgroup, Some(|r| matches!(r, Resource::Cgroup(_))), 10, Policy::Abort),
    line(Step::Lease, Some(|r| matches!(r, Resource::Lease(_))), 10, Policy::Abort),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_is_the_references() {
        let order: Vec<Step> = PLAN.iter().map(|line| line.step).collect();
        let mut sorted = order.clone();
        sorted.sort();
        sorted.dedup();
        assert_eq!(order, sorted, "the enum is declared in the plan's order, each step once");
        assert_eq!(order.len(), Step::Lease as usize + 1, "no step is left out");
    }
}
