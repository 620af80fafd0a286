//! The runtime's own processes: what is there beside the containers' once pods run.

use std::fs;

use anyhow::{Context, Result, ensure};

use super::Unit;
use crate::audit::{Process, all_processes};

/// What they take, all together.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum {
    /// Each page divided by the number of processes that have it, in KiB.
    pub pss: f64,
    /// Memory of no file, in KiB.
    pub anonymous: f64,
    /// Their threads.
    pub threads: f64,
    /// Their number.
    pub processes: f64,
    /// What they have open.
    pub descriptors: f64,
}

impl Sum {
    /// Each with its name and unit.
    pub fn lines(self) -> [(&'static str, Unit, f64); 5] {
        [
            ("memory, PSS", Unit::KiB, self.pss),
            ("memory, anonymous", Unit::KiB, self.anonymous),
            ("threads", Unit::Count, self.threads),
            ("processes", Unit::Count, self.processes),
            ("descriptors", Unit::Count, self.descriptors),
        ]
    }
}

/// Who is there, to know later who has come.
pub struct Before(Vec<(i32, String)>);

impl Before {
    /// Looks who is there.
    pub fn now() -> Self {
        Self(all_processes().into_iter().map(|one| (one.pid, one.started)).collect())
    }

    fn come(&self) -> impl Iterator<Item = Process> {
        let known =
            |one: &Process| self.0.iter().any(|(pid, at)| *pid == one.pid && *at == one.started);
        all_processes().into_iter().filter(move |one| !known(one))
    }

    /// All processes that have come since.
    pub fn since(&self) -> Vec<i32> {
        self.come().map(|one| one.pid).collect()
    }

    /// The runtime's processes that have come since: not those of the containers, which sleep or read.
    pub fn own(&self) -> Result<Vec<i32>> {
        let own: Vec<i32> =
            self.come().filter(|one| !is_workload(one)).map(|one| one.pid).collect();
        ensure!(!own.is_empty(), "no process of the runtime is there");
        Ok(own)
    }
}

fn is_workload(process: &Process) -> bool {
    process.command.starts_with("/bin/sleep ") || process.name.contains("zombie")
}

/// Adds up what they take.
pub fn sum(pids: &[i32]) -> Result<Sum> {
    let mut sum = Sum::default();
    for pid in pids {
        let at = format!("/proc/{pid}");
        let rollup = fs::read_to_string(format!("{at}/smaps_rollup"))
            .with_context(|| format!("memory of process {pid}"))?;
        sum.pss += field(&rollup, "Pss:");
        sum.anonymous += field(&rollup, "Anonymous:");
        sum.threads += field(&fs::read_to_string(format!("{at}/status"))?, "Threads:");
        sum.descriptors += fs::read_dir(format!("{at}/fd"))?.map(|_| 1.0).sum::<f64>();
        sum.processes += 1.0;
    }
    Ok(sum)
}

fn field(text: &str, name: &str) -> f64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
    number.unwrap_or(0.0)
}

/// How long their threads have run, in milliseconds.
pub fn ran(pids: &[i32]) -> Result<f64> {
    let mut ns = 0.0;
    for pid in pids {
        for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
            // A thread may end between.
            let Ok(text) = fs::read_to_string(thread?.path().join("schedstat")) else { continue };
            let first = text.split_whitespace().next().and_then(|word| word.parse::<f64>().ok());
            ns += first.context("a schedstat without numbers")?;
        }
    }
    Ok(ns / 1e6)
}

/// CPU time of a process with all threads that it ever had, in milliseconds: by the clock's ticks, so over longer times.
pub fn used(pid: i32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let rest = stat.rsplit_once(')').context("a stat without name")?.1;
    let ticks: Vec<f64> =
        rest.split_whitespace().skip(11).take(2).filter_map(|word| word.parse().ok()).collect();
    ensure!(ticks.len() == 2, "a stat without times: {stat}");
    #[expect(clippy::cast_precision_loss)]
    let ms = 1000.0 / rustix::param::clock_ticks_per_second() as f64;
    Ok(ticks.iter().sum::<f64>() * ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_found_by_their_name() {
        let text = "Rss:      12 kB\nPss:       7 kB\nPss_Anon: 3 kB\n";
        assert!((field(text, "Pss:") - 7.0).abs() < f64::EPSILON);
        assert!(field(text, "Swap:").abs() < f64::EPSILON);
    }

    #[test]
    fn this_process_takes_something_and_has_run() {
        let own = [i32::try_from(std::process::id()).unwrap()];
        let sum = sum(&own).unwrap();
        assert!(sum.pss > 0.0 && sum.anonymous > 0.0 && sum.descriptors >= 1.0, "{sum:?}");
        assert!((sum.processes - 1.0).abs() < f64::EPSILON && sum.threads >= 1.0, "{sum:?}");
        let before = ran(&own).unwrap();
        let mut waste = 0_u64;
        let ticks = used(own[0]).unwrap();
        while ran(&own).unwrap() <= before || used(own[0]).unwrap() <= ticks {
            waste = std::hint::black_box(waste.wrapping_add(1));
        }
    }
}
