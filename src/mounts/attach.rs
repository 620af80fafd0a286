//! One mount: a bind of what is there already, or a new file system; attached to its place.

use rustix::{
    fs::{StatVfsMountFlags, fstatvfs},
    io::Errno,
    mount::{MountFlags, mount_bind, mount_bind_recursive, mount_change, mount_remount},
};

use super::{
    Error, Mount, UserNamespace, filesystem,
    idmap::proc_path,
    mount::{Place, Rollback, clone_tree, is_unknown, move_to},
    options::Options,
};

/// The flags that belong to a mount rather than to its file system.
const PER_MOUNT: MountFlags = MountFlags::RDONLY
    .union(MountFlags::NOSUID)
    .union(MountFlags::NODEV)
    .union(MountFlags::NOEXEC)
    .union(MountFlags::NOATIME)
    .union(MountFlags::NODIRATIME)
    .union(MountFlags::RELATIME)
    .union(MountFlags::STRICTATIME)
    .union(MountFlags::NOSYMFOLLOW);

/// Makes one mount; what was attached is in `rollback` even if a later part of it failed.
pub(super) fn attach(
    mount: &Mount,
    options: &Options,
    place: &Place<'_>,
    namespace: Option<&UserNamespace>,
    rollback: &mut Rollback,
) -> Result<(), Error> {
    let mapped = namespace.filter(|_| options.is_mapped());
    match options.bind {
        Some(recursive) => bind(mount, options, recursive, place, mapped, rollback)?,
        None => filesystem::attach(mount, options, place, mapped, rollback)?,
    }
    let Some(made) = rollback.0.last() else { return Ok(()) };
    for change in &options.propagation {
        mount_change(proc_path(made), *change)
            .map_err(|errno| Error::system(format!("{mount}: set propagation"), errno))?;
    }
    Ok(())
}

fn bind(
    mount: &Mount,
    options: &Options,
    recursive: bool,
    place: &Place<'_>,
    mapped: Option<&UserNamespace>,
    rollback: &mut Rollback,
) -> Result<(), Error> {
    let failed = |errno: Errno| Error::system(mount.to_string(), errno);
    match clone_tree(&mount.source, recursive) {
        Ok(tree) => {
            if let Some(namespace) = mapped {
                namespace
                    .apply(&tree)
                    .map_err(|error| Error::system(format!("{mount}: map ids"), error))?;
            }
            move_to(tree, mount, place, rollback)?;
        }
        Err(errno) if is_unknown(errno) && mapped.is_none() => {
            let target = place.open()?;
            let target = proc_path(&target);
            if recursive {
                mount_bind_recursive(mount.source.as_str(), target).map_err(failed)?;
            } else {
                mount_bind(mount.source.as_str(), target).map_err(failed)?;
            }
            rollback.0.push(place.open()?);
        }
        Err(errno) => return Err(failed(errno)),
    }
    let wanted = options.set.intersection(PER_MOUNT);
    let unwanted = options.clear.intersection(PER_MOUNT);
    let Some(made) = rollback.0.last().filter(|_| !(wanted | unwanted).is_empty()) else {
        return Ok(());
    };
    // A remount sets all flags anew: what the source's mount forbids stays forbidden unless it is asked for.
    let inherited = fstatvfs(made).map_err(failed)?.f_flag;
    let flags = wanted.union(flags_of(inherited).difference(unwanted));
    mount_remount(proc_path(made), flags | MountFlags::BIND, c"")
        .map_err(|errno| Error::system(format!("{mount}: set its flags"), errno))
}

fn flags_of(status: StatVfsMountFlags) -> MountFlags {
    [
        (StatVfsMountFlags::RDONLY, MountFlags::RDONLY),
        (StatVfsMountFlags::NOSUID, MountFlags::NOSUID),
        (StatVfsMountFlags::NODEV, MountFlags::NODEV),
        (StatVfsMountFlags::NOEXEC, MountFlags::NOEXEC),
    ]
    .into_iter()
    .filter(|(status_flag, _)| status.contains(*status_flag))
    .fold(MountFlags::empty(), |flags, (_, flag)| flags | flag)
}
