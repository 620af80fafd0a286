//! What has been counted altogether: by shims that live and by those that are gone.

use std::{collections::BTreeMap, time::Duration};

use mooring::{
    inspect,
    sandbox::survey::Hands,
    telemetry::{BOUNDS_MS, Series},
};

use super::scrape::{One, Seen};

/// Runtime type, name and subject.
pub type Key = (String, String, String);

/// Series by what they are about.
#[derive(Clone, Debug, Default)]
pub struct Sums(pub BTreeMap<Key, Series>);

impl Sums {
    /// Of one scrape alone.
    pub fn now(seen: &Seen) -> Self {
        let mut sums = Self::default();
        for total in &seen.totals {
            let key = (total.runtime.clone(), total.name.clone(), total.subject.clone());
            sums.add(key, &total.series);
        }
        for one in &seen.sandboxes {
            sums.add_all(&measured(one));
        }
        sums
    }

    fn add(&mut self, key: Key, series: &Series) {
        let sum = self.0.entry(key).or_default();
        *sum = sum.and(series);
    }

    fn add_all(&mut self, others: &[(Key, Series)]) {
        for (key, series) in others {
            self.add(key.clone(), series);
        }
    }

    /// Of those with this name, together by `by`.
    pub fn named<K: Ord>(&self, name: &str, by: impl Fn(&Key) -> K) -> BTreeMap<K, Series> {
        let mut found = BTreeMap::<K, Series>::new();
        for (key, series) in self.0.iter().filter(|(key, _)| key.1 == name) {
            let sum = found.entry(by(key)).or_default();
            *sum = sum.and(series);
        }
        found
    }
}

/// What a shim has measured.
fn measured(one: &One) -> Vec<(Key, Series)> {
    let Some(said) = &one.said else { return Vec::new() };
    let operations = said.operations.iter().map(|operation| {
        let key = (said.runtime_type.clone(), operation.name.clone(), operation.subject.clone());
        (key, series(operation))
    });
    // The teardowns that were begun are a number of their own.
    let retries = said.teardowns.saturating_sub(1);
    let key = (said.runtime_type.clone(), RETRIES.to_owned(), String::new());
    let retries = Series { count: retries.into(), ..Series::default() };
    operations.chain((retries.count > 0).then_some((key, retries))).collect()
}

/// The name of the series of teardowns that were begun again.
pub const RETRIES: &str = "teardown_retry";

fn series(said: &inspect::Series) -> Series {
    let length = |nanos: i64| Duration::from_nanos(nanos.unsigned_abs());
    let mut within = [0; BOUNDS_MS.len()];
    for (place, count) in within.iter_mut().zip(&said.within) {
        *place = u32::try_from(*count).unwrap_or(u32::MAX);
    }
    Series {
        count: said.count,
        errors: said.errors,
        total: length(said.total),
        longest: length(said.longest),
        within,
    }
}

/// What a shim said.
#[derive(Debug)]
struct Last {
    /// Whether it adds that to the node's totals by itself.
    keeps_totals: bool,
    measured: Vec<(Key, Series)>,
}

/// What a server remembers between scrapes: a counter never falls.
#[derive(Debug, Default)]
pub struct Kept {
    /// What each shim said last.
    last: BTreeMap<(String, i32), Last>,
    /// Of shims that are gone and did not.
    gone: Sums,
    /// What was told.
    told: Sums,
}

impl Kept {
    /// What is to be told after a scrape.
    pub fn after(&mut self, seen: &Seen) -> Sums {
        let mut living = BTreeMap::new();
        for one in &seen.sandboxes {
            let Some(shim) = &one.found.shim else { continue };
            let name = (one.found.folder.display().to_string(), shim.pid);
            let lives = one.found.hands == Hands::Shim;
            let said = one
                .said
                .as_ref()
                .map(|said| Last { keeps_totals: said.keeps_totals, measured: measured(one) });
            if !lives {
                continue;
            }
            let before = self.last.remove(&name);
            // One that does not answer this time is not gone.
            if let Some(last) = said.or(before) {
                living.insert(name, last);
            }
        }
        for last in std::mem::take(&mut self.last).into_values() {
            if !last.keeps_totals {
                self.gone.add_all(&last.measured);
            }
        }
        let mut sums = self.gone.clone();
        for total in &seen.totals {
            let key = (total.runtime.clone(), total.name.clone(), total.subject.clone());
            sums.add(key, &total.series);
        }
        for last in living.values() {
            sums.add_all(&last.measured);
        }
        self.last = living;
        // A shim that has just gone may not have added its numbers yet, and one that was killed never does.
        for (key, told) in &self.told.0 {
            let now = sums.0.entry(key.clone()).or_default();
            *now = at_least(*now, told);
        }
        self.told = sums.clone();
        sums
    }
}

fn at_least(mut now: Series, told: &Series) -> Series {
    now.count = now.count.max(told.count);
    now.errors = now.errors.max(told.errors);
    now.total = now.total.max(told.total);
    now.longest = now.longest.max(told.longest);
    for (now, told) in now.within.iter_mut().zip(told.within) {
        *now = (*now).max(told);
    }
    now
}

#[cfg(test)]
mod tests;
