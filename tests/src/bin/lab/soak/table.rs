//! What a soak found, as text, as Markdown and as JSON.

use std::fmt::Write as _;

use mooring_e2e::soak::{EXECS, Judged, Report, Rule};
use serde_json::{Value, json};

/// What happened, a line each: a name and how often.
fn happened(report: &Report) -> Vec<(&'static str, String)> {
    let sums = &report.sums;
    let minutes = report.samples.last().map_or(0.0, |one| one.at.as_secs_f64() / 60.0);
    let faults = sums.faults.iter().map(|(name, count)| format!("{count} {name}"));
    let loads: Vec<f64> = report.samples.iter().map(|one| one.load).collect();
    let (low, high) =
        loads.iter().fold((f64::MAX, 0.0), |(low, high), one| (one.min(low), one.max(high)));
    vec![
        ("time", format!("{minutes:.0} min, {} quiet points", report.samples.len())),
        ("pods", sums.of(&["pods"]).to_string()),
        ("containers started", sums.of(&["StartContainer"]).to_string()),
        ("execs", sums.of(EXECS).to_string()),
        ("attaches", sums.of(&["Attach"]).to_string()),
        (
            "statistics and updates",
            sums.of(&[
                "ContainerStats",
                "PodSandboxStats",
                "SandboxMetrics",
                "UpdateContainerResources",
            ])
            .to_string(),
        ),
        ("calls that succeeded", sums.done.values().sum::<u64>().to_string()),
        ("faults", format!("{}: {}", sums.all_faults(), faults.collect::<Vec<_>>().join(", "))),
        ("failures that a fault explains", sums.explained.to_string()),
        ("failures that none does", sums.failures.to_string()),
        ("left by a killed containerd itself", sums.remains.to_string()),
        ("left at the end", report.left.len().to_string()),
        ("load average of a minute", format!("{low:.1} to {high:.1}")),
        ("seed", report.plan.seed.to_string()),
    ]
}

/// Whole numbers without a point.
fn figure(value: f64) -> String {
    if value.fract() == 0.0 { format!("{value:.0}") } else { format!("{value:.1}") }
}

fn label(one: &Judged) -> String {
    match one.measure.unit {
        "" => one.measure.label.to_owned(),
        unit => format!("{} ({unit})", one.measure.label),
    }
}

fn verdict(one: &Judged) -> String {
    match one.growth {
        _ if one.measure.rule == Rule::None => "not judged".to_owned(),
        Some((by, bad)) => format!("{} {}", if bad { "GROWS by" } else { "ok:" }, figure(by)),
        None => "too few samples".to_owned(),
    }
}

/// The rows of figures: label, first, median, most, last, verdict.
fn rows(report: &Report) -> Vec<[String; 6]> {
    let row = |one: &Judged| {
        let [first, median, most, last] = [one.first, one.median, one.most, one.last].map(figure);
        [label(one), first, median, most, last, verdict(one)]
    };
    report.judged().iter().map(row).collect()
}

const HEAD: [&str; 6] = ["at quiet points", "first", "median", "most", "last", "growth"];

/// For a terminal.
pub fn text(report: &Report) -> String {
    let mut text = String::new();
    for (name, value) in happened(report) {
        let _ = writeln!(text, "{name:<34}{value}");
    }
    text.push('\n');
    let head = HEAD.map(str::to_owned);
    for [label, first, median, most, last, verdict] in std::iter::once(head).chain(rows(report)) {
        let _ = writeln!(text, "{label:<36}{first:>9}{median:>9}{most:>9}{last:>9}  {verdict}");
    }
    text
}

/// For docs/soak.md.
pub fn markdown(report: &Report) -> String {
    let mut text = "| what happened | |\n|---|---|\n".to_owned();
    for (name, value) in happened(report) {
        let _ = writeln!(text, "| {name} | {value} |");
    }
    let _ = writeln!(text, "\n| {} |\n|---|--:|--:|--:|--:|---|", HEAD.join(" | "));
    for row in rows(report) {
        let _ = writeln!(text, "| {} |", row.join(" | "));
    }
    text
}

/// Everything.
pub fn json(report: &Report) -> Value {
    let samples = report.samples.iter().map(|one| {
        json!({
            "seconds": one.at.as_secs(),
            "load": one.load,
            "done": one.sums.done,
            "faults": one.sums.faults,
            "explained": one.sums.explained,
            "remains": one.sums.remains,
            "failures": one.sums.failures,
            "values": one.values,
        })
    });
    let failures = report
        .failures
        .iter()
        .map(|one| json!({ "seconds": one.at.as_secs(), "who": one.who, "what": one.what }));
    json!({
        "seed": report.plan.seed,
        "pods": report.plan.pods,
        "round_seconds": report.plan.round.as_secs(),
        "samples": samples.collect::<Vec<_>>(),
        "failures": failures.collect::<Vec<_>>(),
        "left": report.left,
        "complaints": report.complaints(),
        "interrupted": report.interrupted,
    })
}
