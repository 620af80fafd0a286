//! `exec`: a further process in a container.

use std::{fs, os::fd::AsFd, path::Path};

use mooring::cgroup::Cgroup;
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions, pidfd_open};

use crate::{
    args::Local,
    cgroup::Entrance,
    channel::{self, End, Message},
    check, console,
    create::{adopt, number, warn_of_capabilities, write_pid},
    error::{Doing, Error, Result},
    limits,
    log::Log,
    namespaces,
    process::{self, Finish},
    spec::{Capabilities, Process},
    state::{Folder, State, Status},
    sys::{self, Fork},
};

/// Runs `given`, or what the arguments say. Answers the status to exit with.
pub fn run(root: &Path, local: &Local, given: Option<Process>, log: &Log) -> Result<i32> {
    let id = local.id()?;
    let folder = Folder::of(root, id);
    let state = folder.load()?;
    match state.status(&folder)? {
        Status::Created | Status::Running => {}
        Status::Paused => return Err(Error::invalid("cannot exec in a paused container")),
        Status::Stopped => return Err(Error::invalid("cannot exec in a stopped container")),
    }
    let process = wanted(given, local, &state)?;
    check::process(&process)?;
    warn_of_capabilities(&process, log);
    if process.terminal && local.console_socket.is_none() {
        return Err(Error::invalid("process.terminal without --console-socket"));
    }
    let filter = folder.filter()?;
    let console = local.console_socket.as_deref().map(console::connect).transpose()?;
    // From here on the number cannot become another's.
    let held = Pid::from_raw(state.init_process_pid)
        .ok_or_else(|| Error::invalid("the container has no process"))
        .and_then(|pid| {
            pidfd_open(pid, PidfdFlags::empty()).doing("hold the container's process")
        })?;
    if !state.is_alive()? {
        return Err(Error::invalid("cannot exec in a stopped container"));
    }
    let flags = namespaces::foreign(state.init_process_pid)?;
    let proc = fs::File::open("/proc").doing("open /proc")?.into();
    let (ours, theirs) = channel::pair()?;
    let group = state.group();
    let (entrance, forked) = fork_in(&group, state.init_process_pid)?;
    let child = match forked {
        Fork::Child => {
            drop(ours);
            let keyring = None;
            let finish = Finish {
                process: &process,
                filter: filter.as_ref(),
                personality: state.mooring.personality.as_ref(),
                keyring,
                preserve_fds: local.preserve_fds,
                proc: &proc,
                channel: &theirs,
            };
            join(held.as_fd(), flags, entrance, console.as_ref(), &finish)
        }
        Fork::Parent(pid) => pid,
    };
    drop((theirs, console, held, entrance));
    let mut children = Children(vec![child]);
    if let Some(warning) = limits::oom_score(child, process.oom_score_adj)? {
        log.warn(&warning);
    }
    ours.answer()?;
    let pid = attend(&ours, &process, child, &mut children.0, log)?;
    if let Some(path) = &local.pid_file {
        write_pid(path, pid)?;
    }
    children.0.clear();
    if local.detach {
        return Ok(0);
    }
    let ended = rustix::process::waitpid(Pid::from_raw(pid), WaitOptions::empty())
        .doing("wait for the process")?;
    let status = ended.map(|(_, status)| status);
    Ok(status.map_or(255, |status| {
        status
            .exit_status()
            .or_else(|| status.terminating_signal().map(|signal| 128 + signal))
            .unwrap_or(255)
    }))
}

/// Killed unless all went well.
struct Children(Vec<i32>);

impl Drop for Children {
    fn drop(&mut self) {
        for pid in &self.0 {
            let Some(pid) = Pid::from_raw(*pid) else { continue };
            // Not reaped yet, so the number is still its own.
            let _ = rustix::process::kill_process(pid, Signal::KILL);
            let _ = rustix::process::waitpid(Some(pid), WaitOptions::empty());
        }
    }
}

/// The process of the file, or the container's own with other arguments; what it does not say is as the container's.
fn wanted(given: Option<Process>, local: &Local, state: &State) -> Result<Process> {
    let own = &state.mooring.process;
    let mut process = match given {
        Some(process) => process,
        None => Process {
            args: local.rest.get(1..).unwrap_or_default().to_vec(),
            terminal: local.tty,
            console_size: None,
            ..own.clone()
        },
    };
    if let Some(cwd) = &local.cwd {
        process.cwd.clone_from(cwd);
    }
    process.env.extend(local.env.iter().cloned());
    if let Some(user) = &local.user {
        let number = |text: &str| {
            text.parse::<u32>().map_err(|_| Error::invalid(format!("--user {user:?} is no number")))
        };
        let (uid, gid) = user.split_once(':').unwrap_or((user, "0"));
        process.user.uid = number(uid)?;
        process.user.gid = number(gid)?;
    }
    for text in local.groups.iter().flat_map(|one| one.split(',')) {
        let group = text.parse();
        let group = group.map_err(|_| Error::invalid(format!("--additional-gids {text:?}")))?;
        process.user.additional_gids.push(group);
    }
    if !local.capabilities.is_empty() {
        let sets = process.capabilities.get_or_insert_with(Capabilities::default);
        for set in [&mut sets.bounding, &mut sets.effective, &mut sets.permitted] {
            set.extend(local.capabilities.iter().cloned());
        }
        if !sets.inheritable.is_empty() {
            sets.ambient.extend(local.capabilities.iter().cloned());
        }
    }
    process.no_new_privileges |= local.no_new_privileges;
    if process.capabilities.is_none() {
        process.capabilities.clone_from(&own.capabilities);
    }
    if process.rlimits.is_empty() {
        process.rlimits.clone_from(&own.rlimits);
    }
    for (text, own) in [
        (&mut process.apparmor_profile, &own.apparmor_profile),
        (&mut process.selinux_label, &own.selinux_label),
        (&mut process.cwd, &own.cwd),
    ] {
        if text.is_empty() {
            text.clone_from(own);
        }
    }
    process.oom_score_adj = process.oom_score_adj.or(own.oom_score_adj);
    process.user.umask = process.user.umask.or(own.user.umask);
    Ok(process)
}

