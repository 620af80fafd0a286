//! Programs that outlived the shim that ran them: CNI plugins, criu, an OCI runtime.
//!
//! A shim that is killed while a program works leaves it running. An ADD that goes on after its DEL would reserve an
//! address for ever, and a restore would make a container that nobody knows, so whoever takes up the work ends what is
//! left of it first. Such programs are known by a variable in their environment, which whatever they run in turn inherits,
//! and by the session, which is the shim's: what a program has made a daemon on purpose has left it.

use std::{fs, io, time::Duration};

use nix::unistd::{Pid, getsid};

use crate::sys::identity::Pinned;

/// How long a killed program may take to be gone.
const PATIENCE: Duration = Duration::from_secs(2);
/// A program may start another while the list of processes is read; it cannot do so that often.
pub const PASSES: usize = 8;

/// Kills all programs that the shim `shim`, which is dead, has started with `variable` (`NAME=VALUE`) in their
/// environment, with what they have started, and waits until they are gone. Answers how many there were; that it cannot
/// be found out is an error. Blocks.
pub fn end(variable: &str, shim: i32) -> io::Result<usize> {
    let mut ended = 0;
    for _ in 0..PASSES {
        let found = running(variable, shim)?;
        if found.is_empty() {
            break;
        }
        for (pid, program) in found {
            if program.kill_and_wait(PATIENCE)? {
                log::warn!("process {pid} with {variable} outlived its shim: killed");
                ended += 1;
            }
        }
    }
    Ok(ended)
}

/// The programs in the session of the shim `shim` that have `variable` (`NAME=VALUE`) in their environment.
pub fn running(variable: &str, shim: i32) -> io::Result<Vec<(i32, Pinned)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok())
        else {
            continue;
        };
        // Most processes are somebody else's: a look first, and a second one at what is held.
        if is_one(pid, shim, variable)?
            && let Some(pinned) = Pinned::new(pid, None)?
            && is_one(pid, shim, variable)?
        {
            found.push((pid, pinned));
        }
    }
    Ok(found)
}

fn is_one(pid: i32, shim: i32, variable: &str) -> io::Result<bool> {
    let session = getsid(Some(Pid::from_raw(pid)));
    if pid <= 0 || session != Ok(Pid::from_raw(shim)) {
        return Ok(false);
    }
    match fs::read(format!("/proc/{pid}/environ")) {
        Ok(text) => Ok(text.split(|byte| *byte == 0).any(|one| one == variable.as_bytes())),
        Err(error)
            if error.kind() == io::ErrorKind::NotFound
                || error.raw_os_error() == Some(nix::errno::Errno::ESRCH as i32) =>
        {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::process::testing::TestChild;

    fn of(id: &str) -> String {
        format!("CNI_CONTAINERID={id}")
    }

    #[test]
    fn only_programs_with_that_variable_of_that_shim_are_ended_with_what_they_started() {
        // The shim leads a session of its own, as a real one does: this test's own may be that of the whole machine.
        let run = |id: &str| format!("CNI_CONTAINERID={id} sh -c 'sleep 60 & wait' & ");
        let script = run("orphans-1") + &run("orphans-12") + "wait";
        let mut shim = TestChild::start(Command::new("setsid").args(["sh", "-c", &script]));
        let there = |id: &str, count: usize| {
            // The shells need a moment to start their own children.
            (0..400).any(|_| {
                std::thread::sleep(Duration::from_millis(5));
                running(&of(id), shim.pid).unwrap().len() == count
            })
        };
        assert!(there("orphans-1", 2) && there("orphans-12", 2));
        assert_eq!(end(&of("orphans-1"), i32::MAX).unwrap(), 0);
        assert_eq!(end(&of("orphans-1"), shim.pid).unwrap(), 2);
        assert_eq!(end(&of("orphans-1"), shim.pid).unwrap(), 0);
        assert!(there("orphans-12", 2));
        assert_eq!(end(&of("orphans-12"), shim.pid).unwrap(), 2);
        assert_eq!(shim.status(), 0, "the shim itself is none");
    }
}
