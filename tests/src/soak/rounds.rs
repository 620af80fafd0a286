//! The rounds of a soak: who stays, who comes and goes, containerd's accidents, and the quiet points between.

use std::collections::BTreeSet;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use tokio::task::JoinSet;

use super::chronicle::Chronicle;
use super::guest::Guest;
use super::{EXECS, Plan, Report, Sample, cri, sample, service};
use crate::audit::{Snapshot, all_processes, leftovers};
use crate::cri::{Container, ContainerSpec, PodSpec};
use crate::faults::{shim_of, until};
use crate::life::{Kind, Life, answered};
use crate::patience;
use crate::plugins::Plugins;
use crate::random::Random;
use crate::remains;
use crate::services::Task;
use crate::suite::{Case, remove_pod_parents};

/// How long what a pod left may be on its way out at a quiet point.
const SETTLE: Duration = Duration::from_secs(30);
/// How long the shims that stay may keep what a call needed: their idle threads end later than their calls.
const COOL: Duration = Duration::from_secs(15);

/// In a round shorter than this containerd has one accident; in a longer one it may have two.
const SHORT: Duration = Duration::from_secs(30);

/// A soak under way.
struct World {
    case: Case,
    plan: Plan,
    chronicle: Arc<Chronicle>,
    plugins: Plugins,
    numbers: AtomicU64,
    /// The round is over: no new pods.
    quiet: AtomicBool,
    over: Arc<AtomicBool>,
}

/// A pod that stays.
struct Resident {
    life: Life,
    name: &'static str,
    container: Option<Container>,
    shim: i32,
}

/// Soaks a node. `over` ends it early and in order.
pub async fn soak(case: &Case, plan: &Plan, over: &Arc<AtomicBool>) -> Result<Report> {
    let empty = Snapshot::take(&case.node).await?;
    let world = Arc::new(World {
        case: case.clone(),
        plan: plan.clone(),
        chronicle: Arc::new(Chronicle::begin()),
        plugins: Plugins::install(&case.node, "soak", "CniTimeout = '4s'")?,
        numbers: AtomicU64::new(1),
        quiet: AtomicBool::new(false),
        over: Arc::clone(over),
    });
    let residents = Arc::new(Box::pin(world.settle()).await.context("start the pods that stay")?);
    let samples = world.rounds(&residents).await;
    for one in residents.iter() {
        let who = format!("the pod that stays ({})", one.name);
        Guest::new(&world.chronicle, who).end(&one.life).await;
    }
    let samples = samples?;
    let left = leftovers(&case.node, &empty).await?;
    Ok(Report {
        plan: plan.clone(),
        samples,
        failures: world.chronicle.failures(),
        sums: world.chronicle.sums(),
        left,
        interrupted: over.load(Ordering::Relaxed),
    })
}

impl World {
    fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// Starts the pods that stay.
    async fn settle(&self) -> Result<Vec<Resident>> {
        let cri = || PodSpec::new(&self.case);
        let of = |spec| Life::of(&self.case, spec);
        let lives = [
            ("over CRI", of(cri())),
            ("over CRI, shared PIDs", of(cri().pid(k8s_cri::v1::NamespaceMode::Pod))),
            ("over CRI, user namespace", of(cri().users_from(600_000))),
            ("sandbox service, own network", Life::new(&self.case, Kind::OwnNetwork)),
            ("sandbox service, an image volume", Life::new(&self.case, Kind::ImageVolume)),
        ];
        let mut all = Vec::new();
        for (name, mut life) in lives {
            life.run().await.context(name)?;
            let container = match life.pod() {
                Some(pod) => Some(pod.start(&ContainerSpec::idle("main")).await.context(name)?),
                None => None,
            };
            if container.is_none() {
                life.container().await.context(name)?;
            }
            let shim = shim_of(life.id())?.pid;
            all.push(Resident { life, name, container, shim });
        }
        // A container that was told to start may not have become its program yet, and has no name while it does.
        let idle = || all_processes().into_iter().filter(|one| one.command == "/bin/sleep 100000");
        let begun = || idle().count() == all.len();
        until(Duration::from_secs(10), "a container does not become its program", begun).await?;
        Ok(all)
    }

