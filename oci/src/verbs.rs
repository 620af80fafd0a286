//! What is done with a container that is there: start, kill, delete, state, pause, resume, update, ps.

use std::{
    io::{Read, Write},
    path::Path,
};

use mooring::cgroup::Cgroup;
use rustix::{
    event::{PollFd, PollFlags, poll},
    fs::{Mode, OFlags},
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};

use crate::{
    args::Local,
    cgroup,
    error::{Doing, Error, Result},
    hooks, load,
    log::Log,
    state::{Folder, State, Status},
    systemd,
};

fn print(text: &str) -> Result<()> {
    writeln!(std::io::stdout(), "{text}").doing("print")
}

pub fn start(root: &Path, local: &Local, log: &Log) -> Result<()> {
    let folder = Folder::of(root, local.id()?);
    let state = folder.load()?;
    match state.status(&folder)? {
        Status::Created => {}
        Status::Stopped => return Err(Error::invalid("cannot start a container that has stopped")),
        Status::Running | Status::Paused => {
            return Err(Error::invalid("cannot start a container that is running already"));
        }
    }
    let fifo = folder.fifo();
    let pid = Pid::from_raw(state.init_process_pid).ok_or_else(|| Error::invalid("no process"))?;
    let held = pidfd_open(pid, PidfdFlags::empty()).doing("hold the container's process")?;
    // Opened without waiting; readable when the container's process has opened its end and written.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let reader = rustix::fs::open(&fifo, flags, Mode::empty()).doing_at("open", &fifo)?;
    let mut watched = [PollFd::new(&reader, PollFlags::IN), PollFd::new(&held, PollFlags::IN)];
    loop {
        match poll(&mut watched, None) {
            Err(rustix::io::Errno::INTR) => {}
            other => {
                other.doing("wait for the container's process")?;
                break;
            }
        }
    }
    match rustix::io::read(&reader, &mut [0_u8; 8]) {
        Ok(1..) => {}
        _ => return Err(Error::invalid("the container's process has ended")),
    }
    std::fs::remove_file(&fifo).doing_at("remove", &fifo)?;
    let told = state.told("running");
    for hook in &state.config.hooks.poststart {
        if let Err(error) = hooks::run("poststart", std::slice::from_ref(hook), &told, &[]) {
            log.warn(&error.to_string());
        }
    }
    Ok(())
}

/// A signal, by number or by name; none for 0, which only asks.
fn signal(text: &str) -> Result<Option<Signal>> {
    const NAMES: [&str; 31] = [
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
        "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
        "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
    ];
    if text == "0" {
        return Ok(None);
    }
    let upper = text.to_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let number = name.parse::<i32>().ok().or_else(|| {
        let at = NAMES.iter().position(|known| *known == name)?;
        i32::try_from(at + 1).ok()
    });
    number
        .and_then(Signal::from_named_raw)
        .map(Some)
        .ok_or_else(|| Error::unsupported(format!("signal {text:?}")))
}

pub fn kill(root: &Path, local: &Local) -> Result<()> {
    let folder = Folder::of(root, local.id()?);
    let state = folder.load()?;
    let signal = signal(local.rest.get(1).map_or("TERM", String::as_str))?;
    let group = state.group();
    if local.all {
        signal.map_or(Ok(0), |signal| group.signal_all(signal))?;
        return Ok(());
    }
    // In its own namespace all others go with the first process.
    let whole = signal == Some(Signal::KILL) && !state.mooring.ends_whole;
    if whole && group.pids().is_ok_and(|pids| !pids.is_empty()) {
        group.kill_all()?;
        return Ok(());
    }
    let not_running = || Error::invalid("container not running");
    let pid = Pid::from_raw(state.init_process_pid).ok_or_else(not_running)?;
    let held = match pidfd_open(pid, PidfdFlags::empty()) {
        Err(rustix::io::Errno::SRCH) => return Err(not_running()),
        other => other.doing("hold the container's process")?,
    };
    if !state.is_alive()? {
        return Err(not_running());
    }
    let Some(signal) = signal else { return Ok(()) };
    pidfd_send_signal(&held, signal).doing("signal the container's process")?;
    if signal == Signal::KILL {
        // A v1 freezer holds back even that.
        group.thaw();
    }
    Ok(())
}

pub fn delete(root: &Path, local: &Local, log: &Log) -> Result<()> {
    let folder = Folder::of(root, local.id()?);
    let state = match folder.load() {
        Err(Error::Missing { .. }) if local.force && folder.path().exists() => {
            // Made by a call that died before it had written anything.
            return folder.remove();
        }
        Err(Error::Missing { .. }) if local.force => return Ok(()),
        other => other?,
    };
    let status = state.status(&folder)?;
    if !local.force && status != Status::Stopped && status != Status::Created {
        let id = &state.id;
        let name = status.name();
        return Err(Error::invalid(format!(
            "cannot delete container {id} that is not stopped: {name}"
        )));
    }
    end(&state)?;
    let group = state.group();
    if let Some(unit) = &state.mooring.scope {
        // Execs are asked to end by nobody.
        group.kill_all()?;
        if let Err(error) = systemd::stop(unit) {
            // Without a process it ends by itself.
            log.warn(&error.to_string());
        }
    }
    cgroup::remove(&group)?;
    folder.remove()?;
    let told = state.told("stopped");
    for hook in &state.config.hooks.poststop {
        if let Err(error) = hooks::run("poststop", std::slice::from_ref(hook), &told, &[]) {
            log.warn(&error.to_string());
        }
    }
    Ok(())
}

