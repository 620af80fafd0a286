//! The host's side: packs a disk, boots the machine, passes on its results while they come.

use std::collections::{HashSet, VecDeque};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tempfile::TempDir;

use super::guest::needs_failpoints;
use super::{Job, ONLY, Variant, line};
use crate::node::{deps, shim};
use crate::nri;

/// The guest's memory in MiB.
const MEMORY: &str = "2560";
/// How much of what the guest said is shown when it ends otherwise than it should.
const TAIL: usize = 60;

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Wish {
    /// The machines.
    pub variants: Vec<Variant>,
    /// How many of them run at once.
    pub at_once: usize,
    /// See [`ONLY`]; empty means all tests.
    pub only: String,
    /// The chosen tests of each variant instead of all.
    pub core: bool,
    /// The folder with the shim that is shipped; the one with failpoints is found as all tests find theirs.
    pub release: PathBuf,
    /// A machine is given up after so long.
    pub limit: Duration,
    /// Keeps all that the machines say in files of this folder.
    pub logs: Option<PathBuf>,
}

/// Boots each machine; fails when a test did, or did not run. Guests have one processor, so as many machines as wished run at
/// once, the slowest first; each line that is shown names its machine.
pub fn run(wish: &Wish) -> Result<()> {
    let all = programs()?;
    // Taken from the end.
    let mut waiting = vec![Variant::Crun, Variant::Runc, Variant::Systemd];
    waiting.retain(|one| wish.variants.contains(one));
    let (waiting, failed) = (Mutex::new(waiting), Mutex::new(Vec::new()));
    let next = || waiting.lock().ok().and_then(|mut waiting| waiting.pop());
    thread::scope(|scope| {
        for _ in 0..wish.at_once {
            scope.spawn(|| {
                while let Some(variant) = next() {
                    let outcome = timed(wish, variant, &all);
                    if let (Err(error), Ok(mut failed)) = (outcome, failed.lock()) {
                        failed.push(format!("{}: {error:#}", variant.name()));
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap_or_default();
    // Once more what failed, for often only the end of a long log is seen.
    ensure!(failed.is_empty(), "failed on {}", failed.join("\n"));
    Ok(())
}

/// Runs this machine, and says how all went.
fn timed(wish: &Wish, variant: Variant, all: &[PathBuf]) -> Result<()> {
    // Not every test may have a whole machine with systemd to itself: there the choice is all.
    let choice = wish.core || variant == Variant::Systemd && wish.only.is_empty();
    let only = if choice { variant.core().join(",") } else { wish.only.clone() };
    let begun = Instant::now();
    let outcome = one(wish, variant, &only, all);
    let took = begun.elapsed().as_secs();
    match &outcome {
        Ok(passed) => println!("vm {}: {passed} tests passed in {took} s", variant.name()),
        Err(error) => println!("vm {}: {error:#} (after {took} s)", variant.name()),
    }
    outcome.map(drop)
}

fn one(wish: &Wish, variant: Variant, only: &str, all: &[PathBuf]) -> Result<u32> {
    let mut chosen = Vec::new();
    let mut expected = 0;
    for program in all {
        let tests = count(program, only)?;
        if tests > 0 {
            chosen.push(program.clone());
            expected += tests;
        }
    }
    ensure!(expected > 0, "no test matches {only:?}");
    println!("vm {}: {expected} tests of {} programs", variant.name(), chosen.len());
    let mut seen = machine(wish, variant, only, &chosen)?;
    if seen.is_lost() {
        // Of an emulator or its kernel that ended amid the tests nothing is learned of these.
        println!(
            "vm {}: lost after {} tests, boots once more; its last words:\n{}",
            variant.name(),
            seen.passed,
            seen.tail
        );
        seen = machine(wish, variant, only, &chosen)?;
    }
    if seen.failed > 0 {
        let (failed, all) = (seen.failed, seen.passed + seen.failed);
        bail!("{failed} of {all} tests failed:\n{}", seen.failures.join("\n"));
    }
    if seen.done.is_none() || seen.passed + seen.skipped < expected {
        bail!(
            "only {} of {expected} tests ran; the machine's last words:\n{}",
            seen.passed,
            seen.tail
        );
    }
    ensure!(seen.passed > 0, "every test was skipped");
    Ok(seen.passed)
}

/// One life of a machine.
fn machine(wish: &Wish, variant: Variant, only: &str, chosen: &[PathBuf]) -> Result<Seen> {
    let folder = tempfile::Builder::new().prefix("mooring-vm-").tempdir_in("/var/tmp")?;
    let deps = deps()?;
    let disk = pack(wish, variant, only, chosen, folder.path(), &deps).context("pack the disk")?;
    let logs = wish.logs.as_deref().unwrap_or(folder.path());
    fs::create_dir_all(logs).with_context(|| format!("make {}", logs.display()))?;
    let log = logs.join(format!("{}.log", variant.name()));
    let mut machine = boot(variant, &deps.join("vm"), &disk)?;
    let watched = watch(variant, &mut machine, folder, &log, wish.limit);
    let _ = machine.kill();
    let _ = machine.wait();
    watched
}

/// The compiled test programs, by the selection that everything here is built with.
fn programs() -> Result<Vec<PathBuf>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let arguments =
        "test --workspace --all-features --locked --test * --no-run --quiet --message-format json";
    let output = Command::new(cargo)
        .args(arguments.split(' '))
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .stderr(Stdio::inherit())
        .output()
        .context("run cargo")?;
    ensure!(output.status.success(), "cargo does not build the tests");
    let messages = String::from_utf8(output.stdout)?;
    let messages = messages.lines().filter_map(|one| serde_json::from_str::<Value>(one).ok());
    let of_ours = messages.filter(|one| {
        let name = one.pointer("/manifest_path").and_then(Value::as_str).unwrap_or_default();
        Path::new(name) == Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml")
            && one.pointer("/target/kind/0").and_then(Value::as_str) == Some("test")
    });
    let found = of_ours.filter_map(|one| Some(one.get("executable")?.as_str()?.into()));
    let found: Vec<PathBuf> = found.collect();
    ensure!(!found.is_empty(), "cargo names no test program");
    Ok(found)
}

/// How many tests a program has that match.
fn count(program: &Path, only: &str) -> Result<u32> {
    let output = Command::new(program).arg("--list").env(ONLY, only).output()?;
    ensure!(output.status.success(), "{} does not list its tests", program.display());
    let tests = String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter(|one| one.ends_with(": test"))
        .count();
    Ok(u32::try_from(tests)?)
}

/// The name of a test program, without the hash that cargo adds.
pub fn plain_name(program: &Path) -> String {
    let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
    match name.rsplit_once('-') {
        Some((plain, hash))
            if hash.len() == 16 && hash.bytes().all(|one| one.is_ascii_hexdigit()) =>
        {
            plain.to_owned()
        }
        _ => name,
    }
}

fn pack(
    wish: &Wish,
    variant: Variant,
    only: &str,
    chosen: &[PathBuf],
    folder: &Path,
    deps: &Path,
) -> Result<PathBuf> {
    let payload = folder.join("payload");
    for sub in ["tests", "release", "failpoints", "deps"] {
        fs::create_dir_all(payload.join(sub))?;
    }
    let names: Vec<String> = chosen.iter().map(|one| plain_name(one)).collect();
    for (program, name) in chosen.iter().zip(&names) {
        stripped(program, &payload.join("tests").join(name))?;
    }
    stripped(&PathBuf::from(format!("/proc/{}/exe", std::process::id())), &payload.join("vm"))?;
    let mut shims = HashSet::new();
    for name in &names {
        if needs_failpoints(name) {
            shims.insert((shim()?.parent().context("no folder")?.to_owned(), "failpoints"));
        } else {
            shims.insert((wish.release.clone(), "release"));
        }
    }
    for (from, kind) in shims {
        for program in ["containerd-shim-mooring-v1", "mooring"] {
            stripped(&from.join(program), &payload.join(kind).join(program))?;
        }
        // What tests start beside these is built with them, and not shipped.
        if from.join(nri::PLUGIN).exists() {
            stripped(&from.join(nri::PLUGIN), &payload.join(kind).join(nri::PLUGIN))?;
        }
    }
    crate::images::ensure_all(deps)?;
    for part in ["bin", "lib", "cni", "images"] {
        let copied =
            Command::new("cp").arg("-r").arg(deps.join(part)).arg(payload.join("deps")).status()?;
        ensure!(copied.success(), "cannot copy {part}");
    }
    let job = Job { variant, deps: home(deps)?, programs: names, only: only.to_owned() };
    fs::write(payload.join(Job::FILE), job.to_json().to_string())?;
    let disk = folder.join("disk");
    let size = Command::new("du").arg("-sm").arg(&payload).output()?;
    let size = String::from_utf8_lossy(&size.stdout)
        .split('\t')
        .next()
        .and_then(|one| one.parse::<u64>().ok());
    let size = format!("{}M", size.context("no size")? * 5 / 4 + 64);
    let made = Command::new("/usr/sbin/mke2fs")
        .args(["-q", "-t", "ext4", "-O", "^has_journal", "-E", "root_owner=0:0", "-d"])
        .args([&payload, &disk])
        .arg(size)
        .stdout(Stdio::null())
        .status()
        .context("run mke2fs")?;
    ensure!(made.success(), "mke2fs fails");
    fs::remove_dir_all(&payload)?;
    Ok(disk)
}

/// Where the prerequisites were made: programs among them look for their libraries there.
fn home(deps: &Path) -> Result<PathBuf> {
    let loader =
        Command::new("patchelf").arg("--print-interpreter").arg(deps.join("bin/runc")).output()?;
    let loader = PathBuf::from(String::from_utf8(loader.stdout)?.trim());
    let home =
        loader.parent().and_then(Path::parent).context("runc has no loader: run tools/deps.sh")?;
    Ok(home.to_owned())
}

/// Without what debuggers need, which is most of it.
fn stripped(from: &Path, to: &Path) -> Result<()> {
    let stripped =
        Command::new("strip").arg("-o").arg(to).arg(from).status().context("run strip")?;
    ensure!(stripped.success(), "cannot strip {}", from.display());
    Ok(())
}

/// Emulated, since a kernel virtual machine may be missing where tests run, or not boot a stock kernel.
fn boot(variant: Variant, parts: &Path, disk: &Path) -> Result<Child> {
    for part in ["kernel", "initramfs", "disk"] {
        ensure!(
            parts.join(part).exists(),
            "{} is missing: run tools/deps-vm.sh",
            parts.join(part).display()
        );
    }
    let drive = |file: &Path| {
        format!("file={},format=raw,if=virtio,cache=unsafe,snapshot=on", file.display())
    };
    let append = format!(
        "console=ttyS0 quiet panic=-1 cgroup_no_v1=all mitigations=off random.trust_cpu=on first={} {}",
        variant.first(),
        variant.kernel()
    );
    // One processor: with more of them the emulator runs code that the kernel has just changed, as it does at each of its
    // static branches, once in some thousand seconds, and the kernel panics (an int3 in __schedule).
    // It does not outlive this process, however that ends.
    Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "qemu-system-x86_64"])
        .args(["-accel", "tcg", "-cpu", "max", "-smp", "1", "-m", MEMORY])
        .args([
            "-nodefaults",
            "-no-user-config",
            "-no-reboot",
            "-nographic",
            "-device",
            "virtio-rng-pci",
        ])
        .arg("-kernel")
        .arg(parts.join("kernel"))
        .arg("-initrd")
        .arg(parts.join("initramfs"))
        .args(["-append", &append, "-serial", "stdio"])
        .args(["-drive", &drive(&parts.join("disk")), "-drive", &drive(disk)])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .context("run qemu-system-x86_64: run tools/deps-vm.sh")
}

/// What the machine told.
#[derive(Default)]
struct Seen {
    passed: u32,
    failed: u32,
    skipped: u32,
    done: Option<String>,
    /// Which tests failed, and why.
    failures: Vec<String>,
    tail: String,
    /// It was given up, and did not end.
    given_up: bool,
}

impl Seen {
    /// Whether it ended before the tests had, without a reason of theirs.
    fn is_lost(&self) -> bool {
        self.failed == 0 && self.done.is_none() && !self.given_up
    }
}

/// Passes on what the machine says. Its folder goes as soon as it has spoken, for then its files are open: so they stay
/// on no disk when this process is killed.
fn watch(
    variant: Variant,
    machine: &mut Child,
    folder: TempDir,
    log: &Path,
    limit: Duration,
) -> Result<Seen> {
    let mut folder = Some(folder);
    let lines = lines_of(machine)?;
    let mut log = fs::File::create(log).with_context(|| format!("write {}", log.display()))?;
    let (mut seen, mut tail) = (Seen::default(), VecDeque::new());
    let until = Instant::now() + limit;
    loop {
        let text = match lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(text) => text,
            Err(RecvTimeoutError::Disconnected) => {
                tail.push_back(format!("(the emulator's {})", machine.wait()?));
                break;
            }
            Err(RecvTimeoutError::Timeout) => {
                seen.given_up = true;
                tail.push_back(format!("(given up after {} s)", limit.as_secs()));
                break;
            }
        };
        drop(folder.take());
        writeln!(log, "{text}")?;
        match text.split(' ').next().unwrap_or_default() {
            line::PASS => seen.passed += 1,
            line::FAIL => {
                seen.failed += 1;
                seen.failures.push(text.clone());
            }
            line::SKIP => seen.skipped += 1,
            line::DONE => seen.done = Some(text.clone()),
            line::NOTE => {}
            _ if text.starts_with(line::WHY) => {}
            _ => {
                tail.push_back(text);
                if tail.len() > TAIL {
                    tail.pop_front();
                }
                continue;
            }
        }
        if text.starts_with(line::WHY) {
            if seen.failures.len() < TAIL {
                seen.failures.push(text.clone());
            }
            println!("{}{text}", variant.name());
        } else {
            println!("{text}");
        }
        tail.push_back(text);
    }
    seen.tail = Vec::from(tail).join("\n");
    Ok(seen)
}

fn lines_of(machine: &mut Child) -> Result<Receiver<String>> {
    let output = machine.stdout.take().context("the machine has no serial line")?;
    let (send, receive) = channel();
    thread::spawn(move || {
        for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
            let text = String::from_utf8_lossy(&line).replace('\r', "");
            if send.send(text).is_err() {
                break;
            }
        }
    });
    Ok(receive)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cargos_hash_is_no_part_of_a_programs_name() {
        assert_eq!(plain_name(Path::new("/a/cri_io-4d0ff6961f34b33c")), "cri_io");
        assert_eq!(plain_name(Path::new("/a/cri_io")), "cri_io");
        assert_eq!(plain_name(Path::new("/a/odd-name")), "odd-name");
    }
}
