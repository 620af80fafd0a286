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

/// What CNI has cached on this node, and whose it is.
pub struct Attachments<'w> {
    world: &'w World,
    /// Network namespaces that are there and nobody's.
    dangling: BTreeSet<PathBuf>,
}

/// Whose an attachment is.
pub enum Fate {
    /// Somebody's, for this reason.
    InUse(String),
    /// Of a sandbox of Mooring's whose shim is gone.
    Left,
    /// Nobody's: how sure that is, and why.
    Dead(Sure, String),
}

impl<'w> Attachments<'w> {
    pub fn of(world: &'w World) -> Self {
        let dangling = world.dangling_netns().into_iter().map(|(path, _, _)| path).collect();
        Self { world, dangling }
    }

    /// Each with the cache that it is in.
    pub fn all(&self) -> impl Iterator<Item = (PathBuf, &'w CachedAttachment)> {
        let caches = &self.world.places.cni_caches;
        self.world.attachments.0.iter().filter_map(|one| {
            let cache = caches.iter().find(|cache| file_in(cache, one).exists())?;
            Some((cache.clone(), one))
        })
    }

    pub fn fate(&self, one: &CachedAttachment) -> Fate {
        let world = self.world;
        match world.owner_of(&one.container_id) {
            Owner::Lives => return Fate::InUse("a shim serves it".to_owned()),
            Owner::Doubtful => return Fate::InUse("a sandbox may have it".to_owned()),
            Owner::Recorded => return Fate::InUse("containerd has a record of it".to_owned()),
            Owner::Left => return Fate::Left,
            Owner::Unknown => {}
        }
        let path = plain(&one.netns);
        let (sure, why) = world.nobodys();
        if !netns::is_open(&path) {
            let asked = matches!(world.containerd, Asked::Records(_));
            let sure = if asked { Sure::Certain } else { Sure::Likely };
            return Fate::Dead(sure, format!("its network namespace is gone; {why}"));
        }
        if self.dangling.contains(&path) {
            return Fate::Dead(sure, format!("nobody is in its network namespace; {why}"));
        }
        Fate::InUse("somebody has its network namespace".to_owned())
    }

    /// The addresses that host-local has reserved in a network, and for which container.
    pub fn reserved_in(&self, network: &str) -> Vec<(PathBuf, String)> {
        let folders = ipam(self.world).into_iter().map(|folder| folder.join(network));
        folders.flat_map(|folder| reserved(&folder)).collect()
    }

    /// What is to be said of a thing that belongs to an attachment.
    fn judged(&self, one: &CachedAttachment, finding: Finding) -> Option<Finding> {
        let whose = self.world.name_of(&one.container_id);
        match self.fate(one) {
            Fate::InUse(_) => None,
            Fate::Left => Some(finding.ours(whose)),
            Fate::Dead(sure, why) => {
                let command = format!("mooring gc --yes --attachment {}", word(&one.container_id));
                Some(finding.of(whose).because(sure, why).freed_by(command))
            }
        }
    }
}

fn file_in(cache: &Path, one: &CachedAttachment) -> PathBuf {
    let name = format!("{}-{}-{}", one.list.name(), one.container_id, one.ifname);
    cache.join("results").join(name)
}

fn modified(path: &Path) -> Option<std::time::SystemTime> {
    fs::metadata(path).and_then(|about| about.modified()).ok()
}

pub struct Results;

impl Look for Results {
    fn name(&self) -> &'static str {
        "cni result"
    }

    fn findings(&self, world: &World) -> Vec<Finding> {
        let attachments = Attachments::of(world);
        let judged = attachments.all().filter_map(|(cache, one)| {
            let path = file_in(&cache, one);
            let finding = Finding::new(self.name(), path.display().to_string());
            attachments.judged(one, finding.since(modified(&path), world.now))
        });
        let mut all: Vec<Finding> = judged.collect();
        all.extend(world.attachments.1.iter().map(|problem| {
            Finding::new(self.name(), problem.to_string())
                .because(Sure::Unsure, "whose it is cannot be read")
        }));
        all
    }
}

pub struct Reservations;

impl Look for Reservations {
    fn name(&self) -> &'static str {
        "reservation"
    }

    fn findings(&self, world: &World) -> Vec<Finding> {
        let attachments = Attachments::of(world);
        let networks = ipam(world).into_iter().flat_map(|folder| folders(&folder));
        let addresses = networks.flat_map(|network| reserved(&network));
        let judged = addresses.filter_map(|(path, id)| {
            let finding = Finding::new(self.name(), path.display().to_string());
            let finding = finding.since(modified(&path), world.now);
            judge_address(&attachments, finding, &path, &id)
        });
        judged.collect()
    }
}

fn judge_address(
    attachments: &Attachments<'_>,
    finding: Finding,
    path: &Path,
    id: &str,
) -> Option<Finding> {
    let world = attachments.world;
    let mut attached = attachments.all().filter(|(_, one)| one.container_id == id).peekable();
    if attached.peek().is_some() {
        let judged: Option<Vec<Finding>> =
            attached.map(|(_, one)| attachments.judged(one, finding.clone())).collect();
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
            let command = format!("rm {}", word(path));
            Some(finding.of(whose).because(sure, why).freed_by(command))
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
