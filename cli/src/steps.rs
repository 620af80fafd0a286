//! The steps of a teardown, a line each.

use console::style;

use crate::account::Step;

/// What is said of a step: its name, outcome and time, and why, where there is something to say.
pub fn line(step: &Step) -> String {
    let word = match step.outcome {
        "under_way" => style("under way").yellow().to_string(),
        "done" | "already_gone" => style(step.outcome.replace('_', " ")).green().to_string(),
        "in_use" => style("in use").yellow().to_string(),
        _ => style(step.outcome.replace('_', " ")).red().bold().to_string(),
    };
    let time = step.ms.map(|ms| format!("  {}", length(ms))).unwrap_or_default();
    let why = step.error.as_ref().map(|error| format!("  {error}")).unwrap_or_default();
    let waits = if step.waits_for.is_empty() {
        String::new()
    } else {
        format!("  waits for: {}", step.waits_for.join("; "))
    };
    format!("{:<14} {word}{time}{why}{waits}", step.name)
}

/// A length of time: milliseconds below a second, else seconds.
pub fn length(ms: f64) -> String {
    if ms < 1000.0 { format!("{ms:.1} ms") } else { format!("{:.1} s", ms / 1e3) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_what_a_step_did_or_waits_for() {
        let done = Step {
            name: "network".into(),
            outcome: "done",
            began_at: None,
            ms: Some(200.17),
            error: None,
            waits_for: Vec::new(),
        };
        assert_eq!(line(&done), "network        done  200.2 ms");
        let failed =
            Step { outcome: "failed", error: Some("no plugin".into()), ms: Some(1500.0), ..done };
        assert_eq!(line(&failed), "network        failed  1.5 s  no plugin");
        let waits = vec!["process 7 (cat) in state D".to_owned()];
        let waiting = Step { outcome: "under_way", error: None, waits_for: waits, ..failed };
        assert!(
            line(&waiting).ends_with("under way  1.5 s  waits for: process 7 (cat) in state D")
        );
    }
}
