//! What there is on the node and who says that it is theirs, read once: every look judges the same moment.

pub mod bundles;
pub mod processes;
pub mod records;
mod states;

use std::{
    cell::OnceCell,
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::SystemTime,
};

use mooring::{
    network::{self, CachedAttachment},
    sandbox::survey::{Found, Hands},
    sys::mountinfo,
};

use super::{
    finding::{Finding, Sure},
    places::Places,
};
use crate::{exit::CouldNot, node};
use bundles::Bundle;
use processes::Process;
use records::{Records, plain};
pub use states::State;

/// Whose an id is. The later outranks the earlier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Owner {
    /// Nobody says anything of it.
    Unknown,
    /// containerd has a record, but nothing of it need run.
    Recorded,
    /// Mooring's, and in nobody's hands.
    Left,
    /// It cannot be told: not to be touched.
    Doubtful,
    /// Somebody serves it or works on it.
    Lives,
}

/// Whether containerd was asked.
#[derive(Debug)]
pub enum Asked {
    Records(Box<Records>),
    /// Why there is no answer.
    Not(String),
}

#[derive(Debug)]
pub struct World {
    pub now: SystemTime,
    pub places: Places,
    pub quick: bool,
    pub found: Vec<Found>,
    pub bundles: Vec<Bundle>,
    pub processes: BTreeMap<i32, Process>,
    /// What OCI runtimes have written down of containers.
    pub states: Vec<State>,
    pub mounts: Vec<mountinfo::Entry>,
    /// What CNI has cached, and what of it cannot be read.
    pub attachments: (Vec<CachedAttachment>, Vec<network::Error>),
    pub containerd: Asked,
    /// By id, then by containerd's namespace.
    claims: BTreeMap<String, BTreeMap<String, Owner>>,
    open: OnceCell<BTreeSet<PathBuf>>,
}

impl World {
    /// Things first, and then whose they are: a sandbox that is made meanwhile has nothing that was seen.
    pub fn gather(mut places: Places, quick: bool, now: SystemTime) -> Result<Self, CouldNot> {
        let mounts = mountinfo::read().map_err(|error| CouldNot(format!("mounts: {error}")))?;
        let mut attachments = (Vec::new(), Vec::new());
        for cache in &places.cni_caches {
            let (found, problems) = network::cached_attachments(cache);
            attachments.0.extend(found);
            attachments.1.extend(problems);
        }
        let node::Looked { found, complaint } = node::look(&places.state_roots)?;
        places.complaints.extend(complaint);
        let mut roots = places.runtime_roots.clone();
        let containers = found.iter().flat_map(|one| &one.containers);
        roots.extend(containers.filter_map(|one| Some(one.runtime.root.parent()?.to_owned())));
        roots.sort();
        roots.dedup();
        let asked = if quick {
            Asked::Not("not asked: --quick".to_owned())
        } else {
            match records::ask(&places.containerd.address) {
                Ok(records) => Asked::Records(Box::new(records)),
                Err(reason) => Asked::Not(reason),
            }
        };
        let mut world = Self {
            now,
            quick,
            found,
            bundles: bundles::all(&places.containerd.state),
            processes: processes::all(),
            states: roots.iter().flat_map(|root| states::below(root)).collect(),
            mounts,
            attachments,
            containerd: asked,
            places,
            claims: BTreeMap::new(),
            open: OnceCell::new(),
        };
        world.claims = world.claimed();
        Ok(world)
    }

    /// A node with nothing.
    #[cfg(test)]
    pub fn empty() -> Self {
        Self {
            now: SystemTime::UNIX_EPOCH,
            places: Places::default(),
            quick: true,
            found: Vec::new(),
            bundles: Vec::new(),
            processes: BTreeMap::new(),
            states: Vec::new(),
            mounts: Vec::new(),
            attachments: (Vec::new(), Vec::new()),
            containerd: Asked::Not("not asked: a test".to_owned()),
            claims: BTreeMap::new(),
            open: OnceCell::new(),
        }
    }

