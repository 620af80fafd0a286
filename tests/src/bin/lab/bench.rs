//! The benchmark: both handlers alternate over CRI in one run on one node, so that noise hits them alike.
//!
//! It prints medians, p90 and ratios to the first handler for each call, and the memory of the runtime's own processes
//! per idle pod. It judges nothing.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use mooring_e2e::audit::{Process, Snapshot, all_processes, leftovers};
use mooring_e2e::cri::{ContainerSpec, Pod, PodSpec};
use mooring_e2e::machine::{Storage, enter};
use mooring_e2e::node::{Node, Settings, shim};
use mooring_e2e::suite::{Case, Handler};

const CALLS: [&str; 8] = [
    "RunPodSandbox",
    "CreateContainer",
    "StartContainer",
    "ExecSync",
    "StopContainer",
    "RemoveContainer",
    "StopPodSandbox",
    "RemovePodSandbox",
];

/// What is measured.
#[derive(clap::Args)]
pub struct Options {
    /// Pods per handler, one after another.
    #[arg(long, default_value_t = 30)]
    pods: usize,
    /// Idle pods whose memory is measured together.
    #[arg(long, default_value_t = 20)]
    idle: usize,
    /// The handlers; ratios are to the first.
    #[arg(long, value_delimiter = ',', default_value = "runc,mooring", value_parser = crate::handler)]
    handlers: Vec<Handler>,
    /// The containers of a pod share its PID namespace.
    #[arg(long)]
    shared_pid: bool,
}

/// Times by handler and call.
type Times = BTreeMap<(&'static str, &'static str), Vec<Duration>>;

pub fn run(options: &Options) -> Result<ExitCode> {
    let folder = enter(Storage::Disk)?;
    crate::block_on(async {
        let node = Arc::new(Node::boot(&folder, &Settings::default()).await?);
        measure(&node, options).await?;
        Ok(ExitCode::SUCCESS)
    })
}

async fn measure(node: &Arc<Node>, options: &Options) -> Result<()> {
    println!("{} pods per handler, {}", options.pods, versions(node).await?);
    let mut times = Times::new();
    // The first pod of each pays for the bridge, the caches and the code's pages.
    for &handler in &options.handlers {
        one_pod(node, handler, options, &mut Times::new()).await?;
    }
    for _ in 0..options.pods {
        for &handler in &options.handlers {
            one_pod(node, handler, options, &mut times).await?;
        }
    }
    print_times(options, &times);
    println!();
    let mut per_pod = BTreeMap::new();
    for count in [1, options.idle] {
        for &handler in &options.handlers {
            let memory = idle_pods(node, handler, options, count).await?;
            per_pod.insert((count, handler.name()), memory);
        }
    }
    print_memory(options, &per_pod);
    Ok(())
}

/// Of containerd and of the shim, as far as they matter for figures.
pub async fn versions(node: &Node) -> Result<String> {
    let shim = shim()?;
    let request = k8s_cri::v1::VersionRequest { version: String::new() };
    let containerd = node.cri().version(request).await?.into_inner().runtime_version;
    let build = if shim.ancestors().any(|at| at.ends_with("release") || at.ends_with("dist")) {
        "release build"
    } else {
        "DEBUG build or given"
    };
    let size = fs::metadata(&shim)?.len() / 1024;
    Ok(format!("containerd {containerd}, shim {build} ({size} KiB)"))
}

fn pod_spec(node: &Arc<Node>, handler: Handler, options: &Options) -> PodSpec {
    let spec = PodSpec::new(&Case { node: Arc::clone(node), handler });
    if options.shared_pid { spec.pid(k8s_cri::v1::NamespaceMode::Pod) } else { spec }
}

async fn one_pod(
    node: &Arc<Node>,
    handler: Handler,
    options: &Options,
    times: &mut Times,
) -> Result<()> {
    let spec = pod_spec(node, handler, options);
    let mut clock = Clock { handler: handler.name(), times, since: Instant::now() };
    let pod = spec.run().await?;
    clock.lap("RunPodSandbox");
    let container = pod.create(&ContainerSpec::idle("main")).await?;
    clock.lap("CreateContainer");
    container.start().await?;
    clock.lap("StartContainer");
    container.exec(&["/bin/true"]).await?;
    clock.lap("ExecSync");
    container.stop(0).await?;
    clock.lap("StopContainer");
    container.remove().await?;
    clock.lap("RemoveContainer");
    // What a kubelet does to a pod that shall go: the container is still running.
    let running = pod.start(&ContainerSpec::idle("running")).await?;
    clock.since = Instant::now();
    pod.stop().await?;
    clock.lap("StopPodSandbox");
    drop(running);
    pod.remove().await?;
    clock.lap("RemovePodSandbox");
    Ok(())
}

