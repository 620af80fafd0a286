use std::collections::BTreeSet;

use super::*;
use crate::teardown::{Does, journal};

/// One of each kind. A new kind does not compile until it is here.
fn one_of_each() -> Vec<Resource> {
    let mut all = vec![Resource::Keeper(KeeperRecord::Thread)];
    while let Some(next) = after(all.last().unwrap()) {
        all.push(next);
    }
    all
}

fn after(resource: &Resource) -> Option<Resource> {
    Some(match resource {
        Resource::Keeper(KeeperRecord::Thread) => {
            Resource::Keeper(KeeperRecord::Holder { identity: None })
        }
        Resource::Keeper(KeeperRecord::Holder { .. }) => {
            Resource::Keeper(KeeperRecord::Pinned { folder: "/x/ns".into() })
        }
        Resource::Keeper(KeeperRecord::Pinned { .. }) => Resource::Nri(Box::new(NriRecord {
            settings: crate::nri::Settings::default(),
            pod: crate::nri::Pod::default(),
            mark: "k8s.io/pod".into(),
        })),
        Resource::Nri(_) => Resource::Network(Box::new(AttachmentRecord {
            container_id: "pod".into(),
            netns: "/x/netns".into(),
            args: vec![],
            capabilities: serde_json::Map::new(),
            settings: crate::network::Settings::default(),
            networks: vec![],
        })),
        Resource::Network(_) => Resource::Netns(NetnsRecord { path: "/x/netns".into() }),
        Resource::Netns(_) => {
            let id = crate::id::Id::new("pod").unwrap();
            let dir = std::path::Path::new("/x");
            Resource::ImageVolume(ImageVolumeRecord::plan(dir, &id, "r/m:1", None, None))
        }
        Resource::ImageVolume(_) => Resource::Shm(ShmRecord { path: "/x/shm".into() }),
        Resource::Shm(_) => Resource::Files(FilesRecord { dir: "/x".into() }),
        Resource::Files(_) => Resource::Cgroup(PodCgroupRecord::default()),
        Resource::Cgroup(_) => Resource::Lease(LeaseRecord { id: "pod".into(), found: false }),
        Resource::Lease(_) => return None,
    })
}

#[test]
fn a_kinds_name_is_the_journals() {
    for resource in one_of_each() {
        let written = serde_json::to_value(&resource).unwrap();
        let tags: Vec<&String> = written.as_object().unwrap().keys().collect();
        assert_eq!(tags, [Journaled::kind(&resource)]);
    }
}

#[test]
fn the_order_is_the_references() {
    let names: Vec<&str> = PLAN.iter().map(|line| line.step.name()).collect();
    assert_eq!(
        names.join(" "),
        "door containers keeper nri network netns image_volumes shm files cgroup lease"
    );
}

#[test]
fn every_step_is_there_once_and_every_releasing_one_has_a_kind() {
    let names: Vec<&str> = PLAN.iter().map(|line| line.step.name()).collect();
    assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len(), "{names:?}");
    let released: Vec<Step> = one_of_each().iter().map(Journaled::step).collect();
    for line in PLAN.iter().filter(|line| line.does == Does::Release) {
        assert!(released.contains(&line.step), "{} releases nothing", line.step);
    }
}

#[test]
fn what_outlives_a_reboot_is_what_containerd_or_a_plugin_remembers() {
    let all = one_of_each();
    let lasting = all.iter().filter(|resource| resource.outlives_reboot());
    let kinds: Vec<&str> = lasting.map(Journaled::kind).collect();
    assert_eq!(kinds, ["network", "image_volume", "lease"]);
}

#[test]
fn after_a_reboot_processes_and_cgroups_of_the_same_name_are_anothers() {
    let all = one_of_each();
    let reused = all.iter().filter(|resource| resource.is_anothers_after_reboot());
    let mut kinds: Vec<&str> = reused.map(Journaled::kind).collect();
    kinds.sort_unstable();
    // A thread's, a holder's; pins are files of the pod's own.
    // A plugin that is told after a reboot is another.
    assert_eq!(kinds, ["cgroup", "keeper", "keeper", "nri"]);
}

/// Journals of earlier builds, as they wrote them.
#[test]
fn journals_of_the_first_version_are_understood() {
    for (text, entries, done, current) in [
        (include_str!("testdata/journal-v1.json"), 3, &["door", "containers"][..], "keeper"),
        // Of the time when the plan had a step that acted on nothing.
        (
            include_str!("testdata/journal-v1-nri.json"),
            8,
            &["door", "containers", "keeper", "nri"][..],
            "network",
        ),
    ] {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("journal.json"), text).unwrap();
        let journal = journal::read::<Resource>(folder.path()).unwrap().unwrap();
        assert_eq!(journal.entries.len(), entries);
        assert_eq!(journal.done, done);
        assert_eq!(journal.current.as_deref(), Some(current));
    }
}
