//! The control groups as a container sees them.

use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::{AsFd, BorrowedFd},
    path::{Path, PathBuf},
};

use rustix::{io::Errno, mount::OpenTreeFlags};

use super::{
    Late, Making,
    mounts::{attach, new},
    options::{Options, RDONLY},
};
use crate::{
    error::{Doing, Result},
    rooted,
    spec::Mount,
    sys::{self, MountAttr},
};

fn of_kind(kind: &str, source: &str, at: &Path) -> Mount {
    Mount {
        destination: at.to_owned(),
        kind: kind.into(),
        source: source.into(),
        ..Mount::default()
    }
}

pub(super) fn mount(
    making: &Making<'_>,
    root: BorrowedFd<'_>,
    path: &Path,
    options: &Options,
    late: &mut Late,
) -> Result<()> {
    if making.group.is_unified() {
        let target = rooted::folder(root, path, 0o755, true)?;
        let made = new(&of_kind("cgroup2", "cgroup", path), &without_data(options), None)?;
        return attach(&made, &target, path);
    }
    // A folder for each hierarchy, in a file system of their own.
    let target = rooted::folder(root, path, 0o755, true)?;
    let data = Options { data: vec!["mode=755".into()], ..without_data(options) };
    let made = new(&of_kind("tmpfs", "tmpfs", path), &data, making.label)?;
    attach(&made, &target, path)?;
    let mut hierarchies: BTreeMap<&Path, BTreeSet<&str>> = BTreeMap::new();
    for (controller, folder) in &making.group.v1 {
        hierarchies.entry(folder).or_default().insert(controller);
    }
    for (folder, controllers) in hierarchies {
        let plain: Vec<&str> =
            controllers.iter().map(|one| one.strip_prefix("name=").unwrap_or(one)).collect();
        // The machine's own name for them: the order of joint controllers is not always the same.
        let name = mount_of(folder).unwrap_or_else(|| PathBuf::from(plain.join(",")));
        let below = rooted::folder(made.as_fd(), &name, 0o755, true)?;
        let at = path.join(&name);
        let one = if making.own_cgroups {
            let mut data: Vec<String> = controllers.iter().map(ToString::to_string).collect();
            if data.iter().all(|one| one.starts_with("name=")) {
                data.insert(0, "none".into());
            }
            let data = Options { data, ..without_data(options) };
            new(&of_kind("cgroup", "cgroup", &at), &data, None)?
        } else {
            let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
            let tree = rustix::mount::open_tree(rustix::fs::CWD, folder, flags)
                .doing_at("clone the mount of", folder)?;
            sys::mount_setattr(tree.as_fd(), false, &options.attr)
                .doing_at("set the attributes of the mount of", folder)?;
            tree
        };
        attach(&one, &below, &at)?;
        for alias in plain.iter().filter(|alias| Path::new(alias) != name && plain.len() > 1) {
            match rustix::fs::symlinkat(&name, &made, *alias) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error).doing_at("make a link at", path.join(alias)),
            }
        }
    }
    if options.attr.set & RDONLY != 0 {
        late.push((made, false));
    }
    Ok(())
}

fn without_data(options: &Options) -> Options {
    Options { attr: MountAttr { ..options.attr }, ..Options::default() }
}

/// The name of the hierarchy that a group's folder is in: that of the folder where its mount begins.
fn mount_of(folder: &Path) -> Option<PathBuf> {
    let device =
        |path: &Path| std::os::unix::fs::MetadataExt::dev(&std::fs::metadata(path).ok()?).into();
    let own: Option<u64> = device(folder);
    let top = folder.ancestors().take_while(|path| device(path) == own).last()?;
    top.file_name().map(PathBuf::from)
}
