//! The guest's side: makes a plain machine usable, runs the test programs, prints a line for each test.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use nix::mount::{MsFlags, mount};
use serde_json::Value;

use super::{GUEST, Job, ONLY, PATIENCE, Variant, line};
use crate::systemd;

const PAYLOAD: &str = "/payload";
/// Emulation is that much slower than the machines that the tests' limits were made for.
const SLOWER: &str = "12";
const MODULES: [&str; 14] = [
    "overlay",
    "erofs",
    "bridge",
    "br_netfilter",
    "veth",
    "nf_tables",
    "nft_compat",
    "nft_chain_nat",
    "xt_comment",
    "xt_MASQUERADE",
    "xt_mark",
    "xt_addrtype",
    "xt_multiport",
    "xt_conntrack",
];

/// Does the job and switches the machine off. Never returns while the machine is there.
pub fn main() -> Result<()> {
    // Firmware and kernel leave the terminal in the middle of a line.
    println!();
    if let Err(error) = work() {
        println!("{} the guest: {error:#}", line::FAIL);
    }
    nix::unistd::sync();
    // At once: nothing in here is worth an orderly end, and the emulator takes a reboot for the end.
    fs::write("/proc/sysrq-trigger", "b").context("switch the machine off")?;
    loop {
        std::thread::park();
    }
}

fn work() -> Result<()> {
    if std::process::id() == 1 {
        prepare().context("prepare the machine")?;
    }
    let job = fs::read(Path::new(PAYLOAD).join(Job::FILE)).context("read the job")?;
    let job =
        Job::from_json(&serde_json::from_slice::<Value>(&job)?).context("understand the job")?;
    let loaded = Command::new("/usr/sbin/modprobe").arg("-a").args(MODULES).status()?;
    if !loaded.success() {
        println!("{} not all modules are there", line::NOTE);
    }
    fs::create_dir_all(&job.deps)?;
    let none = None::<&str>;
    mount(Some(&Path::new(PAYLOAD).join("deps")), &job.deps, none, MsFlags::MS_BIND, none)
        .context("bind the prerequisites")?;
    let mut ran = 0;
    for program in &job.programs {
        ran += run(&job, program).with_context(|| format!("run {program}"))?;
    }
    println!("{} {ran}", line::DONE);
    Ok(())
}

/// What a first process has to do before others can work.
fn prepare() -> Result<()> {
    let none = None::<&str>;
    let make = |kind: &str, at: &str| {
        fs::create_dir_all(at)?;
        mount(Some(kind), at, Some(kind), MsFlags::empty(), none)
            .with_context(|| format!("mount {at}"))
    };
    make("proc", "/proc")?;
    make("sysfs", "/sys")?;
    make("devpts", "/dev/pts")?;
    for at in ["/dev/shm", "/run", "/tmp"] {
        make("tmpfs", at)?;
    }
    make("cgroup2", "/sys/fs/cgroup")?;
    let all = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers")?;
    let all: Vec<String> = all.split_whitespace().map(|one| format!("+{one}")).collect();
    fs::write("/sys/fs/cgroup/cgroup.subtree_control", all.join(" "))
        .context("hand down the controllers")?;
    // What udev makes on every node; crun reads an update's resources from /dev/stdin.
    for (name, target) in [("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")] {
        let link = Path::new("/dev").join(name);
        if !link.exists() {
            symlink(format!("/proc/self/fd{target}"), link)?;
        }
    }
    nix::unistd::sethostname("guest")?;
    let up = Command::new("/usr/sbin/ip").args(["link", "set", "lo", "up"]).status()?;
    ensure!(up.success(), "the loopback does not come up");
    Ok(())
}

/// Runs one test program and returns how many tests ran. What it prints is turned into lines for the host.
fn run(job: &Job, name: &str) -> Result<u32> {
    let here = Path::new(PAYLOAD);
    let kind = if needs_failpoints(name) { "failpoints" } else { "release" };
    println!("{} {name} with {} and the {kind} shim", line::NOTE, job.variant.name());
    let mut child = Command::new(here.join("tests").join(name))
        .args(["--color", "never"])
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("LC_ALL", "C")
        .env("HOME", "/root")
        .env("MOORING_DEPS", &job.deps)
        .env("MOORING_SHIM", here.join(kind).join("containerd-shim-mooring-v1"))
        .env("MOORING_RUNC", job.deps.join("bin").join(job.variant.runtime()))
        .envs((job.variant == Variant::Systemd).then_some((systemd::OURS, "yes")))
        .env(ONLY, &job.only)
        .env(GUEST, "1")
        .env(PATIENCE, SLOWER)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let output = child.stdout.take().context("no output")?;
    let (mut ran, mut failed, mut since, mut failures) = (0, false, Instant::now(), false);
    let mut results = Results::default();
    for printed in BufReader::new(output).lines() {
        let printed = printed?;
        if failures {
            println!("{}{printed}", line::WHY);
            continue;
        }
        let Some((test, outcome)) = results.ended(&printed) else {
            failures |= printed == "failures:";
            continue;
        };
        let word = match outcome.split([' ', ',']).next() {
            Some("ok") => line::PASS,
            Some("ignored") => line::SKIP,
            _ => line::FAIL,
        };
        let rest = if word == line::SKIP { outcome } else { "" };
        let took = since.elapsed().as_secs_f32();
        println!("{word} {}: {name}::{test} {rest}({took:.1} s)", job.variant.name());
        ran += u32::from(word != line::SKIP);
        failed |= word == line::FAIL;
        since = Instant::now();
    }
    let status = child.wait()?;
    if !status.success() && !failed {
        bail!("it ended with {status}");
    }
    Ok(ran)
}

/// Reads the outcomes of tests. What a test prints itself may stand between its name and that.
#[derive(Default)]
struct Results {
    under_way: Option<String>,
}

impl Results {
    /// The test that ends with this line, and how.
    fn ended<'a>(&mut self, printed: &'a str) -> Option<(String, &'a str)> {
        let mut outcome = printed;
        let begun = printed.strip_prefix("test ").and_then(|rest| rest.split_once(" ... "));
        if let Some((test, rest)) = begun {
            self.under_way = Some(test.trim().to_owned());
            outcome = rest;
        }
        let word = outcome.split([' ', ',']).next().unwrap_or_default();
        let is_one = ["ok", "FAILED", "ignored"].contains(&word);
        self.under_way.take_if(|_| is_one).map(|test| (test, outcome))
    }
}

/// Whether the tests of a program make the shim die at points that exist in no release.
pub fn needs_failpoints(program: &str) -> bool {
    program.starts_with("teardown_") || ["checkpoint", "faults_limits", "nri"].contains(&program)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_test_prints_is_not_its_outcome() {
        let mut results = Results::default();
        let mut of = |line| results.ended(line).map(|(test, outcome)| format!("{test}={outcome}"));
        assert_eq!(of("running 2 tests"), None);
        assert_eq!(of("test a::b   ... ok").as_deref(), Some("a::b=ok"));
        assert_eq!(of("test a::c   ...     3 s  pods 7"), None);
        assert_eq!(of("    9 s  pods 8"), None);
        assert_eq!(of("FAILED").as_deref(), Some("a::c=FAILED"));
        assert_eq!(of("ok"), None);
        assert_eq!(of("test d ... ignored, no systemd").as_deref(), Some("d=ignored, no systemd"));
    }
}