/// Where the container has made groups below its own, v2 lets no process into that: then it is that of process `init`.
fn fork_in(group: &Cgroup, init: i32) -> Result<(Entrance, Fork)> {
    let mut entrance = Entrance::of(group)?;
    let forked = match entrance.fork() {
        Err(Error::System { source, .. })
            if source.raw_os_error() == Some(libc::EBUSY) && group.is_unified() =>
        {
            entrance = Entrance::of(&Cgroup::of_process(init)?)?;
            entrance.fork()?
        }
        other => other?,
    };
    Ok((entrance, forked))
}

/// Enters the container and becomes the process. Runs in a copy of the caller, which ends here.
fn join(
    held: std::os::fd::BorrowedFd<'_>,
    flags: i32,
    entrance: Entrance,
    console: Option<&std::os::fd::OwnedFd>,
    finish: &Finish<'_>,
) -> ! {
    let entered = (|| {
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
            .doing("be killed with the caller")?;
        entrance.enter()?;
        finish.channel.wait()?;
        sys::setns(held, flags).doing("enter the container's namespaces")?;
        if flags & libc::CLONE_NEWUSER != 0 {
            sys::become_user(0, 0, &[]).doing("become root of the user namespace")?;
            process::hide()?;
        }
        sys::fork(true).doing("start the process")
    })();
    let status = match entered {
        Ok(Fork::Parent(pid)) => i32::from(finish.channel.tell(&Message::Born(pid)).is_err()),
        Ok(Fork::Child) => {
            let error = become_it(console, finish);
            let _ = finish.channel.tell(&Message::Failed(error.to_string()));
            255
        }
        Err(error) => {
            let _ = finish.channel.tell(&Message::Failed(error.to_string()));
            1
        }
    };
    sys::exit(status)
}

fn become_it(console: Option<&std::os::fd::OwnedFd>, finish: &Finish<'_>) -> Error {
    let ready = (|| {
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
            .doing("be killed with the caller")?;
        finish.channel.wait()?;
        rustix::process::setsid().doing("start a session")?;
        if finish.process.terminal {
            let socket = console.ok_or_else(|| Error::invalid("no console socket"))?;
            let root = rustix::fs::open(
                "/",
                rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC,
                rustix::fs::Mode::empty(),
            )
            .doing("open the container's root")?;
            let peer = console::make(root.as_fd(), socket, finish.process.console_size)?;
            console::take(peer)?;
        }
        let ready = process::finish(finish)?;
        process::confine(finish)?;
        Ok(ready)
    })();
    match ready {
        Ok(ready) => ready.run(),
        Err(error) => error,
    }
}

/// Answers the process's number once its program runs: then its end of the channel is closed.
fn attend(
    channel: &End,
    process: &Process,
    child: i32,
    children: &mut Vec<i32>,
    log: &Log,
) -> Result<i32> {
    let mut born = None;
    loop {
        match channel.next()? {
            Some(Message::Born(pid)) => {
                born = Some(adopt(pid, child, children));
                channel.answer()?;
            }
            Some(Message::Limits) => {
                limits::set(number(born)?, &process.rlimits)?;
                channel.answer()?;
            }
            Some(Message::Warning(what)) => log.warn(&what),
            Some(Message::Failed(why)) => return Err(Error::Told(why)),
            Some(other) => return Err(Error::invalid(format!("an exec told {other:?}"))),
            None => {
                return born.ok_or_else(|| Error::invalid("the process ended while it was made"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{process::Command, thread};

    use super::*;

    /// What [`attend`] answers to a process that `says` so, beside children of none of its own.
    fn attended(says: impl FnOnce(&End) + Send) -> Result<i32> {
        let limits = serde_json::json!({
            "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 77, "hard": 77}],
        });
        let process: Process = serde_json::from_value(limits).unwrap();
        let (ours, theirs) = channel::pair().unwrap();
        thread::scope(|scope| {
            scope.spawn(move || says(&theirs));
            let attended = attend(&ours, &process, i32::MAX, &mut Vec::new(), &Log::default());
            drop(ours);
            attended
        })
    }

    #[test]
    fn limits_are_set_on_a_process_that_is_known() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let answered = attended(|process| {
            process.ask(&Message::Born(pid)).unwrap();
            process.ask(&Message::Limits).unwrap();
        });
        let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(answered.unwrap(), pid);
        let files = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
        assert_eq!(files.split_whitespace().skip(3).collect::<Vec<_>>(), ["77", "77", "files"]);
    }

    #[test]
    fn nothing_is_set_on_a_process_that_is_not_known() {
        let answered = attended(|process| {
            let _ = process.ask(&Message::Limits);
        });
        assert_eq!(answered.unwrap_err().to_string(), "a process asks before it is known");
    }
}
