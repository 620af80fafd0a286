//! The operator's tool for Mooring.
#![forbid(unsafe_code)]

use clap::{Parser, Subcommand};

/// Looks at and repairs what Mooring holds on this node.
#[derive(Parser)]
#[command(name = "mooring", version)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Prints the version.
    Version,
}

fn main() {
    match Args::parse().command {
        Command::Version => println!("mooring {}", env!("CARGO_PKG_VERSION")),
    }
}
