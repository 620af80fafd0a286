//! What a container is given of the node, opened by the node's own eyes before there is a container.

use std::{
    collections::BTreeMap,
    fs, io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

use rustix::mount::OpenTreeFlags;

use super::options::{IDMAP, Options, PRIVATE, SHARED, SLAVE, propagation};
use crate::{
    error::{Doing, Error, Result},
    namespaces::Namespaces,
    spec::{Device, Mapping, Mount, Spec, TimeOffset},
    sys::{self, Fork, MountAttr},
};

/// A tree of mounts that is nowhere yet.
pub struct Tree {
    pub mount: OwnedFd,
    pub is_folder: bool,
}

pub struct Prepared {
    pub root: OwnedFd,
    /// Where the root lies on the node.
    pub root_path: PathBuf,
    /// For each mount of the specification that is a bind mount, its tree.
    pub binds: Vec<Option<Tree>>,
    /// In a user namespace, where nodes cannot be made: the node's own, with the path that each gets.
    pub nodes: Vec<(PathBuf, OwnedFd)>,
    /// The node's /proc: what the container's image has there is never written to.
    pub proc: OwnedFd,
}

fn open_tree(path: &Path, deep: bool) -> io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if deep {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    Ok(rustix::mount::open_tree(rustix::fs::CWD, path, flags)?)
}

/// What mounts of the node are to the container's, unless a mount says otherwise.
pub fn usual_propagation(spec: &Spec) -> Result<u64> {
    match spec.linux.rootfs_propagation.as_str() {
        "" => Ok(SLAVE),
        word => propagation(word)
            .map(|(kind, _)| kind)
            .ok_or_else(|| Error::invalid(format!("linux.rootfsPropagation {word:?}"))),
    }
}

impl Prepared {
    pub fn of(spec: &Spec, bundle: &Path, namespaces: &Namespaces) -> Result<Self> {
        let root_path = bundle.join(&spec.root.path);
        let root_path =
            fs::canonicalize(&root_path).doing_at("find root file system", &root_path)?;
        let root = open_tree(&root_path, true).doing_at("clone the mounts at", &root_path)?;
        let usual = usual_propagation(spec)?;
        let attr = MountAttr { propagation: usual, ..MountAttr::default() };
        if usual != SHARED {
            sys::mount_setattr(root.as_fd(), true, &attr)
                .doing("set the propagation of the root")?;
        }
        // The kernel enters no root that is shared.
        let attr = MountAttr { propagation: PRIVATE, ..MountAttr::default() };
        sys::mount_setattr(root.as_fd(), false, &attr).doing("set the propagation of the root")?;
        let binds = spec.mounts.iter().map(|mount| bind(mount, spec, bundle, namespaces, usual));
        let binds = binds.collect::<Result<_>>()?;
        let mut nodes = Vec::new();
        if namespaces.has(libc::CLONE_NEWUSER) && super::devices::are_wanted(spec) {
            for device in super::devices::all(spec) {
                nodes.push((device.path.clone(), node(&device)?));
            }
        }
        let proc = fs::File::open("/proc").doing("open /proc")?.into();
        Ok(Self { root, root_path, binds, nodes, proc })
    }
}

fn bind(
    mount: &Mount,
    spec: &Spec,
    bundle: &Path,
    namespaces: &Namespaces,
    usual: u64,
) -> Result<Option<Tree>> {
    let options = Options::of(mount)?;
    let Some(deep) = options.bind else { return Ok(None) };
    let source = bundle.join(&mount.source);
    let tree = open_tree(&source, deep).doing_at("clone the mounts at", &source)?;
    let about = rustix::fs::fstat(&tree).doing_at("look at", &source)?;
    let is_folder = rustix::fs::FileType::from_raw_mode(about.st_mode).is_dir();
    let change = |attr: &MountAttr, deep: bool| {
        sys::mount_setattr(tree.as_fd(), deep, attr)
            .doing_at("set the attributes of the mount of", &source)
    };
    if usual != SHARED {
        change(&MountAttr { propagation: usual, ..MountAttr::default() }, true)?;
    }
    for &(kind, deep) in &options.propagation {
        change(&MountAttr { propagation: kind, ..MountAttr::default() }, deep)?;
    }
    if let Some(deep) = options.mapped {
        let owner = owner_of(mount, spec, namespaces)?;
        let attr = MountAttr {
            set: IDMAP,
            userns_fd: u64::try_from(owner.as_raw_fd()).unwrap_or_default(),
            ..MountAttr::default()
        };
        sys::mount_setattr(tree.as_fd(), deep, &attr)
            .doing_at("map the ids of the mount of", &source)?;
    }
    if options.attr != MountAttr::default() {
        change(&options.attr, false)?;
    }
    if options.deep != MountAttr::default() {
        change(&options.deep, true)?;
    }
    Ok(Some(Tree { mount: tree, is_folder }))
}

/// A user namespace that has the mapping of a mount; the container's own where the mount has none.
fn owner_of(mount: &Mount, spec: &Spec, namespaces: &Namespaces) -> Result<OwnedFd> {
    let linux = &spec.linux;
    let own = mount.uid_mappings.is_empty() && mount.gid_mappings.is_empty();
    if own && let Some(joined) = namespaces.joins(libc::CLONE_NEWUSER) {
        return joined.try_clone().doing("hold the container's user namespace");
    }
    let (uids, gids) = if own {
        (&linux.uid_mappings, &linux.gid_mappings)
    } else {
        (&mount.uid_mappings, &mount.gid_mappings)
    };
    if uids.is_empty() || gids.is_empty() {
        return Err(Error::invalid("a mount with mapped ids, and no mapping of uids and gids"));
    }
    mapped_namespace(uids, gids)
}

/// A user namespace that nobody is in.
fn mapped_namespace(uids: &[Mapping], gids: &[Mapping]) -> Result<OwnedFd> {
    let deed = "make a user namespace for mapped ids";
    let (ready, tell) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).doing(deed)?;
    let (wait, done) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).doing(deed)?;
    match sys::fork(false).doing(deed)? {
        Fork::Child => {
            drop((ready, done));
            if sys::unshare(libc::CLONE_NEWUSER).is_ok() {
                let _ = rustix::io::write(&tell, b"x");
                // Until the other end is closed, by purpose or by a death.
                let _ = rustix::io::read(&wait, &mut [0_u8; 1]);
            }
            sys::exit(0);
        }
        Fork::Parent(pid) => {
            drop((tell, wait));
            let made = rustix::io::read(&ready, &mut [0_u8; 1]).is_ok_and(|count| count == 1);
            let opened = if made {
                write_mappings(pid, uids, gids).and_then(|()| {
                    let path = format!("/proc/{pid}/ns/user");
                    fs::File::open(&path).doing_at("open", path)
                })
            } else {
                Err(Error::invalid("the kernel makes no user namespace"))
            };
            drop(done);
            let _ = rustix::process::waitpid(
                rustix::process::Pid::from_raw(pid),
                rustix::process::WaitOptions::empty(),
            );
            opened.map(Into::into)
        }
    }
}

