//! Cgroups of containers and of Mooring's pods that nobody is in any more, or only what runs on without a shim.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use mooring::{resources::Resource, sandbox::survey::Hands};

use super::Look;
use crate::doctor::{
    finding::{Finding, Sure, word},
    world::{Owner, State, World, bundles::folders},
};

/// Deeper than any kubelet nests.
const DEEPEST: usize = 12;

pub struct Cgroups;

impl Look for Cgroups {
    fn name(&self) -> &'static str {
        "cgroup"
    }

    fn is_slow(&self) -> bool {
        true
    }

    fn findings(&self, world: &World) -> Vec<Finding> {
        let mut groups: BTreeMap<(Option<String>, String), Vec<PathBuf>> = BTreeMap::new();
        for top in hierarchies(world) {
            walk(world, &top, &top, DEEPEST, &mut |namespace, id, path| {
                if world.states.iter().any(|state| state.cgroups.contains(&path)) {
                    return;
                }
                groups.entry((namespace, id)).or_default().push(path);
            });
        }
        let mut all: Vec<Finding> = groups
            .into_iter()
            .filter_map(|((namespace, id), paths)| self.judge(world, namespace, &id, &paths))
            .collect();
        all.extend(world.states.iter().filter_map(|state| self.of_state(world, state)));
        all.extend(self.of_pods(world));
        all
    }
}

/// Where hierarchies are mounted, each once.
fn hierarchies(world: &World) -> Vec<PathBuf> {
    let mounts = world.mounts.iter().filter(|mount| mount.kind.starts_with("cgroup"));
    let mut all: Vec<PathBuf> = mounts.map(|mount| mount.target.clone()).collect();
    all.sort();
    all.dedup();
    all
}

/// Calls `found` for every group that is named as a container's.
fn walk(
    world: &World,
    top: &Path,
    at: &Path,
    depth: usize,
    found: &mut dyn FnMut(Option<String>, String, PathBuf),
) {
    for path in folders(at) {
        if let Some((namespace, id)) = container(world, top, &path) {
            found(namespace, id, path);
        } else if depth > 0 {
            walk(world, top, &path, depth - 1, found);
        }
    }
}

/// Whose a group is by its name: `/NAMESPACE/ID` as ctr has it, CRI's 64 digits below the kubelet's groups or its own
/// namespace's, `cri-containerd-ID.scope` with systemd.
fn container(world: &World, top: &Path, path: &Path) -> Option<(Option<String>, String)> {
    let name = path.file_name()?.to_str()?;
    let below = path.strip_prefix(top).ok()?;
    let parent = below.parent()?.to_str()?;
    let is_long = |id: &str| id.len() == 64 && id.bytes().all(|digit| digit.is_ascii_hexdigit());
    let scope = name.strip_suffix(".scope").and_then(|name| name.strip_prefix("cri-containerd-"));
    if let Some(id) = scope.filter(|id| is_long(id)) {
        return Some((None, id.to_owned()));
    }
    if is_long(name) && parent.contains("kubepods") {
        return Some((None, name.to_owned()));
    }
    let is_namespace = ["default", "k8s.io"].contains(&parent)
        || world.records().is_some_and(|records| {
            let mut all = records.containers.iter().chain(&records.sandboxes);
            all.any(|(namespace, _)| namespace == parent)
        })
        || world.found.iter().any(|found| found.namespace.as_str() == parent)
        || world.bundles.iter().any(|bundle| bundle.namespace == parent);
    is_namespace.then(|| (Some(parent.to_owned()), name.to_owned()))
}

/// Whether any process is in a group or below it.
fn is_populated(path: &Path) -> bool {
    let own = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
    !own.trim().is_empty() || folders(path).iter().any(|below| is_populated(below))
}

impl Cgroups {
    fn judge(
        &self,
        world: &World,
        namespace: Option<String>,
        id: &str,
        paths: &[PathBuf],
    ) -> Option<Finding> {
        let owner = match &namespace {
            Some(namespace) => world.owner(namespace, id),
            None => world.owner_of(id),
        };
        if owner >= Owner::Doubtful {
            return None;
        }
        let whose =
            namespace.map_or_else(|| world.name_of(id), |namespace| format!("{namespace}/{id}"));
        let finding = self.finding(world, paths)?;
        if owner == Owner::Left {
            return Some(finding.ours(whose));
        }
        if paths.iter().any(|path| is_populated(path)) {
            return None;
        }
        let (sure, why) = world.nobodys();
        let why = format!("nobody is in it; {why}");
        Some(finding.of(whose).because(sure, why).freed_by(removal(paths)))
    }

    /// Of containers without a shim: their OCI runtime removes the group with them.
    fn of_state(&self, world: &World, state: &State) -> Option<Finding> {
        let there: Vec<PathBuf> =
            state.cgroups.iter().filter(|path| path.exists()).cloned().collect();
        let finding = self.finding(world, &there)?;
        let whose = format!("{}/{}", state.namespace, state.id);
        match world.owner(&state.namespace, &state.id) {
            Owner::Lives | Owner::Doubtful => return None,
            Owner::Left => return Some(finding.ours(whose)),
            Owner::Recorded | Owner::Unknown => {}
        }
        let is_empty = state.running(&world.processes).is_none();
        if !is_empty && !world.is_orphan(state) {
            return None;
        }
        let (sure, why) = if is_empty {
            (world.nobodys().0, "of a container that does not run and has no shim")
        } else {
            (Sure::Certain, "a container without a shim is in it, and it goes with it")
        };
        let command = super::runtime::removal(state);
        Some(finding.of(whose).because(sure, why).freed_by(command))
    }

    fn finding(&self, world: &World, paths: &[PathBuf]) -> Option<Finding> {
        let first = paths.first()?;
        let more = match paths.get(1..).map_or(0, <[_]>::len) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let modified = fs::metadata(first).and_then(|about| about.modified()).ok();
        let what = format!("{}{more}", first.display());
        Some(Finding::new(self.name(), what).since(modified, world.now))
    }

    /// Groups that a journal names, of sandboxes whose shim is gone: their client chose the names.
    fn of_pods(&self, world: &World) -> Vec<Finding> {
        let left = world.found.iter().filter(|found| found.hands == Hands::Nobody);
        let mut all = Vec::new();
        for found in left {
            let entries = found.journal.iter().flat_map(|journal| &journal.entries);
            for entry in entries {
                let Resource::Cgroup(record) = &entry.resource else { continue };
                let there = record.created.folders.iter().filter(|path| path.exists());
                let paths: Vec<PathBuf> = there.cloned().collect();
                let whose = format!("{}/{}", found.namespace, found.id);
                all.extend(self.finding(world, &paths).map(|one| one.ours(whose)));
            }
        }
        all
    }
}

fn removal(paths: &[PathBuf]) -> String {
    let is_scope = |path: &&PathBuf| path.extension().is_some_and(|kind| kind == "scope");
    let scope = paths.first().filter(is_scope).and_then(|path| path.file_name());
    if let Some(scope) = scope {
        return format!("systemctl stop {}", word(scope));
    }
    let paths: Vec<String> = paths.iter().map(word).collect();
    format!("find {} -depth -type d -exec rmdir {{}} +", paths.join(" "))
}
