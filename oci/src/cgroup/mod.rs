//! A container's control group: made, limited, frozen, removed.

pub mod devices;
mod entrance;
mod v1;
pub mod v2;

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

pub use entrance::Entrance;
use mooring::cgroup::{Cgroup, Hierarchies};

use crate::{
    error::{Doing, Error, Result},
    spec::Resources,
};

/// The group that a specification names; without a name one after the container's.
pub fn planned(path: &str, id: &str) -> Result<Cgroup> {
    let path = if path.is_empty() { id } else { path };
    let clean = crate::rooted::clean(Path::new(path));
    Ok(Hierarchies::read()?.group(&clean.display().to_string())?)
}

/// Makes the group with its limits. A group that has processes already is another container's, and in one that is frozen the
/// container's process would hang for ever.
pub fn make(group: &Cgroup, resources: Option<&Resources>) -> Result<()> {
    let why = if group.pids().is_ok_and(|pids| !pids.is_empty()) {
        Some("is not empty")
    } else {
        holds_processes(group).then_some("is frozen")
    };
    if let Some(why) = why {
        let folders = group.folders();
        let place = folders.first().map(|one| one.display().to_string()).unwrap_or_default();
        return Err(Error::invalid(format!("control group {place} {why}")));
    }
    let created = group.ensure()?;
    let Some(resources) = resources else { return Ok(()) };
    let limited = limit(group, resources).and_then(|()| devices::apply(group, &resources.devices));
    if limited.is_err() {
        created.remove();
    }
    limited
}

/// Makes the container's what systemd has made around process `pid`.
pub fn adopt(group: &Cgroup, pid: i32, resources: Option<&Resources>) -> Result<()> {
    let found = Cgroup::of_process(pid)?;
    if found != *group {
        let places = |group: &Cgroup| {
            let folders = group.folders();
            folders.into_iter().map(|one| one.display().to_string()).collect::<Vec<_>>().join(", ")
        };
        return Err(Error::invalid(format!(
            "systemd has put the container's process into {:?} and not into {:?}",
            places(&found),
            places(group)
        )));
    }
    // It passes on the controllers that it knows; here the others are.
    group.ensure()?;
    let Some(resources) = resources else { return Ok(()) };
    limit(group, resources)?;
    devices::apply(group, &resources.devices)
}

/// Whether new limits leave what is used already, where they shall only then be set.
pub fn fits(group: &Cgroup, resources: &Resources) -> Result<()> {
    if group.is_unified() { v2::fits(group.v2.as_deref(), &resources.memory) } else { Ok(()) }
}

/// The limits that a container is made under, where they let in fewer processes than take part in that: the others are its
/// own once it is made.
pub fn while_made(resources: &Resources) -> Option<Resources> {
    /// The one that is started, the one that it starts in the namespaces, and a hook.
    const MAKERS: i64 = 4;
    resources.pids.limit.filter(|limit| (1..MAKERS).contains(limit))?;
    let mut while_made = resources.clone();
    while_made.pids.limit = Some(MAKERS);
    Some(while_made)
}

/// Sets the limits that `resources` has.
pub fn limit(group: &Cgroup, resources: &Resources) -> Result<()> {
    let unified = group.is_unified();
    if !unified && !resources.unified.is_empty() {
        return Err(Error::unsupported("linux.resources.unified on cgroup v1"));
    }
    if unified { v2::apply(group, resources) } else { v1::apply(group, resources) }
}

/// Holds the group's processes, or lets them go on.
pub fn freeze(group: &Cgroup, frozen: bool) -> Result<()> {
    if let Some(folder) = group.v1.get("freezer") {
        let file = folder.join("freezer.state");
        let wanted = if frozen { "FROZEN" } else { "THAWED" };
        // Processes that are just starting others escape the first attempts.
        for _ in 0..1000 {
            fs::write(&file, wanted).doing_at("write", &file)?;
            let now = fs::read_to_string(&file).doing_at("read", &file)?;
            if now.trim() == wanted {
                return Ok(());
            }
            std::thread::sleep(std::time::Duration::from_micros(500));
        }
        // What hangs in the kernel cannot be frozen, and must not keep the others half frozen.
        fs::write(&file, "THAWED").doing_at("write", &file)?;
        return Err(Error::invalid(format!("{} does not become {wanted}", file.display())));
    }
    let Some(folder) = &group.v2 else {
        return Err(Error::invalid("the container has no control group that can be frozen"));
    };
    let file = folder.join("cgroup.freeze");
    fs::write(&file, if frozen { "1" } else { "0" }).doing_at("write", &file)?;
    let events = folder.join("cgroup.events");
    let wanted = if frozen { "frozen 1" } else { "frozen 0" };
    for _ in 0..10_000 {
        let now = fs::read_to_string(&events).doing_at("read", &events)?;
        if now.lines().any(|line| line == wanted) {
            return Ok(());
        }
        std::thread::sleep(std::time::Duration::from_micros(500));
    }
    Err(Error::invalid(format!("{} does not say {wanted:?}", events.display())))
}

fn says(folder: &Path, file: &str, text: &str) -> bool {
    fs::read_to_string(folder.join(file)).is_ok_and(|now| now.lines().any(|line| line == text))
}

/// Whether what comes into the group is frozen.
fn holds_processes(group: &Cgroup) -> bool {
    let is_told = |folder: &PathBuf| says(folder, "cgroup.freeze", "1");
    is_frozen(group) || group.v2.as_ref().is_some_and(is_told)
}

