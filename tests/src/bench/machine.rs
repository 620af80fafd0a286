//! On what a run was made, in words.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use k8s_cri::v1::VersionRequest;

use crate::node::{Node, runtime, shim};

/// Lines of a name and what is to say of it.
#[derive(Clone, Debug)]
pub struct Machine {
    /// The lines.
    pub lines: Vec<(&'static str, String)>,
    /// Whether both the shim and this program are releases: others' figures are no figures.
    pub is_release: bool,
}

fn first_line(command: &mut Command) -> Option<String> {
    let output = command.output().ok().filter(|output| output.status.success())?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().next().map(|line| line.trim().to_owned())
}

fn field_of(file: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(file).ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// The load average of a minute.
pub fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or_default().to_owned()
}

impl Machine {
    /// Of this machine and this node.
    pub async fn of(node: &Node) -> Result<Self> {
        let unknown = || "unknown".to_owned();
        let request = VersionRequest { version: String::new() };
        let containerd = node.cri().version(request).await?.into_inner().runtime_version;
        let shim = shim()?;
        let size = fs::metadata(&shim)?.len() / 1024;
        let optimised = shim.ancestors().any(|at| at.ends_with("release") || at.ends_with("dist"));
        let is_release = optimised && !cfg!(debug_assertions);
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let commit = first_line(
            Command::new("git").arg("-C").arg(here).args(["describe", "--always", "--dirty"]),
        );
        let memory = field_of("/proc/meminfo", "MemTotal").and_then(|text| {
            let kib: u64 = text.split(' ').next()?.parse().ok()?;
            Some(format!("{} GiB", kib.div_ceil(1 << 20)))
        });
        let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
        let model = field_of("/proc/cpuinfo", "model name").unwrap_or_else(unknown);
        let program = runtime(node.deps());
        let program = program.first().context("no OCI runtime")?;
        let lines = vec![
            ("when", first_line(Command::new("date").args(["-u", "+%F %H:%M UTC"]))),
            ("Mooring", Some(format!("{}, {size} KiB", commit.unwrap_or_else(unknown)))),
            ("containerd", Some(containerd)),
            ("OCI runtime", first_line(Command::new(program).arg("--version"))),
            ("CPU", Some(format!("{cores} × {model}"))),
            ("memory", memory),
            ("kernel", fs::read_to_string("/proc/sys/kernel/osrelease").ok()),
            ("load average of a minute before", Some(load())),
        ];
        let line = |(name, text): (_, Option<String>)| {
            (name, text.map_or_else(unknown, |text| text.trim().to_owned()))
        };
        Ok(Self { lines: lines.into_iter().map(line).collect(), is_release })
    }
}
