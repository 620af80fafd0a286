//! Releasing a container: everything of it is killed, waited for, deleted from the OCI runtime and unmounted.

use std::{fs, io, path::Path};

use rustix::process::Signal;
use tokio::time::{Instant, timeout_at};

use super::{Error, Pinned, Record, is_alive, record::Init};
use crate::{
    cgroup::Cgroup,
    mounts,
    process::Reaper,
    released::Released,
    runtime::{OciRuntime, Runc, quick},
};

/// What is known of the container's init and groups: from the record, and where the shim died before it could write
/// them down, from the runtime's own state.
fn known(record: &Record) -> (Option<Init>, Cgroup) {
    if record.init.is_some() {
        return (record.init, record.cgroup.clone());
    }
    let Some(state) = quick::State::read(&record.runtime, &record.id) else {
        return (None, record.cgroup.clone());
    };
    let (pid, start_time) = (state.init_process_pid, state.init_process_start);
    ((pid > 0).then_some(Init { pid, start_time }), state.cgroup())
}

/// Sends SIGKILL to every process of the container, without a word to anybody else.
pub fn kill_in_place(record: &Record) -> Result<Released, Error> {
    kill(record).map(|(found, _)| found)
}

fn kill(record: &Record) -> Result<(Released, Option<Pinned>), Error> {
    let (init, group) = known(record);
    let mut found = Released::AlreadyGone;
    let living = init.is_some_and(|init| is_alive(init.pid, init.start_time));
    // Held before anything is killed, so that its end can be waited for.
    let pinned = init.and_then(|init| Pinned::new(init.pid, Some(init.start_time)));
    if !group.is_empty() {
        found = group
            .kill_all()
            .map_err(|source| Error::Cgroup { id: record.id.to_string(), source })?;
    }
    if let Some(pinned) = &pinned
        && matches!(pinned.signal(Signal::KILL), Ok(true))
        // One that has ended and waits for its parent takes signals too.
        && living
    {
        found = Released::Done;
    }
    Ok((found, pinned))
}

/// Releases everything that `record` says a container holds, except the record itself (see [`end`]). May be called any number of times, with or without the shim that
/// created the container.
pub async fn release(
    record: &Record,
    reaper: &Reaper,
    deadline: Instant,
) -> Result<Released, Error> {
    let id = || record.id.to_string();
    let (mut found, pinned) = kill(record)?;
    if let Some(pinned) = pinned {
        let pid = known(record).0.map_or(0, |init| init.pid);
        match timeout_at(deadline, pinned.ended()).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) | Err(_) => return Err(Error::Alive { id: id(), pid }),
        }
    }
    let state = record.runtime.root.join(&record.id);
    if state.exists() {
        found = Released::Done;
        let runtime = |source| Error::Runtime { id: id(), source };
        let removed =
            quick::delete(&record.runtime, &record.id, deadline).await.map_err(runtime)?;
        if !removed {
            let runc = Runc::new(record.runtime.clone(), reaper.clone());
            let call = runc.delete(&record.id, &record.bundle);
            match timeout_at(deadline, call).await {
                Ok(answer) => answer.map_err(runtime)?,
                Err(_) => return Err(Error::Alive { id: id(), pid: 0 }),
            }
        }
    }
    // What the runtime did not know of: it may have died before it wrote its state.
    let group = known(record).1;
    found = found
        .and(group.remove(deadline).await.map_err(|source| Error::Cgroup { id: id(), source })?);
    if record.rootfs_mounted {
        found = found.and(unmount(record).await?);
    }
    if let Some(consoles) = &record.consoles {
        // A shim that was killed while a terminal was on its way has left its socket.
        match fs::remove_dir_all(consoles) {
            Ok(()) => found = Released::Done,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => {
                return Err(Error::File { deed: "remove", path: consoles.clone(), source });
            }
        }
    }
    Ok(found)
}

/// Releases everything that a container holds, then removes its record from `dir`.
pub async fn end(
    record: &Record,
    dir: &Path,
    reaper: &Reaper,
    deadline: Instant,
) -> Result<Released, Error> {
    let found = release(record, reaper, deadline).await?;
    Record::remove(dir, &record.id)?;
    Ok(found)
}

async fn unmount(record: &Record) -> Result<Released, Error> {
    let fail = |source| Error::Mounts { id: record.id.to_string(), source };
    let rootfs = record.bundle.join("rootfs");
    let unmounted = tokio::task::spawn_blocking(move || mounts::unmount_all(Path::new(&rootfs)));
    match unmounted.await {
        Ok(answer) => answer.map_err(fail),
        Err(error) => Err(Error::File {
            deed: "unmount",
            path: record.bundle.join("rootfs"),
            source: std::io::Error::other(error),
        }),
    }
}
