use std::{collections::BTreeSet, fs, path::Path};

use super::*;

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn each_is_declared_once_and_says_what_it_is() {
    let unique: BTreeSet<_> = ALL.iter().map(|family| family.name).collect();
    assert_eq!(unique.len(), ALL.len());
    for family in ALL {
        assert!(!family.help.is_empty() && !family.help.ends_with('.'), "{}", family.name);
    }
}

#[test]
fn the_document_has_every_metric_and_no_other() {
    let document = read("docs/metrics.md");
    let rows: Vec<&str> = document.lines().filter(|line| line.starts_with("| `")).collect();
    for family in ALL {
        let name = match family.kind {
            MetricType::Counter => format!("{}_total", family.name),
            _ => family.name.to_owned(),
        };
        let labels: Vec<String> = family
            .labels
            .iter()
            .map(|label| if *label == POD { "pod's".into() } else { format!("`{label}`") })
            .collect();
        let row = format!(
            "| `{name}` | {} | {} | {} |",
            family.kind.as_str(),
            labels.join(", "),
            family.help
        );
        assert!(rows.contains(&row.as_str()), "docs/metrics.md lacks the line\n{row}");
    }
    assert_eq!(rows.len(), ALL.len(), "docs/metrics.md has lines of metrics that are not there");
}
