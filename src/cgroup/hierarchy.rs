//! The mounted hierarchies of this machine.

use std::path::{Component, Path, PathBuf};

use super::{Cgroup, Error};
use crate::sys::mountinfo;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Only v2.
    Unified,
    /// v1 controllers and a v2 hierarchy without controllers.
    Hybrid,
    /// Only v1.
    Legacy,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hierarchy {
    /// Its v1 controllers (or `name=…`); empty for v2.
    pub(super) controllers: Vec<String>,
    pub(super) mount: PathBuf,
    /// Which of its groups is the mount's root: `/`, except inside a container.
    pub(super) root: PathBuf,
}

impl Hierarchy {
    pub(super) fn is_v2(&self) -> bool {
        self.controllers.is_empty()
    }

    /// The folder of the group that the kernel calls `path`.
    pub(super) fn folder(&self, path: &Path) -> PathBuf {
        let below = path.strip_prefix(&self.root).unwrap_or(path);
        self.mount.join(below.strip_prefix("/").unwrap_or(below))
    }
}

/// Every mounted hierarchy, read once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hierarchies {
    pub(super) all: Vec<Hierarchy>,
}

impl Hierarchies {
    /// Reads them from this process's mount table.
    pub fn read() -> Result<Self, Error> {
        let table = Path::new("/proc/self/mountinfo");
        Ok(Self::of(mountinfo::read().map_err(Error::at("read", table))?))
    }

    fn of(table: Vec<mountinfo::Entry>) -> Self {
        let mut all: Vec<Hierarchy> = Vec::new();
        for mount in table {
            let controllers = match mount.kind.as_str() {
                "cgroup2" => Vec::new(),
                "cgroup" => {
                    let options = mount.super_options.split(',');
                    options.filter(|option| is_controller(option)).map(str::to_owned).collect()
                }
                _ => continue,
            };
            // The same hierarchy may be mounted again elsewhere; the first is the machine's.
            if all.iter().any(|known| known.controllers == controllers) {
                continue;
            }
            all.push(Hierarchy { controllers, mount: mount.target, root: mount.root });
        }
        Self { all }
    }

    /// Which kinds of hierarchy there are.
    pub fn mode(&self) -> Mode {
        let v1 = self.all.iter().any(|one| !one.is_v2() && !is_named(one));
        match (v1, self.all.iter().any(Hierarchy::is_v2)) {
            (false, _) => Mode::Unified,
            (true, true) => Mode::Hybrid,
            (true, false) => Mode::Legacy,
        }
    }

    /// The folders that a group called `path` (from the hierarchies' roots) has or would have.
    pub fn group(&self, path: &str) -> Result<Cgroup, Error> {
        let invalid = || Error::InvalidPath { path: path.to_owned() };
        let below = Path::new(path);
        let below = below.strip_prefix("/").unwrap_or(below);
        if !below.components().all(|part| matches!(part, Component::Normal(_)))
            || below.as_os_str().is_empty()
            || path.contains('\0')
        {
            return Err(invalid());
        }
        let mut group = Cgroup::default();
        for hierarchy in &self.all {
            group.put(hierarchy, hierarchy.mount.join(below));
        }
        Ok(group)
    }

    /// The groups that `/proc/<pid>/cgroup` (its text is `groups`) names, without those that are a hierarchy's root.
    pub(super) fn parse_groups(&self, groups: &str) -> Cgroup {
        let mut group = Cgroup::default();
        for (hierarchy, path) in self.groups(groups) {
            if path != Path::new("/") && path != hierarchy.root {
                group.put(hierarchy, hierarchy.folder(path));
            }
        }
        group
    }

    /// Each group in such a text that can be reached, with its hierarchy.
    pub(super) fn groups<'a>(
        &'a self,
        text: &'a str,
    ) -> impl Iterator<Item = (&'a Hierarchy, &'a Path)> {
        text.lines().filter_map(|line| {
            let mut parts = line.splitn(3, ':').skip(1);
            let (controllers, path) = (parts.next()?, parts.next()?);
            let hierarchy = self.all.iter().find(|known| match controllers {
                "" => known.is_v2(),
                list => known.controllers.iter().any(|c| list.split(',').any(|name| name == c)),
            })?;
            let path = path.strip_suffix(" (deleted)").unwrap_or(path);
            (!path.contains("/..")).then_some((hierarchy, Path::new(path)))
        })
    }
}

fn is_named(hierarchy: &Hierarchy) -> bool {
    hierarchy.controllers.iter().all(|name| name.starts_with("name="))
}

fn is_controller(option: &str) -> bool {
    const PLAIN: [&str; 13] = [
        "cpu",
        "cpuacct",
        "cpuset",
        "memory",
        "devices",
        "freezer",
        "blkio",
        "pids",
        "hugetlb",
        "net_cls",
        "net_prio",
        "perf_event",
        "rdma",
    ];
    PLAIN.contains(&option) || option == "misc" || option.starts_with("name=")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(table: &str) -> Hierarchies {
        Hierarchies::of(mountinfo::parse(table.as_bytes()))
    }

    const HYBRID: &str = "\
25 30 0:22 / /sys/fs/cgroup rw,nosuid - tmpfs tmpfs rw,mode=755
26 25 0:23 / /sys/fs/cgroup/unified rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate
27 25 0:24 / /sys/fs/cgroup/cpu,cpuacct rw shared:5 - cgroup cgroup rw,cpu,cpuacct
28 25 0:25 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
29 25 0:26 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
31 25 0:25 / /mnt/again rw - cgroup cgroup rw,memory
";

    #[test]
    fn hybrid_hierarchies_are_told_apart() {
        let all = parse(HYBRID);
        assert_eq!(all.mode(), Mode::Hybrid);
        assert_eq!(all.all.len(), 4);
        let unified = "1 0 0:2 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        assert_eq!(parse(unified).mode(), Mode::Unified);
    }

    #[test]
    fn a_process_at_the_root_of_a_hierarchy_has_no_group_there() {
        let group = parse(HYBRID)
            .parse_groups("4:memory:/\n3:cpu,cpuacct:/pod/a\n1:name=systemd:/pod/a\n0::/pod/a\n");
        assert_eq!(group.v2.as_deref(), Some(Path::new("/sys/fs/cgroup/unified/pod/a")));
        assert_eq!(
            group.v1.get("cpu").map(PathBuf::as_path),
            Some(Path::new("/sys/fs/cgroup/cpu,cpuacct/pod/a"))
        );
        assert_eq!(group.v1.get("memory"), None);
    }

    #[test]
    fn paths_that_climb_are_refused() {
        let all = parse(HYBRID);
        for path in ["", "/", "..", "/a/../..", "a/..", "./"] {
            assert!(all.group(path).is_err(), "{path:?}");
        }
        assert!(all.group("/kubepods/pod1").is_ok());
    }
}
