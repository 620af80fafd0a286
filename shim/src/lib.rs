//! containerd's entry to Mooring: everything that the program is made of. It is a library so that its parts can be fuzzed.

mod args;
mod boot;
mod bundle;
mod daemon;
mod delete;
mod detach;
mod events;
mod info;
mod launch;
mod logging;
mod memory;
mod publisher;
mod services;
mod start;
mod task;
mod traces;
mod watchdog;

/// What the fuzz targets reach.
#[cfg(feature = "fakes")]
pub mod parts {
    pub use crate::{
        args::{Request, parse},
        boot::Boot,
        events::Events,
        launch::Launch,
        services::{Ending, Parties, Services},
        socket::path as socket_path,
        start::{group_of, sandbox_of},
    };
}

use std::{
    env,
    io::{self, Write},
    process::ExitCode,
};

use args::Request;
use mooring::sys::socket;

/// What the program does, from its command line on.
pub fn main() -> ExitCode {
    let mut given = env::args_os().skip(1);
    if given.next().is_some_and(|word| word == "oci") {
        detach::reset_signals();
        return mooring_oci::main(given);
    }
    memory::be_frugal();
    detach::reset_signals();
    let done = match args::parse(env::args_os()) {
        Ok(Request::Start(args)) => {
            memory::without_cache();
            start::run(args).map_err(print)
        }
        Ok(Request::Info(args)) => info::run(args.profile.as_ref()).map_err(print),
        Ok(Request::Version) => Ok(info::version().into_bytes()),
        Ok(Request::Delete(args)) => delete::run(&args).map_err(print),
        Err(error) => Err(print(error)),
    };
    // containerd reads both streams as one: either there is an answer, or a complaint.
    let written = match done {
        Ok(answer) => io::stdout().write_all(&answer).map(|()| ExitCode::SUCCESS),
        Err(error) => {
            let name = env!("CARGO_PKG_NAME");
            writeln!(io::stderr(), "{name}: {error}").map(|()| ExitCode::FAILURE)
        }
    };
    written.unwrap_or(ExitCode::FAILURE)
}

fn print(error: impl std::fmt::Display) -> String {
    error.to_string()
}
