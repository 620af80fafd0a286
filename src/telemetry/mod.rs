//! What a sandbox measures of itself: its life, CNI operations, and how long each step of its end took.
//!
//! Numbers are kept in the process that they are about; the verbose status and the inspection service show them.
//! Traces are in [`trace`].

pub mod trace;

pub mod totals;

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use self::trace::Span;
use crate::network::{CniObserver, Operation, PluginError};

/// The bounds, in milliseconds, below which operations are counted.
pub const BOUNDS_MS: [u64; 15] =
    [1, 2, 5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 30_000, 60_000];

/// Counts and times of one kind of operation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Series {
    pub count: u64,
    pub errors: u64,
    pub total: Duration,
    pub longest: Duration,
    /// How many took at most as long as each of [`BOUNDS_MS`], and longer than the bound before it.
    pub within: [u32; BOUNDS_MS.len()],
}

impl Series {
    fn add(&mut self, took: Duration, failed: bool) {
        self.count += 1;
        self.errors += u64::from(failed);
        self.total += took;
        self.longest = self.longest.max(took);
        let bucket = BOUNDS_MS.iter().position(|bound| took <= Duration::from_millis(*bound));
        if let Some(place) = bucket.and_then(|bucket| self.within.get_mut(bucket)) {
            *place += 1;
        }
    }

    /// Both together.
    #[must_use]
    pub fn and(mut self, other: &Self) -> Self {
        self.count += other.count;
        self.errors += other.errors;
        self.total += other.total;
        self.longest = self.longest.max(other.longest);
        for (sum, more) in self.within.iter_mut().zip(other.within) {
            *sum += more;
        }
        self
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

/// What was done, and what was called for it where there are several: the plugin of a CNI operation.
type Key = (String, String);

/// The measurements of one sandbox.
#[derive(Debug, Default)]
pub struct Telemetry(Mutex<BTreeMap<Key, Series>>);

impl Telemetry {
    fn series(&self) -> MutexGuard<'_, BTreeMap<Key, Series>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records one operation. `name` and `subject` are of a few: they become a key.
    pub fn observe(&self, name: &str, subject: &str, took: Duration, failed: bool) {
        let key = (name.to_owned(), subject.to_owned());
        self.series().entry(key).or_default().add(took, failed);
    }

    /// Records what `work` takes and whether it succeeds.
    pub async fn timed<T, E>(
        &self,
        name: &str,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let begun = Instant::now();
        let result = work.await;
        self.observe(name, "", begun.elapsed(), result.is_err());
        result
    }

    /// Each series, by name and subject.
    pub fn all(&self) -> Vec<(String, String, Series)> {
        let series = self.series();
        let each = series.iter();
        each.map(|((name, subject), series)| (name.clone(), subject.clone(), *series)).collect()
    }

    /// The same by name alone.
    pub fn to_json(&self) -> Value {
        let mut sums = BTreeMap::<String, Series>::new();
        for (name, _, series) in self.all() {
            let sum = sums.entry(name).or_default();
            *sum = sum.and(&series);
        }
        sums.into_iter().map(|(name, series)| (name, series.to_json())).collect()
    }
}

impl CniObserver for Telemetry {
    fn observed(
        &self,
        operation: Operation,
        network: &str,
        plugin: &str,
        duration: Duration,
        error: Option<&PluginError>,
    ) {
        Spans.observed(operation, network, plugin, duration, error);
        let name = format!("cni_{}", operation.as_str().to_ascii_lowercase());
        self.observe(&name, plugin, duration, error.is_some());
    }
}

/// A span for each call of a plugin, under that of whoever makes it.
pub struct Spans;

impl CniObserver for Spans {
    fn observed(
        &self,
        operation: Operation,
        network: &str,
        plugin: &str,
        duration: Duration,
        error: Option<&PluginError>,
    ) {
        let name = match operation {
            Operation::Add => "CNI ADD",
            Operation::Del => "CNI DEL",
            Operation::Status => "CNI STATUS",
            Operation::Gc => "CNI GC",
        };
        let span = Span::current().ended_child(name, duration);
        span.set("cni.network", network);
        span.set("cni.plugin", plugin);
        if let Some(error) = error {
            span.fail(error);
        }
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
        telemetry.observe("stop_containers", "", Duration::from_millis(1), false);
        let json = telemetry.to_json();
        assert_eq!(json["cni_add"]["count"], 2);
        assert_eq!(json["cni_add"]["errors"], 1);
        assert_eq!(json["cni_add"]["longest_ms"], 9.0);
        assert_eq!(json["stop_containers"]["errors"], 0);
    }

    #[test]
    fn each_is_counted_below_the_first_bound_that_it_keeps() {
        let telemetry = Telemetry::default();
        for ms in [0, 1, 3, 60_000, 61_000] {
            telemetry.observe("stop", "", Duration::from_millis(ms), false);
        }
        let all = telemetry.all();
        let [(name, subject, series)] = all.as_slice() else { panic!("{all:?}") };
        assert_eq!((name.as_str(), subject.as_str(), series.count), ("stop", "", 5));
        let mut within = [0; BOUNDS_MS.len()];
        (within[0], within[2], within[14]) = (2, 1, 1);
        assert_eq!(series.within, within);
    }
}
