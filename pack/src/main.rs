//! Makes what a node is given: a Debian package, an archive with its sums and its bill of materials, an image. All of one
//! list of files (`tree`), and the same bytes each time: sorted, and of one fixed time.
#![forbid(unsafe_code)]

mod archive;
mod deb;
mod dist;
mod image;
mod notices;
mod tree;

use std::fmt::Write;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use sha2::{Digest, Sha256};

use tree::Sources;

/// Makes Mooring's Debian package, archive and image of the static programs. `SOURCE_DATE_EPOCH` is the time that
/// everything in them has, by default that of the last commit, or of the change log where git knows none.
#[derive(Parser)]
#[command(name = "pack")]
struct Pack {
    /// The folder of the static programs.
    #[arg(long, global = true, default_value = "target/dist")]
    programs: PathBuf,
    /// Where it goes.
    #[arg(long, global = true, default_value = "target/pack")]
    out: PathBuf,
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// The Debian package.
    Deb,
    /// The image, as an archive.
    Image,
    /// The archive, bills of materials, and the sums of all that lies where they go.
    Dist {
        /// The private folder for tools.
        #[arg(long, default_value = ".deps")]
        deps: PathBuf,
    },
}

fn main() -> ExitCode {
    match run(&Pack::parse()) {
        Ok(made) => {
            for one in made {
                println!("{}", one.display());
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("pack: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(pack: &Pack) -> Result<Vec<PathBuf>> {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("no folder above")?;
    let from = Sources { top, programs: &pack.programs, time: time(top)? };
    let version = env!("CARGO_PKG_VERSION");
    let out = &pack.out;
    fs::create_dir_all(out).with_context(|| format!("make {}", out.display()))?;
    Ok(match &pack.what {
        What::Deb => vec![deb::make(&from, version, out)?],
        What::Image => vec![image::make(&from, version, out)?],
        What::Dist { deps } => dist::make(&from, version, deps, out)?,
    })
}

/// Writes the file `name` in `out` as a whole, and answers where.
fn write(out: &Path, name: &str, content: &[u8]) -> Result<PathBuf> {
    let to = out.join(name);
    fs::write(&to, content).with_context(|| format!("write {}", to.display()))?;
    Ok(to)
}

/// SHA-256, in hexadecimal digits.
fn digest(content: &[u8]) -> String {
    Sha256::digest(content).iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// What stands for the time of everything that is made.
fn time(top: &Path) -> Result<u64> {
    let given = std::env::var("SOURCE_DATE_EPOCH").ok();
    let Some(text) = given.or_else(|| time_of_commit(top)) else {
        // Sources without their history, or a machine without git.
        let changed = fs::metadata(top.join("CHANGELOG.md"))?.mtime();
        return changed.try_into().context("the change log is older than 1970");
    };
    text.trim().parse().with_context(|| format!("{:?} is no time in seconds", text.trim()))
}

fn time_of_commit(top: &Path) -> Option<String> {
    let arguments = ["-c", "safe.directory=*", "log", "-1", "--format=%ct"];
    tree::run(Command::new("git").args(arguments).current_dir(top)).ok()
}
