//! A container's root file system, as a list of mounts that are made together or not at all.

use std::path::Path;

use super::{
    Error, Mount, UserNamespace,
    attach::attach,
    mount::{Place, Rollback},
    options::Options,
};

/// Mounts `mounts` in order on `root`, or nothing at all. Blocking.
///
/// Options that map ids (`uidmap=`, `gidmap=`) are refused; see [`mount_all_mapped`].
pub fn mount_all(mounts: &[Mount], root: &Path) -> Result<(), Error> {
    mount_with(mounts, root, None)
}

/// As [`mount_all`], with the pod's user namespace for mounts whose ids are mapped. Blocking.
pub fn mount_all_mapped(
    mounts: &[Mount],
    root: &Path,
    namespace: &UserNamespace,
) -> Result<(), Error> {
    mount_with(mounts, root, Some(namespace))
}

fn mount_with(
    mounts: &[Mount],
    root: &Path,
    namespace: Option<&UserNamespace>,
) -> Result<(), Error> {
    // Everything that can be refused by looking at it is refused before anything is mounted.
    let sorted = mounts
        .iter()
        .map(|mount| {
            refuse_foreign(mount)?;
            let options = Options::of(mount)?;
            if options.is_mapped() {
                UserNamespace::demand(namespace, mount, &options)?;
            }
            Ok(options)
        })
        .collect::<Result<Vec<_>, Error>>()?;
    let mut rollback = Rollback(Vec::new());
    for (mount, options) in mounts.iter().zip(&sorted) {
        let place = Place { root, within: mount.target.as_deref() };
        attach(mount, options, &place, namespace, &mut rollback)?;
    }
    rollback.0.clear();
    Ok(())
}

/// Types that containerd's mount manager, or a helper program, would have to work on first.
fn refuse_foreign(mount: &Mount) -> Result<(), Error> {
    if mount.kind.is_empty() {
        return Err(Error::invalid(mount.to_string(), "no type is given"));
    }
    if mount.kind.contains('/') {
        return Err(Error::unimplemented(
            mount.to_string(),
            "this type is for containerd's mount manager, which has to apply it before",
        ));
    }
    if mount.kind.starts_with("fuse.") || mount.kind.starts_with("fuse3.") {
        return Err(Error::unimplemented(mount.to_string(), "file systems in user space"));
    }
    Ok(())
}
