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

/// What a query may call a metric.
fn names(family: &Family) -> Vec<String> {
    let endings: &[&str] = match family.kind {
        MetricType::Counter => &["_total"],
        MetricType::Histogram => &["_bucket", "_sum", "_count"],
        _ => &[""],
    };
    endings.iter().map(|ending| format!("{}{ending}", family.name)).collect()
}

#[test]
fn the_dashboard_and_the_alerts_name_metrics_that_are_there() {
    let known: BTreeSet<String> = ALL.iter().flat_map(names).collect();
    let histograms = ALL.iter().filter(|family| matches!(family.kind, MetricType::Histogram));
    let histograms: BTreeSet<&str> = histograms.map(|family| family.name).collect();
    for file in ["deploy/grafana.json", "deploy/alerts.yaml"] {
        let text = read(file);
        let words = text.split(|one: char| !one.is_ascii_alphanumeric() && one != '_');
        let named: BTreeSet<&str> = words
            .filter(|word| word.starts_with("mooring_") || word.starts_with("container_network_"))
            // In prose, a histogram without its ending.
            .filter(|word| !histograms.contains(word))
            .collect();
        assert!(named.len() > 3, "{file} names {named:?}");
        for name in named {
            assert!(known.contains(name), "{file} names {name}");
        }
    }
}

#[test]
fn the_dashboard_is_json_with_a_query_in_each_panel() {
    let dashboard: serde_json::Value = serde_json::from_str(&read("deploy/grafana.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    assert!(panels.len() > 8);
    for panel in panels {
        let targets = panel["targets"].as_array().unwrap();
        assert!(!targets.is_empty(), "{panel}");
        for target in targets {
            let query = target["expr"].as_str().unwrap();
            assert!(query.contains("mooring_") || query.contains("container_network_"), "{query}");
        }
    }
}
