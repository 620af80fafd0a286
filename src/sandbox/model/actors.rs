//! What the actors do: each is the code that a process of Mooring runs, called as that process calls it.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::task::spawn_blocking;

use super::world::{World, record_of};
use crate::{
    interleave::{kill, point, wait_until},
    sandbox::{
        daemon_record::DaemonRecord,
        recover::{RecoverError, Remains},
    },
    teardown::journal::JournalError,
};

/// As those who take part wait for each other.
const PATIENCE: Duration = Duration::from_secs(30);

/// A shim: writes its record, serves one sandbox from its creation to its shutdown, and removes its record. One that `stays` is
/// shut down only where the `delete` that comes for it dies.
pub(super) async fn shim(world: Arc<World>, actor: usize, stays: bool) -> Result<(), String> {
    // containerd starts no other of its name before `delete` has looked, and none can serve while another one does.
    let free = Arc::clone(&world);
    wait_until("start", move || actor == 0 || free.is_free());
    *world.socket.lock().unwrap() = Some(actor);
    let mut failed = 0;
    loop {
        let record = record_of(actor);
        let (state_dir, saved) = (world.state_dir(), record.clone());
        let save = move || saved.save(&state_dir);
        blocking(save).await?.map_err(|error| format!("save: {error}"))?;
        world.is_recorded.store(true, Ordering::Relaxed);
        let sandbox = world.sandbox(actor);
        let served = match sandbox.create(world.request()).await {
            Ok(()) => sandbox.start().await.map(drop),
            Err(error) => Err(error),
        };
        let others = Arc::clone(&world);
        wait_until("shutdown", move || !stays || others.has_looked());
        let mut shut = sandbox.shutdown().await;
        for _ in 0..2 {
            if shut.is_err() {
                shut = sandbox.shutdown().await;
            }
        }
        shut.map_err(|error| format!("shutdown: {error}"))?;
        drop(sandbox);
        point("give up the socket");
        if served.is_ok() {
            *world.socket.lock().unwrap() = None;
        }
        let (state_dir, patience) = (world.state_dir(), PATIENCE);
        let withdraw = move || record.withdraw(&state_dir, patience);
        blocking(withdraw).await?.map_err(|error| format!("withdraw: {error}"))?;
        match served {
            Ok(()) => return Ok(()),
            // What a client does whose creation met a plugin that fails: it tries again.
            Err(error) if failed < 2 && error.to_string().contains("busy") => failed += 1,
            Err(error) => return Err(format!("create or start: {error}")),
        }
    }
}

/// `delete` and its finisher: looks whose shim is gone, ends it where it lives, and does the rest until it is done.
pub(super) async fn finisher(world: Arc<World>, actor: usize) -> Result<(), String> {
    let begun = Arc::clone(&world);
    wait_until("find", move || begun.has_begun());
    let state_dir = world.state_dir();
    let folder = state_dir.clone();
    let look = move || (folder.exists(), DaemonRecord::load(&folder).unwrap());
    let (exists, shim) = blocking(look).await?;
    if let Some(old) = shim.as_ref().and_then(|shim| world.actor_of(shim)) {
        kill(old);
    }
    world.to_look.lock().unwrap().remove(&actor);
    if !exists {
        return Ok(());
    }
    let remains = Remains { state_dir, shim, patience: PATIENCE };
    let mut takeover = world.recovery(actor).take_over(remains);
    let mut attempts = 0;
    loop {
        point("attempt");
        match takeover.attempt().await {
            Ok(_) => return Ok(()),
            Err(_) if attempts < 4 => attempts += 1,
            Err(error) => return Err(format!("finish: {error}")),
        }
    }
}

/// `mooring gc`: takes down what has no living shim, once.
pub(super) async fn sweeper(world: Arc<World>, actor: usize) -> Result<(), String> {
    let begun = Arc::clone(&world);
    wait_until("find", move || begun.has_begun());
    let state_dir = world.state_dir();
    let folder = state_dir.clone();
    let look = move || DaemonRecord::load(&folder).unwrap();
    let shim = blocking(look).await?;
    if shim.as_ref().is_some_and(|shim| world.actor_of(shim).is_some()) {
        return Ok(());
    }
    point("sweep");
    let remains = Remains { state_dir, shim, patience: Duration::ZERO };
    match world.recovery(actor).finish(remains).await {
        Ok(_) | Err(RecoverError::Journal(JournalError::Locked { .. })) => Ok(()),
        Err(error) if error.to_string().contains("busy") => Ok(()),
        Err(error) => Err(format!("sweep: {error}")),
    }
}

/// Fails where the actor has died in the work.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, String> {
    spawn_blocking(work).await.map_err(|error| error.to_string())
}
