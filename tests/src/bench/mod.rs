//! The benchmark: handlers alternate in one run on one node, so that noise hits them alike, and between them the floor
//! is measured. It judges nothing by its time; it fails when a call does, when something is not as it must be, or when
//! something is left.

mod calls;
mod cost;
mod crowd;
mod floor;
mod full;
mod machine;
pub mod processes;
mod service;
mod stats;
mod streams;
mod table;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use self::floor::{Floor, milliseconds};
pub use self::machine::{Machine, load};
pub use self::stats::{Ratio, median, quantile};
pub use self::streams::execs;
pub use self::table::{Row, Table, Unit};
use crate::audit::{Snapshot, leftovers};
use crate::node::Node;
use crate::suite::{Case, Handler, remove_pod_parents};

/// What can be measured by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Section {
    /// Every call of CRI in a pod's life.
    Calls,
    /// Pods with more than one container.
    Containers,
    /// Many pods at once.
    Pods,
    /// Pods on the node's network.
    Host,
    /// Sandboxes of the Sandbox API, with a network of the shim's own.
    Service,
    /// Execs at once, and how much goes through an exec and an attach.
    Streams,
    /// Statistics of a hundred pods.
    Statistics,
    /// CPU time of a pod's life.
    Cpu,
    /// What idle pods take: memory, threads, descriptors, CPU time.
    Idle,
    /// Memory after many execs.
    Execs,
    /// Sizes of the programs.
    Size,
    /// What the runtime of a full node takes.
    Node,
    /// `delete` when all shims of a full node are killed at once.
    Killed,
}

impl Section {
    /// All of them, in the order in which they are measured.
    pub const ALL: [Self; 13] = [
        Self::Calls,
        Self::Containers,
        Self::Pods,
        Self::Host,
        Self::Service,
        Self::Streams,
        Self::Statistics,
        Self::Cpu,
        Self::Idle,
        Self::Execs,
        Self::Size,
        Self::Node,
        Self::Killed,
    ];

    /// Whether it belongs to a run that is to take ten minutes.
    pub fn is_usual(self) -> bool {
        !matches!(self, Self::Node | Self::Killed)
    }

    /// The word that chooses it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Calls => "calls",
            Self::Containers => "containers",
            Self::Pods => "pods",
            Self::Host => "host",
            Self::Service => "service",
            Self::Streams => "streams",
            Self::Statistics => "statistics",
            Self::Cpu => "cpu",
            Self::Idle => "idle",
            Self::Execs => "execs",
            Self::Size => "size",
            Self::Node => "node",
            Self::Killed => "killed",
        }
    }

    /// Its headline.
    pub fn title(self) -> &'static str {
        match self {
            Self::Calls => "Calls of CRI, one pod after another",
            Self::Containers => "Pods with several containers",
            Self::Pods => "Many pods at once",
            Self::Host => "On the node's network",
            Self::Service => "A sandbox of the Sandbox API with a network of the shim's own",
            Self::Streams => "Execs and streams",
            Self::Statistics => "Statistics of a hundred pods",
            Self::Cpu => "CPU time of a pod's life",
            Self::Idle => "An idle pod with one container",
            Self::Execs => "Memory after many execs",
            Self::Size => "Programs",
            Self::Node => "A full node: the runtime's processes together",
            Self::Killed => "All shims of a full node killed at once",
        }
    }
}

/// What is to be measured.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The handlers; ratios are to the first.
    pub handlers: Vec<Handler>,
    /// What of it.
    pub sections: Vec<Section>,
    /// Lives of a pod; everything else is repeated in proportion.
    pub rounds: usize,
    /// Idle pods that are measured together.
    pub idle: usize,
    /// The most pods at once, and the most containers in a pod.
    pub most: usize,
    /// After this time a shim has given back what a start or a call needed.
    pub settle: Duration,
    /// The containers of a pod share its PID namespace.
    pub shared_pid: bool,
    /// What random numbers begin with.
    pub seed: u64,
}

impl Plan {
    /// So many of a full run's forty rounds.
    fn part(&self, of_forty: usize) -> usize {
        (self.rounds * of_forty).div_ceil(40).max(1)
    }

    fn has(&self, section: Section) -> bool {
        self.sections.contains(&section)
    }

    /// Whose samples are compared with the floor, which calls the node's OCI runtime: the last one that does so too.
    pub fn above_floor(&self) -> Option<Handler> {
        self.handlers.iter().rfind(|one| **one != Handler::Builtin).copied()
    }
}

