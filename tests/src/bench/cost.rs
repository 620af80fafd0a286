//! What pods cost beside time: of the CPU, of memory, of descriptors.

use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::resource::{UsageWho, getrusage};

use super::processes::{Before, ran, sum, used};
use super::streams::execs;
use super::{Bench, Section, Unit};
use crate::cgroups::hierarchies;
use crate::cri::{ContainerSpec, Pod};
use crate::node::shim;
use crate::suite::Handler;

/// Whoever ends, ends within this time after the answer.
const SETTLE: Duration = Duration::from_millis(500);
/// For how many seconds idle pods are watched in a full run.
const IDLE: usize = 20;
const SECOND: Duration = Duration::from_secs(1);
/// Lives in a batch of the CPU's time, in a full run.
const BATCH: usize = 5;
/// Execs at once, where there are many.
const AT_ONCE: usize = 20;

/// CPU time so far, in milliseconds.
#[derive(Clone, Copy)]
struct Cpu {
    /// Of the machine, but for this process.
    node: f64,
    /// Of containerd's own process.
    containerd: f64,
}

/// CPU time of everything in this machine's cgroups, in milliseconds.
fn machine() -> Result<f64> {
    for one in hierarchies()? {
        if one.version2 {
            let stat = fs::read_to_string(one.at.join("cpu.stat")).unwrap_or_default();
            let us = stat.lines().find_map(|line| line.strip_prefix("usage_usec "));
            if let Some(us) = us.and_then(|us| us.trim().parse::<f64>().ok()) {
                return Ok(us / 1e3);
            }
        } else if one.controllers.split(',').any(|name| name == "cpuacct") {
            let ns: f64 = fs::read_to_string(one.at.join("cpuacct.usage"))?.trim().parse()?;
            return Ok(ns / 1e6);
        }
    }
    bail!("no cgroup hierarchy counts CPU time")
}

#[expect(clippy::cast_precision_loss)]
fn this_process() -> Result<f64> {
    let used = getrusage(UsageWho::RUSAGE_SELF)?;
    let ms = |time: nix::sys::time::TimeVal| {
        time.tv_sec() as f64 * 1000.0 + time.tv_usec() as f64 / 1000.0
    };
    Ok(ms(used.user_time()) + ms(used.system_time()))
}

#[expect(clippy::cast_precision_loss)]
fn number(count: usize) -> f64 {
    count as f64
}

/// A handler, pods of it, and the runtime's processes.
type Idle = (Handler, Vec<Pod>, Vec<i32>);

/// How long the processes of each have run.
fn ran_each(all: &[Idle]) -> Result<Vec<f64>> {
    let each = all.iter().map(|(handler, _, own)| {
        ran(own).with_context(|| format!("pods of {} did not idle", handler.name()))
    });
    each.collect()
}

async fn end(pods: Vec<Pod>) -> Result<()> {
    for pod in pods {
        pod.end().await?;
    }
    Ok(())
}

impl Bench {
    fn used(&self) -> Result<Cpu> {
        let containerd = used(self.node.pid().context("containerd does not run")?)?;
        Ok(Cpu { node: machine()? - this_process()?, containerd })
    }

    /// Lives of one container, without any further call, in batches. What CNI plugins have used is known from the
    /// floor, for they are containerd's children, as the shims are.
    pub(super) async fn cpu(&mut self) -> Result<()> {
        let batch = BATCH.min(self.plan.rounds);
        for _ in 0..self.plan.part(5) {
            let mut bare = (0.0, 0.0);
            for _ in 0..batch {
                let used = self.floor.run(super::Floor::use_of_a_life).await?;
                bare.0 += used.plugins / number(batch);
                bare.1 += used.runtime / number(batch);
            }
            for handler in self.handlers() {
                tokio::time::sleep(SETTLE).await;
                let begin = self.used()?;
                for _ in 0..batch {
                    self.pod_of(handler, 1).await?.end().await?;
                }
                // Who ends ends after the answer.
                tokio::time::sleep(SETTLE).await;
                let end = self.used()?;
                let node = (end.node - begin.node) / number(batch);
                let containerd = (end.containerd - begin.containerd) / number(batch);
                for (name, ms) in [
                    (WHOLE, node),
                    ("of it containerd itself", containerd),
                    (RUNTIME, node - containerd - bare.0),
                ] {
                    self.table.add(Section::Cpu, name, Unit::Ms, handler, ms);
                }
            }
            self.table.floor(Section::Cpu, WHOLE, Unit::Ms, bare.0 + bare.1);
            self.table.floor(Section::Cpu, RUNTIME, Unit::Ms, bare.1);
        }
        Ok(())
    }

