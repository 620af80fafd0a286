//! What a state folder names that is still to be released, in the order in which a teardown releases it.

use mooring::{
    container::is_alive,
    keeper::KeeperRecord,
    network::Outcome,
    resources::{PLAN, Resource},
    sandbox::survey::Found,
    sys::boot,
    teardown::{Journaled, journal::Stage},
};

/// One thing, in words.
#[derive(Debug, PartialEq, Eq, serde::Serialize)]
pub struct Holding {
    /// The step of the teardown that releases it.
    pub step: &'static str,
    pub what: String,
}

/// Everything that is still held, or may be.
pub fn of(found: &Found) -> Vec<Holding> {
    let mut all: Vec<Holding> = found.containers.iter().map(container).collect();
    let Some(journal) = &found.journal else { return all };
    let rebooted = boot::is_over(journal.about.boot.as_ref()).unwrap_or(false);
    for line in PLAN {
        let entries = journal.entries.iter().filter(|entry| {
            let ended = rebooted && entry.resource.is_anothers_after_reboot();
            entry.stage != Stage::Released && entry.resource.step() == line.step && !ended
        });
        let named = entries.filter_map(|entry| words(&entry.resource));
        all.extend(named.map(|what| Holding { step: line.step.name(), what }));
    }
    all
}

fn container(record: &mooring::container::Record) -> Holding {
    let runs = |pid, start| is_alive(pid, start).unwrap_or(true);
    let rebooted = boot::is_over(record.boot.as_ref()).unwrap_or(false);
    let what = match record.init {
        Some(init) if !rebooted && runs(init.pid, init.start_time) => {
            format!("kill {} (process {})", record.id, init.pid)
        }
        _ => format!("remove {}, which does not run", record.id),
    };
    Holding { step: "containers", what }
}

/// What a release does; nothing where the record names nothing.
pub fn words(resource: &Resource) -> Option<String> {
    Some(match resource {
        Resource::Cgroup(record) => {
            let deepest = record.created.folders.last()?;
            format!("remove {}", deepest.display())
        }
        Resource::Files(record) => format!("remove the files in {}", record.dir.display()),
        Resource::Shm(record) => format!("unmount {}", record.path.display()),
        Resource::Netns(record) => format!("unmount and remove {}", record.path.display()),
        // It ended with its shim.
        Resource::Keeper(KeeperRecord::Thread) => return None,
        Resource::Keeper(KeeperRecord::Holder { identity }) => {
            format!("end the holder, process {}", identity.map(|(pid, _)| pid)?)
        }
        Resource::Keeper(KeeperRecord::Pinned { folder }) => {
            format!("unmount the namespaces in {}", folder.display())
        }
        Resource::Nri(record) => {
            let all: Vec<String> =
                record.settings.plugins.iter().map(|one| one.display().to_string()).collect();
            format!("tell {} of the pod's end", all.join(", "))
        }
        Resource::Network(record) => {
            let owed = record.networks.iter().filter(|one| one.outcome != Outcome::Removed);
            let all: Vec<String> = owed
                .map(|one| format!("DEL of {} in network {:?}", one.ifname, one.name))
                .collect();
            if all.is_empty() {
                return None;
            }
            all.join(", ")
        }
        Resource::ImageVolume(record) => {
            format!("unmount {} and remove its snapshot {}", record.target.display(), record.key)
        }
        Resource::Lease(record) => format!("delete the lease {}", record.id),
    })
}

/// The name of a record's variant, as the journal has it.
pub fn tag<T: serde::Serialize>(record: &T) -> Option<String> {
    match serde_json::to_value(record).ok()? {
        serde_json::Value::String(name) => Some(name),
        serde_json::Value::Object(fields) => fields.keys().next().cloned(),
        _ => None,
    }
}