struct Clock<'a> {
    handler: &'static str,
    times: &'a mut Times,
    since: Instant,
}

impl Clock<'_> {
    fn lap(&mut self, call: &'static str) {
        self.times.entry((self.handler, call)).or_default().push(self.since.elapsed());
        self.since = Instant::now();
    }
}

fn quantile(sorted: &[Duration], part: f64) -> f64 {
    #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let at = ((sorted.len().saturating_sub(1)) as f64 * part).round() as usize;
    sorted.get(at).map_or(0.0, |one| one.as_secs_f64() * 1000.0)
}

fn print_times(options: &Options, times: &Times) {
    let mut head = format!("{:<18}", "ms");
    for handler in &options.handlers {
        let _ = write!(head, "{:>16} {:>8}", format!("{} median", handler.name()), "p90");
    }
    println!("{head}{:>8}", "ratio");
    for call in CALLS {
        let mut line = format!("{call:<18}");
        let mut medians = Vec::new();
        for handler in &options.handlers {
            let mut all = times.get(&(handler.name(), call)).cloned().unwrap_or_default();
            all.sort();
            medians.push(quantile(&all, 0.5));
            let _ = write!(line, "{:>16.1} {:>8.1}", quantile(&all, 0.5), quantile(&all, 0.9));
        }
        println!("{line}{}", ratio(&medians));
    }
}

fn ratio(values: &[f64]) -> String {
    match values {
        [first, .., last] if *first > 0.0 => format!("{:>8.2}", last / first),
        _ => String::new(),
    }
}

/// What the runtime's own processes take, all pods together.
#[derive(Default)]
struct Memory {
    pss: f64,
    anonymous: f64,
    threads: f64,
    processes: f64,
}

async fn idle_pods(
    node: &Arc<Node>,
    handler: Handler,
    options: &Options,
    count: usize,
) -> Result<Memory> {
    let before = Snapshot::take(node).await?;
    let old: Vec<i32> = all_processes().iter().map(|one| one.pid).collect();
    let mut pods: Vec<Pod> = Vec::new();
    for _ in 0..count {
        let pod = pod_spec(node, handler, options).run().await?;
        pod.start(&ContainerSpec::idle("main")).await?;
        pods.push(pod);
    }
    // Let what starting needed be returned.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let mut sum = Memory::default();
    for process in all_processes() {
        if !old.contains(&process.pid) && !is_workload(&process) {
            add(&process, &mut sum)?;
        }
    }
    for pod in &pods {
        pod.end().await?;
    }
    let left = leftovers(node, &before).await?;
    if !left.is_empty() {
        eprintln!("bench: handler {} left: {}", handler.name(), left.join(", "));
    }
    Ok(sum)
}

fn is_workload(process: &Process) -> bool {
    process.command.starts_with("/bin/sleep ") || process.name.contains("zombie")
}

fn add(process: &Process, sum: &mut Memory) -> Result<()> {
    let at = format!("/proc/{}", process.pid);
    let rollup = fs::read_to_string(format!("{at}/smaps_rollup"))
        .with_context(|| format!("memory of {}", process.command))?;
    let field = |text: &str, name: &str| -> f64 {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let number = line.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
        number.unwrap_or(0.0)
    };
    sum.pss += field(&rollup, "Pss:");
    sum.anonymous += field(&rollup, "Anonymous:");
    sum.threads += field(&fs::read_to_string(format!("{at}/status"))?, "Threads:");
    sum.processes += 1.0;
    Ok(())
}

/// Picks a figure.
type Column = fn(&Memory) -> f64;

fn print_memory(options: &Options, all: &BTreeMap<(usize, &'static str), Memory>) {
    let counts: Vec<usize> = [1, options.idle].into();
    for count in counts {
        let mut head = String::new();
        for handler in &options.handlers {
            let _ = write!(head, "{:>16} ", handler.name());
        }
        println!("{:<18}{head}{:>8}", format!("per pod of {count}"), "ratio");
        let rows: [(&str, Column); 4] = [
            ("PSS KiB", |one| one.pss),
            ("anonymous KiB", |one| one.anonymous),
            ("threads", |one| one.threads),
            ("processes", |one| one.processes),
        ];
        for (name, value) in rows {
            #[expect(clippy::cast_precision_loss)]
            let values: Vec<f64> = options
                .handlers
                .iter()
                .filter_map(|one| all.get(&(count, one.name())))
                .map(|memory| value(memory) / count as f64)
                .collect();
            let mut cells = String::new();
            for one in &values {
                let _ = write!(cells, "{one:>16.1} ");
            }
            println!("{name:<18}{cells}{}", ratio(&values));
        }
    }
}
