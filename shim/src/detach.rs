//! What makes a forked process a daemon: a session, standard streams, a name and a place of its own.

use std::{
    env, fs, io,
    os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd},
};

use mooring::cgroup;
use nix::{
    sys::{prctl, signal::SigSet},
    unistd::{chdir, dup2_stderr, dup2_stdin, dup2_stdout, getppid, setsid},
};
use rustix::thread::{CoreSchedulingScope, create_core_scheduling_cookie};

/// The score that makes the kernel choose a process first when memory is short.
const WORST_SCORE: i32 = 1000;

/// Leaves the session, terminal, folder, standard streams and open files of whoever started this process. Only the
/// files in `keep` stay open.
pub fn leave(keep: &[BorrowedFd<'_>]) -> io::Result<()> {
    setsid()?;
    let null: OwnedFd = fs::File::options().read(true).write(true).open("/dev/null")?.into();
    dup2_stdin(&null)?;
    dup2_stdout(&null)?;
    dup2_stderr(&null)?;
    drop(null);
    let mut keep: Vec<RawFd> = keep.iter().map(AsRawFd::as_raw_fd).collect();
    keep.sort_unstable();
    let mut first = 3;
    for fd in keep.into_iter().chain([RawFd::MAX]) {
        if first < fd {
            close_range(first, fd - 1);
        }
        first = fd.saturating_add(1);
    }
    // So that no file system is kept busy by this process.
    chdir("/")?;
    prctl::set_name(c"mooring-shim")?;
    // Containers are children of the OCI runtime, which ends at once: this process inherits them.
    prctl::set_child_subreaper(true)?;
    Ok(())
}

fn close_range(first: RawFd, last: RawFd) {
    // Both are positive. Where the kernel is too old for the call, what was inherited stays open: a flaw, no fault.
    // SAFETY: the files in this range were inherited from containerd; nothing in this process refers to them.
    unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
}

/// Gives back to every signal what it does by default, and blocks none: what whoever started containerd ignored or
/// blocked is not for containers, plugins and log programs to inherit. SIGPIPE stays ignored in this process; the
/// standard library resets it in children.
pub fn reset_signals() {
    /// Larger than the kernel's `struct sigaction`, which begins with the handler on every architecture of ours.
    type Action = [usize; 8];
    for signal in (1..=libc::SIGRTMAX()).filter(|signal| *signal != libc::SIGPIPE) {
        let mut old: Action = [libc::SIG_DFL; 8];
        let default: Action = [libc::SIG_DFL; 8];
        // SAFETY: the kernel reads and writes less than the arrays hold. libc's own call would refuse its signals.
        unsafe {
            let none = std::ptr::null::<Action>();
            libc::syscall(libc::SYS_rt_sigaction, signal, none, &raw mut old, 8);
            if old.first() == Some(&libc::SIG_IGN) {
                let none = std::ptr::null_mut::<Action>();
                libc::syscall(libc::SYS_rt_sigaction, signal, &raw const default, none, 8);
            }
        }
    }
    // An empty set is always valid.
    let _ = SigSet::empty().thread_set_mask();
}

/// The score of containerd, while it is the parent of this process.
pub fn oom_score_of_parent() -> Option<i32> {
    let text = fs::read_to_string(format!("/proc/{}/oom_score_adj", getppid())).ok()?;
    text.trim().parse().ok()
}

/// Makes the kernel take this process before containerd and after the containers, when memory is short.
pub fn set_oom_score(parent: i32) -> io::Result<()> {
    let score = parent.saturating_add(1).min(WORST_SCORE);
    fs::write("/proc/self/oom_score_adj", score.to_string())
}

/// With `SCHED_CORE` in the environment (containerd's shim manager has it where its `env` names it), no hardware thread
/// runs this process or what it starts beside strangers: a core scheduling cookie of their own, see prctl(2).
pub fn schedule_core() -> io::Result<()> {
    if env::var_os("SCHED_CORE").is_none_or(|value| value.is_empty()) {
        return Ok(());
    }
    let own = rustix::process::getpid();
    Ok(create_core_scheduling_cookie(own, CoreSchedulingScope::ThreadGroup)?)
}

/// Moves this process into the control group `path`, which is made where it does not exist.
pub fn enter_cgroup(path: &str) -> Result<(), cgroup::Error> {
    let group = cgroup::Hierarchies::read()?.group(path)?;
    group.ensure()?;
    for folder in group.folders() {
        let path = folder.join("cgroup.procs");
        fs::write(&path, "0").map_err(|source| cgroup::Error::File {
            action: "write",
            path,
            source,
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_score_of_the_parent_can_be_read() {
        assert!(oom_score_of_parent().is_some_and(|score| (-1000..=1000).contains(&score)));
    }
}