/// Whether the group is frozen.
pub fn is_frozen(group: &Cgroup) -> bool {
    match (group.v1.get("freezer"), &group.v2) {
        (Some(folder), _) => says(folder, "freezer.state", "FROZEN"),
        (None, Some(folder)) => says(folder, "cgroup.events", "frozen 1"),
        (None, None) => false,
    }
}

/// Writes one limit of a controller; a controller that is not there makes it unsupported.
fn set(folder: Option<&Path>, file: &str, value: impl std::fmt::Display, what: &str) -> Result<()> {
    let Some(folder) = folder else {
        return Err(Error::unsupported(format!("{what} (no controller)")));
    };
    let path = folder.join(file);
    match fs::write(&path, value.to_string()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(Error::unsupported(format!("{what}: there is no {}", path.display())))
        }
        other => other.doing(&format!("write \"{value}\" to {}", path.display())),
    }
}

/// Kills what is in the group, and removes it. Dying processes leave it in a moment, or hang in the kernel's hands.
pub fn remove(group: &Cgroup) -> Result<()> {
    group.kill_all()?;
    for folder in group.folders() {
        let until = Instant::now() + PATIENCE;
        loop {
            match remove_tree(folder) {
                Ok(()) => break,
                Err(error)
                    if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < until =>
                {
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(error) => return Err(error).doing_at("remove", folder),
            }
        }
    }
    Ok(())
}

/// How long dying processes are waited for.
const PATIENCE: Duration = Duration::from_secs(5);

fn remove_tree(folder: &Path) -> io::Result<()> {
    let gone = |answer: io::Result<()>| match answer {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    };
    match gone(fs::remove_dir(folder)) {
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
            for entry in fs::read_dir(folder)? {
                let entry = entry?;
                if entry.file_type()?.is_dir() {
                    remove_tree(&entry.path())?;
                }
            }
            gone(fs::remove_dir(folder))
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn said(group: &Cgroup, resources: &Value) -> String {
        let read = crate::load::resources(resources.to_string().as_bytes()).unwrap();
        limit(group, &read).map_or_else(|error| error.to_string(), |()| "accepted".into())
    }

    #[test]
    fn limits_that_this_kind_of_group_has_not_are_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let v2 = Cgroup { v2: Some(folder.path().to_owned()), ..Cgroup::default() };
        let with = |names: &[&str]| {
            let mut group = Cgroup::default();
            for name in names {
                group.v1.insert((*name).to_owned(), folder.path().to_owned());
            }
            group
        };
        let v1 = with(&["memory", "cpu", "blkio"]);
        let leaf = json!({"blockIO": {"leafWeight": 10}});
        let leaf_of_device =
            json!({"blockIO": {"weightDevice": [{"major": 8, "minor": 0, "leafWeight": 10}]}});
        let tcp = json!({"memory": {"kernelTCP": 1}});
        for (group, resources, name) in [
            (&v1, json!({"unified": {"memory.high": "1"}}), "linux.resources.unified on cgroup v1"),
            (&v1, tcp.clone(), "memory.kernelTCP"),
            (&v1, leaf.clone(), "blockIO.leafWeight"),
            (&v1, leaf_of_device.clone(), "blockIO.leafWeight"),
            (&v1, json!({"pids": {"limit": 1}}), "linux.resources.pids (no controller)"),
            (&v1, json!({"network": {"classID": 1}}), "network.classID (no controller)"),
            (&v1, json!({"cpu": {"cpus": "0"}}), "linux.resources.cpu (no controller)"),
            (&v2, tcp, "memory.kernelTCP"),
            (&v2, json!({"memory": {"swappiness": 60}}), "memory.swappiness on cgroup v2"),
            (
                &v2,
                json!({"memory": {"disableOOMKiller": true}}),
                "memory.disableOOMKiller on cgroup v2",
            ),
            (&v2, json!({"memory": {"swap": 10}}), "memory.swap 10 without a limit"),
            (&v2, json!({"cpu": {"realtimeRuntime": 1}}), "cpu.realtimeRuntime on cgroup v2"),
            (&v2, json!({"cpu": {"realtimePeriod": 1}}), "cpu.realtimeRuntime on cgroup v2"),
            (&v2, json!({"network": {"classID": 1}}), "network.classID on cgroup v2"),
            (
                &v2,
                json!({"network": {"priorities": [{"name": "eth0", "priority": 1}]}}),
                "network.priorities on cgroup v2",
            ),
            (&v2, leaf, "blockIO.leafWeight"),
            (&v2, leaf_of_device, "blockIO.leafWeight"),
            (
                &v2,
                json!({"blockIO": {"weightDevice": [{"major": 8, "minor": 0, "weight": 10}]}}),
                "blockIO.weightDevice without bfq",
            ),
            (&v2, json!({"unified": {"../memory.high": "1"}}), "is no file"),
            (&v2, json!({"unified": {"memory": "1"}}), "is no file"),
        ] {
            let said = said(group, &resources);
            assert!(said.contains(name), "{resources}: {said}");
        }
        let left = fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(left, 0, "something was written all the same");
        assert_eq!(
            said(&v2, &json!({"memory": {"limit": 5}, "cpu": {"shares": 1024}})),
            "accepted"
        );
        assert_eq!(fs::read_to_string(folder.path().join("memory.max")).unwrap(), "5");
    }
}
