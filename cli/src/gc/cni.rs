//! CNI's attachments that belong to no sandbox: those that are named are detached, and the plugins of Mooring's own
//! networks are told which attachments are valid, so that they remove what belongs to none.

use std::{collections::BTreeSet, fmt, time::Duration};

use anyhow::Result;
use mooring::{
    network::{
        self, CachedAttachment, CniPlugins, Collection, NetworkList, Outcome as Added, Settings,
        detach_cached,
    },
    options,
    resources::Resource,
    teardown::journal::Stage,
};
use serde::Serialize;
use tokio::time::Instant;

use super::entry::Outcome;
use crate::doctor::{
    finding::Sure,
    looks::cni::{Attachments, Fate},
    world::{Asked, Owner, World},
};

/// How long all plugins of one network or attachment may take.
const PATIENCE: Duration = Duration::from_mins(3);

/// An attachment that was named.
#[derive(Debug, Serialize)]
pub struct Detached {
    pub network: Option<String>,
    pub container_id: String,
    pub ifname: Option<String>,
    pub outcome: Outcome,
    pub why: Option<String>,
}

impl fmt::Display for Detached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "attachment of {}", self.container_id)?;
        if let (Some(ifname), Some(network)) = (&self.ifname, &self.network) {
            write!(f, ", {ifname} in network {network:?}")?;
        }
        let words = match self.outcome {
            Outcome::ToBeFreed => "DEL",
            Outcome::Freed => "freed",
            Outcome::NotFreed => "not freed",
            _ => "not touched",
        };
        write!(f, ": {words}")?;
        self.why.iter().try_for_each(|why| write!(f, ": {why}"))
    }
}

/// What is said of a network's plugins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Telling {
    /// They would be told.
    ToBeTold,
    Told,
    Failed,
    /// Another runtime shares the network, or that cannot be told.
    Refused,
    /// They know no GC.
    NotSupported,
}

/// A network of Mooring's.
#[derive(Debug, Serialize)]
pub struct Network {
    pub name: String,
    pub outcome: Telling,
    /// How many attachments are valid.
    pub valid: usize,
    /// Attachments of nobody, which are detached first: container and interface.
    pub dead: Vec<String>,
    pub why: Option<String>,
}

impl Network {
    pub fn is_finding(&self) -> bool {
        match self.outcome {
            Telling::Told | Telling::NotSupported => false,
            Telling::ToBeTold => !self.dead.is_empty(),
            Telling::Failed | Telling::Refused => true,
        }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, valid, dead, .. } = self;
        let words = match self.outcome {
            Telling::ToBeTold => "its plugins are to be told",
            Telling::Told => "its plugins were told",
            Telling::Failed => "GC failed",
            Telling::Refused => "refused",
            Telling::NotSupported => "its plugins know no GC",
        };
        write!(f, "network {name:?}: {valid} valid, {} of nobody: {words}", dead.len())?;
        self.why.iter().try_for_each(|why| write!(f, ": {why}"))
    }
}

fn soon() -> Option<Instant> {
    Instant::now().checked_add(PATIENCE)
}

/// Detaches what the cache has of a container, unless anybody has it; without `plugins` says what would be done.
pub async fn detach(world: &World, id: &str, plugins: Option<&dyn CniPlugins>) -> Vec<Detached> {
    let attachments = Attachments::of(world);
    let mut all = Vec::new();
    for (cache, one) in attachments.all().filter(|(_, one)| one.container_id == id) {
        let (outcome, why) = match (attachments.fate(one), plugins) {
            (Fate::InUse(why), _) => (Outcome::InUse, Some(why)),
            (Fate::Left, _) => {
                (Outcome::NotTouched, Some("it goes with its sandbox: \"mooring gc --yes\"".into()))
            }
            (Fate::Dead(..), None) => (Outcome::ToBeFreed, None),
            (Fate::Dead(..), Some(plugins)) => {
                let settings = Settings { cache_dir: cache.clone(), ..settings_of(&one.list) };
                match detach_cached(plugins, &settings, one.clone(), soon()).await {
                    Ok(()) => (Outcome::Freed, None),
                    Err(error) => (Outcome::NotFreed, Some(error.to_string())),
                }
            }
        };
        all.push(Detached {
            network: Some(one.list.name().to_owned()),
            container_id: id.to_owned(),
            ifname: Some(one.ifname.clone()),
            outcome,
            why,
        });
    }
    if all.is_empty() {
        let why = Some("CNI has no result of it".to_owned());
        let (container_id, outcome) = (id.to_owned(), Outcome::NotTouched);
        all.push(Detached { network: None, container_id, ifname: None, outcome, why });
    }
    all
}

/// Where the plugins of a network are: as the node's configuration has it, in which the network need not be any more.
fn settings_of(list: &NetworkList) -> Settings {
    let all = own_settings();
    let mut with = all.iter().filter(|settings| {
        let lists = network::load(settings).unwrap_or_default();
        lists.iter().any(|other| other.name() == list.name())
    });
    let found = with.next().cloned();
    found.or_else(|| all.first().cloned()).unwrap_or_default()
}

/// How the shims of this node do CNI.
fn own_settings() -> Vec<Settings> {
    let mut all: Vec<Settings> = Vec::new();
    for options in options::of_node().unwrap_or_default() {
        if !all.contains(&options.network) {
            all.push(options.network);
        }
    }
    all
}

