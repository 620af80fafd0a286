//! Acquiring a container: its record first, then its root file system and what the OCI runtime makes. What is held at any
//! moment is in the record, so that [`super::release`] finds it whoever dies in between.

use std::path::PathBuf;

use tokio::time::Instant;

use super::{Error, Init, Record, end, release};
use crate::{
    cgroup::{Cgroup, Hierarchies, from_systemd},
    mounts::{self, Mount, UserNamespace},
    process::{Exited, Reaper},
    runtime::quick,
};

/// A container whose creation is under way.
pub struct Acquisition {
    record: Record,
    dir: PathBuf,
}

impl Acquisition {
    /// Writes `record` into `dir`, with the control group that the specification asks for.
    pub fn begin(
        mut record: Record,
        cgroups_path: Option<&str>,
        dir: PathBuf,
    ) -> Result<Self, Error> {
        record.cgroup = planned_group(cgroups_path, record.runtime.systemd_cgroup);
        record.save(&dir)?;
        Ok(Self { record, dir })
    }

    /// The specification has changed, and with it perhaps the control group.
    pub fn plan_again(&mut self, cgroups_path: Option<&str>) -> Result<(), Error> {
        self.record.cgroup = planned_group(cgroups_path, self.record.runtime.systemd_cgroup);
        self.record.save(&self.dir)
    }

    /// Mounts the root file system. Where a layer is to be mapped, the user namespace is that of process `owner`.
    pub async fn mount(&self, layers: Vec<Mount>, owner: Option<u32>) -> Result<(), Error> {
        if layers.is_empty() {
            return Ok(());
        }
        let rootfs = self.record.bundle.join("rootfs");
        let at = |action| {
            let path = rootfs.clone();
            move |source| Error::File { action, path, source }
        };
        let (made, mounted) = (at("make"), at("mount"));
        let (id, target) = (self.record.id.to_string(), rootfs.clone());
        let work = tokio::task::spawn_blocking(move || {
            std::fs::create_dir_all(&target).map_err(made)?;
            let mapped =
                layers.iter().flat_map(|layer| &layer.options).any(|o| o.starts_with("uidmap="));
            let done = match owner.filter(|_| mapped) {
                Some(pid) => UserNamespace::of_process(pid)
                    .and_then(|namespace| mounts::mount_all_mapped(&layers, &target, &namespace)),
                None => mounts::mount_all(&layers, &target),
            };
            done.map_err(|source| Error::Mounts { id, source })
        });
        work.await.map_err(std::io::Error::other).map_err(mounted)?
    }

    /// Records what the runtime has made: the init, and the control group where it is.
    pub fn created(&mut self, pid: i32, exited: &Exited) -> Result<(), Error> {
        // Asked in this order: while it is not reaped, the number is its own.
        let init = Init::of(pid).map_err(|source| Error::Process {
            id: self.record.id.to_string(),
            pid,
            source,
        })?;
        self.record.init = init.filter(|_| exited.now().is_none());
        // Where runc says what it made, that holds even if the init has ended already.
        self.record.cgroup = match quick::State::read(&self.record.runtime, &self.record.id) {
            Some(state) => state.cgroup(),
            None => Cgroup::of_process(pid)
                .map_err(|source| Error::Cgroup { id: self.record.id.to_string(), source })?,
        };
        self.record.save(&self.dir)
    }

    /// Takes back what the runtime has made, and kills it first; the root file system stays. Afterwards the runtime may
    /// be called again.
    pub async fn undo_runtime(
        &mut self,
        cgroups_path: Option<&str>,
        reaper: &Reaper,
        deadline: Instant,
    ) -> Result<(), Error> {
        let mut made = self.record.clone();
        made.rootfs_mounted = false;
        release(&made, reaper, deadline).await?;
        self.record.init = None;
        self.plan_again(cgroups_path)
    }

    /// Takes back whatever was acquired. When this fails the record stays, for the sandbox's teardown to try again.
    pub async fn undo(self, reaper: &Reaper, deadline: Instant) -> Result<(), Error> {
        end(&self.record, &self.dir, reaper, deadline).await.map(drop)
    }

    pub fn record(&self) -> &Record {
        &self.record
    }
}

/// The group that the specification asks for, as far as it does not exist yet: what was there before is not ours to
/// kill when the creation fails.
fn planned_group(path: Option<&str>, systemd: bool) -> Cgroup {
    let Some(path) = path else { return Cgroup::default() };
    let path = if systemd { from_systemd(path) } else { Ok(path.to_owned()) };
    // A path that is not understood is the runtime's to judge.
    let planned = path.and_then(|path| Hierarchies::read()?.group(&path));
    let mut group = planned.unwrap_or_default();
    group.v2 = group.v2.filter(|folder| !folder.exists());
    group.v1.retain(|_, folder| !folder.exists());
    group
}
