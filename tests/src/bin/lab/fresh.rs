//! A bare Debian root, made and entered: Mooring's commands where README says that they work, with nothing that this
//! machine happens to have. The target "deb" is the package that was made outside, installed and removed in there.

mod package;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use mooring_e2e::machine::{enter_with, own_folder};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::CloneFlags;
use nix::unistd::{chdir, pivot_root};

/// The suite that README names.
const SUITE: &str = "bookworm";
/// What README asks for, beside Rust.
const PACKAGES: &str = "ca-certificates,make";
/// Where things are in there.
const RUST: &str = "opt/rust";
const CLONE: &str = "root/mooring";
/// The target that needs no clone.
const DEB: &str = "deb";
/// Variables that tell cargo and apt's children how to reach what they fetch.
const PASSED: [&str; 5] = ["CARGO_HTTP_", "CARGO_NET_", "CARGO_REGISTR", "CARGO_SOURCE_", "TERM"];
const NONE: Option<&str> = None;

pub fn run(targets: &[String]) -> Result<ExitCode> {
    let package = targets.iter().any(|target| target == DEB).then(package::made).transpose()?;
    let make_folder = || own_folder("mooring-fresh-");
    let spaces = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS;
    let root = enter_with(make_folder, spaces, |_, _| {
        // Nothing that is mounted from here on is seen outside, and it is gone with the last process.
        mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)?;
        mount(Some("proc"), "/proc", Some("proc"), MsFlags::empty(), NONE).context("mount /proc")
    })?;
    let fresh = Fresh { root, since: Instant::now() };
    fresh.make()?;
    if targets.iter().any(|target| target != DEB) {
        fresh.clone()?;
    }
    if let Some(package) = package {
        copy(&package, &fresh.at(package::CARRIED))?;
    }
    fresh.mount_all().context("mount what a machine has")?;
    fresh.enter().context("enter the root")?;
    fresh.call("update-ca-certificates", &["--fresh"])?;
    for target in targets {
        if target == DEB {
            package::check(&fresh)?;
        } else {
            fresh.say(&format!("make {target}"));
            fresh.call("make", &["-C", &format!("/{CLONE}"), target])?;
        }
    }
    fresh.say("all well; removing the root");
    Ok(ExitCode::SUCCESS)
}

struct Fresh {
    root: PathBuf,
    since: Instant,
}

impl Fresh {
    fn say(&self, text: &str) {
        println!("\nfresh, {} s: {text}", self.since.elapsed().as_secs());
    }

