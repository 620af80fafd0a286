//! A container's control group: made, limited, frozen, removed.

pub mod devices;
mod entrance;
mod v1;
mod v2;

use std::{
    fs, io,
    path::Path,
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

/// Makes the group with its limits. A group that has processes already is another container's.
pub fn make(group: &Cgroup, resources: Option<&Resources>) -> Result<()> {
    if group.pids().is_ok_and(|pids| !pids.is_empty()) {
        let folders = group.folders();
        let place = folders.first().map(|one| one.display().to_string()).unwrap_or_default();
        return Err(Error::invalid(format!("control group {place} is not empty")));
    }
    let created = group.ensure()?;
    let Some(resources) = resources else { return Ok(()) };
    let limited = limit(group, resources).and_then(|()| devices::apply(group, &resources.devices));
    if limited.is_err() {
        created.remove();
    }
    limited
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

/// Whether the group is frozen.
pub fn is_frozen(group: &Cgroup) -> bool {
    let says = |folder: &Path, file: &str, text: &str| {
        fs::read_to_string(folder.join(file)).is_ok_and(|now| now.lines().any(|line| line == text))
    };
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
