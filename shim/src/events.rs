//! Events on their way to containerd.

use containerd_shim_protos::protobuf::MessageDyn;

/// Where the task engine puts its events. They are sent in the order in which they were published.
pub trait Events: Send + Sync {
    /// Queues `event` (a `containerd.events.Task…` message) for `topic` (`/tasks/…`). Never blocks, never fails:
    /// what containerd cannot take now is kept until it can.
    fn publish(&self, topic: &'static str, event: &dyn MessageDyn);
}
