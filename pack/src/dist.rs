//! What a release is: the archive, a bill of materials for each program, and the sums of everything that was made.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::archive::tar;
use crate::tree::{self, PROGRAMS, Sources};
use crate::{digest, write};

/// The tool that reads cargo's dependencies into a bill; built once, into the private folder.
const CYCLONEDX: &str = "0.5.9";
/// The workspace's folders of the programs.
const PACKAGES: [&str; 2] = ["shim", "cli"];
/// The file with the sums, as `sha256sum --check` reads it.
const SUMS: &str = "SHA256SUMS";

/// Makes them in the folder `out`, beside what is there already, and answers where.
pub fn make(from: &Sources, version: &str, deps: &Path, out: &Path) -> Result<Vec<PathBuf>> {
    let name = format!("mooring-{version}-{}-linux", std::env::consts::ARCH);
    let archive = tar(&tree::installed(from)?, &format!("{name}/"), from.time)?;
    let mut made = vec![write(out, &format!("{name}.tar.gz"), &tree::gzip(&archive)?)?];
    for (program, bill) in bills(from, deps)? {
        made.push(write(out, &format!("{program}-{version}.cdx.json"), &bill)?);
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(out)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name != SUMS && entry.file_type()?.is_file() {
            files.push(format!("{}  {name}\n", digest(&fs::read(entry.path())?)));
        }
    }
    files.sort_by(|one, other| one[64..].cmp(&other[64..]));
    made.push(write(out, SUMS, files.concat().as_bytes())?);
    Ok(made)
}

/// A `CycloneDX` bill of what is linked into each program.
fn bills(from: &Sources, deps: &Path) -> Result<Vec<(&'static str, Vec<u8>)>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let home = deps.join("cargo");
    let tool = home.join("bin/cargo-cyclonedx");
    if !tool.exists() {
        println!("cargo-cyclonedx: building version {CYCLONEDX} into {}", home.display());
        let work = tempfile::tempdir()?;
        let install = ["install", "cargo-cyclonedx", "--locked", "--debug", "--quiet", "--version"];
        tree::run(
            Command::new(&cargo)
                .args(install)
                .arg(CYCLONEDX)
                .arg("--root")
                .arg(&home)
                .arg("--target-dir")
                .arg(work.path())
                .env("CARGO_PROFILE_DEV_DEBUG", "0"),
        )?;
    }
    // The tool writes beside the manifests of all packages, under names of its own.
    let mark = "made-by-pack";
    let asked = tree::run(
        Command::new(&tool)
            .args(["cyclonedx", "--format", "json", "--spec-version", "1.5", "--no-build-deps"])
            .args(["--override-filename", mark, "--quiet"])
            .current_dir(from.top)
            .env("CARGO", &cargo)
            .env("SOURCE_DATE_EPOCH", from.time.to_string()),
    );
    let mut bills = Vec::new();
    let mut folders = vec![from.top.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if entry.file_type()?.is_dir() {
                if !name.starts_with('.') && name != "target" {
                    folders.push(entry.path());
                }
            } else if name.starts_with(mark) {
                let of = PACKAGES.iter().position(|one| folder == from.top.join(one));
                if let Some(program) = of.and_then(|of| PROGRAMS.get(of)) {
                    // Where it was built is nobody's matter.
                    let bill = fs::read_to_string(entry.path())?;
                    let bill = bill.replace(&from.top.display().to_string(), "");
                    bills.push((*program, bill.into_bytes()));
                }
                fs::remove_file(entry.path())?;
            }
        }
    }
    asked.context("the bill of materials")?;
    anyhow::ensure!(bills.len() == PROGRAMS.len(), "cargo-cyclonedx wrote {} bills", bills.len());
    Ok(bills)
}
