//! The container's own process, from its birth to its program: runs in the container's namespaces.

use std::os::fd::{AsFd, OwnedFd};

use rustix::{
    fs::{Mode, OFlags},
    process::Signal,
};

use crate::{
    cgroup::Entrance,
    channel::{End, Message},
    console,
    error::{Doing, Error, Result},
    hooks,
    namespaces::Namespaces,
    process::{self, Finish},
    rootfs::{self, Making},
    seccomp::Filter,
    spec::Spec,
    state::State,
    sys::{self, Fork},
};

/// What the process is made with.
pub struct Birth<'a> {
    pub spec: &'a Spec,
    pub namespaces: &'a Namespaces,
    pub channel: &'a End,
    pub console: Option<&'a OwnedFd>,
    pub filter: Option<&'a Filter>,
    pub keyring: Option<&'a str>,
    pub preserve_fds: u32,
    /// Opened before the namespaces: where the process waits to be started.
    pub fifo: &'a OwnedFd,
    /// What hooks are told, but for the process's number.
    pub state: &'a State,
}

/// Makes the namespaces, and the process that is the first in them. Runs in a copy of the caller, which ends here.
pub fn bear(birth: &Birth<'_>, entrance: Entrance, making: &mut Making<'_>) -> ! {
    let born = enter(birth, entrance).and_then(|()| {
        // Namespaces of pids and of time are those of children.
        sys::fork(true).doing("start the container's process")
    });
    let status = match born {
        Ok(Fork::Parent(pid)) => i32::from(birth.channel.tell(&Message::Born(pid)).is_err()),
        Ok(Fork::Child) => {
            let error = live(birth, making);
            // Once it has been started nobody listens: then its own error stream is where this belongs.
            if birth.channel.tell(&Message::Failed(error.to_string())).is_err() {
                eprintln!("{error}");
            }
            1
        }
        Err(error) => {
            let _ = birth.channel.tell(&Message::Failed(error.to_string()));
            1
        }
    };
    sys::exit(status)
}

fn die_with_the_caller() -> Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .doing("be killed with the caller")
}

fn enter(birth: &Birth<'_>, entrance: Entrance) -> Result<()> {
    die_with_the_caller()?;
    entrance.enter()?;
    // The caller says first how likely this process is killed.
    birth.channel.wait()?;
    let namespaces = birth.namespaces;
    namespaces.join()?;
    if namespaces.makes(libc::CLONE_NEWUSER) {
        sys::unshare(libc::CLONE_NEWUSER).doing("make a user namespace")?;
        birth.channel.ask(&Message::Map)?;
    }
    if namespaces.has(libc::CLONE_NEWUSER) {
        sys::become_user(0, 0, &[]).doing("become root of the user namespace")?;
        process::hide()?;
    }
    let others = namespaces.new & !libc::CLONE_NEWUSER;
    sys::unshare(others).doing("make the container's namespaces")?;
    if !birth.spec.linux.time_offsets.is_empty() {
        birth.channel.ask(&Message::Offsets)?;
    }
    Ok(())
}

/// Answers why the program does not run.
fn live(birth: &Birth<'_>, making: &mut Making<'_>) -> Error {
    match prepare(birth, making) {
        Ok(never) => match never {},
        Err(error) => error,
    }
}

enum Never {}

