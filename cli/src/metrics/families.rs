//! Every metric, declared once: what is written, what the dashboard and the alerts may name, and docs/metrics.md.

use prometheus_client::metrics::MetricType;

/// A metric without its values.
#[derive(Clone, Copy, Debug)]
pub struct Family {
    /// As a query names it; a counter without its `_total`.
    pub name: &'static str,
    pub kind: MetricType,
    pub labels: &'static [&'static str],
    pub help: &'static str,
}

macro_rules! families {
    ($($constant:ident: $kind:ident $name:literal $labels:expr, $help:literal;)*) => {
        $(pub const $constant: Family =
            Family { name: $name, kind: MetricType::$kind, labels: &$labels, help: $help };)*
        /// All of them, in the order in which they are written.
        pub const ALL: &[Family] = &[$($constant),*];
    };
}

families! {
    BUILD: Gauge "mooring_build_info" ["version"], "The release of the tool that answers; always 1";
    SANDBOXES: Gauge "mooring_sandboxes" ["runtime", "state"], "Sandboxes by state, as mooring ls names it";
    CONTAINERS: Gauge "mooring_containers" ["state"], "Containers of living shims by state";
    SHIMS: Gauge "mooring_shims" ["answers"], "Living shims, and whether they answered";
    SHIM_MEMORY: Gauge "mooring_shim_memory_bytes" ["POD"], "Proportional share of memory (PSS) of the shims";
    SHIM_DESCRIPTORS: Gauge "mooring_shim_open_descriptors" ["POD"], "Descriptors that the shims have open";
    CREATE: Histogram "mooring_sandbox_runtime_create_seconds" ["runtime"], "StartSandbox: namespaces, files, and the network where the shim makes it";
    STOP: Histogram "mooring_sandbox_runtime_stop_seconds" ["runtime"], "One teardown, whether it succeeded or not";
    REMOVE: Histogram "mooring_sandbox_remove_seconds" ["runtime"], "ShutdownSandbox without the teardown before it; needs KeepTotals";
    CREATE_NETWORK: Histogram "mooring_sandbox_create_network_seconds" [], "ADD of all networks of a sandbox that the shim networks";
    DELETE_NETWORK: Histogram "mooring_sandbox_delete_network_seconds" [], "DEL of all networks of a sandbox that the shim networks";
    PLUGIN: Counter "mooring_network_plugin_operations" ["operation_type", "plugin"], "Calls of CNI plugins by shims";
    PLUGIN_ERRORS: Counter "mooring_network_plugin_operations_errors" ["operation_type", "plugin"], "Calls of CNI plugins by shims that failed";
    PLUGIN_SECONDS: Histogram "mooring_network_plugin_operations_duration_seconds" ["operation_type", "plugin"], "How long calls of CNI plugins took";
    STEP: Histogram "mooring_teardown_step_seconds" ["step"], "How long the steps of teardowns took";
    STEP_ERRORS: Counter "mooring_teardown_step_errors" ["step"], "Steps of teardowns that failed or warned";
    STEP_SLOWEST: Gauge "mooring_teardown_step_under_way_seconds" ["step"], "How long the oldest step under way has taken so far";
    HUNG: Gauge "mooring_teardown_steps_hung" ["step"], "Steps that have been under way for ten seconds or longer";
    FAILED: Gauge "mooring_sandboxes_failed" ["step"], "Sandboxes whose last teardown ended at this step with an error";
    RETRIES: Counter "mooring_teardown_retries" [], "Teardowns that went on where an earlier one of the sandbox had ended";
    RESUMED: Counter "mooring_teardowns_resumed" [], "Teardowns completed for a shim that was gone; needs KeepTotals";
    STOPPED: Counter "mooring_containers_stopped" ["means"], "Containers that teardowns have stopped: through containerd, or in place where that did not do it";
    LEAKS: Gauge "mooring_leaks" [], "Sandboxes whose shim is gone and that nobody works on: mooring gc shows them";
    LEAKS_FREED: Counter "mooring_leaks_freed" [], "Sandboxes that mooring gc or stop has freed; needs KeepTotals";
    UNSURE: Gauge "mooring_sandboxes_unsure" [], "State folders that are not understood, and not touched";
    RECEIVED_BYTES: Counter "container_network_receive_bytes" ["POD", "interface"], "Bytes that the pod has received";
    RECEIVED_PACKETS: Counter "container_network_receive_packets" ["POD", "interface"], "Packets that the pod has received";
    RECEIVED_DROPPED: Counter "container_network_receive_packets_dropped" ["POD", "interface"], "Packets for the pod that were dropped";
    RECEIVED_ERRORS: Counter "container_network_receive_errors" ["POD", "interface"], "Errors when the pod received";
    SENT_BYTES: Counter "container_network_transmit_bytes" ["POD", "interface"], "Bytes that the pod has sent";
    SENT_PACKETS: Counter "container_network_transmit_packets" ["POD", "interface"], "Packets that the pod has sent";
    SENT_DROPPED: Counter "container_network_transmit_packets_dropped" ["POD", "interface"], "Packets of the pod that were dropped";
    SENT_ERRORS: Counter "container_network_transmit_errors" ["POD", "interface"], "Errors when the pod sent";
}

/// Stands in [`Family::labels`] for those of a pod, which are there when they are asked for.
pub const POD: &str = "POD";
/// Those labels, named as cAdvisor names them where it has them.
pub const POD_LABELS: [&str; 3] = ["sandbox_id", "pod", "namespace"];

#[cfg(test)]
mod tests;
