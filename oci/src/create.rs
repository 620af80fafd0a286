//! `create`: the container with its process, which waits to be started.

use std::{
    fs,
    path::{Path, PathBuf},
    time::SystemTime,
};

use mooring::{cgroup::Cgroup, sys::identity};
use rustix::{
    fs::{Mode, OFlags},
    process::{Pid, Signal, WaitOptions},
};
use serde_json::Value;

use crate::{
    args::{Global, Local},
    capabilities,
    cgroup::{self, Entrance},
    channel::{self, End, Message},
    check, console,
    error::{Doing, Error, Result},
    hooks,
    init::{self, Birth},
    limits, load,
    log::Log,
    namespaces::Namespaces,
    rootfs::{self, Making, Prepared},
    seccomp,
    spec::{Process, Spec},
    state::{Cgroups, Config, Folder, Own, State, paths_of},
    sys::Fork,
    systemd::{self, Scope},
};

/// What has been made so far, and goes again when the rest fails.
struct Undo {
    folder: Option<Folder>,
    group: Option<Cgroup>,
    /// systemd's unit.
    scope: Option<String>,
    children: Vec<i32>,
}

impl Drop for Undo {
    fn drop(&mut self) {
        // Frozen meanwhile, nothing of it would end.
        self.group.iter().for_each(Cgroup::thaw);
        for pid in &self.children {
            let Some(pid) = Pid::from_raw(*pid) else { continue };
            // Not reaped yet, so the number is still its own.
            let _ = rustix::process::kill_process(pid, Signal::KILL);
            let _ = rustix::process::waitpid(Some(pid), WaitOptions::empty());
        }
        if let Some(unit) = &self.scope {
            // Without a process it ends by itself.
            let _ = systemd::stop(unit);
        }
        if let Some(group) = &self.group {
            // What cannot be removed is the caller's to find by the record that it keeps.
            let _ = cgroup::remove(group);
        }
        if let Some(folder) = &self.folder {
            let _ = folder.remove();
        }
    }
}

pub fn run(root: &Path, global: &Global, local: &Local, log: &Log) -> Result<()> {
    let id = local.id()?;
    let bundle = bundle(local)?;
    let spec = load::spec(&bundle)?;
    let namespaces = Namespaces::of(&spec.linux)?;
    check::spec(&spec, &namespaces)?;
    let process = spec.process.as_ref().ok_or_else(|| Error::invalid("no process"))?;
    if process.terminal && local.console_socket.is_none() {
        return Err(Error::invalid("process.terminal without --console-socket"));
    }
    warn_of_capabilities(process, log);
    let filter = spec.linux.seccomp.as_ref().map(seccomp::compile).transpose()?;
    let (scope, group) = group_of(global.systemd_cgroup, &spec, id)?;
    let mut undo = Undo { folder: None, group: None, scope: None, children: Vec::new() };
    let folder = Folder::create(root, id)?;
    undo.folder = Some(folder.clone());
    folder.make_fifo(root_of(&spec))?;
    if let Some(filter) = &filter {
        folder.save_filter(filter)?;
    }
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let fifo = rustix::fs::open(folder.fifo(), flags, Mode::empty()).doing("open the fifo")?;
    let console = local.console_socket.as_deref().map(console::connect).transpose()?;
    let mut prepared = Prepared::of(&spec, &bundle, &namespaces)?;
    let wanted = spec.linux.resources.as_ref();
    let while_made = wanted.and_then(cgroup::while_made);
    let resources = while_made.as_ref().or(wanted);
    let mut entrance = if scope.is_some() {
        // systemd makes the group around a process that is there.
        Entrance::none()
    } else {
        cgroup::make(&group, resources)?;
        undo.group = Some(group.clone());
        Entrance::of(&group)?
    };

    let mut state = described(id, &spec, process, &group, &bundle, &prepared.root_path);
    state.config.cgroups.systemd = scope.is_some();
    state.mooring.ends_whole = namespaces.makes(libc::CLONE_NEWPID);
    state.mooring.scope = scope.as_ref().map(|scope| scope.unit().to_owned());
    let (ours, theirs) = channel::pair()?;
    let child = match entrance.fork()? {
        Fork::Child => {
            drop(ours);
            let keyring = (!local.no_new_keyring).then_some(id);
            let birth = Birth {
                spec: &spec,
                namespaces: &namespaces,
                channel: &theirs,
                console: console.as_ref(),
                filter: filter.as_ref(),
                keyring,
                preserve_fds: local.preserve_fds,
                fifo: &fifo,
                state: &state,
            };
            let mut making = Making {
                spec: &spec,
                prepared: &mut prepared,
                group: &group,
                own_cgroups: namespaces.has(libc::CLONE_NEWCGROUP),
                mapped: namespaces.has(libc::CLONE_NEWUSER),
                no_pivot: local.no_pivot,
                label: Some(spec.linux.mount_label.as_str()).filter(|label| !label.is_empty()),
            };
            init::bear(&birth, entrance, &mut making)
        }
        Fork::Parent(pid) => pid,
    };
    drop((theirs, prepared, console, entrance));
    undo.children.push(child);
    if let Some(scope) = &scope {
        scope.start(id, child, resources)?;
        undo.scope = Some(scope.unit().to_owned());
        undo.group = Some(group.clone());
        cgroup::adopt(&group, child, resources)?;
    }
    if let Some(warning) = limits::oom_score(child, process.oom_score_adj)? {
        log.warn(&warning);
    }
    ours.answer()?;
    let pid = attend(&ours, &spec, child, &mut undo.children, &mut state, log)?;
    if let (Some(_), Some(wanted)) = (&while_made, wanted) {
        if let Some(scope) = &scope {
            systemd::update(scope.unit(), wanted)?;
        }
        cgroup::limit(&group, wanted)?;
    }
    let start = identity::start_time(pid).doing("look at the container's process")?;
    state.init_process_pid = pid;
    state.init_process_start =
        start.ok_or_else(|| Error::invalid("the container's process has ended"))?;
    folder.save(&state)?;
    if let Some(path) = &local.pid_file {
        write_pid(path, pid)?;
    }
    undo.children.clear();
    undo.group = None;
    undo.scope = None;
    undo.folder = None;
    Ok(())
}

