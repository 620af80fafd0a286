//! What is installed, declared once: every form of it (package, archive, image) is made of this list.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use flate2::{Compression, GzBuilder};

use crate::notices;

/// The programs, as they are built and installed.
pub const PROGRAMS: [&str; 2] = ["containerd-shim-mooring-v1", "mooring"];
/// The node's configuration.
pub const CONFIG: &str = "etc/mooring/config.toml";
const DOC: &str = "usr/share/doc/mooring";
const MAN: &str = "usr/share/man";
const UNITS: &str = "usr/lib/systemd/system";
const UNIT: &str = "mooring-gc.service";

/// Who is asked about the package.
pub const MAINTAINER: &str = "Mooring maintainers <maintainers@mooring.dev>";

pub struct Entry {
    /// Without a leading slash.
    pub path: String,
    pub what: What,
}

pub enum What {
    File {
        /// Permission bits.
        mode: u32,
        content: Vec<u8>,
    },
    /// A symbolic link and where it leads.
    Link(String),
}

/// Where the parts come from, and what stands for the time of everything.
pub struct Sources<'a> {
    /// The project's folder.
    pub top: &'a Path,
    /// The folder of the static programs.
    pub programs: &'a Path,
    /// Seconds since 1970.
    pub time: u64,
}

impl Entry {
    fn file(path: impl Into<String>, mode: u32, content: impl Into<Vec<u8>>) -> Self {
        Self { path: path.into(), what: What::File { mode, content: content.into() } }
    }
}

/// Everything below the root folder, in the order of its paths.
pub fn installed(from: &Sources) -> Result<Vec<Entry>> {
    let mut all = programs(from)?;
    let page = include_bytes!("../files/containerd-shim-mooring-v1.8");
    all.push(Entry::file(format!("{MAN}/man8/{}.8.gz", PROGRAMS[0]), 0o644, gzip(page)?));
    all.extend(of_the_tool(from)?);
    let text = |path: &str| {
        let at = from.top.join(path);
        fs::read(&at).with_context(|| format!("read {}", at.display()))
    };
    all.push(Entry::file(CONFIG, 0o644, text("examples/config.toml")?));
    all.push(Entry::file(
        format!("{UNITS}/{UNIT}"),
        0o644,
        include_bytes!("../files/mooring-gc.service"),
    ));
    // Wanted by the unit's vendor: it needs no script that enables it, and "systemctl mask" turns it off.
    let wanted = format!("{UNITS}/multi-user.target.wants/{UNIT}");
    all.push(Entry { path: wanted, what: What::Link(format!("../{UNIT}")) });
    for example in ["containerd.toml", "runtimeclass.yaml"] {
        let content = text(&format!("examples/{example}"))?;
        all.push(Entry::file(format!("{DOC}/examples/{example}"), 0o644, content));
    }
    let changes = text("CHANGELOG.md")?;
    all.push(Entry::file(format!("{DOC}/changelog.gz"), 0o644, gzip(&changes)?));
    all.push(Entry::file(format!("{DOC}/copyright"), 0o644, include_bytes!("../files/copyright")));
    let notices = notices::of_crates(from.top)?;
    all.push(Entry::file(format!("{DOC}/third-party.gz"), 0o644, gzip(notices.as_bytes())?));
    all.sort_by(|one, other| one.path.cmp(&other.path));
    Ok(all)
}

/// The programs alone.
pub fn programs(from: &Sources) -> Result<Vec<Entry>> {
    let read = |name: &&str| {
        let at = from.programs.join(name);
        let content = fs::read(&at)
            .with_context(|| format!("read {}: run \"make build\" first", at.display()))?;
        Ok(Entry::file(format!("usr/bin/{name}"), 0o755, content))
    };
    PROGRAMS.iter().map(read).collect()
}

/// Manual pages and completions, which the tool makes of the declaration of its command line.
fn of_the_tool(from: &Sources) -> Result<Vec<Entry>> {
    let tool = from.programs.join("mooring");
    let folder = tempfile::tempdir()?;
    run(Command::new(&tool).arg("man").arg(folder.path()))?;
    let mut all = Vec::new();
    for page in fs::read_dir(folder.path())? {
        let page = page?;
        let name = page.file_name().to_string_lossy().into_owned();
        all.push(Entry::file(
            format!("{MAN}/man1/{name}.gz"),
            0o644,
            gzip(&fs::read(page.path())?)?,
        ));
    }
    for (shell, path) in [
        ("bash", "bash-completion/completions/mooring"),
        ("zsh", "zsh/vendor-completions/_mooring"),
        ("fish", "fish/vendor_completions.d/mooring.fish"),
    ] {
        let text = run(Command::new(&tool).args(["completion", shell]))?;
        all.push(Entry::file(format!("usr/share/{path}"), 0o644, text));
    }
    Ok(all)
}

/// Files of the package that are Debian's matter alone.
pub fn of_debian(version: &str, time: u64) -> Result<Vec<Entry>> {
    let date = run(Command::new("date").args(["-u", "-R", "-d", &format!("@{time}")]))?;
    let changes = format!(
        "mooring ({version}) unstable; urgency=medium\n\n  * What has changed is told in changelog.gz.\n\n \
         -- {MAINTAINER}  {}\n",
        date.trim()
    );
    let overrides = include_bytes!("../files/lintian-overrides");
    Ok(vec![
        Entry::file(format!("{DOC}/changelog.Debian.gz"), 0o644, gzip(changes.as_bytes())?),
        Entry::file("usr/share/lintian/overrides/mooring", 0o644, overrides),
    ])
}

/// The folders that the entries lie in, with those above them; the empty path is the root.
pub fn folders(all: &[Entry]) -> BTreeSet<PathBuf> {
    all.iter()
        .flat_map(|one| Path::new(&one.path).ancestors().skip(1))
        .map(Path::to_owned)
        .collect()
}

/// What a program prints, which must succeed.
pub fn run(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("run {command:?}"))?;
    let words = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {}: {}", output.status, words.trim());
    String::from_utf8(output.stdout).with_context(|| format!("what {command:?} prints"))
}

/// Compressed; the same content gives the same bytes.
pub fn gzip(content: &[u8]) -> Result<Vec<u8>> {
    let mut to = GzBuilder::new().write(Vec::new(), Compression::best());
    to.write_all(content)?;
    Ok(to.finish()?)
}
