//! Taking down everything whose shim is gone: after a reboot, or where every `delete` had to give up.

use std::{fs, path::Path, time::Duration};

use super::{
    daemon_record::DaemonRecord,
    recover::{RecoverError, Recovery, Remains},
};
use crate::{
    id::Id,
    resources::Resource,
    teardown::journal::{self, JournalError},
};

/// What a sweep came to.
#[derive(Debug, Default)]
pub struct Swept {
    /// Sandboxes (and shims of plain tasks) that are gone now: namespace and id.
    pub taken_down: Vec<(Id, Id)>,
    /// Those that a living process still works on.
    pub in_use: Vec<(Id, Id)>,
    /// Those that could not be taken down, and why.
    pub failed: Vec<(Id, Id, RecoverError)>,
}

/// Takes down every sandbox below `state_root` that no living shim or finisher holds. `recovery` gives the parties for
/// a namespace and the containerd that the sandbox belonged to (empty where the journal does not know it).
pub async fn sweep(state_root: &Path, recovery: &(dyn Fn(&Id, &Path) -> Recovery + Sync)) -> Swept {
    let root = state_root.to_owned();
    let found = tokio::task::spawn_blocking(move || state_folders(&root)).await.unwrap_or_default();
    let mut swept = Swept::default();
    for (namespace, id) in found {
        let folder = state_root.join(&namespace).join(&id);
        match finish(&folder, &namespace, recovery).await {
            Ok(true) => swept.taken_down.push((namespace, id)),
            Ok(false) => swept.in_use.push((namespace, id)),
            Err(error) => swept.failed.push((namespace, id, error)),
        }
    }
    swept
}

/// `Ok(false)`: somebody living works on it.
async fn finish(
    folder: &Path,
    namespace: &Id,
    recovery: &(dyn Fn(&Id, &Path) -> Recovery + Sync),
) -> Result<bool, RecoverError> {
    let looked = folder.to_owned();
    let look = move || -> Result<_, JournalError> {
        let failed =
            |source| JournalError::Io { action: "look beside", path: looked.clone(), source };
        let shim = DaemonRecord::load(&looked).map_err(failed)?;
        let alive = shim.as_ref().map_or(Ok(false), DaemonRecord::is_alive).map_err(failed)?;
        // Read without its lock: who serves it is told by what is in it, and that never changes.
        let containerd =
            journal::read::<Resource>(&looked).ok().flatten().map(|it| it.about.grpc_address);
        Ok((shim, alive, containerd.unwrap_or_default()))
    };
    let (shim, alive, containerd) = tokio::task::spawn_blocking(look).await??;
    if alive {
        return Ok(false);
    }
    let remains = Remains { state_dir: folder.to_owned(), shim, patience: Duration::ZERO };
    match recovery(namespace, &containerd).finish(remains).await {
        Ok(_) => Ok(true),
        Err(RecoverError::Journal(JournalError::Locked { .. })) => Ok(false),
        Err(error) => Err(error),
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