/// Rights that are asked for and cannot be had are no reason not to run.
pub fn warn_of_capabilities(process: &Process, log: &Log) {
    let ignored = process.capabilities.as_ref().map(capabilities::ignored).unwrap_or_default();
    if !ignored.is_empty() {
        log.warn(&format!("ignored capabilities: {}", ignored.join(", ")));
    }
}

/// The container's group, and systemd's unit where it is to make that.
fn group_of(systemd: bool, spec: &Spec, id: &str) -> Result<(Option<Scope>, Cgroup)> {
    if systemd {
        let (scope, group) = systemd::planned(spec, id)?;
        return Ok((Some(scope), group));
    }
    Ok((None, cgroup::planned(&spec.linux.cgroups_path, id)?))
}

/// What is kept of the container, but for its process.
fn described(
    id: &str,
    spec: &Spec,
    process: &Process,
    group: &Cgroup,
    bundle: &Path,
    root: &Path,
) -> State {
    State {
        id: id.to_owned(),
        init_process_pid: 0,
        init_process_start: 0,
        created: crate::log::seconds(SystemTime::now()),
        cgroup_paths: paths_of(group),
        intel_rdt_path: String::new(),
        rootless: false,
        config: Config {
            hooks: spec.hooks.clone().unwrap_or_default(),
            intel_rdt: None,
            cgroups: Cgroups { systemd: false },
        },
        mooring: Own {
            form: Own::form(),
            oci_version: spec.oci_version.clone(),
            bundle: bundle.to_owned(),
            rootfs: root.to_owned(),
            scope: None,
            annotations: spec.annotations.clone(),
            process: process.clone(),
            personality: spec.linux.personality.clone(),
            ends_whole: false,
        },
    }
}

/// Does for the container's process what it may not do itself, until it is ready.
fn attend(
    channel: &End,
    spec: &Spec,
    child: i32,
    children: &mut Vec<i32>,
    state: &mut State,
    log: &Log,
) -> Result<i32> {
    let mut born = None;
    loop {
        match channel.next()? {
            Some(Message::Map) => {
                let linux = &spec.linux;
                rootfs::write_mappings(child, &linux.uid_mappings, &linux.gid_mappings)?;
                channel.answer()?;
            }
            Some(Message::Offsets) => {
                rootfs::write_offsets(child, &spec.linux.time_offsets)?;
                channel.answer()?;
            }
            Some(Message::Born(pid)) => {
                state.init_process_pid = pid;
                born = Some(adopt(pid, child, children));
                channel.answer()?;
            }
            Some(Message::Hooks) => {
                let told: Value = state.told("creating");
                let all = spec.hooks.clone().unwrap_or_default();
                hooks::run("prestart", &all.prestart, &told, &[])?;
                hooks::run("createRuntime", &all.create_runtime, &told, &[])?;
                channel.answer()?;
            }
            Some(Message::Limits) => {
                let limits = spec.process.as_ref().map(|process| process.rlimits.as_slice());
                limits::set(number(born)?, limits.unwrap_or_default())?;
                channel.answer()?;
            }
            Some(Message::Ready) => {
                return number(born);
            }
            Some(Message::Warning(what)) => log.warn(&what),
            Some(Message::Failed(why)) => return Err(Error::Told(why)),
            None => return Err(Error::invalid("the container's process ended while it was made")),
        }
    }
}

/// Takes the process that `child` has made in its place, which ends: it has nothing more to do.
pub fn adopt(pid: i32, child: i32, children: &mut Vec<i32>) -> i32 {
    children.push(pid);
    let _ = rustix::process::waitpid(Pid::from_raw(child), WaitOptions::empty());
    children.retain(|one| *one != child);
    pid
}

/// The number of the process that asks.
pub fn number(born: Option<i32>) -> Result<i32> {
    born.ok_or_else(|| Error::invalid("a process asks before it is known"))
}

fn bundle(local: &Local) -> Result<PathBuf> {
    let given = local.bundle.clone().unwrap_or_else(|| ".".into());
    fs::canonicalize(&given).doing_at("find bundle", &given)
}

/// The container's root, as the node knows it.
fn root_of(spec: &Spec) -> (u32, u32) {
    let of = |list: &[crate::spec::Mapping]| {
        list.iter().find(|one| one.container_id == 0).map(|one| one.host_id)
    };
    let linux = &spec.linux;
    (of(&linux.uid_mappings).unwrap_or(0), of(&linux.gid_mappings).unwrap_or(0))
}

/// Whole or not at all: who waits for the file may read it at any moment.
pub fn write_pid(path: &Path, pid: i32) -> Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let new = path.with_file_name(format!(".{name}"));
    fs::write(&new, pid.to_string()).doing_at("write", &new)?;
    fs::rename(&new, path).doing_at("replace", path)
}
