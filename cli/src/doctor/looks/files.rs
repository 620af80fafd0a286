//! The folders of pods in run roots, with /dev/shm and pins, and the folders that containerd's CRI has for its own.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::Look;
use crate::doctor::{
    finding::{Finding, Sure, word},
    world::{Owner, World, bundles::folders},
};

/// The folders of CRI's that have one for each sandbox or container.
const CRI: &str = "io.containerd.grpc.v1.cri";
const CRIS: [&str; 3] = ["sandboxes", "containers", "image-volumes"];

/// A folder of a pod, or of a container of CRI's.
struct Folder {
    path: PathBuf,
    /// containerd's namespace, where the folder says so.
    namespace: Option<String>,
    id: String,
}

impl Folder {
    fn judge(
        &self,
        world: &World,
        kind: &'static str,
        at: &Path,
        command: String,
    ) -> Option<Finding> {
        let finding = Finding::new(kind, at.display().to_string());
        let modified = fs::metadata(&self.path).and_then(|about| about.modified()).ok();
        let finding = finding.since(modified, world.now);
        let Some(namespace) = &self.namespace else {
            // CRI's: its word alone counts.
            let known = world.owner_of(&self.id) > Owner::Unknown;
            return (world.records().is_some() && !known).then(|| {
                let (sure, why) = world.nobodys();
                finding.of(&self.id).because(sure, why).freed_by(command)
            });
        };
        let whose = format!("{namespace}/{}", self.id);
        match world.owner(namespace, &self.id) {
            Owner::Lives | Owner::Doubtful => None,
            Owner::Left => Some(finding.ours(whose)),
            Owner::Recorded | Owner::Unknown => {
                let sure =
                    if world.places.complaints.is_empty() { Sure::Certain } else { Sure::Unsure };
                let why = "there is no journal and no shim of this sandbox";
                Some(finding.of(whose).because(sure, why).freed_by(command))
            }
        }
    }
}

fn name(path: &Path) -> Option<String> {
    path.file_name()?.to_str().map(str::to_owned)
}

fn pods(world: &World) -> Vec<Folder> {
    let namespaces = world.places.run_roots.iter().flat_map(|root| folders(root));
    let namespaces = namespaces.filter(|path| !is_consoles(path));
    let all = namespaces.flat_map(|namespace| {
        folders(&namespace).into_iter().filter_map(move |path| {
            Some(Folder { namespace: Some(name(&namespace)?), id: name(&path)?, path })
        })
    });
    all.collect()
}

/// The folder of a terminal's sockets, which lies beside those of namespaces.
fn is_consoles(path: &Path) -> bool {
    name(path).is_some_and(|name| name.starts_with("tty-"))
}

fn cris(world: &World) -> Vec<Folder> {
    let containerd = &world.places.containerd;
    let tops = [&containerd.state, &containerd.root].map(|top| top.join(CRI));
    let kinds = tops.iter().flat_map(|top| CRIS.map(|kind| top.join(kind)));
    let all = kinds.flat_map(|kind| folders(&kind));
    all.filter_map(|path| Some(Folder { namespace: None, id: name(&path)?, path })).collect()
}

/// What is mounted in the folders, where `wanted` says so of the place below the folder; the deepest first.
pub fn mounts(world: &World, kind: &'static str, wanted: fn(&Path) -> bool) -> Vec<Finding> {
    let folders: Vec<Folder> = pods(world).into_iter().chain(cris(world)).collect();
    let mounts = world.mounts.iter().rev().filter_map(|mount| {
        let folder = folders.iter().find(|folder| mount.target.starts_with(&folder.path))?;
        let below = mount.target.strip_prefix(&folder.path).ok()?;
        if !wanted(below) {
            return None;
        }
        let command = format!("umount {}", word(&mount.target));
        folder.judge(world, kind, &mount.target, command)
    });
    mounts.collect()
}

pub struct Shm;

impl Look for Shm {
    fn name(&self) -> &'static str {
        "shm"
    }

    /// And the pins of namespaces: whatever is mounted there and is no image volume.
    fn findings(&self, world: &World) -> Vec<Finding> {
        mounts(world, self.name(), |below| !below.starts_with("images"))
    }
}

pub struct Files;

impl Look for Files {
    fn name(&self) -> &'static str {
        "files"
    }

    fn findings(&self, world: &World) -> Vec<Finding> {
        let folders = pods(world).into_iter().chain(cris(world));
        let judged = folders.filter_map(|folder| {
            let command = format!("rm -r --one-file-system {}", word(&folder.path));
            folder.judge(world, self.name(), &folder.path, command)
        });
        let mut all: Vec<Finding> = judged.collect();
        all.extend(self.consoles(world));
        all
    }
}

impl Files {
    /// Folders of terminals' sockets that no container's record names.
    fn consoles(&self, world: &World) -> Vec<Finding> {
        let all = world.places.run_roots.iter().flat_map(|root| folders(root));
        let containers = || world.found.iter().flat_map(|found| &found.containers);
        let orphans = all.filter(|path| {
            let named = containers().any(|one| one.consoles.as_ref() == Some(path));
            is_consoles(path) && !named && !world.has_open(path)
        });
        orphans
            .map(|path| {
                let command = format!("rm -r {}", word(&path));
                let why = "a terminal's sockets, of no container that is recorded";
                Finding::new(self.name(), path.display().to_string())
                    .because(Sure::Likely, why)
                    .freed_by(command)
            })
            .collect()
    }
}
