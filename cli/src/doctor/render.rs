//! How findings are shown.

use std::{io::Write, time::Duration};

use anyhow::Result;
use comfy_table::Table;
use serde::Serialize;

use super::{
    finding::{Finding, Sure},
    setup::{Level, Remark},
};
use crate::{args::Output, span};

#[derive(Debug, Serialize)]
pub struct Report {
    pub findings: Vec<Finding>,
    pub setup: Vec<Remark>,
    /// What was left out, and why.
    pub not_looked_at: Vec<String>,
}

impl Report {
    /// Whether nothing has to be seen to.
    pub fn is_clean(&self) -> bool {
        let problem = |one: &Remark| one.level == Level::Problem;
        self.findings.is_empty() && !self.setup.iter().any(problem)
    }

    pub fn write(&self, form: Output, colours: bool, out: &mut dyn Write) -> Result<()> {
        match form {
            Output::Json => writeln!(out, "{}", serde_json::to_string_pretty(self)?)?,
            Output::Table => writeln!(out, "{}", self.table(colours))?,
        }
        Ok(())
    }

    fn table(&self, colours: bool) -> String {
        let mut lines = Vec::new();
        if self.findings.is_empty() {
            lines.push("nothing is left on this node".to_owned());
        } else {
            lines.push(coloured(&table(&self.findings), colours));
            lines.push(count(&self.findings));
        }
        if !self.setup.is_empty() {
            lines.push(coloured(&format!("\n{}", setup(&self.setup)), colours));
        }
        lines.extend(self.not_looked_at.iter().map(|what| format!("not looked at: {what}")));
        lines.join("\n")
    }
}

fn table(findings: &[Finding]) -> String {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(["SURE", "KIND", "SINCE", "WHOSE", "WHAT, WHY, AND WHAT FREES IT"]);
    for one in findings {
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        let since = one.since.map(|length: Duration| span::rough(length));
        let mut lines = vec![one.what.clone(), format!("  {}", one.why)];
        lines.extend(one.frees.iter().map(|command| format!("  $ {command}")));
        table.add_row([
            one.sure.as_str().to_owned(),
            one.kind.to_owned(),
            or_dash(since),
            or_dash(one.whose.clone()),
            lines.join("\n"),
        ]);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.trim_fmt()
}

fn setup(remarks: &[Remark]) -> String {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(["SET-UP", "PART", "WHAT, AND WHAT TO DO"]);
    for one in remarks {
        let mut lines = vec![one.what.clone()];
        lines.extend(one.remedy.iter().map(|remedy| format!("  -> {remedy}")));
        table.add_row([one.level.as_str().to_owned(), one.part.to_owned(), lines.join("\n")]);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.trim_fmt()
}

fn count(findings: &[Finding]) -> String {
    let mut parts = Vec::new();
    for sure in [Sure::Certain, Sure::Likely, Sure::Unsure] {
        let count = findings.iter().filter(|one| one.sure == sure).count();
        if count > 0 {
            parts.push(format!("{count} {}", sure.as_str()));
        }
    }
    format!("{} found: {}", findings.len(), parts.join(", "))
}

/// Red, yellow, cyan, green.
const COLOURS: [(&str, u32); 6] =
    [("sure", 31), ("likely", 33), ("unsure", 36), ("problem", 31), ("note", 36), ("good", 32)];

/// The first word of a line in its colour: widths were counted without.
fn coloured(table: &str, colours: bool) -> String {
    if !colours {
        return table.to_owned();
    }
    let lines = table.lines().map(|line| {
        for (word, colour) in COLOURS {
            if let Some(rest) = line.strip_prefix(word).filter(|rest| rest.starts_with(' ')) {
                return format!("\x1b[{colour}m{word}\x1b[0m{rest}");
            }
        }
        line.to_owned()
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let netns = Finding {
            since: Some(Duration::from_mins(10)),
            ..Finding::new("netns", "/run/netns/mooring-ns--web")
        };
        Report {
            findings: vec![
                netns
                    .of("ns/web")
                    .because(Sure::Certain, "its shim is gone, and nobody works on it")
                    .freed_by("mooring gc --yes"),
                Finding::new("cni", "/x").because(Sure::Unsure, "no JSON"),
            ],
            setup: vec![Remark {
                part: "cni",
                level: Level::Problem,
                what: "no plugin bridge".into(),
                remedy: Some("put it into /opt/cni/bin".into()),
            }],
            not_looked_at: vec!["containerd: no such file".into()],
        }
    }

    #[test]
    fn the_table_is_as_it_was() {
        let wanted = "\
SURE    KIND   SINCE  WHOSE   WHAT, WHY, AND WHAT FREES IT
sure    netns  10m    ns/web  /run/netns/mooring-ns--web
                                its shim is gone, and nobody works on it
                                $ mooring gc --yes
unsure  cni    -      -       /x
                                no JSON
2 found: 1 sure, 1 unsure

SET-UP   PART  WHAT, AND WHAT TO DO
problem  cni   no plugin bridge
                 -> put it into /opt/cni/bin
not looked at: containerd: no such file";
        assert_eq!(report().table(false), wanted);
        let clean = Report { findings: Vec::new(), setup: Vec::new(), not_looked_at: Vec::new() };
        assert_eq!(clean.table(true), "nothing is left on this node");
        assert!(clean.is_clean());
        let wrong = Report { findings: Vec::new(), ..report() };
        assert!(!wrong.is_clean(), "a problem of the set-up is one");
    }

    #[test]
    fn a_terminal_gets_colours_and_the_same_text() {
        let text = report().table(true);
        assert!(text.contains("\x1b[31msure\x1b[0m    netns"), "{text}");
        let plain = text.replace("\x1b[31m", "").replace("\x1b[36m", "").replace("\x1b[0m", "");
        assert_eq!(plain, report().table(false));
    }

    #[test]
    fn json_has_every_field_whole() {
        let value = serde_json::to_value(report()).unwrap();
        let wanted = serde_json::json!({
            "kind": "netns", "what": "/run/netns/mooring-ns--web", "since_seconds": 600,
            "whose": "ns/web", "sure": "sure", "why": "its shim is gone, and nobody works on it",
            "frees": "mooring gc --yes",
        });
        assert_eq!(value["findings"][0], wanted);
        assert_eq!(value["setup"][0]["level"], "problem");
        assert_eq!(value["findings"][1]["frees"], serde_json::Value::Null);
        assert_eq!(value["not_looked_at"][0], "containerd: no such file");
    }
}