/// Writes the mappings of the user namespace that process `pid` has made.
pub fn write_mappings(pid: i32, uids: &[Mapping], gids: &[Mapping]) -> Result<()> {
    for (file, mappings) in [("uid_map", uids), ("gid_map", gids)] {
        let lines = mappings
            .iter()
            .map(|one| format!("{} {} {}\n", one.container_id, one.host_id, one.size));
        let path = format!("/proc/{pid}/{file}");
        fs::write(&path, lines.collect::<String>()).doing_at("write", &path)?;
    }
    Ok(())
}

/// Writes the offsets of the time namespace that process `pid` has made, which is hidden from its own user namespace.
pub fn write_offsets(pid: i32, offsets: &BTreeMap<String, TimeOffset>) -> Result<()> {
    let lines = offsets.iter().map(|(clock, at)| format!("{clock} {} {}\n", at.secs, at.nanosecs));
    let path = format!("/proc/{pid}/timens_offsets");
    fs::write(&path, lines.collect::<String>()).doing_at("write", &path)
}

/// The node's own device, if what lies at the path is that device.
fn node(device: &Device) -> Result<OwnedFd> {
    let path = &device.path;
    let tree = open_tree(path, false).doing_at("clone", path)?;
    let about =
        fs::metadata(format!("/proc/self/fd/{}", tree.as_raw_fd())).doing_at("look at", path)?;
    let kind = about.file_type();
    let right = match device.kind.as_str() {
        "b" => kind.is_block_device(),
        "p" => kind.is_fifo(),
        _ => kind.is_char_device(),
    };
    let number = rustix::fs::makedev(device.major, device.minor);
    if !right || (!kind.is_fifo() && about.rdev() != number) {
        return Err(Error::invalid(format!(
            "{} is not device {}:{}",
            path.display(),
            device.major,
            device.minor
        )));
    }
    Ok(tree)
}
