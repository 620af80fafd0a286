//! Releasing a container: everything of it is killed, waited for, deleted from the OCI runtime and unmounted.

use std::{collections::BTreeSet, fs, io, path::Path};

use rustix::process::Signal;
use tokio::time::{Instant, timeout_at};

use super::{Error, Pinned, Record, is_alive, record::Init};
use crate::{
    cgroup::Cgroup,
    mounts,
    process::{Reaper, orphans},
    released::Released,
    runtime::{self, CREATES, OciRuntime, Runc, criu, quick},
    sys::{boot, identity, survivor::Survivors},
};

/// What is known of the container's init and groups: from the record, and where the shim died before it could write
/// them down, from the runtime's own state.
fn known(record: &Record) -> Result<(Option<Init>, Cgroup), Error> {
    if record.init.is_some() {
        return Ok((record.init, record.cgroup.clone()));
    }
    let state = quick::State::find(&record.runtime, &record.id).map_err(|source| Error::File {
        action: "read the runtime's state in",
        path: record.runtime.root.join(&record.id),
        source,
    })?;
    let Some(state) = state else { return Ok((None, record.cgroup.clone())) };
    let (pid, start_time) = (state.init_process_pid, state.init_process_start);
    Ok(((pid > 0).then_some(Init { pid, start_time }), state.cgroup()))
}

/// Whether the machine was started anew since: then nothing of the container is left but its record, and what has its
/// process ids, its groups or its name in the runtime's state now is another's.
fn is_over(record: &Record) -> Result<bool, Error> {
    boot::is_over(record.boot.as_ref()).map_err(|source| Error::File {
        action: "find out the boot of",
        path: record.bundle.clone(),
        source,
    })
}

/// Sends SIGKILL to every process of the container, without a word to anybody else.
pub fn kill_in_place(record: &Record) -> Result<Released, Error> {
    kill(record).map(|(found, _)| found)
}

fn kill(record: &Record) -> Result<(Released, Option<(i32, Pinned)>), Error> {
    for (pid, program) in creation(record)? {
        let failed = |source| Error::Process { id: record.id.to_string(), pid, source };
        program.signal(Signal::KILL).map_err(failed)?;
    }
    let criu = end_criu(record)?;
    let (init, group) = known(record)?;
    let mut found = Released::AlreadyGone;
    let mut living = false;
    let mut held = None;
    if let Some(Init { pid, start_time }) = init {
        let failed = |source| Error::Process { id: record.id.to_string(), pid, source };
        living = is_alive(pid, start_time).map_err(failed)?;
        // Held before anything is killed, so that its end can be waited for.
        held = Pinned::new(pid, Some(start_time)).map_err(failed)?.map(|pinned| (pid, pinned));
    }
    if !group.is_empty() {
        found = group
            .kill_all()
            .map_err(|source| Error::Cgroup { id: record.id.to_string(), source })?;
    }
    if let Some((pid, pinned)) = &held {
        let failed = |source| Error::Process { id: record.id.to_string(), pid: *pid, source };
        let signalled = pinned.signal(Signal::KILL).map_err(failed)?;
        // One that has ended and waits for its parent takes signals too.
        if signalled && living {
            found = Released::Done;
        }
    }
    if let Some(config) = criu {
        unmount_criu(record, config)?;
    }
    Ok((found, held))
}

/// What of the container has not ended: its init, what is in its groups, and what is left of its creation. It may have to
/// wait for the kernel.
pub fn survivors(record: &Record) -> Survivors {
    // Unreadable, the runtime's state is no obstacle to saying what is known.
    let (init, group) = known(record).unwrap_or((record.init, record.cgroup.clone()));
    let mut pids: BTreeSet<i32> = group.pids().unwrap_or_default().into_iter().collect();
    if let Some(Init { pid, start_time }) = init
        && identity::start_time(pid).is_ok_and(|start| start == Some(start_time))
    {
        pids.insert(pid);
    }
    pids.extend(creation(record).unwrap_or_default().into_iter().map(|(pid, _)| pid));
    Survivors::among(pids)
}

async fn alive(record: &Record) -> Error {
    let (id, record) = (record.id.to_string(), record.clone());
    Error::Alive { id, survivors: Survivors::seen(move || survivors(&record)).await }
}

