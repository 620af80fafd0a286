//! veth pairs, ports of bridges among them, whose other end belongs to nobody.

use std::{
    collections::BTreeMap,
    fs::File,
    os::{fd::AsFd, unix::fs::MetadataExt},
    path::PathBuf,
};

use mooring::network::links::{self, Link};

use super::Look;
use crate::doctor::{
    finding::{Finding, Sure, word},
    world::World,
};

pub struct Links;

impl Look for Links {
    fn name(&self) -> &'static str {
        "veth"
    }

    fn findings(&self, world: &World) -> Vec<Finding> {
        let Ok(all) = links::read() else { return Vec::new() };
        let veths: Vec<&Link> = all.iter().filter(|link| link.kind == "veth").collect();
        if veths.is_empty() {
            return Vec::new();
        }
        let dangling = world.dangling_netns();
        let numbers = numbers(world);
        let judged = veths.into_iter().filter_map(|link| {
            let bridge = link.master.and_then(|master| all.iter().find(|one| one.index == master));
            let what = match bridge {
                Some(bridge) => format!("{}, a port of {}", link.name, bridge.name),
                None => link.name.clone(),
            };
            let finding = Finding::new(self.name(), what);
            let Some(number) = link.peer_netns else { return of_one_namespace(link, finding) };
            let Some(inode) = numbers.get(&number) else {
                let why = "no process is in the namespace of its other end, and nothing is mounted for it here";
                return Some(finding.because(Sure::Unsure, why).freed_by(removal(link)));
            };
            let (path, _, netns) = dangling.iter().find(|(_, other, _)| *other == Some(*inode))?;
            let why = format!("its other end is in {}: {}", path.display(), netns.why);
            let command = match netns.whose {
                Some(_) if netns.sure == Sure::Certain => netns.frees.clone().unwrap_or_default(),
                _ => removal(link),
            };
            let finding = Finding { whose: netns.whose.clone(), since: netns.since, ..finding };
            Some(finding.because(netns.sure, why).freed_by(command))
        });
        judged.collect()
    }
}

fn removal(link: &Link) -> String {
    format!("ip link delete {}", word(&link.name))
}

/// Both ends are in the node's own namespace: so plugins leave a pair when they are killed before one end is moved.
fn of_one_namespace(link: &Link, finding: Finding) -> Option<Finding> {
    let digits = link.name.strip_prefix("veth")?;
    let by_plugin = digits.len() == 8 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    by_plugin.then(|| {
        let why = "named as a plugin's, and its other end was not moved into any pod";
        finding.because(Sure::Unsure, why).freed_by(removal(link))
    })
}

/// The kernel's numbers of namespaces, by the number under which this namespace's links name them.
fn numbers(world: &World) -> BTreeMap<i32, u64> {
    let mut known: BTreeMap<u64, PathBuf> = BTreeMap::new();
    for process in world.processes.values() {
        known.extend(process.netns.clone());
    }
    let mounted = world.mounts.iter().filter(|entry| entry.kind == "nsfs");
    let mut files: Vec<PathBuf> = mounted.map(|entry| entry.target.clone()).collect();
    files.extend(known.into_values());
    let number = |path: PathBuf| {
        // Namespaces of other kinds have no such number.
        let file = File::open(path).ok()?;
        let inode = file.metadata().ok()?.ino();
        Some((links::number_of(file.as_fd()).ok()??, inode))
    };
    files.into_iter().filter_map(number).collect()
}
