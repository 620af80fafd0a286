//! The command line: help, manual pages and completions come from here.

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use clap_complete::Shell;

const EXAMPLES: &str = "\
Exit status:
  0  done, and there is nothing left to see to
  1  something wants a look, or could not be done
  2  could not look (not root, no such folder), or a wrong command line

Examples:
  mooring version";

/// Looks at what Mooring holds on this node, frees what was left behind, and installs it.
#[derive(Debug, Parser)]
#[command(name = "mooring", version, after_help = EXAMPLES)]
pub struct Args {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Prints the version.
    Version,
    /// Writes the manual pages into a folder.
    #[command(hide = true)]
    Man {
        /// Made where it is missing.
        #[arg(value_name = "DIR")]
        folder: PathBuf,
    },
    /// Prints the completion for a shell.
    #[command(hide = true)]
    Completion {
        /// Which shell.
        shell: Shell,
    },
}
