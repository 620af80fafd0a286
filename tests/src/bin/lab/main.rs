//! The laboratory: a private containerd with containerd's own sandboxes and Mooring's beside each other, to show, to
//! play with, to measure and to audit. Each command but `audit --before` and `fresh` works in a machine of namespaces of its own.
#![forbid(unsafe_code)]

mod audit;
mod bench;
mod cri;
mod demo;
mod fresh;
mod smoke;
mod soak;
mod up;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use mooring_e2e::suite::Handler;

/// A private containerd with Mooring: shown, played with, measured, audited.
#[derive(Parser)]
#[command(name = "lab")]
struct Lab {
    /// The folder of the containerd that stays up. Short, because sockets lie in it.
    #[arg(long, global = true, default_value = "/tmp/mooring-lab")]
    dir: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// One pod's life, from the run to nothing left behind; then the same without Kubernetes.
    Demo {
        /// The runtime handler: mooring, or runc or builtin to compare.
        #[arg(default_value = "mooring", value_parser = handler)]
        handler: Handler,
    },
    /// Boots a containerd that stays up, with the handlers runc, mooring and builtin.
    Up,
    /// What `up` starts in the background.
    #[command(hide = true)]
    Keep,
    /// Removes its pods, looks for what they left, and ends it.
    Down,
    /// Whether it is up, its address, its pods.
    Status,
    /// Runs a command where that containerd is, with ctr, runc and the shims in PATH; without one, a shell.
    Exec {
        /// The command and its arguments.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<OsString>,
    },
    /// A call of CRI: the request and the answer are protobuf's JSON. Without a method, lists them.
    Cri {
        /// For example `ListPodSandbox`.
        method: Option<String>,
        /// The request, by default `{}`; `-` reads it from standard input.
        #[arg(default_value = "{}")]
        request: String,
        /// Another containerd's socket.
        #[arg(long)]
        socket: Option<PathBuf>,
    },
    /// One pod with one container through CRI: on the containerd that is up, else on one of its own.
    Smoke {
        /// The runtime handler. With runc it tells whether this machine is fit for the tests at all.
        #[arg(default_value = "runc", value_parser = handler)]
        handler: Handler,
    },
    /// Mooring beside containerd's own sandboxes, alternating in one run.
    Bench(bench::Options),
    /// What pods cannot do without, done bare: the same CNI plugins, OCI runtime calls and system calls.
    Floor(bench::FloorOptions),
    /// Random pods, execs and faults for a long time, and whether anything grows.
    Soak(soak::Options),
    /// What the containerd that is up has left of its pods; or, with an option, what this machine has that bears
    /// Mooring's marks.
    Audit(audit::Options),
    /// Makes a bare Debian root, enters it, and runs targets of the Makefile there, in a clone of what is committed.
    Fresh {
        /// The targets.
        #[arg(default_values = ["demo", "test"])]
        targets: Vec<String>,
    },
}

fn handler(name: &str) -> Result<Handler, String> {
    let found = Handler::ALL.into_iter().find(|one| one.name() == name);
    found.ok_or_else(|| {
        format!("no handler {name:?}: there are {}", Handler::ALL.map(Handler::name).join(", "))
    })
}

fn main() -> ExitCode {
    let lab = Lab::parse();
    let dir = &lab.dir;
    let done = match lab.command {
        Command::Demo { handler } => demo::run(handler),
        Command::Up => up::up(dir),
        Command::Keep => up::keep(dir),
        Command::Down => up::down(dir),
        Command::Status => up::status(dir),
        Command::Exec { command } => up::exec(dir, &command),
        Command::Cri { method, request, socket } => {
            cri::run(&socket.unwrap_or_else(|| up::socket(dir)), method.as_deref(), &request)
        }
        Command::Smoke { handler } => smoke::run(dir, handler),
        Command::Bench(options) => bench::run(&options),
        Command::Floor(options) => bench::floor(&options),
        Command::Soak(options) => soak::run(&options),
        Command::Audit(options) => audit::run(dir, &options),
        Command::Fresh { targets } => fresh::run(&targets),
    };
    match done {
        Ok(code) => code,
        // Who reads has enough, as `head` has.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let io = error.downcast_ref::<std::io::Error>();
    io.is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

/// Runs a future to its end.
fn block_on<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(future)
}
