//! A run's tables in the pages that show them.

use std::fmt::Write as _;

use anyhow::{Result, bail, ensure};
use mooring_e2e::bench::Section;
use mooring_e2e::suite::Handler;

use super::Run;
use super::text::{cells, heads};

/// A page with the run's figures between its marks.
pub fn renewed(page: &str, run: &Run) -> Result<String> {
    let (mut text, mut found) = (page.to_owned(), false);
    for (mark, content) in [("bench", tables(run)), ("figures", figures(run)?)] {
        if let Some(after) = between(&text, mark, &content)? {
            (text, found) = (after, true);
        }
    }
    ensure!(found, "the page has no place for figures");
    Ok(text)
}

/// The page with this between the marks of this name; none where it has none.
fn between(page: &str, mark: &str, content: &str) -> Result<Option<String>> {
    let (begin, end) = (format!("<!-- {mark}:begin -->\n"), format!("<!-- {mark}:end -->"));
    let Some((before, rest)) = page.split_once(&begin) else { return Ok(None) };
    let Some((_, after)) = rest.split_once(&end) else { bail!("{mark}:begin without an end") };
    Ok(Some(format!("{before}{begin}{content}{end}{after}")))
}

fn table(text: &mut String, heads: &[String], lines: impl Iterator<Item = Vec<String>>) {
    let rule: String = (0..heads.len()).map(|at| if at == 0 { "---|" } else { "--:|" }).collect();
    let _ = writeln!(text, "| {} |\n|{rule}", heads.join(" | "));
    for cells in lines {
        let _ = writeln!(text, "| {} |", cells.join(" | "));
    }
}

/// Whether a column says nothing in any row: its cells are dashes.
fn without_empty(lines: &[Vec<String>]) -> Vec<Vec<String>> {
    let columns = lines.first().map_or(0, Vec::len);
    let says =
        |at: usize| lines.iter().skip(1).any(|line| line.get(at).is_some_and(|one| one != "–"));
    let kept: Vec<usize> = (0..columns).filter(|at| says(*at)).collect();
    let pick = |line: &Vec<String>| kept.iter().filter_map(|at| line.get(*at).cloned()).collect();
    lines.iter().map(pick).collect()
}

/// Everything: the machine, then a table for each section.
fn tables(run: &Run) -> String {
    let mut text = format!("`{}`\n\n", run.command);
    text.push_str("| machine | |\n|---|---|\n");
    for (name, value) in &run.machine.lines {
        let _ = writeln!(text, "| {name} | {value} |");
    }
    for section in Section::ALL {
        let mut lines = vec![heads(&run.plan)];
        lines.extend(run.table.of(section).map(|row| cells(&run.plan, row)));
        if lines.len() > 1 {
            let lines = without_empty(&lines);
            let (heads, rows) = (&lines[0], lines[1..].iter().cloned());
            let _ = writeln!(text, "\n### {}\n", section.title());
            table(&mut text, heads, rows);
        }
    }
    text
}

/// The rows that readers of a first page want, with what they are called there.
fn chosen(idle: usize) -> Vec<(Section, String, String)> {
    let calls = [
        "RunPodSandbox",
        "CreateContainer",
        "StartContainer",
        "ExecSync",
        "StopContainer",
        "StopPodSandbox",
        "RemovePodSandbox",
    ];
    let mut all: Vec<_> =
        calls.map(|name| (Section::Calls, name.to_owned(), name.to_owned())).into_iter().collect();
    all.push((
        Section::Pods,
        "100 at once: StopPodSandbox, the last".to_owned(),
        "100 pods stopped at once".to_owned(),
    ));
    for (row, name) in [("memory, PSS", "memory (PSS)"), ("threads", "threads")] {
        let label = format!("{name} of one idle pod of {idle}");
        all.push((Section::Idle, format!("one of {idle}: {row}"), label));
    }
    all
}

/// A short table of ratios: a column for each handler but the first.
fn figures(run: &Run) -> Result<String> {
    let Some((first, others)) = run.plan.handlers.split_first().filter(|all| !all.1.is_empty())
    else {
        bail!("ratios want two handlers");
    };
    let mut lines = Vec::new();
    for (section, row, label) in chosen(run.plan.idle) {
        let Some(row) = run.table.find(section, &row) else { continue };
        let cell = |one: &Handler| {
            let found = row.ratio(*one, *first, run.plan.seed);
            found.map_or_else(|| "–".to_owned(), |ratio| format!("{:.2}", ratio.value))
        };
        lines.push([label].into_iter().chain(others.iter().map(cell)).collect::<Vec<_>>());
    }
    let heads = others.iter().map(|one| match one {
        Handler::Builtin if others.len() > 1 => "with `builtin`".to_owned(),
        Handler::Mooring if others.len() > 1 => "with runc".to_owned(),
        _ => "ratio".to_owned(),
    });
    let head = "Mooring to podsandbox with containerd-shim-runc-v2".to_owned();
    let heads: Vec<_> = [head].into_iter().chain(heads).collect();
    let mut text = String::new();
    table(&mut text, &heads, lines.into_iter());
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_between_the_marks_is_replaced_and_nothing_else() {
        let page = "a\n<!-- x:begin -->\nold\n<!-- x:end -->\nb <!-- y:begin -->\n";
        let after = between(page, "x", "new\n").unwrap();
        assert_eq!(
            after.as_deref(),
            Some("a\n<!-- x:begin -->\nnew\n<!-- x:end -->\nb <!-- y:begin -->\n")
        );
        assert_eq!(between(page, "z", "new").unwrap(), None);
        assert!(between(page, "y", "new").is_err());
    }

    #[test]
    fn a_column_without_a_word_is_left_out() {
        let line = |cells: [&str; 3]| cells.map(str::to_owned).to_vec();
        let lines = vec![line(["", "n", "floor"]), line(["a", "1", "–"]), line(["b", "–", "–"])];
        let kept = without_empty(&lines);
        assert_eq!(
            kept,
            [["", "n"], ["a", "1"], ["b", "–"]].map(|one| one.map(str::to_owned).to_vec())
        );
    }
}
