//! What a run found, for a terminal and as JSON.

use std::fmt::Write as _;

use mooring_e2e::bench::{Plan, Ratio, Row, Section, Table, Unit, median, quantile};
use mooring_e2e::suite::Handler;
use serde_json::{Value, json};

use super::Run;

/// With as many digits as mean something.
pub fn figure(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// Median, 90th and 99th percentile; of one sample, that one.
pub fn cell(samples: &[f64]) -> String {
    let Some(middle) = median(samples) else { return "–".to_owned() };
    if samples.len() == 1 {
        return figure(middle);
    }
    let rest = [0.9, 0.99].map(|part| quantile(samples, part).map(figure).unwrap_or_default());
    format!("{} / {} / {}", figure(middle), rest[0], rest[1])
}

/// A ratio and its interval, which one sample does not have.
pub fn ratio(ratio: Option<Ratio>, samples: usize) -> String {
    match ratio {
        None => "–".to_owned(),
        Some(one) if samples < 2 => format!("{:.2}", one.value),
        Some(one) => format!("{:.2} ({:.2}–{:.2})", one.value, one.low, one.high),
    }
}

/// What a row is called, with its unit.
pub fn name(row: &Row) -> String {
    match row.unit {
        Unit::Count => row.name.clone(),
        unit => format!("{}, {}", row.name, unit.text()),
    }
}

/// The cells of a row: name, samples, a cell for each handler, the ratios, the floor, what is above it.
pub fn cells(plan: &Plan, row: &Row) -> Vec<String> {
    let mut cells = vec![name(row)];
    let most = plan.handlers.iter().map(|one| row.of(*one).len()).max().unwrap_or(0);
    cells.push(most.to_string());
    cells.extend(plan.handlers.iter().map(|one| cell(row.of(*one))));
    let first = plan.handlers.first().copied();
    for one in plan.handlers.iter().skip(1) {
        let found = first.and_then(|first| row.ratio(*one, first, plan.seed));
        cells.push(ratio(found, row.of(*one).len()));
    }
    cells.push(median(&row.floor).map_or_else(|| "–".to_owned(), figure));
    let above = plan.above_floor().and_then(|one| row.added(one));
    cells.push(above.map_or_else(|| "–".to_owned(), figure));
    cells
}

/// A handler, for people.
pub fn label(handler: Handler) -> &'static str {
    match handler {
        Handler::Runc => "runc-v2",
        Handler::Mooring => "Mooring",
        Handler::Builtin => "builtin",
    }
}

/// The heads of [`cells`].
pub fn heads(plan: &Plan) -> Vec<String> {
    let mut heads = vec![String::new(), "n".to_owned()];
    heads.extend(plan.handlers.iter().map(|one| label(*one).to_owned()));
    heads.extend(plan.handlers.iter().skip(1).map(|one| match plan.handlers.len() {
        2 => "ratio (95 %)".to_owned(),
        _ => format!("ratio of {} (95 %)", label(*one)),
    }));
    heads.push("floor".to_owned());
    heads.push(match plan.above_floor() {
        Some(one) if plan.handlers.len() > 2 => format!("{} above it", label(one)),
        _ => "above it".to_owned(),
    });
    heads
}

/// Lines of equal columns.
fn aligned(lines: &[Vec<String>]) -> String {
    let columns = lines.iter().map(Vec::len).max().unwrap_or(0);
    let width = |at: usize| {
        let cells = lines.iter().filter_map(|line| line.get(at));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for line in lines {
        for (at, (cell, width)) in line.iter().zip(&widths).enumerate() {
            let _ = if at == 0 {
                write!(text, "{cell:<width$}")
            } else {
                write!(text, "  {cell:>width$}")
            };
        }
        text.push('\n');
    }
    text
}

/// A section as a table of text.
pub fn section(plan: &Plan, section: Section, table: &Table) -> String {
    let mut lines = vec![heads(plan)];
    lines.extend(table.of(section).map(|row| cells(plan, row)));
    format!("{}\n{}", section.title(), aligned(&lines))
}

/// The floor alone.
pub fn floor(table: &Table) -> String {
    let mut lines = vec![vec![String::new(), "n".to_owned(), "median / p90 / p99".to_owned()]];
    let line = |row: &Row| vec![name(row), row.floor.len().to_string(), cell(&row.floor)];
    lines.extend(table.rows.iter().map(line));
    aligned(&lines)
}

fn summary(samples: &[f64]) -> Value {
    json!({
        "median": median(samples),
        "p90": quantile(samples, 0.9),
        "p99": quantile(samples, 0.99),
        "samples": samples,
    })
}

/// Everything.
pub fn json(run: &Run) -> Value {
    let plan = &run.plan;
    let first = plan.handlers.first().copied();
    let row = |row: &Row| {
        let of = |one: &Handler| (one.name().to_owned(), summary(row.of(*one)));
        let ratios = plan.handlers.iter().skip(1).filter_map(|one| {
            let found = row.ratio(*one, first?, plan.seed)?;
            // The floor's OCI runtime is not the built-in one.
            let added = row.added(*one).filter(|_| *one != Handler::Builtin);
            let ratio = json!({ "value": found.value, "low": found.low, "high": found.high });
            Some((one.name().to_owned(), json!({ "ratio": ratio, "above_floor": added })))
        });
        json!({
            "section": row.section.name(),
            "name": row.name,
            "unit": row.unit.text(),
            "handlers": plan.handlers.iter().map(of).collect::<serde_json::Map<_, _>>(),
            "compared": ratios.collect::<serde_json::Map<_, _>>(),
            "floor": if row.floor.is_empty() { Value::Null } else { summary(&row.floor) },
        })
    };
    let machine = run.machine.lines.iter().map(|(name, text)| ((*name).to_owned(), json!(text)));
    json!({
        "command": run.command,
        "seed": plan.seed,
        "release": run.machine.is_release,
        "machine": machine.collect::<serde_json::Map<_, _>>(),
        "rows": run.table.rows.iter().map(row).collect::<Vec<_>>(),
    })
}
