//! Cached results of CNI, and host-local's reservations, of containers that are no more.

use std::{
    collections::BTreeSet,
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
};

use mooring::{
    network::{self, CachedAttachment, netns},
    resources::Resource,
};
use serde_json::Value;

use super::Look;
use crate::doctor::{
    finding::{Finding, Sure, word},
    world::{Asked, Owner, World, bundles::folders, records::plain},
};

pub struct Results;

impl Look for Results {
    fn name(&self) -> &'static str {
        "cni result"
    }

    fn findings(&self, world: &World) -> Vec<Finding> {
        let (attachments, problems) = &world.attachments;
        let dangling = dangling(world);
        let mut all: Vec<Finding> = attachments
            .iter()
            .filter_map(|one| {
                let path = file_of(world, one)?;
                let finding = Finding::new(self.name(), path.display().to_string());
                let finding = finding.since(modified(&path), world.now);
                judge(world, &dangling, one, finding, format!("rm {}", word(&path)))
            })
            .collect();
        all.extend(problems.iter().map(|problem| {
            Finding::new(self.name(), problem.to_string())
                .because(Sure::Unsure, "whose it is cannot be read")
        }));
        all
    }
}

fn file_of(world: &World, one: &CachedAttachment) -> Option<PathBuf> {
    let name = format!("{}-{}-{}", one.list.name(), one.container_id, one.ifname);
    let mut files = world.places.cni_caches.iter().map(|cache| cache.join("results").join(&name));
    files.find(|file| file.exists())
}

fn modified(path: &Path) -> Option<std::time::SystemTime> {
    fs::metadata(path).and_then(|about| about.modified()).ok()
}

fn dangling(world: &World) -> BTreeSet<PathBuf> {
    world.dangling_netns().into_iter().map(|(path, _, _)| path).collect()
}

/// What belongs to an attachment is judged with it.
fn judge(
    world: &World,
    dangling: &BTreeSet<PathBuf>,
    one: &CachedAttachment,
    finding: Finding,
    command: String,
) -> Option<Finding> {
    let whose = world.name_of(&one.container_id);
    match world.owner_of(&one.container_id) {
        Owner::Lives | Owner::Doubtful | Owner::Recorded => return None,
        Owner::Left => return Some(finding.ours(whose)),
        Owner::Unknown => {}
    }
    let path = plain(&one.netns);
    let (sure, why) = world.nobodys();
    let (sure, why) = if !netns::is_open(&path) {
        let sure = if matches!(world.containerd, Asked::Records(_)) {
            Sure::Certain
        } else {
            Sure::Likely
        };
        (sure, format!("its network namespace is gone; {why}"))
    } else if dangling.contains(&path) {
        (sure, format!("nobody is in its network namespace; {why}"))
    } else {
        // A stranger's, which lives.
        return None;
    };
    Some(finding.of(whose).because(sure, why).freed_by(command))
}

pub struct Reservations;

impl Look for Reservations {
    fn name(&self) -> &'static str {
        "reservation"
    }

    fn findings(&self, world: &World) -> Vec<Finding> {
        let dangling = dangling(world);
        let mut all = Vec::new();
        for folder in ipam(world) {
            for network in folders(&folder) {
                all.extend(reserved(&network).into_iter().filter_map(|(path, id)| {
                    let finding = Finding::new(self.name(), path.display().to_string());
                    let finding = finding.since(modified(&path), world.now);
                    Self::judge(world, &dangling, finding, &path, &id)
                }));
            }
        }
        all
    }
}

impl Reservations {
    fn judge(
        world: &World,
        dangling: &BTreeSet<PathBuf>,
        finding: Finding,
        path: &Path,
        id: &str,
    ) -> Option<Finding> {
        let command = format!("rm {}", word(path));
        let mut attached =
            world.attachments.0.iter().filter(|one| one.container_id == id).peekable();
        if attached.peek().is_some() {
            let judged: Option<Vec<Finding>> = attached
                .map(|one| judge(world, dangling, one, finding.clone(), command.clone()))
                .collect();
            // One attachment that lives keeps the addresses of all.
            return judged?.into_iter().next();
        }
        let whose = world.name_of(id);
        match world.owner_of(id) {
            Owner::Lives | Owner::Doubtful | Owner::Recorded => None,
            Owner::Left => Some(finding.ours(whose)),
            Owner::Unknown => {
                let (sure, why) = world.nobodys();
                let why = format!("there is no result of this container; {why}");
                Some(finding.of(whose).because(sure, why).freed_by(command))
            }
        }
    }
}

/// The addresses of a network, and the container that has each.
fn reserved(network: &Path) -> Vec<(PathBuf, String)> {
    let entries = fs::read_dir(network).into_iter().flatten().flatten();
    let mut all: Vec<(PathBuf, String)> = entries
        .filter_map(|entry| {
            // Beside them lie a lock and where the last search ended.
            entry.file_name().to_str()?.parse::<IpAddr>().ok()?;
            let text = fs::read_to_string(entry.path()).ok()?;
            let id = text.lines().next()?.trim().to_owned();
            Some((entry.path(), id))
        })
        .collect();
    all.sort();
    all
}

/// Where host-local keeps reservations: its own place, and what configurations of today and of attachments name.
fn ipam(world: &World) -> BTreeSet<PathBuf> {
    let mut all: BTreeSet<PathBuf> = world.places.ipam.iter().cloned().collect();
    let mut add = |document: &Value| {
        let plugins = document.get("plugins").and_then(Value::as_array);
        let places = plugins
            .into_iter()
            .flatten()
            .filter_map(|plugin| plugin.pointer("/ipam/dataDir").and_then(Value::as_str));
        all.extend(places.filter(|place| !place.is_empty()).map(PathBuf::from));
    };
    for conf_dir in &world.places.cni_confs {
        let settings = network::Settings {
            conf_dir: conf_dir.clone(),
            max_conf_num: 0,
            ..network::Settings::default()
        };
        for list in network::load(&settings).unwrap_or_default() {
            add(list.document());
        }
    }
    for one in &world.attachments.0 {
        add(one.list.document());
    }
    let journals = world.found.iter().filter_map(|found| found.journal.as_ref());
    for entry in journals.flat_map(|journal| &journal.entries) {
        if let Resource::Network(record) = &entry.resource {
            record.networks.iter().for_each(|network| add(&network.config));
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_are_reservations() {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in [
            ("10.0.0.2", "pod\r\neth0"),
            ("fd00::2", "pod"),
            ("lock", ""),
            ("last_reserved_ip.0", "10.0.0.2"),
        ] {
            fs::write(folder.path().join(name), text).unwrap();
        }
        let all = reserved(folder.path());
        let ids: Vec<&str> = all.iter().map(|(_, id)| id.as_str()).collect();
        assert_eq!(ids, ["pod", "pod"]);
    }
}
