//! Mounts that show files under other owners: each id is translated by a user namespace's mapping.

use std::{
    fs::{self, File},
    os::fd::{AsFd, AsRawFd, OwnedFd},
};

use super::{
    Error, Mount,
    options::{IdRange, Options},
};

/// The user namespace of a pod, held open, with its mappings.
#[derive(Debug)]
pub struct UserNamespace {
    file: File,
    uids: Vec<IdRange>,
    gids: Vec<IdRange>,
}

impl UserNamespace {
    /// The user namespace that process `pid` is in.
    pub fn of_process(pid: u32) -> Result<Self, Error> {
        let open = |name: &str| format!("/proc/{pid}/{name}");
        let path = open("ns/user");
        let file =
            File::open(&path).map_err(|error| Error::system(format!("open {path}"), error))?;
        let mapping = |name: &str| {
            let path = open(name);
            fs::read_to_string(&path)
                .map(|text| parse(&text))
                .map_err(|error| Error::system(format!("read {path}"), error))
        };
        Ok(Self { file, uids: mapping("uid_map")?, gids: mapping("gid_map")? })
    }

    /// The namespace, if it is there and maps what `mount` wants mapped.
    pub(super) fn demand<'a>(
        namespace: Option<&'a Self>,
        mount: &Mount,
        options: &Options,
    ) -> Result<&'a Self, Error> {
        let namespace = namespace.ok_or_else(|| {
            Error::unimplemented(
                mount.to_string(),
                "mapped ids outside of a pod with a user namespace",
            )
        })?;
        if sorted(&namespace.uids) != sorted(&options.uids)
            || sorted(&namespace.gids) != sorted(&options.gids)
        {
            return Err(Error::invalid(
                mount.to_string(),
                "its id mapping is not the one of the pod's user namespace",
            ));
        }
        Ok(namespace)
    }

    /// Applies the mapping to `tree`, a mount that is not attached yet.
    pub(super) fn apply(&self, tree: impl AsFd) -> std::io::Result<()> {
        composefs_ioctls::mount::mount_setattr_idmap(tree, &self.file)
    }
}

fn sorted(ranges: &[IdRange]) -> Vec<IdRange> {
    let mut ranges = ranges.to_vec();
    ranges.sort_unstable_by_key(|range| range.inside);
    ranges
}

/// Reads a `uid_map`, as seen from the initial user namespace.
fn parse(text: &str) -> Vec<IdRange> {
    text.lines()
        .filter_map(|line| {
            let mut numbers = line.split_ascii_whitespace().map(str::parse);
            Some(IdRange {
                inside: numbers.next()?.ok()?,
                outside: numbers.next()?.ok()?,
                length: numbers.next()?.ok()?,
            })
        })
        .collect()
}

/// A path that leads to what `fd` refers to, for system calls that take only paths.
pub(crate) fn proc_path(fd: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}