/// Tells the plugins of each of Mooring's networks which attachments are valid, and detaches first what is nobody's;
/// without `plugins` says what would be done.
pub async fn collect(world: &World, plugins: Option<&dyn CniPlugins>) -> Vec<Network> {
    let mut all = Vec::new();
    for settings in own_settings() {
        // Not only those that pods join, but all that plugins are configured for.
        let settings = Settings { max_conf_num: 0, ..settings };
        for list in network::load(&settings).unwrap_or_default() {
            if !all.iter().any(|known: &Network| known.name == list.name()) {
                all.push(one_network(world, &settings, &list, plugins).await);
            }
        }
    }
    all
}

async fn one_network(
    world: &World,
    settings: &Settings,
    list: &NetworkList,
    plugins: Option<&dyn CniPlugins>,
) -> Network {
    let name = list.name();
    let valid = journaled(world, name);
    let judged = judge(world, name, &valid);
    let network = |outcome, dead: &BTreeSet<(String, String)>, why| Network {
        name: name.to_owned(),
        outcome,
        valid: valid.len(),
        dead: dead.iter().map(|(id, ifname)| format!("{id}/{ifname}")).collect(),
        why,
    };
    let dead = match judged {
        Ok(dead) => dead,
        Err(why) => return network(Telling::Refused, &BTreeSet::new(), Some(why)),
    };
    if !list.collects_garbage() {
        let why = format!("cniVersion {}, or disableGC", list.cni_version());
        return network(Telling::NotSupported, &dead, Some(why));
    }
    let Some(plugins) = plugins else { return network(Telling::ToBeTold, &dead, None) };
    let named = |one: &CachedAttachment| (one.container_id.clone(), one.ifname.clone());
    let is_valid = |one: &CachedAttachment| one.list.name() != name || !dead.contains(&named(one));
    let more: Vec<_> =
        valid.iter().map(|(id, ifname)| (name.to_owned(), id.clone(), ifname.clone())).collect();
    let wanted = Collection { is_valid: &is_valid, is_told: &|told| told == name, valid: &more };
    let report = network::gc(plugins, settings, wanted, soon()).await;
    let errors: Vec<String> = report.errors.iter().map(ToString::to_string).collect();
    if errors.is_empty() {
        network(Telling::Told, &dead, None)
    } else {
        network(Telling::Failed, &dead, Some(errors.join("; ")))
    }
}

/// The attachments to a network that journals name, as container and interface: of sandboxes in anybody's hands, and of
/// those whose release is still owed.
fn journaled(world: &World, network: &str) -> BTreeSet<(String, String)> {
    let journals = world.found.iter().filter_map(|found| found.journal.as_ref());
    let entries = journals.flat_map(|journal| &journal.entries);
    let records = entries.filter(|entry| entry.stage != Stage::Released).filter_map(|entry| {
        match &entry.resource {
            Resource::Network(record) => Some(record),
            _ => None,
        }
    });
    let all = records.flat_map(|record| {
        let owed = record.networks.iter();
        let owed = owed.filter(|one| one.name == network && one.outcome != Added::Removed);
        owed.map(|one| (record.container_id.clone(), one.ifname.clone()))
    });
    all.collect()
}

/// What is attached to a network and nobody's, or why its plugins cannot be told: what is another runtime's would be
/// removed with what is nobody's.
fn judge(
    world: &World,
    network: &str,
    valid: &BTreeSet<(String, String)>,
) -> Result<BTreeSet<(String, String)>, String> {
    if let Some(found) = world.found.iter().find(|found| {
        found.journal.is_none()
            && world.owner(found.namespace.as_str(), found.id.as_str()) == Owner::Doubtful
    }) {
        return Err(format!("what {} holds is not understood", found.folder.display()));
    }
    let attachments = Attachments::of(world);
    if let Some(problem) = world.attachments.1.first() {
        return Err(problem.to_string());
    }
    let mut dead = BTreeSet::new();
    for (_, one) in attachments.all().filter(|(_, one)| one.list.name() == network) {
        let name = (one.container_id.clone(), one.ifname.clone());
        if valid.contains(&name) {
            continue;
        }
        match attachments.fate(one) {
            Fate::Dead(Sure::Certain | Sure::Likely, _) => dead.insert(name),
            Fate::Dead(Sure::Unsure, why) => {
                return Err(format!("whose {} is cannot be told: {why}", one.container_id));
            }
            Fate::InUse(_) | Fate::Left => {
                let id = &one.container_id;
                return Err(format!(
                    "another runtime shares it: {id} is attached, and not by a shim of Mooring's"
                ));
            }
        };
    }
    for (_, id) in attachments.reserved_in(network) {
        let known = valid.iter().chain(&dead).any(|(other, _)| *other == id);
        if known {
            continue;
        }
        match (world.owner_of(&id), &world.containerd) {
            (Owner::Unknown, Asked::Records(_)) => {}
            (Owner::Unknown, Asked::Not(reason)) => {
                return Err(format!("whose the address of {id} is cannot be told: {reason}"));
            }
            _ => return Err(format!("another runtime shares it: {id} has an address in it")),
        }
    }
    Ok(dead)
}
