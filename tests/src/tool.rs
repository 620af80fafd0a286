//! `mooring`, the operator's tool, which lies beside the shim under test.

use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::faults::{kill_shim, until};
use crate::life::Life;
use crate::node::shim;

/// Its program.
pub fn tool() -> Result<PathBuf> {
    Ok(shim()?.with_file_name("mooring"))
}

/// Runs it to its end.
pub fn run(arguments: &[&str]) -> Result<Output> {
    Command::new(tool()?).args(arguments).output().context("run mooring")
}

/// What it said on both streams.
pub fn text(output: &Output) -> String {
    let both = [&output.stdout[..], &output.stderr[..]].concat();
    String::from_utf8_lossy(&both).into_owned()
}

/// What `ls` says of a sandbox.
pub fn listed(id: &str) -> Result<Value> {
    let output = run(&["ls", "-o", "json"])?;
    ensure!(output.status.success(), "{}", text(&output));
    let all: Vec<Value> = serde_json::from_slice(&output.stdout)?;
    all.into_iter().find(|one| one["id"] == id).with_context(|| format!("{id} is not listed"))
}

/// Kills a sandbox's shim, and waits until that has let go: a process that ends keeps its locks for a moment.
pub async fn abandon(life: &Life) -> Result<()> {
    kill_shim(life.id())?;
    let is_left = || listed(life.id()).is_ok_and(|found| found["state"] == "left");
    until(Duration::from_secs(10), "the shim does not let go", is_left).await
}
