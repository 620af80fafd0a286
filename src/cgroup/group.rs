//! One control group, in every hierarchy that it has a folder in.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{Error, Hierarchies, hierarchy::Hierarchy, is_gone};
use crate::sys::survivor::Survivors;

/// A control group: its folder in the v2 hierarchy, and in that of each v1 controller.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Cgroup {
    /// The folder in the unified hierarchy.
    pub v2: Option<PathBuf>,
    /// The folder of each v1 controller (or `name=…`).
    pub v1: BTreeMap<String, PathBuf>,
}

/// The folders that [`Cgroup::ensure`] had to make, deepest last: only they may be removed again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Created {
    pub folders: Vec<PathBuf>,
}

impl Cgroup {
    /// The groups of a process. Groups that this process is in itself, or that enclose it, are left out: they are not
    /// the other's own, and killing everything in them would be our end too.
    pub fn of_process(pid: i32) -> Result<Self, Error> {
        let hierarchies = Hierarchies::read()?;
        let read =
            |path: &str| fs::read_to_string(path).map_err(Error::at("read", Path::new(path)));
        let mut group = hierarchies.parse_groups(&read(&format!("/proc/{pid}/cgroup"))?);
        let own = hierarchies.parse_groups(&read("/proc/self/cgroup")?);
        let foreign =
            |path: &Path, own: Option<&PathBuf>| own.is_none_or(|own| !own.starts_with(path));
        group.v2 = group.v2.filter(|path| foreign(path, own.v2.as_ref()));
        group.v1.retain(|controller, path| foreign(path, own.v1.get(controller)));
        Ok(group)
    }

    pub(super) fn put(&mut self, hierarchy: &Hierarchy, folder: PathBuf) {
        if hierarchy.is_v2() {
            self.v2 = Some(folder);
            return;
        }
        for controller in &hierarchy.controllers {
            self.v1.insert(controller.clone(), folder.clone());
        }
    }

    /// Whether there is no folder at all.
    pub fn is_empty(&self) -> bool {
        self.v2.is_none() && self.v1.is_empty()
    }

    /// Whether controllers are those of v2.
    pub fn is_unified(&self) -> bool {
        self.v2.is_some() && self.v1.keys().all(|name| name.starts_with("name="))
    }

    /// Each folder once (controllers that are mounted together share theirs).
    pub fn folders(&self) -> BTreeSet<&Path> {
        self.v1.values().chain(&self.v2).map(PathBuf::as_path).collect()
    }

    /// The processes in this group and the groups below it.
    pub fn pids(&self) -> Result<Vec<i32>, Error> {
        let mut pids = BTreeSet::new();
        if let Some(folder) = self.membership() {
            collect(folder, &mut pids)?;
        }
        Ok(pids.into_iter().collect())
    }

    /// What of the group has not ended. Nothing where it cannot be read.
    pub fn survivors(&self) -> Survivors {
        Survivors::among(self.pids().unwrap_or_default())
    }

    /// The folder that tells most surely which processes belong to the group.
    pub(super) fn membership(&self) -> Option<&Path> {
        let named = ["freezer", "pids", "devices", "memory"];
        let v1 =
            || named.iter().find_map(|name| self.v1.get(*name)).or_else(|| self.v1.values().next());
        let found = if self.is_unified() { self.v2.as_ref() } else { v1() };
        found.or(self.v2.as_ref()).map(PathBuf::as_path)
    }

    /// The path of `file` of `controller`: in its v1 hierarchy, else in v2.
    pub fn file(&self, controller: &str, file: &str) -> Option<PathBuf> {
        self.v1.get(controller).or(self.v2.as_ref()).map(|folder| folder.join(file))
    }

    /// Makes the folders that are missing, parents too, and on v2 has the parents pass on their controllers.
    pub fn ensure(&self) -> Result<Created, Error> {
        let mut created = Created::default();
        for folder in self.folders() {
            let made = self.ensure_folder(folder, &mut created);
            if let Err(error) = made {
                created.remove();
                return Err(error);
            }
        }
        Ok(created)
    }

    fn ensure_folder(&self, folder: &Path, created: &mut Created) -> Result<(), Error> {
        let mut missing: Vec<&Path> =
            folder.ancestors().take_while(|path| !path.exists()).collect();
        missing.reverse();
        for path in missing {
            match fs::DirBuilder::new().mode(0o755).create(path) {
                Ok(()) => created.folders.push(path.to_owned()),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(Error::at("make cgroup", path)(error)),
            }
        }
        if self.v1.get("cpuset").is_some_and(|cpuset| cpuset == folder) {
            // Also of those above, which others may have made and left so.
            let empty = folder.ancestors().take_while(|path| is_empty_cpuset(path));
            for path in empty.collect::<Vec<_>>().into_iter().rev() {
                inherit_cpuset(path);
            }
        }
        if self.v2.as_deref() == Some(folder) && self.is_unified() {
            let mut parents: Vec<&Path> = folder
                .ancestors()
                .skip(1)
                .take_while(|path| path.join("cgroup.controllers").exists())
                .collect();
            parents.reverse();
            parents.into_iter().for_each(pass_on);
        }
        Ok(())
    }

    /// Sets the group's share of the processor, in v1's measure (1024 is the usual one, 2 the least).
    pub fn set_shares(&self, shares: u64) -> Result<(), Error> {
        let (path, value) = if let Some(folder) = self.v1.get("cpu") {
            (folder.join("cpu.shares"), shares)
        } else if let Some(folder) = &self.v2 {
            let shares = shares.clamp(2, 262_144);
            (folder.join("cpu.weight"), 1 + ((shares - 2) * 9999) / 262_142)
        } else {
            return Ok(());
        };
        fs::write(&path, value.to_string()).map_err(Error::at("write", &path))
    }

