//! `lab bench` and `lab floor`: the benchmark on a node of its own, told as a table, as JSON, as a chart, and in the
//! pages that show its figures.

mod chart;
mod page;
mod text;

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use mooring_e2e::bench::{Machine, Plan, Section, bench, floor_alone};
use mooring_e2e::machine::{Storage, enter};
use mooring_e2e::node::{Node, Settings, shim};
use mooring_e2e::suite::Handler;

/// A shim gives memory back a second after its last piece of work.
const SETTLE: Duration = Duration::from_secs(2);

/// What is measured.
#[derive(clap::Args)]
pub struct Options {
    /// Lives of a pod on each handler, one after another; everything else is repeated in proportion.
    #[arg(long, visible_alias = "pods", default_value_t = 40)]
    rounds: usize,
    /// Idle pods whose memory is measured together.
    #[arg(long, default_value_t = 20)]
    idle: usize,
    /// The most pods at once, and the most containers in a pod.
    #[arg(long, default_value_t = 100)]
    most: usize,
    /// The handlers; ratios are to the first.
    #[arg(long, value_delimiter = ',', default_value = "runc,mooring,builtin", value_parser = crate::handler)]
    handlers: Vec<Handler>,
    /// Parts of it, by default all but the last two: calls, containers, pods, host, service, streams, statistics, cpu,
    /// idle, execs, size, node, killed.
    #[arg(long, value_delimiter = ',', value_parser = section)]
    only: Vec<Section>,
    /// The containers of a pod share its PID namespace.
    #[arg(long)]
    shared_pid: bool,
    /// What the drawing of samples begins with.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Writes everything down as JSON, every sample with it.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draws the ratios as SVG.
    #[arg(long, value_name = "FILE")]
    chart: Option<PathBuf>,
    /// Writes the tables into pages, between the marks `<!-- bench:begin -->` and `<!-- bench:end -->`, and some figures
    /// between `<!-- figures:begin -->` and `<!-- figures:end -->`. A page has one or both.
    #[arg(long, value_name = "FILE", value_delimiter = ',')]
    pages: Vec<PathBuf>,
}

/// How much of the floor.
#[derive(clap::Args)]
pub struct FloorOptions {
    /// Lives of a pod.
    #[arg(long, default_value_t = 40)]
    rounds: usize,
}

fn section(name: &str) -> Result<Section, String> {
    let found = Section::ALL.into_iter().find(|one| one.name() == name);
    found.ok_or_else(|| {
        format!("no part {name:?}: there are {}", Section::ALL.map(Section::name).join(", "))
    })
}

/// A run that is over.
struct Run {
    plan: Plan,
    machine: Machine,
    command: String,
    table: mooring_e2e::bench::Table,
}

impl Options {
    fn plan(&self) -> Plan {
        let all = Section::ALL.into_iter().filter(|one| one.is_usual()).collect();
        Plan {
            handlers: self.handlers.clone(),
            sections: if self.only.is_empty() { all } else { self.only.clone() },
            rounds: self.rounds.max(1),
            idle: self.idle.max(2),
            most: self.most.max(1),
            settle: SETTLE,
            shared_pid: self.shared_pid,
            seed: self.seed,
        }
    }

    /// The options that decide what is measured, as they were given.
    fn command(&self) -> String {
        let mut words = vec![format!("--rounds {}", self.rounds), format!("--idle {}", self.idle)];
        if self.most < 100 {
            words.push(format!("--most {}", self.most));
        }
        let names: Vec<_> = self.handlers.iter().map(|one| one.name()).collect();
        words.push(format!("--handlers {}", names.join(",")));
        if !self.only.is_empty() {
            let names: Vec<_> = self.only.iter().map(|one| one.name()).collect();
            words.push(format!("--only {}", names.join(",")));
        }
        if self.shared_pid {
            words.push("--shared-pid".to_owned());
        }
        words.push(format!("--seed {}", self.seed));
        format!("make bench BENCH=\"{}\"", words.join(" "))
    }
}

pub fn run(options: &Options) -> Result<ExitCode> {
    let folder = enter(Storage::Disk)?;
    crate::block_on(async {
        let node = Arc::new(Node::boot(&folder, &Settings::default()).await?);
        let mut machine = Machine::of(&node).await?;
        if !machine.is_release && !options.pages.is_empty() {
            bail!("a page shows figures of releases: run make bench");
        }
        let plan = options.plan();
        println!("{}", options.command());
        for (name, value) in &machine.lines {
            println!("{name:<34}{value}");
        }
        if !machine.is_release {
            println!("NOT A RELEASE: of these figures nothing follows");
        }
        let tell = |section, table: &_| println!("\n{}", text::section(&plan, section, table));
        let table = bench(&node, &plan, tell).await?;
        machine.lines.push(("and after", mooring_e2e::bench::load()));
        let run = Run { command: options.command(), plan: plan.clone(), machine, table };
        if let Some(file) = &options.json {
            let json = serde_json::to_string(&text::json(&run))?;
            fs::write(file, json).with_context(|| format!("write {}", file.display()))?;
        }
        if let Some(file) = &options.chart {
            let drawn = chart::draw(&run).context("draw the chart")?;
            fs::write(file, drawn).with_context(|| format!("write {}", file.display()))?;
        }
        for file in &options.pages {
            let at = || file.display().to_string();
            let before = fs::read_to_string(file).with_context(|| format!("read {}", at()))?;
            let after = page::renewed(&before, &run).with_context(at)?;
            fs::write(file, after).with_context(|| format!("write {}", at()))?;
        }
        println!("\nevery call has done what it must, and nothing is left");
        Ok(ExitCode::SUCCESS)
    })
}

/// The floor by itself.
pub fn floor(options: &FloorOptions) -> Result<ExitCode> {
    let folder = enter(Storage::Disk)?;
    crate::block_on(async {
        let node = Arc::new(Node::boot(&folder, &Settings::default()).await?);
        let table = floor_alone(&node, Handler::Mooring, options.rounds.max(1)).await?;
        println!("{}", text::floor(&table));
        Ok(ExitCode::SUCCESS)
    })
}

/// Of containerd and of the shim, as far as they matter for figures.
pub async fn versions(node: &Node) -> Result<String> {
    let machine = Machine::of(node).await?;
    let of = |name| {
        let found = machine.lines.iter().find(|(one, _)| *one == name);
        found.map_or("", |(_, text)| text.as_str())
    };
    let build = if machine.is_release { "release build" } else { "DEBUG build or given" };
    let size = fs::metadata(shim()?)?.len() / 1024;
    Ok(format!("containerd {}, shim {build} ({size} KiB)", of("containerd")))
}
