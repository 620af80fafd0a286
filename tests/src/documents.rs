//! The documents name what there is: tests, files, headings, make's targets.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

const README_LIMIT: u64 = 10_000;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Files below `folder` whose names end in `suffix`.
fn files(folder: &Path, suffix: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path, suffix));
        } else if path.to_str().unwrap().ends_with(suffix) {
            found.push(path);
        }
    }
    found
}

/// Every page, with its text.
fn pages() -> Vec<(PathBuf, String)> {
    let root = root();
    let top = fs::read_dir(&root).unwrap().map(|entry| entry.unwrap().path());
    let mut pages: Vec<_> =
        top.filter(|path| path.extension().is_some_and(|extension| extension == "md")).collect();
    pages.extend(files(&root.join("docs"), ".md"));
    pages.into_iter().map(|path| (path.clone(), fs::read_to_string(path).unwrap())).collect()
}

/// The lines outside of fenced blocks.
fn prose(text: &str) -> String {
    let mut fenced = false;
    let outside = text.lines().filter(|line| {
        let fence = line.trim_start().starts_with("```");
        fenced ^= fence;
        !fenced && !fence
    });
    outside.collect::<Vec<_>>().join("\n")
}

fn code_spans(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// The functions of the sources that are tests: by attribute, or by being handed to a suite.
fn tests() -> BTreeSet<String> {
    let root = root();
    let mut found = BTreeSet::new();
    for folder in ["src", "shim", "oci", "cli", "pack", "tests", "fuzz"] {
        for path in files(&root.join(folder), ".rs") {
            let text = fs::read_to_string(&path).unwrap();
            let lines: Vec<&str> = text.lines().map(str::trim_start).collect();
            for (index, line) in lines.iter().enumerate() {
                let signature = line.strip_prefix("async ").unwrap_or(line);
                let Some((name, _)) =
                    signature.strip_prefix("fn ").and_then(|rest| rest.split_once(['(', '<']))
                else {
                    continue;
                };
                let marks = lines[..index].iter().rev().take_while(|line| line.starts_with('#'));
                let marked = marks.into_iter().any(|mark| mark.contains("test"));
                let listed =
                    [",", ";", ")"].iter().any(|end| text.contains(&format!("{name}{end}")));
                if marked || (listed && path.starts_with(root.join("tests"))) {
                    found.insert(name.to_owned());
                }
            }
        }
    }
    found
}

/// The rows of the page's tables whose last column is headed `heading`: first cell and last cell.
fn rows<'a>(page: &'a str, heading: &str) -> Vec<(&'a str, &'a str)> {
    let mut rows = Vec::new();
    let mut wanted = false;
    for line in page.lines() {
        let Some(inner) = line.strip_prefix('|').and_then(|line| line.strip_suffix('|')) else {
            wanted = false;
            continue;
        };
        let first = inner.split('|').next().unwrap().trim();
        let last = inner.rsplit('|').next().unwrap().trim();
        if wanted && !first.starts_with("---") && !first.starts_with("**") {
            rows.push((first, last));
        }
        wanted |= last == heading;
    }
    rows
}

#[test]
fn the_readme_is_short() {
    let size = fs::metadata(root().join("README.md")).unwrap().len();
    assert!(size <= README_LIMIT, "README.md has {size} bytes, more than {README_LIMIT}");
}

#[test]
fn every_promise_names_tests_that_exist() {
    let tests = tests();
    let mut wrong = Vec::new();
    for (page, heading, needed) in [
        ("SPECIFICATION.md", "test", true),
        ("docs/security.md", "test", true),
        ("docs/comparison.md", "shown by", false),
    ] {
        let text = fs::read_to_string(root().join(page)).unwrap();
        let rows = rows(&text, heading);
        assert!(rows.len() > 10, "{page}: only {} rows headed {heading:?}", rows.len());
        for (promise, cell) in rows {
            let named: Vec<&str> = code_spans(cell).collect();
            if needed && named.is_empty() {
                wrong.push(format!("{page}: {promise:?} names no test"));
            }
            for name in named.iter().filter(|name| !tests.contains(**name)) {
                wrong.push(format!("{page}: {promise:?}: there is no test {name}"));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn the_readmes_figures_are_those_of_the_specification() {
    let figures = |page: &str| {
        let text = fs::read_to_string(root().join(page)).unwrap();
        let (_, rest) = text.split_once("<!-- figures:begin -->").expect("figures begin");
        rest.split_once("<!-- figures:end -->").expect("figures end").0.to_owned()
    };
    let all = figures("SPECIFICATION.md");
    let known: BTreeSet<&str> = all.split('|').map(str::trim).collect();
    let readme = figures("README.md");
    let cells = readme.split('|').map(str::trim);
    let numbers: Vec<&str> = cells.filter(|cell| cell.parse::<f64>().is_ok()).collect();
    assert!(!numbers.is_empty(), "README.md has no figures");
    let wrong: Vec<&&str> = numbers.iter().filter(|number| !known.contains(**number)).collect();
    assert!(wrong.is_empty(), "not in SPECIFICATION.md: {wrong:?}");
}

/// A heading's name in links, as the usual renderers make it.
fn anchor(heading: &str) -> String {
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.collect::<String>().trim().to_lowercase().replace(' ', "-")
}

#[test]
fn links_lead_somewhere() {
    let mut wrong = Vec::new();
    for (page, text) in pages() {
        let prose = prose(&text);
        for link in prose.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.contains("://") {
                continue;
            }
            let (file, place) = link.split_once('#').unwrap_or((link, ""));
            let target =
                if file.is_empty() { page.clone() } else { page.parent().unwrap().join(file) };
            let found = place.is_empty()
                || fs::read_to_string(&target).is_ok_and(|text| {
                    let headings = text.lines().filter(|line| line.starts_with('#'));
                    headings.into_iter().any(|line| anchor(line.trim_start_matches('#')) == place)
                });
            if !target.exists() || !found {
                wrong.push(format!("{}: {link}", page.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn files_of_the_project_that_are_named_are_there() {
    let root = root();
    let folders = [
        "src/",
        "shim/",
        "oci/",
        "cli/",
        "tests/",
        "tools/",
        "docs/",
        "examples/",
        "deploy/",
        "fuzz/",
        "pack/",
    ];
    let mut wrong = Vec::new();
    for (page, text) in pages() {
        let prose = prose(&text);
        for span in code_spans(&prose).filter(|span| folders.iter().any(|f| span.starts_with(f))) {
            let is_path = span.chars().all(|c| c.is_ascii_alphanumeric() || "/._-".contains(c));
            if is_path && !root.join(span).exists() {
                wrong.push(format!("{}: {span}", page.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn targets_of_make_that_are_named_are_there() {
    let mut rules = fs::read_to_string(root().join("Makefile")).unwrap();
    for include in files(&root().join("tools"), ".mk") {
        rules.push_str(&fs::read_to_string(include).unwrap());
    }
    let is_rule = |name: &str| {
        rules.lines().any(|line| {
            let left = line.split_once(':').map_or("", |(left, _)| left);
            left.split_whitespace().any(|target| target == name)
        })
    };
    let mut wrong = Vec::new();
    for (page, text) in pages() {
        let commands = text.lines().chain(code_spans(&text));
        let targets = commands.filter_map(|command| command.strip_prefix("make "));
        for target in targets.filter_map(|rest| rest.split_whitespace().next()) {
            let plain = target.chars().all(|c| c.is_ascii_lowercase() || c == '-');
            if plain && !is_rule(target) {
                wrong.push(format!("{}: make {target}", page.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}
