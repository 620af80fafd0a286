//! The plan of a sandbox's teardown: in the order of containerd's own stop of a pod, a line a step.

use crate::teardown::{
    Line,
    Policy::{Abort, Warn},
};

/// What a step does that releases no resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Refuses new tasks, and waits for those that are being created.
    CloseDoor,
    /// Stops every container of the sandbox.
    StopContainers,
}

/// Steps, what each does, its budget in seconds, and what its failure means.
pub const PLAN: &[Line<Action>] = &[
    Line::act("door", Action::CloseDoor, 10, Warn),
    Line::act("containers", Action::StopContainers, 30, Abort),
    Line::release("keeper", 10),
    Line::release("nri", 30),
    Line::release("network", 180),
    Line::release("netns", 10),
    Line::release("image_volumes", 30),
    Line::release("shm", 10),
    Line::release("files", 10),
    Line::release("cgroup", 10),
    Line::release("lease", 10),
];

/// The same where the shim is gone: nobody can come through a door any more.
pub const WITHOUT_SHIM: &[Line<Action>] = PLAN.split_at(1).1;
