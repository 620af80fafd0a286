//! A soak: random pods, execs, attaches, statistics and faults for a long time, with quiet points at which nothing may
//! have grown.
//!
//! A few pods stay for the whole time and are used all the time. Beside them others come and go, each with a life that
//! its number and the seed decide. In every round containerd is killed, restarted or stopped for a second now and then;
//! at its end all pods but those that stay are gone, the machine is compared with what it was, and a sample is taken.

mod chronicle;
mod cri;
mod growth;
mod guest;
mod rounds;
mod sample;
mod service;

use std::time::Duration;

pub use self::chronicle::{Failure, Sums};
pub use self::growth::{Rule, median};
pub use self::rounds::soak;
pub use self::sample::{MEASURES, Measure, Values};

/// What is to be done.
#[derive(Clone, Debug)]
pub struct Plan {
    /// How long pods come and go.
    pub time: Duration,
    /// How long from one quiet point to the next; the quiet itself comes on top.
    pub round: Duration,
    /// The most pods at once, those that stay among them.
    pub pods: usize,
    /// What decides every pod's life.
    pub seed: u64,
}

/// A quiet point.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Since the beginning.
    pub at: Duration,
    /// What was done until then.
    pub sums: Sums,
    /// The machine's load average of a minute.
    pub load: f64,
    /// What was measured.
    pub values: Values,
}

/// What a soak found.
#[derive(Clone, Debug)]
pub struct Report {
    /// What was to be done.
    pub plan: Plan,
    /// The quiet points; the first one is at the end of the round that warms everything up.
    pub samples: Vec<Sample>,
    /// What failed and no fault explains.
    pub failures: Vec<Failure>,
    /// Sums at the end.
    pub sums: Sums,
    /// What was on the machine at the very end and not before.
    pub left: Vec<String>,
    /// Whether somebody ended it early.
    pub interrupted: bool,
}

/// A measure, as it was judged.
pub struct Judged {
    /// Which one.
    pub measure: &'static Measure,
    /// At the first quiet point.
    pub first: f64,
    /// In the middle of all.
    pub median: f64,
    /// The most.
    pub most: f64,
    /// At the last quiet point.
    pub last: f64,
    /// How much it grows, by its rule, and whether that is too much.
    pub growth: Option<(f64, bool)>,
}

impl Report {
    /// All values of a measure.
    pub fn row(&self, key: &str) -> Vec<f64> {
        self.samples.iter().map(|one| one.values.get(key).copied().unwrap_or(0.0)).collect()
    }

    /// All measures.
    pub fn judged(&self) -> Vec<Judged> {
        let judge = |measure: &'static Measure| {
            let row = self.row(measure.key);
            Some(Judged {
                measure,
                first: *row.first()?,
                median: median(&row)?,
                most: row.iter().copied().max_by(f64::total_cmp)?,
                last: *row.last()?,
                growth: measure.rule.judge(&row),
            })
        };
        MEASURES.iter().filter_map(judge).collect()
    }

    /// What is wrong, a line each: nothing when all is well.
    pub fn complaints(&self) -> Vec<String> {
        let grows = |one: &Judged| match one.growth {
            Some((by, true)) => Some(format!(
                "{} grows by {by:.1} {} ({} at first, {} at last)",
                one.measure.label, one.measure.unit, one.first, one.last
            )),
            _ => None,
        };
        let mut all: Vec<String> = self.judged().iter().filter_map(grows).collect();
        all.extend(
            self.failures
                .iter()
                .map(|one| format!("after {} s, {}: {}", one.at.as_secs(), one.who, one.what)),
        );
        all.extend(self.left.iter().map(|one| format!("left at the end: {one}")));
        if self.samples.len() < 2 {
            all.push(format!("{} quiet points say nothing", self.samples.len()));
        }
        all
    }
}

/// The calls that are execs.
pub const EXECS: &[&str] = &["ExecSync", "Exec", "exec"];