    /// Memory of idle pods, one and many; then, when they are as old as the execs take, their CPU time.
    pub(super) async fn idle(&mut self) -> Result<()> {
        let mut many = Vec::new();
        // Pods of one program share its pages: those of the built-in runtime come and go before Mooring's stay. Idle
        // they are the same shim, so that their CPU time would say nothing.
        let stay = self.shims();
        let (kept, passing): (Vec<_>, Vec<_>) =
            self.handlers().into_iter().partition(|one| stay.contains(one));
        for count in [1, self.plan.idle] {
            for &handler in passing.iter().chain(&kept) {
                let before = Before::now();
                let mut pods = Vec::new();
                for _ in 0..count {
                    pods.push(self.pod_of(handler, 1).await?);
                }
                tokio::time::sleep(self.plan.settle).await;
                let own = before.own()?;
                let sum = sum(&own)?;
                for (name, unit, value) in sum.lines() {
                    let name = format!("one of {count}: {name}");
                    self.table.add(Section::Idle, &name, unit, handler, value / number(count));
                }
                if count == self.plan.idle && stay.contains(&handler) {
                    many.push((handler, pods, own));
                } else {
                    end(pods).await?;
                }
            }
        }
        if self.plan.has(Section::Execs) {
            self.execs().await?;
        }
        let (begin, since) = (ran_each(&many)?, Instant::now());
        tokio::time::sleep(SECOND * u32::try_from(self.plan.part(IDLE))?).await;
        let hours = since.elapsed().as_secs_f64() / 3600.0;
        let name = format!("one of {}: CPU time in an hour", self.plan.idle);
        for ((handler, pods, _), (begin, end)) in
            many.iter().zip(begin.iter().zip(ran_each(&many)?))
        {
            let hour = (end - begin) / number(pods.len()) / hours;
            self.table.add(Section::Idle, &name, Unit::Ms, *handler, hour);
        }
        for (_, pods, _) in many {
            end(pods).await?;
        }
        Ok(())
    }

    /// Memory of a pod before and after many execs.
    pub(super) async fn execs(&mut self) -> Result<()> {
        let batches = self.plan.part(1000 / AT_ONCE);
        for handler in self.handlers() {
            let before = Before::now();
            let pod = self.pod(handler).run().await?;
            let container = Arc::new(pod.start(&ContainerSpec::idle("main")).await?);
            let after = format!("after {} execs", batches * AT_ONCE);
            for (when, batches) in [("after one exec", 0), (after.as_str(), batches)] {
                execs(&container, 1).await?;
                for _ in 0..batches {
                    execs(&container, AT_ONCE).await?;
                }
                tokio::time::sleep(self.plan.settle).await;
                let sum = sum(&before.own()?)?;
                for (name, unit, value) in [
                    ("memory, PSS", Unit::KiB, sum.pss),
                    ("memory, anonymous", Unit::KiB, sum.anonymous),
                    ("descriptors", Unit::Count, sum.descriptors),
                ] {
                    let name = format!("{name}, {when}");
                    self.table.add(Section::Execs, &name, unit, handler, value);
                }
            }
            pod.end().await?;
        }
        Ok(())
    }

    pub(super) fn size(&mut self) -> Result<()> {
        let runc = fs::metadata(self.node.folder().join("bin/runc"))?.len();
        for handler in self.handlers() {
            let program = match handler {
                Handler::Runc => self.node.folder().join("bin/containerd-shim-runc-v2"),
                Handler::Mooring | Handler::Builtin => shim()?,
            };
            let size = fs::metadata(program)?.len();
            let runtime = if handler == Handler::Builtin { 0 } else { runc };
            for (name, size) in [("shim", size), ("shim and OCI runtime", size + runtime)] {
                #[expect(clippy::cast_precision_loss)]
                let kib = size as f64 / 1024.0;
                self.table.add(Section::Size, name, Unit::KiB, handler, kib);
            }
        }
        Ok(())
    }
}

const WHOLE: &str = "everything but the client";
const RUNTIME: &str = "of it shim, pause and OCI runtime";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_this_process_uses_is_counted() {
        let begin = this_process().unwrap();
        let mut waste = 0_u64;
        while this_process().unwrap() < begin + 2.0 {
            waste = std::hint::black_box(waste.wrapping_mul(3).wrapping_add(1));
        }
        assert!(machine().unwrap() > 0.0);
    }
}