    fn claimed(&self) -> BTreeMap<String, BTreeMap<String, Owner>> {
        let mut claims: BTreeMap<String, BTreeMap<String, Owner>> = BTreeMap::new();
        let mut claim = |namespace: &str, id: &str, owner: Owner| {
            let claims = claims.entry(id.to_owned()).or_default();
            let known = claims.entry(namespace.to_owned()).or_insert(owner);
            *known = owner.max(*known);
        };
        for one in &self.found {
            let owner = match one.hands {
                Hands::Shim | Hands::Locked => Owner::Lives,
                Hands::Unsure(_) => Owner::Doubtful,
                Hands::Nobody => Owner::Left,
            };
            claim(one.namespace.as_str(), one.id.as_str(), owner);
            for container in &one.containers {
                claim(one.namespace.as_str(), container.id.as_str(), owner);
            }
        }
        for bundle in self.bundles.iter().filter(|bundle| bundle.is_served) {
            claim(&bundle.namespace, &bundle.id, Owner::Lives);
        }
        for process in self.processes.values() {
            if let Some(shim) = process.shim() {
                claim(shim.namespace, shim.id, Owner::Lives);
            }
            if let Some((id, _)) = &process.cni {
                claim("", id, Owner::Lives);
            }
        }
        if let Asked::Records(records) = &self.containerd {
            for (namespace, id) in &records.tasks {
                claim(namespace, id, Owner::Lives);
            }
            for (namespace, id) in records.containers.iter().chain(&records.sandboxes) {
                claim(namespace, id, Owner::Recorded);
            }
        }
        claims
    }

    pub fn records(&self) -> Option<&Records> {
        match &self.containerd {
            Asked::Records(records) => Some(records),
            Asked::Not(_) => None,
        }
    }

    /// Whose an id of one of containerd's namespaces is.
    pub fn owner(&self, namespace: &str, id: &str) -> Owner {
        let claims = self.claims.get(id).and_then(|claims| claims.get(namespace));
        claims.copied().unwrap_or(Owner::Unknown)
    }

    /// Whose an id is, whichever namespace it is in.
    pub fn owner_of(&self, id: &str) -> Owner {
        let claims = self.claims.get(id).into_iter().flat_map(BTreeMap::values);
        claims.copied().max().unwrap_or(Owner::Unknown)
    }

    /// The namespace in which an id is known, and the id.
    pub fn name_of(&self, id: &str) -> String {
        let namespace = self.claims.get(id).and_then(|claims| claims.keys().next_back());
        match namespace.filter(|namespace| !namespace.is_empty()) {
            Some(namespace) => format!("{namespace}/{id}"),
            None => id.to_owned(),
        }
    }

    /// How sure it is that nobody has an id that nobody claims, and why.
    pub fn nobodys(&self) -> (Sure, String) {
        match &self.containerd {
            Asked::Records(_) => {
                (Sure::Likely, "no shim serves it, and containerd does not know it".into())
            }
            Asked::Not(_) => (Sure::Unsure, "no shim serves it; containerd was not asked".into()),
        }
    }

    /// Whether any process of the node has a file open that is below a folder.
    pub fn has_open(&self, folder: &Path) -> bool {
        self.open_files().iter().any(|file| file.starts_with(folder))
    }

    /// Whether any process of the node has a network namespace open.
    fn has_open_netns(&self, inode: u64) -> bool {
        self.open_files().contains(Path::new(&format!("net:[{inode}]")))
    }

    fn open_files(&self) -> &BTreeSet<PathBuf> {
        self.open.get_or_init(processes::open_files)
    }

    /// Processes of containers whose shim is gone.
    fn orphans(&self) -> BTreeSet<i32> {
        let inits = self.states.iter().filter(|state| self.is_orphan(state));
        let groups: BTreeSet<&str> = inits
            .filter_map(|state| Some(self.processes.get(&state.pid?)?.cgroup.as_str()))
            .collect();
        let all = self.processes.values();
        all.filter(|one| groups.contains(one.cgroup.as_str())).map(|one| one.pid).collect()
    }

    /// Whether a container runs on without a shim: its first process has another parent.
    pub fn is_orphan(&self, state: &State) -> bool {
        if self.owner(&state.namespace, &state.id) >= Owner::Doubtful {
            return false;
        }
        state.running(&self.processes).is_some_and(|init| {
            let parent = self.processes.get(&init.parent);
            parent.is_none_or(|parent| parent.shim().is_none())
        })
    }