/// Kills the container's process, and waits for its end.
fn end(state: &State) -> Result<()> {
    let Some(pid) = Pid::from_raw(state.init_process_pid) else { return Ok(()) };
    let Ok(held) = pidfd_open(pid, PidfdFlags::empty()) else { return Ok(()) };
    if !state.is_alive()? {
        return Ok(());
    }
    pidfd_send_signal(&held, Signal::KILL).doing("kill the container's process")?;
    state.group().thaw();
    let limit = rustix::event::Timespec { tv_sec: 10, tv_nsec: 0 };
    match poll(&mut [PollFd::new(&held, PollFlags::IN)], Some(&limit)) {
        Ok(1..) => Ok(()),
        _ => Err(Error::invalid(format!("process {} does not end", state.init_process_pid))),
    }
}

pub fn state(root: &Path, local: &Local) -> Result<()> {
    let folder = Folder::of(root, local.id()?);
    let state = folder.load()?;
    print(&serde_json::to_string_pretty(&described(&state, &folder)?).unwrap_or_default())
}

/// What hooks are told of a container, and what people want to know besides.
fn described(state: &State, folder: &Folder) -> Result<serde_json::Value> {
    let mut told = state.told(state.status(folder)?.name());
    if let Some(fields) = told.as_object_mut() {
        fields.insert("rootfs".into(), state.mooring.rootfs.display().to_string().into());
        let created =
            std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(state.created);
        fields.insert("created".into(), crate::log::timestamp(created).into());
    }
    Ok(told)
}

pub fn freeze(root: &Path, local: &Local, frozen: bool) -> Result<()> {
    let folder = Folder::of(root, local.id()?);
    let state = folder.load()?;
    match (state.status(&folder)?, frozen) {
        (Status::Running | Status::Created, true) | (Status::Paused, false) => {}
        (status, _) => {
            let verb = if frozen { "pause" } else { "resume" };
            return Err(Error::invalid(format!(
                "cannot {verb} a container that is {}",
                status.name()
            )));
        }
    }
    cgroup::freeze(&state.group(), frozen)
}

pub fn update(root: &Path, local: &Local) -> Result<()> {
    let state = Folder::of(root, local.id()?).load()?;
    let mut text = Vec::new();
    match &local.resources {
        Some(path) if path == Path::new("-") => {
            std::io::stdin().read_to_end(&mut text).doing("read the resources")?;
        }
        Some(path) => text = std::fs::read(path).doing_at("read", path)?,
        None => return Err(Error::unsupported("update without --resources")),
    }
    let resources = load::resources(&text)?;
    if !state.is_alive()? {
        return Err(Error::invalid("cannot update a container that has stopped"));
    }
    let group: Cgroup = state.group();
    if let Some(unit) = &state.mooring.scope {
        cgroup::fits(&group, &resources)?;
        systemd::update(unit, &resources)?;
    }
    // Devices are as the container was created with: an update never takes or gives any, as with runc.
    cgroup::limit(&group, &resources)
}

pub fn ps(root: &Path, local: &Local) -> Result<()> {
    let state = Folder::of(root, local.id()?).load()?;
    let pids = state.group().pids()?;
    if local.format.as_deref() == Some("json") {
        return print(&serde_json::json!(pids).to_string());
    }
    for pid in pids {
        print(&pid.to_string())?;
    }
    Ok(())
}

/// Lists the containers below `root`; where that is the usual place it may be missing.
pub fn list(root: &Path, is_usual: bool, local: &Local) -> Result<()> {
    let is_json = match local.format.as_deref() {
        None | Some("table") => false,
        Some("json") => true,
        Some(other) => return Err(Error::invalid(format!("list --format {other:?}"))),
    };
    let entries = match std::fs::read_dir(root) {
        Err(error) if is_usual && error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        other => other.doing_at("list", root)?.collect(),
    };
    let mut all = Vec::new();
    for entry in entries {
        let name = entry.doing_at("list", root)?.file_name();
        let folder = Folder::of(root, &name.to_string_lossy());
        if let Ok(state) = folder.load() {
            all.push(described(&state, &folder)?);
        }
    }
    all.sort_by_key(|one| one["id"].to_string());
    if is_json && !local.quiet {
        return print(&serde_json::Value::from(all).to_string());
    }
    let text = |value: &serde_json::Value| match value.as_str() {
        Some(text) => text.to_owned(),
        None => value.to_string(),
    };
    let row = |one: &serde_json::Value| {
        ["id", "pid", "status", "bundle", "created"].map(|field| text(&one[field]))
    };
    if local.quiet {
        return all.iter().try_for_each(|one| print(&text(&one["id"])));
    }
    let heads = ["ID", "PID", "STATUS", "BUNDLE", "CREATED"].map(str::to_owned);
    let rows: Vec<[String; 5]> = std::iter::once(heads).chain(all.iter().map(row)).collect();
    for [id, pid, status, bundle, created] in &rows {
        let width = |at: usize| rows.iter().map(|row| row[at].len()).max().unwrap_or_default();
        print(&format!(
            "{id:0$}   {pid:1$}   {status:2$}   {bundle:3$}   {created}",
            width(0),
            width(1),
            width(2),
            width(3)
        ))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_go_by_number_and_by_name() {
        for text in ["9", "KILL", "SIGKILL", "sigkill"] {
            assert_eq!(signal(text).unwrap(), Some(Signal::KILL));
        }
        assert_eq!(signal("SIGTERM").unwrap(), Some(Signal::TERM));
        assert!(signal("SIGNAL").is_err());
        assert_eq!(signal("0").unwrap(), None);
    }
}
