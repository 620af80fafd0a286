//! The licences of what is linked into the programs, which their terms want beside every copy.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::tree::run;

/// The packages whose programs are shipped.
const SHIPPED: [&str; 2] = ["containerd-shim-mooring-v1", "mooring-cli"];
/// How files with terms or with whom they are of begin.
const NAMES: [&str; 5] = ["LICENSE", "LICENCE", "COPYING", "COPYRIGHT", "NOTICE"];

/// One text: which crates are linked, under which licence, and the texts that lie in them, each once.
pub fn of_crates(top: &Path) -> Result<String> {
    let crates = linked(top)?;
    let mut text =
        String::from("What is linked into Mooring's programs, and under which licence:\n\n");
    let mut terms: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
    for (name, one) in &crates {
        writeln!(text, "{name}: {}", one.license)?;
        for found in texts(&one.folder)? {
            terms.entry(found).or_default().insert(name);
        }
    }
    for (found, of) in terms {
        let of: Vec<&str> = of.into_iter().collect();
        write!(text, "\n\n==== {} ====\n\n{}\n", of.join(", "), found.trim_end())?;
    }
    Ok(text)
}

struct Crate {
    license: String,
    folder: std::path::PathBuf,
}

/// The crates of others, by name and version: those that the programs depend on, neither at build time nor for tests.
fn linked(top: &Path) -> Result<BTreeMap<String, Crate>> {
    let host = run(Command::new("rustc").args(["--print", "host-tuple"]))?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let text = run(Command::new(cargo)
        .args(["metadata", "--format-version=1", "--locked", "--filter-platform", host.trim()])
        .current_dir(top))?;
    let all: Value = serde_json::from_str(&text).context("read what cargo metadata prints")?;
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let packages: BTreeMap<String, Value> =
        list(&all["packages"]).into_iter().map(|one| (text(&one["id"]), one)).collect();
    let nodes: BTreeMap<String, Value> =
        list(&all["resolve"]["nodes"]).into_iter().map(|one| (text(&one["id"]), one)).collect();
    let is_shipped = |one: &Value| SHIPPED.iter().any(|name| one["name"] == **name);
    let mut next: Vec<String> =
        packages.iter().filter(|(_, one)| is_shipped(one)).map(|(id, _)| id.clone()).collect();
    let mut seen = BTreeSet::new();
    let mut found = BTreeMap::new();
    while let Some(id) = next.pop() {
        if !seen.insert(id.clone()) {
            continue;
        }
        let package = packages.get(&id).context("cargo metadata names a package that it lacks")?;
        // Those of a registry: the others are of this project.
        if package["source"].is_string() {
            let manifest = text(&package["manifest_path"]);
            let folder = Path::new(&manifest).parent().context("a manifest without a folder")?;
            let license = package["license"].as_str().unwrap_or("see the texts below").to_owned();
            let name = format!("{} {}", text(&package["name"]), text(&package["version"]));
            found.insert(name, Crate { license, folder: folder.to_owned() });
        }
        for dependency in list(&nodes[&id]["deps"]) {
            // A kind of null is an ordinary dependency.
            if list(&dependency["dep_kinds"]).iter().any(|kind| kind["kind"].is_null()) {
                next.push(text(&dependency["pkg"]));
            }
        }
    }
    Ok(found)
}

fn texts(folder: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("look into {}", folder.display()))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().to_uppercase();
        if entry.file_type()?.is_file() && NAMES.iter().any(|start| name.starts_with(start)) {
            found.push(String::from_utf8_lossy(&fs::read(entry.path())?).into_owned());
        }
    }
    Ok(found)
}
