//! The mounts of a specification, in their order.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags};

use super::{
    Late, Making, PROC_MAGIC, cgroups, is_on,
    options::{Options, RDONLY},
};
use crate::{
    error::{Doing, Error, Result},
    rooted,
    spec::Mount,
    sys::{self, MountAttr},
};

/// Files of /proc that a container may be given another's of, as lxcfs has them.
const IN_PROC: [&str; 11] = [
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/uptime",
    "/proc/loadavg",
    "/proc/slabinfo",
    "/proc/net/dev",
    "/proc/sys/kernel/ns_last_pid",
    "/proc/sys/crypto/fips_enabled",
];

pub(super) fn all(making: &mut Making<'_>, root: BorrowedFd<'_>, late: &mut Late) -> Result<()> {
    for at in 0..making.spec.mounts.len() {
        let Some(mount) = making.spec.mounts.get(at) else { break };
        let options = Options::of(mount)?;
        let path = rooted::clean(&mount.destination);
        if options.bind.is_some() {
            let tree = making.prepared.binds.get_mut(at).and_then(Option::take);
            let tree = tree.ok_or_else(|| Error::invalid("a bind mount without a source"))?;
            let target = if tree.is_folder {
                rooted::folder(root, &path, 0o755, rooted::is_of_the_kernel(&path))?
            } else {
                rooted::file(root, &path)?
            };
            check(&target, &path, &tree.mount)?;
            attach(&tree.mount, &target, &path)?;
            continue;
        }
        match mount.kind.as_str() {
            "cgroup" | "cgroup2" => cgroups::mount(making, root, &path, &options, late)?,
            kind => {
                let straight = matches!(kind, "proc" | "sysfs");
                let mut options = options;
                if kind == "tmpfs" && !options.data.iter().any(|one| one.starts_with("mode=")) {
                    options.data.extend(mode_of(root, &path)?);
                }
                let target = rooted::folder(root, &path, 0o755, straight)?;
                let made = new(mount, &options, making.label)?;
                check(&target, &path, &made)?;
                attach(&made, &target, &path)?;
                for &(kind, deep) in &options.propagation {
                    let attr = MountAttr { propagation: kind, ..MountAttr::default() };
                    sys::mount_setattr(made.as_fd(), deep, &attr)
                        .doing_at("set the propagation of", &path)?;
                }
                if kind == "tmpfs" && options.attr.set & RDONLY != 0 {
                    late.push((made, false));
                }
            }
        }
    }
    Ok(())
}

/// The option that gives a tmpfs the mode of the folder that it lies on, where there is one.
fn mode_of(root: BorrowedFd<'_>, path: &Path) -> Result<Option<String>> {
    let Some(found) = rooted::find(root, path, false)? else { return Ok(None) };
    let about = rustix::fs::fstat(&found).doing_at("look at", path)?;
    Ok(Some(format!("mode={:o}", about.st_mode & 0o7777)))
}

/// Nothing may be laid over what the kernel tells in /proc: programs, this one too, act by it.
fn check(target: &OwnedFd, path: &Path, mount: &OwnedFd) -> Result<()> {
    let refused = |why| Err(Error::invalid(format!("mount on {}: {why}", path.display())));
    if path == Path::new("/proc") {
        if is_on(mount.as_fd(), PROC_MAGIC) {
            return Ok(());
        }
        return refused("only the kernel's own may be there");
    }
    let listed = IN_PROC.iter().any(|known| path == Path::new(known));
    if (path.starts_with("/proc") || is_on(target.as_fd(), PROC_MAGIC)) && !listed {
        return refused("nothing may be laid over what is in /proc");
    }
    Ok(())
}

/// Puts a mount that is nowhere yet in its place.
pub(super) fn attach(mount: &OwnedFd, target: &OwnedFd, path: &Path) -> Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(mount, "", target, "", flags).doing_at("mount at", path)
}

/// A new file system of the kind that is asked for.
pub(super) fn new(mount: &Mount, options: &Options, label: Option<&str>) -> Result<OwnedFd> {
    let what = format!("mount {} at {}", mount.kind, mount.destination.display());
    if mount.kind.is_empty() {
        return Err(Error::invalid(format!("{what}: no type")));
    }
    let context =
        rustix::mount::fsopen(mount.kind.as_str(), FsOpenFlags::FSOPEN_CLOEXEC).doing(&what)?;
    let set = |key: &str, value: &str| {
        rustix::mount::fsconfig_set_string(&context, key, value)
            .doing(&format!("{what}: option {key}={value}"))
    };
    let source = if mount.source.is_empty() { mount.kind.as_str() } else { mount.source.as_str() };
    set("source", source)?;
    for option in options.data.iter().flat_map(|one| one.split(',')) {
        match option.split_once('=') {
            Some((key, value)) => set(key, value)?,
            None => rustix::mount::fsconfig_set_flag(&context, option)
                .doing(&format!("{what}: option {option}"))?,
        }
    }
    // The kernel labels these itself.
    if let Some(label) =
        label.filter(|_| !matches!(mount.kind.as_str(), "proc" | "sysfs" | "mqueue"))
    {
        set("context", label)?;
    }
    rustix::mount::fsconfig_create(&context).doing(&what)?;
    let late = if mount.kind == "tmpfs" { RDONLY } else { 0 };
    let attributes = u32::try_from(options.attr.set & !late).unwrap_or_default();
    rustix::mount::fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::from_bits_retain(attributes),
    )
    .doing(&what)
}