/// A run under way.
struct Bench {
    node: Arc<Node>,
    plan: Plan,
    floor: Arc<Floor>,
    table: Table,
}

/// The time of a call, in milliseconds.
async fn timed<T>(call: impl Future<Output = Result<T>>) -> Result<(T, f64)> {
    let since = Instant::now();
    let done = Box::pin(call).await?;
    Ok((done, milliseconds(since.elapsed())))
}

impl Bench {
    async fn begin(node: &Arc<Node>, plan: &Plan) -> Result<Self> {
        let first = *plan.handlers.first().context("no handler")?;
        // Also the first use of the bridge, which stays.
        let floor = Floor::of(&Case { node: Arc::clone(node), handler: first }).await?;
        Ok(Self { node: Arc::clone(node), plan: plan.clone(), floor, table: Table::default() })
    }

    fn case(&self, handler: Handler) -> Case {
        Case { node: Arc::clone(&self.node), handler }
    }

    fn handlers(&self) -> Vec<Handler> {
        self.plan.handlers.clone()
    }

    /// Those that differ where the OCI runtime has nothing to do, or too little to show: the built-in one is left out,
    /// unless it is all that there is of Mooring.
    fn shims(&self) -> Vec<Handler> {
        let mut all = self.handlers();
        if all.contains(&Handler::Mooring) {
            all.retain(|one| *one != Handler::Builtin);
        }
        all
    }

    async fn section(&mut self, section: Section) -> Result<()> {
        match section {
            Section::Calls => self.calls().await,
            Section::Containers => self.containers().await,
            Section::Pods => self.pods().await,
            Section::Host => self.host().await,
            Section::Service => self.service().await,
            Section::Streams => self.streams().await,
            Section::Statistics => self.statistics().await,
            Section::Cpu => self.cpu().await,
            Section::Idle => self.idle().await,
            // It makes those pods older that idle.
            Section::Execs if self.plan.has(Section::Idle) => Ok(()),
            Section::Execs => self.execs().await,
            Section::Size => self.size(),
            Section::Node => self.node().await,
            Section::Killed => self.killed().await,
        }
    }
}

/// Measures everything that the plan names; after each part the machine is as it was before, or the run has failed.
pub async fn bench(node: &Arc<Node>, plan: &Plan, tell: impl Fn(Section, &Table)) -> Result<Table> {
    let mut bench = Bench::begin(node, plan).await?;
    let before = Snapshot::take(node).await?;
    for section in Section::ALL.into_iter().filter(|one| plan.has(*one)) {
        let pid = node.pid();
        bench.section(section).await.with_context(|| format!("measure {}", section.name()))?;
        if node.pid() != pid {
            bail!("containerd has died while {} was measured", section.name());
        }
        remove_pod_parents();
        let left = leftovers(node, &before).await?;
        if !left.is_empty() {
            bail!("after {} this is left: {}", section.name(), left.join(", "));
        }
        tell(section, &bench.table);
    }
    Ok(bench.table)
}

/// The floor alone: so many lives of it.
pub async fn floor_alone(node: &Arc<Node>, handler: Handler, rounds: usize) -> Result<Table> {
    let floor = Floor::of(&Case { node: Arc::clone(node), handler }).await?;
    let before = Snapshot::take(node).await?;
    let mut table = Table::default();
    for _ in 0..rounds {
        for (call, ms) in floor.run(Floor::life).await? {
            table.floor(Section::Calls, call, Unit::Ms, ms);
        }
    }
    let left = leftovers(node, &before).await?;
    if !left.is_empty() {
        bail!("the floor has left: {}", left.join(", "));
    }
    Ok(table)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_run_has_at_least_one_of_everything() {
        let mut plan = Plan {
            handlers: vec![Handler::Runc],
            sections: Section::ALL.to_vec(),
            rounds: 1,
            idle: 1,
            most: 1,
            settle: Duration::ZERO,
            shared_pid: false,
            seed: 1,
        };
        assert_eq!([plan.part(2), plan.part(40)], [1, 1]);
        plan.rounds = 40;
        assert_eq!([plan.part(2), plan.part(40)], [2, 40]);
        plan.rounds = 80;
        assert_eq!(plan.part(3), 6);
    }

    #[test]
    fn sections_have_names_of_their_own() {
        let mut names = Section::ALL.map(Section::name).to_vec();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Section::ALL.len());
    }
}
