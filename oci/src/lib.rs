//! The built-in OCI runtime. It has runc's command line, and is run as a process of its own for each call:
//! `containerd-shim-mooring-v1 oci create …`. See docs/builtin.md.
//!
//! `create` in the order of the files: [`create`] reads and checks the specification, opens what the container is given of
//! the node, and makes the control group; [`init`] makes the namespaces and is the container's process in them; [`rootfs`]
//! mounts; [`process`] gives up every right that the program shall not have, and runs it when the container is started.
#![deny(unsafe_code)]

mod args;
mod capabilities;
mod cgroup;
mod channel;
mod check;
mod console;
mod create;
mod error;
mod exec;
mod features;
mod hooks;
mod init;
mod limits;
mod load;
mod log;
mod namespaces;
mod process;
mod rooted;
mod rootfs;
mod sealed;
mod seccomp;
mod spec;
mod state;
mod sys;
mod systemd;
mod verbs;

use std::{path::PathBuf, process::ExitCode};

use args::{Call, Local};
use error::{Doing, Error, Result};
use log::Log;

/// Where containers are kept unless `--root` says otherwise.
const ROOT: &str = "/run/mooring/oci";

/// Runs the program as an OCI runtime; `arguments` follow the word `oci`.
pub fn main(arguments: impl IntoIterator<Item = std::ffi::OsString>) -> ExitCode {
    let texts: std::result::Result<Vec<String>, _> =
        arguments.into_iter().map(std::ffi::OsString::into_string).collect();
    let call = texts
        .map_err(|text| Error::invalid(format!("argument {} is not valid UTF-8", text.display())))
        .and_then(args::parse);
    let call = match call {
        Ok(call) => call,
        Err(error) => {
            Log::default().fail(&error.to_string());
            return ExitCode::FAILURE;
        }
    };
    let log = Log::of(&call.global);
    match run(&call, &log) {
        Ok(status) => ExitCode::from(u8::try_from(status).unwrap_or(255)),
        Err(error) => {
            log.fail(&error.to_string());
            // Others are what the program in the container has said.
            if call.verb == "exec" { ExitCode::from(255) } else { ExitCode::FAILURE }
        }
    }
}

fn run(call: &Call, log: &Log) -> Result<i32> {
    let root = call.global.root.clone().unwrap_or_else(|| PathBuf::from(ROOT));
    let (local, root) = (&call.local, root.as_path());
    let done = match call.verb.as_str() {
        "create" => {
            shelter(local)?;
            create::run(root, &call.global, local, log)
        }
        "exec" => {
            sealed::ensure()?;
            // It may come by a descriptor, as a shell's <(…).
            let given = local.process.as_deref().map(load::process).transpose()?;
            shelter(local)?;
            return exec::run(root, local, given, log);
        }
        "start" => verbs::start(root, local, log),
        "kill" => verbs::kill(root, local),
        "delete" => verbs::delete(root, local, log),
        "state" => verbs::state(root, local),
        "pause" => verbs::freeze(root, local, true),
        "resume" => verbs::freeze(root, local, false),
        "update" => verbs::update(root, local),
        "ps" => verbs::ps(root, local),
        "list" => verbs::list(root, call.global.root.is_none(), local),
        "features" => {
            println!("{}", features::all());
            Ok(())
        }
        "version" => {
            println!("mooring-oci version {}", env!("CARGO_PKG_VERSION"));
            Ok(())
        }
        other => Err(Error::unsupported(format!("the verb {other:?}"))),
    };
    done.map(|()| 0)
}

/// What every call does first that makes a process in a container: nothing of the node may be reached by way of it.
fn shelter(local: &Local) -> Result<()> {
    sealed::ensure()?;
    // What the caller has left open by mistake is nobody's (CVE-2024-21626).
    sys::close_from(3 + local.preserve_fds).doing("close descriptors")?;
    // Rust's own start ignores it, and a container's program would inherit that.
    sys::default_sigpipe().doing("reset SIGPIPE")?;
    process::hide()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verbs_that_there_are_not_are_refused_by_name() {
        for verb in ["checkpoint", "restore", "run", "events"] {
            let call = args::parse([verb.to_owned(), "name".to_owned()]).unwrap();
            let error = super::run(&call, &Log::default()).unwrap_err().to_string();
            assert!(error.contains(&format!("does not support the verb {verb:?}")), "{error}");
        }
    }
}