    /// Lets a container that has a cgroup namespace of its own manage groups below its root: on v2 the controllers
    /// of the group are passed on to its children. The kernel refuses that while the group holds processes itself,
    /// except at a hierarchy's root, so this is for a group made for it; a refusal is no error.
    pub fn delegate(&self) {
        if let Some(folder) = self.v2.as_deref().filter(|_| self.is_unified()) {
            folder
                .ancestors()
                .skip(1)
                .take_while(|path| path.join("cgroup.controllers").exists())
                .for_each(pass_on);
        }
    }
}

impl Created {
    /// Removes the folders again, as far as nobody uses them.
    pub fn remove(&self) {
        for folder in self.folders.iter().rev() {
            // In use or gone: both mean that it is not ours to remove.
            let _ = fs::remove_dir(folder);
        }
    }
}

/// Passes every controller that `folder` has on to its children, one by one: one that is refused spoils no other.
fn pass_on(folder: &Path) {
    let control = folder.join("cgroup.subtree_control");
    let Ok(available) = fs::read_to_string(folder.join("cgroup.controllers")) else { return };
    let enabled = fs::read_to_string(&control).unwrap_or_default();
    for controller in available.split_whitespace() {
        if !enabled.split_whitespace().any(|known| known == controller) {
            // A controller that cannot be passed on here is simply not available below.
            let _ = fs::write(&control, format!("+{controller}"));
        }
    }
}

const CPUSET: [&str; 2] = ["cpuset.cpus", "cpuset.mems"];

fn is_empty(file: &Path) -> bool {
    fs::read_to_string(file).is_ok_and(|value| value.trim().is_empty())
}

fn is_empty_cpuset(folder: &Path) -> bool {
    CPUSET.iter().any(|file| is_empty(&folder.join(file)))
}

/// A new v1 cpuset has no processors and takes no process until it has some. What it has is left as it is.
fn inherit_cpuset(folder: &Path) {
    let Some(parent) = folder.parent() else { return };
    for file in CPUSET.iter().filter(|file| is_empty(&folder.join(file))) {
        if let Ok(value) = fs::read_to_string(parent.join(file)) {
            // Without it a process is refused later, by a message that names this file.
            let _ = fs::write(folder.join(file), value.trim());
        }
    }
}

fn collect(folder: &Path, pids: &mut BTreeSet<i32>) -> Result<(), Error> {
    let procs = folder.join("cgroup.procs");
    match fs::read_to_string(&procs) {
        Ok(text) => pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok())),
        Err(error) if is_gone(&error) => return Ok(()),
        // A threaded group has no processes of its own: they are listed further up.
        Err(error) if error.raw_os_error() == Some(nix::errno::Errno::EOPNOTSUPP as i32) => {}
        Err(error) => return Err(Error::at("read", &procs)(error)),
    }
    for child in children(folder).map_err(Error::at("list", folder))? {
        collect(&child, pids)?;
    }
    Ok(())
}

/// The groups directly below `folder`; none where it is gone.
pub(super) fn children(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if is_gone(&error) => return Ok(Vec::new()),
        other => other?,
    };
    let mut children = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            children.push(entry.path());
        }
    }
    Ok(children)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::{process::testing::TestChild, sys::identity::Pinned};

    #[test]
    fn a_cpuset_takes_from_its_parent_only_what_it_has_not() {
        let parent = tempfile::tempdir().unwrap();
        let own = parent.path().join("own");
        fs::create_dir(&own).unwrap();
        for (folder, cpus, mems) in [(parent.path(), "0-3\n", "0-1\n"), (&own, "\n", "1\n")] {
            fs::write(folder.join("cpuset.cpus"), cpus).unwrap();
            fs::write(folder.join("cpuset.mems"), mems).unwrap();
        }
        assert!(is_empty_cpuset(&own) && !is_empty_cpuset(parent.path()));
        inherit_cpuset(&own);
        let read = |file: &str| fs::read_to_string(own.join(file)).unwrap();
        assert_eq!((read("cpuset.cpus").trim(), read("cpuset.mems").trim()), ("0-3", "1"));
    }

    #[test]
    fn what_was_made_is_remembered_and_only_that_is_removed() {
        let name = format!("/mooring-unit-{}", std::process::id());
        let hierarchies = Hierarchies::read().unwrap();
        let outer = hierarchies.group(&name).unwrap();
        let inner = hierarchies.group(&format!("{name}/a/b")).unwrap();
        let first = outer.ensure().unwrap();
        let second = inner.ensure().unwrap();
        assert!(inner.folders().iter().all(|folder| folder.exists()));
        assert_eq!(second.folders.len(), 2 * first.folders.len());
        inner.set_shares(2).unwrap();
        second.remove();
        assert!(outer.folders().iter().all(|folder| folder.exists()));
        first.remove();
        assert!(outer.folders().iter().all(|folder| !folder.exists()));
    }

    #[test]
    fn our_own_group_is_never_taken_for_anothers() {
        let mut child = TestChild::start(Command::new("sleep").arg("60"));
        let group = Cgroup::of_process(child.pid).unwrap();
        Pinned::new(child.pid, None)
            .unwrap()
            .unwrap()
            .signal(rustix::process::Signal::KILL)
            .unwrap();
        child.status();
        assert_eq!(group, Cgroup::default());
    }
}
