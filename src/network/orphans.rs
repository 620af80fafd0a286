//! Plugins that outlived the shim that ran them.
//!
//! A shim that is killed while a plugin works leaves it running. An ADD that goes on after its DEL would reserve an
//! address for ever, so whoever takes up the work ends what is left of it first. Plugins are known by the container's
//! id in their environment, which whatever they run in turn inherits, and by the session, which is the shim's: what a
//! plugin has made a daemon on purpose has left it.

use std::{fs, time::Duration};

use nix::unistd::{Pid, getsid};

use crate::sys::identity::Pinned;

/// How long a killed plugin may take to be gone.
const PATIENCE: Duration = Duration::from_secs(2);
/// A plugin may start another while the list of processes is read; it cannot do so that often.
const PASSES: usize = 8;

/// Kills all plugins that the shim `shim`, which is dead, had working for `container_id`, with what they have started,
/// and waits until they are gone. Answers how many there were. Blocks.
pub fn end(container_id: &str, shim: i32) -> usize {
    let mut ended = 0;
    for _ in 0..PASSES {
        let found = working_for(container_id, shim);
        if found.is_empty() {
            break;
        }
        for (pid, plugin) in found {
            match plugin.kill_and_wait(PATIENCE) {
                Ok(true) => {
                    log::warn!("plugin {pid} of sandbox {container_id} outlived its shim: killed");
                    ended += 1;
                }
                Ok(false) => {}
                Err(error) => log::warn!("plugin {pid} of sandbox {container_id}: {error}"),
            }
        }
    }
    ended
}

fn working_for(container_id: &str, shim: i32) -> Vec<(i32, Pinned)> {
    let wanted = format!("CNI_CONTAINERID={container_id}");
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter_map(|pid| {
        // Most processes are somebody else's: a look first, and a second one at what is held.
        is_one(pid, shim, &wanted).then_some(())?;
        let pinned = Pinned::new(pid, None)?;
        is_one(pid, shim, &wanted).then_some((pid, pinned))
    })
    .collect()
}

fn is_one(pid: i32, shim: i32, variable: &str) -> bool {
    let session = getsid(Some(Pid::from_raw(pid)));
    if pid <= 0 || session != Ok(Pid::from_raw(shim)) {
        return false;
    }
    let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    environment.split(|byte| *byte == 0).any(|one| one == variable.as_bytes())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::process::testing::TestChild;

    #[test]
    fn only_plugins_of_that_container_and_shim_are_ended_with_what_they_started() {
        let run = |id: &str| {
            let mut command = Command::new("sh");
            command.args(["-c", "sleep 60 & wait"]).env("CNI_CONTAINERID", id);
            TestChild::start(&mut command)
        };
        // All of this test's children are in its own session.
        let here = getsid(None).unwrap().as_raw();
        let (mut ours, _theirs) = (run("orphans-1"), run("orphans-12"));
        let there = |id: &str, count: usize| {
            // The shell needs a moment to start its own child.
            (0..400).any(|_| {
                std::thread::sleep(Duration::from_millis(5));
                working_for(id, here).len() == count
            })
        };
        assert!(there("orphans-1", 2) && there("orphans-12", 2));
        assert_eq!(end("orphans-1", i32::MAX), 0);
        assert_eq!(end("orphans-1", here), 2);
        assert_eq!(ours.status(), 128 + 9);
        assert_eq!(end("orphans-1", here), 0);
        assert!(there("orphans-12", 2));
        assert_eq!(end("orphans-12", here), 2);
    }
}