    fn at(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    /// The root as it lies on the disk.
    fn make(&self) -> Result<()> {
        let mirror = mirror()?;
        self.say(&format!("debootstrap: Debian {SUITE}, {PACKAGES} and nothing else"));
        let log = self.root.with_extension("log");
        let status = Command::new("debootstrap")
            .args(["--variant=minbase", &format!("--include={PACKAGES}"), SUITE])
            .arg(&self.root)
            .arg(&mirror)
            .stdout(fs::File::create(&log)?)
            .status()
            .context("run debootstrap: run tools/deps.sh machine debootstrap")?;
        if !status.success() {
            bail!("debootstrap: {status}:\n{}", fs::read_to_string(&log)?);
        }
        for (from, to) in [
            (PathBuf::from("/etc/hosts"), "etc/hosts"),
            ("/etc/resolv.conf".into(), "etc/resolv.conf"),
            (cargo_home()?.join("config.toml"), "root/.cargo/config.toml"),
        ] {
            copy(&from, &self.at(to))?;
        }
        // How this machine fetches packages: a proxy, whether a mirror may be older than it says.
        let acquire = Command::new("apt-config").args(["dump", "Acquire"]).output()?;
        let text = String::from_utf8(acquire.stdout)?;
        let lines = text.lines().filter(|line| !line.starts_with("Acquire::IndexTargets"));
        let lines: String = lines.flat_map(|line| [line, "\n"]).collect();
        fs::write(self.at("etc/apt/apt.conf.d/99machine"), lines)?;
        let own = Path::new("/usr/local/share/ca-certificates");
        for entry in fs::read_dir(own).into_iter().flatten().flatten() {
            let to = self.at("usr/local/share/ca-certificates").join(entry.file_name());
            copy(&entry.path(), &to)?;
        }
        Ok(())
    }

    /// The project, into the root.
    fn clone(&self) -> Result<()> {
        let top = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
        self.say("git clone of what is committed");
        let cloned = Command::new("git")
            .args(["-c", "safe.directory=*", "clone", "--quiet", "--no-hardlinks", top])
            .arg(self.at(CLONE))
            .status()
            .context("run git")?;
        ensure!(cloned.success(), "git clone: {cloned}");
        Ok(())
    }

    fn mount_all(&self) -> Result<()> {
        // containerd refuses a root that is no mount point.
        bind(&self.root, &self.root)?;
        mount(Some("proc"), &self.at("proc"), Some("proc"), MsFlags::empty(), NONE)?;
        for at in ["sys", "dev"] {
            bind(&Path::new("/").join(at), &self.at(at))?;
        }
        mount(Some("run"), &self.at("run"), Some("tmpfs"), MsFlags::empty(), Some("mode=755"))?;
        let rust = self.at(RUST);
        fs::create_dir_all(&rust)?;
        bind(&sysroot()?, &rust)?;
        let readonly = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
        mount(NONE, &rust, NONE, readonly, NONE).context("make Rust's folder read-only")
    }

    fn enter(&self) -> Result<()> {
        let old = self.at("mnt");
        pivot_root(&self.root, &old)?;
        chdir("/")?;
        umount2("/mnt", MntFlags::MNT_DETACH).context("leave the old root")
    }

    /// Runs a program of the root.
    fn call(&self, program: &str, arguments: &[&str]) -> Result<()> {
        let status = command(program, arguments)?.status();
        let status = status.with_context(|| format!("run {program}"))?;
        ensure!(status.success(), "{}: {status}", self.deed(program, arguments));
        Ok(())
    }

    /// What a program of the root prints.
    fn ask(&self, program: &str, arguments: &[&str]) -> Result<String> {
        let output = command(program, arguments)?.output();
        let output = output.with_context(|| format!("run {program}"))?;
        let words = String::from_utf8_lossy(&output.stdout).into_owned();
        let complaint = String::from_utf8_lossy(&output.stderr);
        let deed = self.deed(program, arguments);
        ensure!(output.status.success(), "{deed}: {}:\n{words}{complaint}", output.status);
        Ok(words)
    }

    fn deed(&self, program: &str, arguments: &[&str]) -> String {
        let (arguments, seconds) = (arguments.join(" "), self.since.elapsed().as_secs());
        format!("{program} {arguments} in the bare root, after {seconds} s")
    }
}

/// A program of the root, found by its path and with none of this machine's environment but what fetching needs.
fn command(program: &str, arguments: &[&str]) -> Result<Command> {
    let passed = std::env::vars_os().filter(|(name, _)| {
        let name = name.to_string_lossy();
        PASSED.iter().any(|one| name.starts_with(one)) || name.to_lowercase().ends_with("_proxy")
    });
    let passed: Vec<_> = passed.collect();
    // By its path: what PATH says here is of the machine outside.
    let folders = ["/usr/bin", "/usr/sbin"].map(|at| Path::new(at).join(program));
    let path = folders.iter().find(|path| path.exists());
    let mut command = Command::new(path.with_context(|| format!("the root has no {program}"))?);
    command
        .args(arguments)
        .env_clear()
        .envs(passed)
        .env("PATH", format!("/{RUST}/bin:/usr/sbin:/usr/bin:/sbin:/bin"))
        .env("HOME", "/root")
        .env("DEBIAN_FRONTEND", "noninteractive")
        .current_dir("/root")
        .stdin(Stdio::null());
    Ok(command)
}

/// A file with the folders above it; nothing where there is none.
fn copy(from: &Path, to: &Path) -> Result<()> {
    if !from.exists() {
        return Ok(());
    }
    fs::create_dir_all(to.parent().unwrap_or(to))?;
    // Not into what a link of the root leads to.
    let _ = fs::remove_file(to);
    fs::copy(from, to).with_context(|| format!("copy {}", from.display()))?;
    Ok(())
}

fn bind(from: &Path, to: &Path) -> Result<()> {
    mount(Some(from), to, NONE, MsFlags::MS_BIND | MsFlags::MS_REC, NONE)
        .with_context(|| format!("bind {} to {}", from.display(), to.display()))
}

fn cargo_home() -> Result<PathBuf> {
    if let Some(home) = std::env::var_os("CARGO_HOME") {
        return Ok(home.into());
    }
    Ok(PathBuf::from(std::env::var_os("HOME").context("no HOME")?).join(".cargo"))
}

/// Where the toolchain is that builds here.
fn sysroot() -> Result<PathBuf> {
    let output =
        Command::new("rustc").args(["--print", "sysroot"]).output().context("run rustc")?;
    let at = PathBuf::from(String::from_utf8(output.stdout)?.trim());
    ensure!(
        at != Path::new("/usr"),
        "Rust is not in a folder of its own here, but in {}",
        at.display()
    );
    Ok(at)
}

/// The mirror of the machine's own apt.
fn mirror() -> Result<String> {
    let output = Command::new("apt-get")
        .args(["indextargets", "--format", "$(REPO_URI) $(COMPONENT)", "Created-By: Packages"])
        .output()
        .context("ask apt for its mirror")?;
    let text = String::from_utf8(output.stdout)?;
    let mut all = text.lines().filter_map(|line| line.strip_suffix(" main"));
    // Others are of updates alone.
    let found = all.find(|uri| uri.trim_end_matches('/').ends_with("/debian"));
    Ok(found.context("apt has no mirror of Debian's main")?.to_owned())
}