    async fn rounds(self: &Arc<Self>, residents: &Arc<Vec<Resident>>) -> Result<Vec<Sample>> {
        let baseline = Snapshot::take(&self.case.node).await?;
        let mut known = BTreeSet::new();
        let mut samples: Vec<Sample> = Vec::new();
        let mut number = 0;
        // One quiet point could be compared with none.
        while (self.chronicle.elapsed() < self.plan.time || samples.len() < 2) && !self.is_over() {
            let rest = self.plan.time.saturating_sub(self.chronicle.elapsed());
            // A last round too short to be compared would be no round.
            let length =
                if rest < self.plan.round * 3 / 2 && number > 0 { rest } else { self.plan.round };
            let length = length.max(self.plan.round / 2);
            let since = Instant::now();
            self.round(residents, number, length).await?;
            let sample =
                self.quiet(residents, since, &baseline, &mut known, samples.first()).await?;
            tell(number, &sample);
            samples.push(sample);
            number += 1;
        }
        Ok(samples)
    }

    /// Pods come and go, those that stay are used, containerd has its accidents.
    async fn round(
        self: &Arc<Self>,
        residents: &Arc<Vec<Resident>>,
        number: u64,
        length: Duration,
    ) -> Result<()> {
        let end = Instant::now() + length;
        self.quiet.store(false, Ordering::Relaxed);
        let mut work = JoinSet::new();
        for _ in 0..self.plan.pods.saturating_sub(residents.len()).max(1) {
            let world = Arc::clone(self);
            work.spawn(async move { while world.pod_comes_and_goes().await {} });
        }
        let (world, all) = (Arc::clone(self), Arc::clone(residents));
        work.spawn(async move { world.use_residents(&all, number).await });
        let mut random = Random::new(self.plan.seed ^ (number << 32));
        let accidents = if length < SHORT { 1 } else { 1 + random.below(2) };
        for accident in 0..accidents {
            // One in each part of the round, and none so late that the pods would end in it.
            let part = length / u32::try_from(accidents)?;
            let begin =
                end.checked_sub(length).context("a clock")? + part * u32::try_from(accident)?;
            let percent = u32::try_from(10 + random.below(70))?;
            self.sleep_until(begin + part * percent / 100).await;
            if self.is_over() {
                break;
            }
            self.accident(&mut random).await.context("containerd's accident")?;
        }
        self.sleep_until(end).await;
        self.quiet.store(true, Ordering::Relaxed);
        while let Some(done) = work.join_next().await {
            done.context("a worker")?;
        }
        Ok(())
    }

    async fn sleep_until(&self, end: Instant) {
        while !self.is_over() {
            let rest = end.saturating_duration_since(Instant::now());
            if rest.is_zero() {
                return;
            }
            tokio::time::sleep(rest.min(Duration::from_millis(200))).await;
        }
    }

    /// Whether there is time for another.
    async fn pod_comes_and_goes(&self) -> bool {
        if self.quiet.load(Ordering::Relaxed) || self.is_over() {
            return false;
        }
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let mut random = Random::new(self.plan.seed ^ number.wrapping_mul(0x9e37_79b9));
        if random.percent(70) {
            let (spec, kind) = cri::spec(&self.case, number, &mut random);
            let mut guest = Guest::new(&self.chronicle, format!("pod {number} ({kind})"));
            let mut life = Life::of(&self.case, spec);
            let _ = cri::live(&self.case, &mut life, &mut guest, &mut random).await;
            guest.end(&life).await;
        } else {
            let (kind, name) = service::kind(&mut random);
            let mut guest = Guest::new(&self.chronicle, format!("pod {number} ({name})"));
            let mut life = Life::new(&self.case, kind);
            let _ = service::live(&self.plugins, &mut life, &mut guest, &mut random).await;
            guest.end(&life).await;
            // A record that was made while containerd died is not known to the life.
            let task = Task::of(life.client(), &format!("{}-main", life.id()));
            let _ = answered("delete", async { Ok(task.delete().await?) }).await;
            let _ = answered("forget", async { Ok(task.forget().await?) }).await;
            service::mend(&self.plugins, life.id());
        }
        true
    }

