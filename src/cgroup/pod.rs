//! The pod's cgroups: the parent of its containers', which must exist from the start on, and the holder's own.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{Cgroup, Created, Error, Hierarchies, from_systemd, systemd::slice_path};
use crate::released::Released;

/// A cgroup that the pod needs. Only what was made for it is removed again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodCgroupRecord {
    /// The folders that were missing.
    pub created: Created,
}

/// The path of a pod's parent cgroup below the hierarchies' roots; clients write a path, `slice:prefix:name`, or a
/// slice with or without its path: of that the last part alone counts, as it does for the OCI runtime.
pub fn parent_path(parent: &str) -> Result<String, Error> {
    if parent.contains(':') {
        return from_systemd(parent);
    }
    match parent.rsplit('/').next() {
        Some(slice) if slice.strip_suffix(".slice").is_some() => slice_path(slice),
        _ => Ok(parent.to_owned()),
    }
}

/// What acquiring the group at `path` is going to make.
pub fn plan(path: &str) -> Result<PodCgroupRecord, Error> {
    let group = Hierarchies::read()?.group(path)?;
    let mut folders: Vec<PathBuf> = Vec::new();
    for folder in group.folders() {
        let missing: Vec<PathBuf> =
            folder.ancestors().take_while(|path| !path.exists()).map(PathBuf::from).collect();
        folders.extend(missing.into_iter().rev());
    }
    Ok(PodCgroupRecord { created: Created { folders } })
}

/// Makes the group at `path` where it is missing.
pub fn acquire(path: &str) -> Result<(Cgroup, PodCgroupRecord), Error> {
    let group = Hierarchies::read()?.group(path)?;
    let created = group.ensure()?;
    Ok((group, PodCgroupRecord { created }))
}

/// Moves process `pid` into `group`.
pub fn join(group: &Cgroup, pid: u32) -> Result<(), Error> {
    for folder in group.folders() {
        let path = folder.join("cgroup.procs");
        fs::write(&path, pid.to_string()).map_err(|source| Error::File {
            action: "write",
            path,
            source,
        })?;
    }
    Ok(())
}

/// Removes what was made, as far as nobody uses it. A group with groups below it stays: the containers' own are removed
/// with their tasks, and then this is repeated. Blocks for a moment where processes are just leaving.
pub fn release(record: &PodCgroupRecord) -> Result<Released, Error> {
    let mut found = Released::AlreadyGone;
    for folder in record.created.folders.iter().rev() {
        found = found.and(remove(folder)?);
    }
    Ok(found)
}

fn remove(folder: &Path) -> Result<Released, Error> {
    let mut pauses = (0..5).map(|attempt| Duration::from_millis(1 << attempt));
    loop {
        match fs::remove_dir(folder) {
            Ok(()) => return Ok(Released::Done),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Released::AlreadyGone);
            }
            // A dead process leaves its group a moment after its exit was seen; a child group stays.
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => match pauses.next() {
                Some(pause) if !has_children(folder) => std::thread::sleep(pause),
                _ => return Ok(Released::InUse),
            },
            Err(source) => {
                return Err(Error::File {
                    action: "remove cgroup",
                    path: folder.to_owned(),
                    source,
                });
            }
        }
    }
}

fn has_children(folder: &Path) -> bool {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.into_iter().any(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plan_names_what_is_made_and_release_removes_it() {
        let path = format!("/mooring-pod-{}/inner", std::process::id());
        let planned = plan(&path).unwrap();
        let (group, record) = acquire(&path).unwrap();
        assert_eq!(planned, record);
        assert!(group.folders().iter().all(|folder| folder.exists()));
        assert_eq!(plan(&path).unwrap(), PodCgroupRecord::default());
        assert_eq!(release(&record).unwrap(), Released::Done);
        assert_eq!(release(&record).unwrap(), Released::AlreadyGone);
        assert!(group.folders().iter().all(|folder| !folder.parent().unwrap().exists()));
    }

    #[test]
    fn a_slice_lies_where_systemd_puts_it() {
        let path = "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-poda_b.slice";
        assert_eq!(parent_path(path).unwrap(), path);
        assert_eq!(parent_path("kubepods-burstable-poda_b.slice").unwrap(), path);
        assert_eq!(parent_path("/e2e/pod").unwrap(), "/e2e/pod");
        assert!(parent_path("/a/--.slice").is_err());
    }

    #[test]
    fn a_group_that_is_in_use_below_is_kept() {
        let path = format!("/mooring-pod-used-{}", std::process::id());
        let (_, outer) = acquire(&path).unwrap();
        let (_, inner) = acquire(&format!("{path}/container")).unwrap();
        assert_eq!(release(&outer).unwrap(), Released::InUse);
        assert_eq!(release(&inner).unwrap(), Released::Done);
        assert_eq!(release(&outer).unwrap(), Released::Done);
    }
}
