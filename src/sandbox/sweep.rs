//! Taking down what nobody works on any more: after a reboot, or where every `delete` had to give up.

use std::time::{Duration, Instant};

use super::{
    recover::{RecoverError, Recovery, Remains},
    survey::{Found, Hands, look},
};
use crate::{sys::socket, telemetry::totals};

/// Takes down what was found in a state folder, unless it is in anybody's hands by now, or not certainly in nobody's:
/// then nothing is done, and the answer is where it stands.
pub async fn free(found: &Found, recovery: &Recovery) -> Result<Hands, RecoverError> {
    let (folder, namespace, id) = (found.folder.clone(), found.namespace.clone(), found.id.clone());
    let now = tokio::task::spawn_blocking(move || look(&folder, &namespace, &id)).await?;
    // Somebody else has finished it meanwhile.
    let Some(now) = now else { return Ok(Hands::Nobody) };
    if now.hands != Hands::Nobody {
        return Ok(now.hands);
    }
    let run_dir = now.journal.as_ref().map(|journal| journal.about.run_dir.clone());
    let begun = Instant::now();
    let socket = now.shim.as_ref().and_then(|shim| shim.socket.clone());
    let remains = Remains { state_dir: now.folder, shim: now.shim, patience: Duration::ZERO };
    match recovery.finish(remains).await {
        Ok(_) => {
            if let Some(run_dir) = run_dir {
                let took = begun.elapsed();
                let count = move || totals::count_where_kept(&run_dir, "leak_freed", took);
                tokio::task::spawn_blocking(count).await?;
            }
        }
        Err(error) if error.is_locked() => return Ok(Hands::Locked),
        Err(error) => return Err(error),
    }
    if let Some(path) = socket {
        let removed = path.clone();
        tokio::task::spawn_blocking(move || socket::remove_dead(&removed))
            .await?
            .map_err(|source| RecoverError::Socket { path, source })?;
    }
    Ok(Hands::Nobody)
}
