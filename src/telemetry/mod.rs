//! What a sandbox measures of itself: CNI operations, and how long its end took.
//!
//! Numbers only, kept in the process that they are about; the verbose status shows them.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde_json::{Value, json};

use crate::network::{CniObserver, Operation, PluginError};

/// Counts and times of one kind of operation.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Series {
    count: u64,
    errors: u64,
    total: Duration,
    longest: Duration,
}

impl Series {
    fn add(&mut self, took: Duration, failed: bool) {
        self.count += 1;
        self.errors += u64::from(failed);
        self.total += took;
        self.longest = self.longest.max(took);
    }

    fn to_json(self) -> Value {
        json!({
            "count": self.count,
            "errors": self.errors,
            "total_ms": self.total.as_secs_f64() * 1e3,
            "longest_ms": self.longest.as_secs_f64() * 1e3,
        })
    }
}

/// The measurements of one sandbox.
#[derive(Debug, Default)]
pub struct Telemetry(Mutex<BTreeMap<String, Series>>);

impl Telemetry {
    fn series(&self) -> MutexGuard<'_, BTreeMap<String, Series>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records one operation. `name` is one of a few: it becomes a key.
    pub fn observe(&self, name: &str, took: Duration, failed: bool) {
        self.series().entry(name.to_owned()).or_default().add(took, failed);
    }

    pub fn to_json(&self) -> Value {
        self.series().iter().map(|(name, series)| (name.clone(), series.to_json())).collect()
    }
}

impl CniObserver for Telemetry {
    fn observed(
        &self,
        operation: Operation,
        _network: &str,
        _plugin: &str,
        duration: Duration,
        error: Option<&PluginError>,
    ) {
        let name = format!("cni_{}", operation.as_str().to_ascii_lowercase());
        self.observe(&name, duration, error.is_some());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_are_counted_by_name_with_their_errors_and_the_longest() {
        let telemetry = Telemetry::default();
        telemetry.observed(Operation::Add, "node", "bridge", Duration::from_millis(5), None);
        telemetry.observed(
            Operation::Add,
            "node",
            "portmap",
            Duration::from_millis(9),
            Some(&PluginError::Deadline),
        );
        telemetry.observe("stop_containers", Duration::from_millis(1), false);
        let json = telemetry.to_json();
        assert_eq!(json["cni_add"]["count"], 2);
        assert_eq!(json["cni_add"]["errors"], 1);
        assert_eq!(json["cni_add"]["longest_ms"], 9.0);
        assert_eq!(json["stop_containers"]["errors"], 0);
    }
}