fn prepare(birth: &Birth<'_>, making: &mut Making<'_>) -> Result<Never> {
    die_with_the_caller()?;
    // The caller knows this process's number first, whatever it is asked for afterwards.
    birth.channel.wait()?;
    let spec = birth.spec;
    let process = spec.process.as_ref().ok_or_else(|| Error::invalid("no process"))?;
    rustix::process::setsid().doing("start a session")?;
    // What is made in the root has the modes that it is made with.
    rustix::process::umask(Mode::empty());
    if birth.namespaces.makes(libc::CLONE_NEWNET) {
        sys::bring_up_loopback().doing("bring up lo")?;
    }
    if !spec.hostname.is_empty() {
        sys::set_host_name(spec.hostname.as_bytes()).doing("set the host name")?;
    }
    if !spec.domainname.is_empty() {
        sys::set_domain_name(spec.domainname.as_bytes()).doing("set the domain name")?;
    }
    for (name, value) in &spec.linux.sysctl {
        sysctl(&making.prepared.proc, name, value)?;
    }
    if let Some(hooks) = &spec.hooks
        && !(hooks.prestart.is_empty() && hooks.create_runtime.is_empty())
    {
        birth.channel.ask(&Message::Hooks)?;
    }
    let root = rootfs::make(making)?;
    let hooks = spec.hooks.as_ref();
    let told = |status| birth.state.told_as(status, rustix::process::getpid().as_raw_pid());
    if let Some(all) = hooks.map(|hooks| &hooks.create_container) {
        hooks::run("createContainer", all, &told("creating"), &[])?;
    }
    if process.terminal {
        let socket = birth.console.ok_or_else(|| {
            Error::invalid("a terminal is wanted, and there is no console socket to send it to")
        })?;
        let peer = console::make(root.as_fd(), socket, process.console_size)?;
        console::mount(root.as_fd(), &peer)?;
        console::take(peer)?;
    }
    rootfs::protect(root.as_fd(), spec, making.label)?;
    rootfs::enter(root.as_fd(), &making.prepared.root_path, spec, making.no_pivot)?;
    drop(root);
    let finish = Finish {
        process,
        filter: birth.filter,
        personality: spec.linux.personality.as_ref(),
        keyring: birth.keyring,
        preserve_fds: birth.preserve_fds,
        proc: &making.prepared.proc,
        channel: birth.channel,
    };
    let ready = process::finish(&finish)?;
    birth.channel.tell_ready()?;
    wait_for_start(birth, &making.prepared.proc)?;
    process::confine(&finish)?;
    if let Some(all) = hooks.map(|hooks| &hooks.start_container) {
        hooks::run("startContainer", all, &told("created"), &ready.environment())?;
    }
    Err(ready.run())
}

/// Whoever starts the container opens the other end of the fifo.
fn wait_for_start(birth: &Birth<'_>, proc: &OwnedFd) -> Result<()> {
    use std::os::fd::AsRawFd;
    let path = format!("self/fd/{}", birth.fifo.as_raw_fd());
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let end = loop {
        match rustix::fs::openat(proc, path.as_str(), flags, Mode::empty()) {
            Err(rustix::io::Errno::INTR) => {}
            other => break other.doing("wait to be started")?,
        }
    };
    rustix::io::write(&end, b"0").doing("say that the container starts").map(drop)
}

/// Written by the node's /proc, which is the kernel's whatever the image has there.
fn sysctl(proc: &OwnedFd, name: &str, value: &str) -> Result<()> {
    let path = format!("sys/{}", path_of(name));
    let what = format!("set sysctl {name}");
    let flags = OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = rustix::fs::openat(proc, path.as_str(), flags, Mode::empty()).doing(&what)?;
    rustix::io::write(&file, value.as_bytes()).doing(&what).map(drop)
}

/// Dots and slashes change places where an interface's name has dots.
fn path_of(name: &str) -> String {
    match name.find(['.', '/']).map(|at| name.as_bytes().get(at) == Some(&b'/')) {
        Some(true) => name.to_owned(),
        _ => name
            .chars()
            .map(|one| match one {
                '.' => '/',
                '/' => '.',
                other => other,
            })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sysctls_are_written_in_two_ways() {
        assert_eq!(path_of("net.ipv4.ip_forward"), "net/ipv4/ip_forward");
        assert_eq!(path_of("net.ipv4.conf.eno2/100.rp_filter"), "net/ipv4/conf/eno2.100/rp_filter");
        assert_eq!(path_of("net/ipv4/conf/eno2.100/rp_filter"), "net/ipv4/conf/eno2.100/rp_filter");
    }
}
