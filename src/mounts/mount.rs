//! A container's root file system, as a list of mounts that are made together or not at all.

use std::{
    fmt,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{CWD, Mode, OFlags, ResolveFlags, openat2},
    mount::UnmountFlags,
};
use serde::{Deserialize, Serialize};

use super::{Error, UserNamespace, attach::attach, idmap::proc_path, options::Options};

/// One mount, as containerd describes it (`containerd.types.Mount`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// The file system's type, or `bind`.
    pub kind: String,
    pub source: String,
    /// Where, relative to the root file system; the root itself when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<PathBuf>,
    #[serde(default)]
    pub options: Vec<String>,
}

impl Mount {
    /// A mount on the root itself.
    pub fn new(kind: &str, source: &str, options: &[&str]) -> Self {
        Self {
            kind: kind.to_owned(),
            source: source.to_owned(),
            target: None,
            options: options.iter().map(|&option| option.to_owned()).collect(),
        }
    }
}

/// Names the mount in messages; an overlay's options can be pages long, so they stay out.
impl fmt::Display for Mount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "mount of {} {:?}", self.kind, self.source)
    }
}

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

/// Where a mount goes: a path that is resolved with `root` as its root, whatever symlinks are in it.
pub(crate) struct Place<'a> {
    pub root: &'a Path,
    pub within: Option<&'a Path>,
}

impl Place<'_> {
    /// The topmost mount's directory or file at this place, at this moment.
    pub(crate) fn open(&self) -> Result<OwnedFd, Error> {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let root = rustix::fs::open(self.root, flags | OFlags::DIRECTORY, Mode::empty())
            .map_err(|errno| Error::at("open mount target", self.root, errno))?;
        match self.within {
            None => Ok(root),
            Some(path) => open_within(root, path, OFlags::PATH),
        }
    }
}

/// Opens `path` with `root` as its root: neither `..` nor a symlink leads out of it.
pub(crate) fn open_within(root: impl AsFd, path: &Path, flags: OFlags) -> Result<OwnedFd, Error> {
    // An empty path would be refused, "." is the root.
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    // The kernel answers EAGAIN when a rename anywhere races with a `..`; some tries are enough in practice.
    let mut tries = 0;
    loop {
        match openat2(&root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
            Err(rustix::io::Errno::AGAIN) if tries < 16 => tries += 1,
            answer => return answer.map_err(|errno| Error::at("open within root", path, errno)),
        }
    }
}

/// The mounts made so far; dropped with any left in it, it takes them away again, the last one first.
pub(crate) struct Rollback(pub Vec<OwnedFd>);

impl Drop for Rollback {
    fn drop(&mut self) {
        while let Some(made) = self.0.pop() {
            // The descriptor itself keeps the mount busy, hence the detaching.
            if let Err(errno) = rustix::mount::unmount(proc_path(&made), UnmountFlags::DETACH) {
                log::warn!("take back a mount that was made before another one failed: {errno}");
            }
        }
    }
}

/// Opens `path` itself, following symlinks, as a handle.
pub(crate) fn handle(path: &str) -> rustix::io::Result<OwnedFd> {
    rustix::fs::openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
}