    /// Calls into the pods that stay, one after another, until the round is over.
    async fn use_residents(&self, residents: &[Resident], round: u64) {
        let mut random = Random::new(self.plan.seed ^ !round);
        for turn in 0.. {
            for one in residents {
                if self.quiet.load(Ordering::Relaxed) || self.is_over() {
                    return;
                }
                let who = format!("the pod that stays ({})", one.name);
                let mut guest = Guest::new(&self.chronicle, who);
                let _ = if let (Some(container), Some(pod)) = (&one.container, one.life.pod()) {
                    match random.below(8) {
                        0 => guest.call("ContainerStats", container.stats()).await.map(drop),
                        1 => guest.call("PodSandboxStats", pod.stats()).await.map(drop),
                        2 => guest.call("PodSandboxStatus", pod.status()).await.map(drop),
                        _ => cri::exec(container, &mut guest).await,
                    }
                } else {
                    let name = format!("{}-{round}-{turn}", one.life.id());
                    guest.call("exec", service::exec(&one.life, name)).await
                };
                let pause = Duration::from_millis(100 + random.below(200));
                tokio::time::sleep(pause).await;
            }
        }
    }

    async fn accident(&self, random: &mut Random) -> Result<()> {
        let node = &self.case.node;
        match random.below(3) {
            0 => {
                self.chronicle.fault("containerd killed");
                self.chronicle.away();
                node.crash().await?;
                self.chronicle.back();
            }
            1 => {
                self.chronicle.fault("containerd restarted");
                self.chronicle.away();
                node.restart().await?;
                self.chronicle.back();
            }
            // Nothing may fail of a second's silence.
            _ => {
                self.chronicle.fault("containerd silent");
                node.signal(Signal::SIGSTOP)?;
                tokio::time::sleep(Duration::from_secs(1)).await;
                node.signal(Signal::SIGCONT)?;
            }
        }
        Ok(())
    }

    /// Waits until nothing moves, complains of what is left of the round, and measures.
    async fn quiet(
        &self,
        residents: &[Resident],
        since: Instant,
        baseline: &Snapshot,
        known: &mut BTreeSet<String>,
        first: Option<&Sample>,
    ) -> Result<Sample> {
        let node = &self.case.node;
        remove_pod_parents();
        let end = Instant::now() + patience(SETTLE);
        let left = loop {
            let left = leftovers(node, baseline).await?;
            let left = if self.chronicle.was_away_since(since) {
                let removed = |what: String| {
                    println!(
                        "{:>5} s  containerd left: {what}",
                        self.chronicle.elapsed().as_secs()
                    );
                    self.chronicle.remains();
                };
                remains::remove(node, left, removed).await
            } else {
                left
            };
            if left.iter().all(|one| known.contains(one)) || Instant::now() > end {
                break left;
            }
        };
        for one in left {
            if known.insert(one.clone()) {
                self.chronicle.failure("quiet point", format!("left: {one}"));
            }
        }
        for one in residents {
            if shim_of(one.life.id()).ok().is_none_or(|shim| shim.pid != one.shim) {
                bail!("the pod that stays ({}) has lost its shim", one.name);
            }
        }
        let shims: Vec<i32> = residents.iter().map(|one| one.shim).collect();
        let end = Instant::now() + patience(COOL);
        let values = loop {
            let values = sample::take(node, &shims).await?;
            let cool = |key| {
                first.and_then(|one| one.values.get(key)).is_some_and(|first| values[key] <= *first)
            };
            if cool("shim_descriptors") && cool("shim_threads") || Instant::now() > end {
                break values;
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        };
        let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
        let load = load.split(' ').next().and_then(|one| one.parse().ok()).unwrap_or(0.0);
        let (at, sums) = (self.chronicle.elapsed(), self.chronicle.sums());
        Ok(Sample { at, sums, load, values })
    }
}

fn tell(round: u64, sample: &Sample) {
    let value = |key| sample.values.get(key).copied().unwrap_or(0.0);
    println!(
        "{:>5} s  round {round}: {} pods, {} execs, {} faults, {} failures explained and {} not; \
             a shim {:.0} KiB PSS, {:.0} anonymous; {} descriptors, {} mounts, {} cgroups, {} addresses; load {:.1}",
        sample.at.as_secs(),
        sample.sums.of(&["pods"]),
        sample.sums.of(EXECS),
        sample.sums.all_faults(),
        sample.sums.explained,
        sample.sums.failures,
        value("shim_pss"),
        value("shim_anonymous"),
        value("shim_descriptors"),
        value("mounts"),
        value("cgroups"),
        value("addresses"),
        sample.load,
    );
}
