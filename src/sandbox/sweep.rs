//! Taking down everything whose shim is gone: after a reboot, or where every `delete` had to give up.

use std::{fs, path::Path};

use tokio::time::{Duration, Instant};

use super::{daemon_record::DaemonRecord, recover::Recovery};
use crate::{
    error::Coded,
    id::Id,
    sys::identity,
    teardown::journal::{self, JournalError, Store},
};

/// How long the containers of one shim may take to end.
const CONTAINERS: Duration = Duration::from_mins(1);

/// What a sweep came to.
#[derive(Debug, Default)]
pub struct Swept {
    /// Sandboxes (and shims of plain tasks) that are gone now: namespace and id.
    pub taken_down: Vec<(Id, Id)>,
    /// Those that a living process still works on.
    pub in_use: Vec<(Id, Id)>,
    /// Those that could not be taken down, and why.
    pub failed: Vec<(Id, Id, String)>,
}

/// Takes down every sandbox below `state_root` that no living shim or finisher holds. `recovery` gives the parties for
/// a namespace and the containerd that the sandbox belonged to (empty where the journal does not know it).
pub async fn sweep(state_root: &Path, recovery: &(dyn Fn(&Id, &Path) -> Recovery + Sync)) -> Swept {
    let root = state_root.to_owned();
    let found = tokio::task::spawn_blocking(move || state_folders(&root)).await.unwrap_or_default();
    let mut swept = Swept::default();
    for (namespace, id) in found {
        let folder = state_root.join(&namespace).join(&id);
        match take_down(&folder, &namespace, recovery).await {
            Ok(true) => swept.taken_down.push((namespace, id)),
            Ok(false) => swept.in_use.push((namespace, id)),
            Err(error) => swept.failed.push((namespace, id, error)),
        }
    }
    swept
}

/// `Ok(false)`: somebody living works on it.
async fn take_down(
    folder: &Path,
    namespace: &Id,
    recovery: &(dyn Fn(&Id, &Path) -> Recovery + Sync),
) -> Result<bool, String> {
    let looked = folder.to_owned();
    let opened = tokio::task::spawn_blocking(move || {
        let daemon = DaemonRecord::load(&looked);
        if daemon.is_some_and(|daemon| identity::is_alive(daemon.pid, daemon.start_time)) {
            return Ok(None);
        }
        Store::open(&looked, false).map(Some)
    });
    let store = match opened.await {
        Ok(Ok(Some(store))) => store,
        Ok(Ok(None) | Err(JournalError::Locked { .. })) => return Ok(false),
        Ok(Err(error)) => return Err(format!("{} ({})", error, error.code())),
        Err(error) => return Err(error.to_string()),
    };
    if let Some(store) = store {
        let about = &store.journal().about;
        let parties = recovery(&about.namespace, &about.grpc_address);
        return parties.take_down(store).await.map(|()| true).map_err(|error| error.to_string());
    }
    // A shim of plain tasks has no journal, only records of containers.
    let parties = recovery(namespace, Path::new(""));
    let deadline = Instant::now() + CONTAINERS;
    parties.end_containers(folder, deadline).await.map_err(|error| error.to_string())?;
    let folder = folder.to_owned();
    let removed = tokio::task::spawn_blocking(move || journal::remove_folder(&folder)).await;
    match removed {
        Ok(Ok(())) => Ok(true),
        Ok(Err(error)) => Err(error.to_string()),
        Err(error) => Err(error.to_string()),
    }
}

/// Every state folder, by namespace and id. What is no identifier is none of ours.
fn state_folders(state_root: &Path) -> Vec<(Id, Id)> {
    let ids = |folder: &Path| -> Vec<Id> {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        let folders = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        let names = folders.filter_map(|entry| entry.file_name().into_string().ok());
        let mut ids: Vec<Id> = names.filter_map(|name| Id::new(name).ok()).collect();
        ids.sort();
        ids
    };
    ids(state_root)
        .into_iter()
        .flat_map(|namespace| {
            let inside = ids(&state_root.join(&namespace));
            inside.into_iter().map(move |id| (namespace.clone(), id))
        })
        .collect()
}