    /// Network namespaces that no process is in, no mount elsewhere keeps, nobody has open, and no living pod has: their
    /// file, the kernel's number (none where nothing is mounted), and what is to be said of it.
    pub fn dangling_netns(&self) -> Vec<(PathBuf, Option<u64>, Finding)> {
        let entries = fs::read_dir(&self.places.netns).into_iter().flatten().flatten();
        let mut files: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
        files.sort();
        let held = self.held_netns();
        files.into_iter().filter_map(|path| self.dangling(path, &held)).collect()
    }

    fn dangling(
        &self,
        path: PathBuf,
        held: &BTreeSet<u64>,
    ) -> Option<(PathBuf, Option<u64>, Finding)> {
        let about = fs::symlink_metadata(&path).ok().filter(fs::Metadata::is_file)?;
        let is_pinned = network::netns::is_open(&path);
        let inode = is_pinned.then(|| about.ino());
        let finding = Finding::new("netns", path.display().to_string());
        let finding = finding.since(about.modified().ok(), self.now);
        let name = path.file_name()?.to_str()?;
        let ours = name.strip_prefix("mooring-").and_then(|rest| rest.split_once("--"));
        let mut owner = ours.map_or(Owner::Unknown, |(namespace, id)| self.owner(namespace, id));
        let mut whose = ours.map(|(namespace, id)| format!("{namespace}/{id}"));
        let attached = self.attachments.0.iter().filter(|one| plain(&one.netns) == path);
        for one in attached {
            let others = self.owner_of(&one.container_id);
            whose.get_or_insert_with(|| self.name_of(&one.container_id));
            owner = owner.max(others);
        }
        if inode.is_some_and(|inode| held.contains(&inode)) && owner != Owner::Left {
            return None;
        }
        let named = self.records().is_some_and(|records| records.netns.contains(&path));
        match owner {
            Owner::Lives | Owner::Doubtful | Owner::Recorded => return None,
            Owner::Left => {
                let whose = whose.unwrap_or_default();
                return Some((path, inode, finding.ours(whose)));
            }
            Owner::Unknown if named => return None,
            Owner::Unknown => {}
        }
        // Last, as it is a large table.
        if inode.is_some_and(|inode| self.has_open_netns(inode)) {
            return None;
        }
        let (sure, why) = self.of_netns(name, is_pinned);
        let command = if is_pinned {
            format!("ip netns delete {}", super::finding::word(name))
        } else {
            format!("rm {}", super::finding::word(&path))
        };
        let finding = Finding { whose, ..finding }.because(sure, why).freed_by(command);
        Some((path, inode, finding))
    }

    /// Of a namespace's file that nobody claims.
    fn of_netns(&self, name: &str, is_pinned: bool) -> (Sure, String) {
        let (sure, why) = self.nobodys();
        if !is_pinned {
            let why =
                "an empty file: no namespace is mounted there, and no living sandbox names it";
            return (sure.min_of(Sure::Likely), why.to_owned());
        }
        if name.starts_with("mooring-") {
            let why = "no process is in it, and no journal names it".to_owned();
            return (
                if self.places.complaints.is_empty() { Sure::Certain } else { Sure::Unsure },
                why,
            );
        }
        if name.starts_with("cni-") {
            return (sure, format!("no process is in it; {why}"));
        }
        (Sure::Unsure, "no process is in it; somebody may have made it by hand".to_owned())
    }

    /// The kernel's numbers of the network namespaces that somebody is in or keeps by a mount elsewhere.
    fn held_netns(&self) -> BTreeSet<u64> {
        let orphans = self.orphans();
        let processes = self.processes.values().filter(|one| !orphans.contains(&one.pid));
        let mut held: BTreeSet<u64> =
            processes.clone().flat_map(|one| one.netns.keys().copied()).collect();
        let elsewhere = self
            .mounts
            .iter()
            .filter(|entry| entry.kind == "nsfs" && !entry.target.starts_with(&self.places.netns));
        held.extend(elsewhere.filter_map(|entry| processes::inode(&entry.root)));
        let called = processes.filter_map(|one| Some(&one.cni.as_ref()?.1));
        held.extend(called.filter_map(|path| Some(fs::metadata(path).ok()?.ino())));
        held
    }
}

impl Sure {
    /// The less certain of both.
    pub fn min_of(self, other: Self) -> Self {
        let rank = |one: Self| match one {
            Self::Unsure => 0,
            Self::Likely => 1,
            Self::Certain => 2,
        };
        if rank(self) <= rank(other) { self } else { other }
    }
}

#[cfg(test)]
mod tests;
