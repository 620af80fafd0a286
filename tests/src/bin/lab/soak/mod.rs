//! `lab soak`: the soak on a node of its own, told as a table, as JSON and as a chart.

mod chart;
mod table;

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use mooring_e2e::machine::{Storage, enter};
use mooring_e2e::node::{Node, Settings};
use mooring_e2e::random::Random;
use mooring_e2e::soak::{Plan, soak};
use mooring_e2e::suite::{Case, Handler};

/// Quiet points are this far apart, unless the soak is short.
const ROUND: Duration = Duration::from_mins(1);
/// A short one still has so many.
const ROUNDS: u32 = 6;

/// A soak.
#[derive(clap::Args)]
pub struct Options {
    /// How long pods come and go: `90s`, `30m`, `1h`.
    #[arg(long, default_value = "30m", value_parser = duration)]
    time: Duration,
    /// What decides every pod's life; by default of the clock. The same seed makes the same decisions again, but not
    /// the same moments.
    #[arg(long)]
    seed: Option<u64>,
    /// The most pods at once; five of them stay for the whole time.
    #[arg(long, default_value_t = 10)]
    pods: usize,
    /// Writes everything down as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Writes the table as Markdown.
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// Copies what containerd and the shims have logged.
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// Draws a chart, as SVG.
    #[arg(long, value_name = "FILE")]
    chart: Option<PathBuf>,
}

fn duration(text: &str) -> Result<Duration, String> {
    let split = text.find(|one: char| !one.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let number: u64 = number.parse().map_err(|_| format!("{text:?} has no number"))?;
    let seconds = match unit {
        "s" => 1,
        "m" | "min" => 60,
        "h" => 3600,
        _ => return Err(format!("{text:?} has no unit: s, m or h")),
    };
    Ok(Duration::from_secs(number.saturating_mul(seconds)))
}

pub fn run(options: &Options) -> Result<ExitCode> {
    let folder = enter(Storage::Disk)?;
    crate::block_on(async {
        let over = Arc::new(AtomicBool::new(false));
        tokio::spawn({
            let over = Arc::clone(&over);
            async move {
                if tokio::signal::ctrl_c().await.is_ok() {
                    eprintln!("lab: ending in order; once more ends at once");
                    over.store(true, Ordering::Relaxed);
                }
            }
        });
        let node = Arc::new(Node::boot(&folder, &Settings::default()).await?);
        let seed = options.seed.unwrap_or_else(|| Random::from_environment().seed());
        let plan = Plan {
            time: options.time,
            round: ROUND.min(options.time / ROUNDS),
            pods: options.pods,
            seed,
        };
        println!(
            "{} s in rounds of {} s, at most {} pods, seed {seed}, {}",
            plan.time.as_secs(),
            plan.round.as_secs(),
            plan.pods,
            crate::bench::versions(&node).await?
        );
        let case = Case { node: Arc::clone(&node), handler: Handler::Mooring };
        let report = soak(&case, &plan, &over).await;
        if let Some(file) = &options.log {
            fs::copy(node.folder().join("containerd.log"), file).context("copy the log")?;
        }
        let report = report?;
        println!("\n{}", table::text(&report));
        for (file, content) in [
            (&options.json, serde_json::to_string(&table::json(&report))?),
            (&options.markdown, table::markdown(&report)),
        ] {
            if let Some(file) = file {
                fs::write(file, content).with_context(|| format!("write {}", file.display()))?;
            }
        }
        if let Some(file) = &options.chart {
            let drawn = chart::draw(&report).context("draw the chart")?;
            fs::write(file, drawn).with_context(|| format!("write {}", file.display()))?;
        }
        let complaints = report.complaints();
        for one in &complaints {
            println!("NOT WELL: {one}");
        }
        if complaints.is_empty() {
            println!("nothing grows, nothing failed without a fault, nothing is left");
        }
        Ok(if complaints.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    })
}
