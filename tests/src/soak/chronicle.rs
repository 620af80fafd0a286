//! What was done, what failed, and whether a fault that was made to happen explains it.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long after containerd answers again a failure is still put down to its absence: its streaming server and its
/// recovery come after its first answer.
const AFTERMATH: Duration = Duration::from_secs(3);

/// A failure that no fault explains.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Since the beginning of the soak.
    pub at: Duration,
    /// Whose, for example `pod 17 (shared PIDs)`.
    pub who: String,
    /// What was asked, and the answer.
    pub what: String,
}

#[derive(Default)]
struct State {
    done: BTreeMap<&'static str, u64>,
    faults: BTreeMap<&'static str, u64>,
    explained: u64,
    remains: u64,
    failures: Vec<Failure>,
    /// From the fault to the first good answer.
    absences: Vec<(Instant, Option<Instant>)>,
}

/// Of one soak.
pub struct Chronicle {
    begun: Instant,
    state: Mutex<State>,
}

/// Sums up to now.
#[derive(Clone, Debug, Default)]
pub struct Sums {
    /// What succeeded, by its name.
    pub done: BTreeMap<&'static str, u64>,
    /// Faults, by their names.
    pub faults: BTreeMap<&'static str, u64>,
    /// Failures that a fault explains.
    pub explained: u64,
    /// Things that a killed containerd itself left.
    pub remains: u64,
    /// Failures that no fault explains.
    pub failures: u64,
}

impl Sums {
    /// How often these succeeded.
    pub fn of(&self, names: &[&str]) -> u64 {
        names.iter().filter_map(|name| self.done.get(name)).sum()
    }

    /// All faults.
    pub fn all_faults(&self) -> u64 {
        self.faults.values().sum()
    }
}

impl Chronicle {
    /// It begins now.
    pub fn begin() -> Self {
        Self { begun: Instant::now(), state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Since the beginning.
    pub fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Something succeeded.
    pub fn done(&self, name: &'static str) {
        *self.state().done.entry(name).or_default() += 1;
    }

    /// A fault is made.
    pub fn fault(&self, name: &'static str) {
        *self.state().faults.entry(name).or_default() += 1;
    }

    /// A failure that a fault explains.
    pub fn explained(&self) {
        self.state().explained += 1;
    }

    /// A thing that a killed containerd itself left.
    pub fn remains(&self) {
        self.state().remains += 1;
    }

    /// A failure that nothing explains.
    pub fn failure(&self, who: &str, what: String) {
        let failure = Failure { at: self.elapsed(), who: who.to_owned(), what };
        eprintln!("{:>5} s  {}: {}", failure.at.as_secs(), failure.who, failure.what);
        self.state().failures.push(failure);
    }

    /// containerd goes away.
    pub fn away(&self) {
        self.state().absences.push((Instant::now(), None));
    }

    /// containerd is back.
    pub fn back(&self) {
        if let Some(last) = self.state().absences.last_mut() {
            last.1 = Some(Instant::now());
        }
    }

    /// Whether containerd was away at some time since then.
    pub fn was_away_since(&self, begun: Instant) -> bool {
        let over = |end: Option<Instant>| end.is_some_and(|end| end + AFTERMATH < begun);
        self.state().absences.iter().any(|(_, end)| !over(*end))
    }

    /// The sums.
    pub fn sums(&self) -> Sums {
        let state = self.state();
        Sums {
            done: state.done.clone(),
            faults: state.faults.clone(),
            explained: state.explained,
            remains: state.remains,
            failures: state.failures.len() as u64,
        }
    }

    /// All failures that nothing explains.
    pub fn failures(&self) -> Vec<Failure> {
        self.state().failures.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_overlaps_an_absence_is_explained_by_it() {
        let chronicle = Chronicle::begin();
        let begun = Instant::now();
        assert!(!chronicle.was_away_since(begun));
        chronicle.away();
        assert!(chronicle.was_away_since(begun));
        chronicle.back();
        assert!(chronicle.was_away_since(begun));
        assert!(chronicle.was_away_since(Instant::now()));
        assert!(!chronicle.was_away_since(Instant::now() + AFTERMATH * 2));
    }
}