/// Releases everything that `record` says a container holds, except the record itself (see [`end`]). May be called any
/// number of times, with or without the shim that created the container.
pub async fn release(
    record: &Record,
    reaper: &Reaper,
    deadline: Instant,
) -> Result<Released, Error> {
    if is_over(record)? {
        return Ok(Released::AlreadyGone);
    }
    let id = || record.id.to_string();
    end_creation(record, deadline).await?;
    let (mut found, held) = kill(record)?;
    if let Some((pid, pinned)) = held {
        match timeout_at(deadline, pinned.ended()).await {
            Ok(Ok(())) => {}
            Ok(Err(source)) => return Err(Error::Process { id: id(), pid, source }),
            Err(_) => return Err(alive(record).await),
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
            let began = Instant::now();
            let call = runc.delete(&record.id, &record.bundle);
            // All of the container has ended by now: it is the runtime that does not.
            let late = |_| runtime::Error::late("delete", &record.id, began.elapsed());
            timeout_at(deadline, call)
                .await
                .unwrap_or_else(|over| Err(late(over)))
                .map_err(runtime)?;
        }
    }
    // What the runtime did not know of: it may have died before it wrote its state.
    let group = known(record)?.1;
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
                return Err(Error::File { action: "remove", path: consoles.clone(), source });
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

/// What is left of a creation that failed or outlived its shim. The OCI runtime would go on to make what is being released,
/// in groups that are gone and in a folder that nothing is mounted on any more.
fn creation(record: &Record) -> Result<Vec<(i32, Pinned)>, Error> {
    let Some(Init { pid, start_time }) = record.shim.filter(|_| record.init.is_none()) else {
        return Ok(Vec::new());
    };
    let failed = |source| Error::Process { id: record.id.to_string(), pid, source };
    // This shim releases what it has given up, another one that lives does so itself.
    if pid.unsigned_abs() != std::process::id() && is_alive(pid, start_time).map_err(failed)? {
        return Ok(Vec::new());
    }
    orphans::running(&format!("{CREATES}={}", record.id), pid).map_err(failed)
}

/// Kills it, and waits until it is gone.
async fn end_creation(record: &Record, deadline: Instant) -> Result<(), Error> {
    for _ in 0..orphans::PASSES {
        let found = creation(record)?;
        if found.is_empty() {
            break;
        }
        for (pid, program) in found {
            let failed = |source| Error::Process { id: record.id.to_string(), pid, source };
            log::warn!("container {}: process {pid} goes on with its creation: killed", record.id);
            program.signal(Signal::KILL).map_err(failed)?;
            match timeout_at(deadline, program.ended()).await {
                Ok(ended) => ended.map_err(failed)?,
                Err(_) => return Err(alive(record).await),
            }
        }
    }
    Ok(())
}

/// Ends a checkpoint or restore that outlived its shim: it would go on to make what is being released. Answers its
/// configuration. Blocks where there is one.
fn end_criu(record: &Record) -> Result<Option<&Path>, Error> {
    let Some(config) = record.criu_config.as_deref().filter(|file| file.exists()) else {
        return Ok(None);
    };
    if let Some(Init { pid, .. }) = record.shim {
        let variable = format!("{}={}", criu::CONFIG, config.display());
        let action = "end the programs that were started with";
        let failed = |source| Error::File { action, path: config.to_owned(), source };
        orphans::end(&variable, pid).map_err(failed)?;
    }
    Ok(Some(config))
}

/// Removes the mounts of a criu that was killed, once what it had made is killed too. Whoever removes the bundle afterwards
/// must not find them in it: some are the node's cgroups. Blocks.
fn unmount_criu(record: &Record, config: &Path) -> Result<(), Error> {
    // What the runtime mounts as a root for criu would keep runc's state folder, and crun's bundle.
    let roots = [record.runtime.root.join(&record.id), record.bundle.clone()];
    let mut mounted: Vec<_> = roots.map(|folder| folder.join("criu-root")).into();
    mounted.extend(criu::mounts_of(config));
    mounted.extend(criu::roots_of_nobody(config));
    for path in mounted {
        mounts::unmount_all(&path)
            .map_err(|source| Error::Mounts { id: record.id.to_string(), source })?;
        // Whatever is in it besides is not criu's.
        let _ = fs::remove_dir(&path);
    }
    // On a disk that is read-only by now it stays, and says nothing any more.
    if let Err(error) = fs::remove_file(config) {
        log::warn!("remove {}: {error}", config.display());
    }
    Ok(())
}

async fn unmount(record: &Record) -> Result<Released, Error> {
    let rootfs = record.bundle.join("rootfs");
    let path = rootfs.clone();
    let unmounted = tokio::task::spawn_blocking(move || mounts::unmount_all(&rootfs));
    match unmounted.await {
        Ok(answer) => answer.map_err(|source| Error::Mounts { id: record.id.to_string(), source }),
        Err(error) => Err(Error::File { action: "unmount", path, source: io::Error::other(error) }),
    }
}

#[cfg(test)]
mod tests {
    use std::{process::Command, time::Duration};

    use super::*;
    use crate::{
        cgroup::Hierarchies, id::Id, process::testing::TestChild, runtime::RuntimeSettings,
        sys::boot::BootId,
    };

    /// One of its own container and one of another's, in the session of a shim that is dead.
    #[tokio::test]
    async fn a_creation_that_outlived_its_shim_is_ended() {
        let creation = |id: &str| format!("{CREATES}={id} sleep 60 >/dev/null & echo $! >{id};");
        let folder = tempfile::tempdir().unwrap();
        let script = format!("{} {} wait", creation("c"), creation("d"));
        let mut command = Command::new("setsid");
        command.args(["sh", "-c", &script]).current_dir(folder.path());
        let mut shim = TestChild::start(&mut command);
        let pid_of = |id: &str| loop {
            let text = std::fs::read_to_string(folder.path().join(id)).unwrap_or_default();
            let pid = text.strip_suffix('\n').and_then(|pid| pid.parse::<i32>().ok());
            // Between the fork and the program the environment is the shell's.
            let environ = pid.map(|pid| std::fs::read(format!("/proc/{pid}/environ")));
            let variable = format!("{CREATES}={id}");
            if let (Some(pid), Some(Ok(text))) = (pid, environ)
                && text.split(|byte| *byte == 0).any(|one| one == variable.as_bytes())
            {
                break pid;
            }
            std::thread::yield_now();
        };
        let of = |pid| Init::of(pid).unwrap().unwrap();
        let (own, others) = (of(pid_of("c")), of(pid_of("d")));
        let lives = |one: Init| is_alive(one.pid, one.start_time).unwrap();
        let runtime =
            RuntimeSettings { root: folder.path().join("runc"), ..RuntimeSettings::default() };
        let bundle = folder.path().to_owned();
        let mut record = Record::new(Id::new("c").unwrap(), bundle, runtime).unwrap();
        record.shim = Some(of(shim.pid));
        let reaper = Reaper::start().unwrap();
        let deadline = Instant::now() + Duration::from_secs(5);
        release(&record, &reaper, deadline).await.unwrap();
        assert!(lives(own), "its shim lives, and ends it itself");
        rustix::process::kill_process(
            rustix::process::Pid::from_raw(shim.pid).unwrap(),
            Signal::KILL,
        )
        .unwrap();
        shim.status();
        release(&record, &reaper, deadline).await.unwrap();
        assert!(!lives(own) && lives(others));
        rustix::process::kill_process(
            rustix::process::Pid::from_raw(others.pid).unwrap(),
            Signal::KILL,
        )
        .unwrap();
    }

    /// The same numbers, the same cgroup and the same name in the runtime's state: all of it a new container's.
    #[tokio::test]
    async fn nothing_of_another_boot_is_touched() {
        let folder = tempfile::tempdir().unwrap();
        let mut child = TestChild::start(Command::new("sleep").arg("60"));
        let name = format!("/mooring-boot-{}", std::process::id());
        let group = Hierarchies::read().unwrap().group(&name).unwrap();
        group.ensure().unwrap();
        for part in group.folders() {
            std::fs::write(part.join("cgroup.procs"), child.pid.to_string()).unwrap();
        }
        let runtime =
            RuntimeSettings { root: folder.path().join("runc"), ..RuntimeSettings::default() };
        std::fs::create_dir_all(runtime.root.join("c")).unwrap();
        let bundle = folder.path().to_owned();
        let mut record = Record::new(Id::new("c").unwrap(), bundle, runtime.clone()).unwrap();
        record.init = Init::of(child.pid).unwrap();
        record.cgroup = group.clone();
        record.rootfs_mounted = true;
        let now = record.boot.replace(BootId::earlier());
        let reaper = Reaper::start().unwrap();
        let deadline = Instant::now() + Duration::from_secs(5);
        let released = release(&record, &reaper, deadline).await.unwrap();
        assert_eq!(released, Released::AlreadyGone);
        let Init { pid, start_time } = record.init.unwrap();
        assert!(is_alive(pid, start_time).unwrap() && runtime.root.join("c").exists());
        assert_eq!(group.pids().unwrap(), [child.pid]);
        // Of this boot it is the container itself.
        record.boot = now;
        std::fs::remove_dir(runtime.root.join("c")).unwrap();
        assert_eq!(release(&record, &reaper, deadline).await.unwrap(), Released::Done);
        assert_eq!(child.status(), 128 + 9);
    }
}
