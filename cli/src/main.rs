//! The operator's tool for Mooring: looks at what it holds on a node, frees what was left behind, and installs it.
//!
//! Each command is a module that gets what was asked for and somewhere to write, and answers with an [`Exit`].
#![forbid(unsafe_code)]

mod account;
mod args;
mod containerd_config;
mod doctor;
mod exit;
mod gc;
mod holdings;
mod inspect;
mod install;
mod ls;
mod manual;
mod metrics;
mod node;
mod span;
mod steps;
mod stop;

use std::io::{self, Write};

use clap::Parser;

use args::{Args, Command};
use exit::Exit;

fn main() -> std::process::ExitCode {
    let args = Args::parse();
    let mut out = io::stdout().lock();
    let answer = run(args.command, &mut out).and_then(|exit| {
        out.flush()?;
        Ok(exit)
    });
    match answer {
        Ok(exit) => exit.into(),
        // Whoever reads has seen enough.
        Err(error) if is_broken_pipe(&error) => Exit::Clean.into(),
        Err(error) => {
            eprintln!("mooring: {error:#}");
            exit::of(&error)
        }
    }
}

fn run(command: Command, out: &mut dyn Write) -> anyhow::Result<Exit> {
    match command {
        Command::Version => {
            writeln!(out, "mooring {}", env!("CARGO_PKG_VERSION"))?;
            Ok(Exit::Clean)
        }
        Command::Ls(args) => ls::run(&args, out),
        Command::Inspect(args) => inspect::run(&args, out),
        Command::Stop(args) => stop::run(&args, out),
        Command::Doctor(args) => doctor::run(&args, out),
        Command::Metrics(args) => metrics::run(&args, out),
        Command::Gc(args) => gc::run(&args, out),
        Command::Install(args) => install::run(&args, out),
        Command::Uninstall(args) => install::uninstall(&args, out),
        Command::Man { folder } => manual::man(&folder),
        Command::Completion { shell } => manual::completion(shell, out),
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let io = error.downcast_ref::<io::Error>();
    io.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}
