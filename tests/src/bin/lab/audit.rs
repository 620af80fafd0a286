//! What pods left: on the containerd that is up, or on this machine as a whole.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use mooring_e2e::audit::{KINDS, leftovers};
use mooring_e2e::machine::join;
use mooring_e2e::node::Node;

use crate::up;

/// Words by which this project's things are known from outside their machines.
const MARKS: [&str; 2] = ["mooring", ".deps/"];

/// At most one.
#[derive(clap::Args)]
#[group(multiple = false)]
pub struct Options {
    /// Writes down what this machine has that bears Mooring's marks.
    #[arg(long, value_name = "FILE")]
    before: Option<PathBuf>,
    /// Says what has been added to it since then; fails if anything has.
    #[arg(long, value_name = "FILE")]
    since: Option<PathBuf>,
    /// Notes what the containerd that has just come up has.
    #[arg(long, hide = true)]
    baseline: bool,
    /// Removes all pods first.
    #[arg(long, hide = true)]
    remove: bool,
}

pub fn run(dir: &Path, options: &Options) -> Result<ExitCode> {
    if let Some(file) = &options.before {
        let lines: Vec<String> = marked().into_iter().collect();
        fs::write(file, lines.join("\n"))?;
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(file) = &options.since {
        let text = fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
        let before: BTreeSet<String> = text.lines().map(str::to_owned).collect();
        let left: Vec<String> = marked().difference(&before).cloned().collect();
        return Ok(report(&left));
    }
    let folder = join(dir)?;
    if options.baseline {
        return up::note(&folder);
    }
    if options.remove {
        return up::remove(&folder);
    }
    crate::block_on(async {
        let node = Node::attach(&folder)?;
        Ok(report(&leftovers(&node, &up::before(&folder)?).await?))
    })
}

/// Prints how many of each kind are left, and which.
pub fn report(left: &[String]) -> ExitCode {
    for kind in KINDS {
        let ours = left.iter().filter(|line| line.starts_with(&format!("{kind} ")));
        println!("  {kind:<18}{}", ours.count());
    }
    for line in left {
        eprintln!("  LEFT: {line}");
    }
    if left.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Everything on this machine that can be told to be ours by its name, one line each. What lies in a machine of
/// namespaces is not seen, and need not be: it goes with its first process, which is.
fn marked() -> BTreeSet<String> {
    let mut seen = BTreeSet::new();
    let own = std::process::id().to_string();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let number = name.parse::<u32>().is_ok() && name != own;
        let comm = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        let program = fs::read_link(entry.path().join("exe")).unwrap_or_default();
        let ours = is_marked(&comm) || is_marked(&program.to_string_lossy());
        if number && ours && !is_builder(&comm) {
            seen.insert(format!("process {name} {} {}", comm.trim(), program.display()));
        }
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let places = mounts.lines().filter_map(|line| line.split(' ').nth(4));
    seen.extend(places.filter(|at| is_marked(at)).map(|at| format!("mount {at}")));
    for folder in [
        "/sys/class/net",
        "/run/netns",
        "/run",
        "/run/containerd/s",
        "/var/lib",
        "/tmp",
        "/var/tmp",
        "/dev/shm",
    ] {
        let kind = if folder == "/sys/class/net" { "link" } else { "file" };
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            if is_marked(&entry.file_name().to_string_lossy()) {
                seen.insert(format!("{kind} {}", entry.path().display()));
            }
        }
    }
    cgroups(Path::new("/sys/fs/cgroup"), &mut seen);
    seen
}

fn is_marked(text: &str) -> bool {
    MARKS.iter().any(|mark| text.contains(mark))
}

/// cargo and its children may be built below a folder that bears the project's name.
fn is_builder(comm: &str) -> bool {
    ["cargo", "rustc", "cc", "ld", "build-script"].iter().any(|name| comm.starts_with(name))
}

fn cgroups(at: &Path, seen: &mut BTreeSet<String>) {
    for entry in fs::read_dir(at).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            if is_marked(&entry.file_name().to_string_lossy()) {
                seen.insert(format!("cgroup {}", entry.path().display()));
            } else {
                cgroups(&entry.path(), seen);
            }
        }
    }
}
