//! Resource usage of control groups, as containerd's messages, read straight from the kernel's files.
//!
//! A file that is not there (a controller that is off, an older kernel) leaves its figures zero. Of several groups the
//! figures are added; a limit that one of them does not have, all of them do not.

mod v1;
mod v2;

use std::{
    collections::{BTreeSet, HashMap},
    fs,
    path::Path,
    sync::OnceLock,
};

use containerd_shim_protos::protobuf::{Message, well_known_types::any::Any};
use mooring::cgroup::{Cgroup, Hierarchies, Mode};

use super::Error;

/// The folders of one controller, whose figures are added.
type Folders<'a> = &'a [&'a Path];

/// Reads what the groups have used together: `io.containerd.cgroups.v2.Metrics` on a unified machine, else
/// `…v1.Metrics`, whether there are groups or not.
pub fn read(groups: &[&Cgroup]) -> Result<Any, Error> {
    message(mode()?, groups)
}

/// This machine's kind. Which hierarchies are mounted changes with a reboot only.
fn mode() -> Result<Mode, Error> {
    static MODE: OnceLock<Mode> = OnceLock::new();
    if let Some(mode) = MODE.get() {
        return Ok(*mode);
    }
    let mode = Hierarchies::read()?.mode();
    Ok(*MODE.get_or_init(|| mode))
}

fn message(mode: Mode, groups: &[&Cgroup]) -> Result<Any, Error> {
    let (type_url, bytes) = if mode == Mode::Unified {
        let folders: Vec<&Path> = groups.iter().filter_map(|group| group.v2.as_deref()).collect();
        ("io.containerd.cgroups.v2.Metrics", v2::read(&folders).write_to_bytes())
    } else {
        ("io.containerd.cgroups.v1.Metrics", v1::read(groups).write_to_bytes())
    };
    let value = bytes.map_err(|error| Error::at("encode", "metrics")(error.into()))?;
    Ok(Any { type_url: type_url.to_owned(), value, ..Any::default() })
}

/// A file's content, nothing where it cannot be read.
fn text(folder: &Path, file: &str) -> String {
    fs::read_to_string(folder.join(file)).unwrap_or_default()
}

/// A file with one number, or `max` for none, which no sum exceeds.
fn number(folders: Folders, file: &str) -> u64 {
    let of = |folder: &&Path| match text(folder, file).trim() {
        "max" => u64::MAX,
        text => text.parse().unwrap_or(0),
    };
    folders.iter().map(of).fold(0, u64::saturating_add)
}

/// A file of lines `name number`.
struct Table(HashMap<String, u64>);

impl Table {
    fn read(folders: Folders, file: &str) -> Self {
        let mut table: HashMap<String, u64> = HashMap::new();
        let figure = |line: &str| -> Option<(String, u64)> {
            let (name, value) = line.split_once(' ')?;
            Some((name.to_owned(), value.trim().parse().ok()?))
        };
        for folder in folders {
            for (name, value) in text(folder, file).lines().filter_map(figure) {
                let sum = table.entry(name).or_default();
                *sum = sum.saturating_add(value);
            }
        }
        Self(table)
    }

    fn get(&self, name: &str) -> u64 {
        self.0.get(name).copied().unwrap_or(0)
    }
}

/// `8:0` as major and minor number.
fn device(text: &str) -> Option<(u64, u64)> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// The sizes of huge pages that the folders have files for, as `2MB`.
fn huge_page_sizes(folders: Folders, ending: &str) -> BTreeSet<String> {
    let size = |name: String| {
        let size = name.strip_prefix("hugetlb.")?.strip_suffix(ending)?;
        (!size.contains('.')).then(|| size.to_owned())
    };
    let entries = folders.iter().filter_map(|folder| fs::read_dir(folder).ok()).flatten().flatten();
    entries.filter_map(|entry| size(entry.file_name().into_string().ok()?)).collect()
}

#[cfg(test)]
mod tests {
    use containerd_shim_protos::{cgroups::metrics as legacy, cgroups_v2::metrics as unified};

    use super::*;

    #[test]
    fn tables_and_devices_are_read_and_torn_lines_skipped() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("t"), "a 1\nb\nc x\nd 18446744073709551615\n").unwrap();
        let table = Table::read(&[folder.path()], "t");
        assert_eq!((table.get("a"), table.get("b"), table.get("d")), (1, 0, u64::MAX));
        assert_eq!(device("8:16"), Some((8, 16)));
        assert_eq!(device("Total"), None);
    }

    #[test]
    fn the_files_of_v2_fill_the_message() {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in [
            ("cpu.stat", "usage_usec 30\nuser_usec 20\nsystem_usec 10\n"),
            ("memory.current", "4096\n"),
            ("memory.max", "max\n"),
            ("memory.stat", "anon 1\nfile 2\n"),
            ("memory.events", "oom_kill 3\n"),
            ("pids.current", "5\n"),
            ("io.stat", "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n"),
            ("cpu.pressure", "some avg10=1.50 avg60=0.00 avg300=0.00 total=9\n"),
            ("hugetlb.2MB.current", "7\n"),
        ] {
            fs::write(folder.path().join(name), text).unwrap();
        }
        let metrics = v2::read(&[folder.path()]);
        assert_eq!(
            (metrics.cpu.usage_usec, metrics.memory.usage, metrics.memory.anon),
            (30, 4096, 1)
        );
        assert_eq!(metrics.memory.usage_limit, u64::MAX);
        assert_eq!((metrics.memory_events.oom_kill, metrics.pids.current), (3, 5));
        assert_eq!((metrics.io.usage[0].major, metrics.io.usage[0].wios), (8, 4));
        assert_eq!(metrics.cpu.psi.some.total, 9);
        assert_eq!((metrics.hugetlb[0].current, metrics.hugetlb[0].pagesize.as_str()), (7, "2MB"));
    }

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(folder.path().join(name), text).unwrap();
        }
        folder
    }

    #[test]
    fn several_groups_of_v2_are_added() {
        let one = folder(&[
            ("cpu.stat", "usage_usec 30\n"),
            ("memory.current", "4096\n"),
            ("memory.max", "max\n"),
            ("pids.max", "7\n"),
            ("io.stat", "8:0 rbytes=1 wbytes=2 rios=3 wios=4\n"),
            ("cpu.pressure", "some avg10=1.50 avg60=0.00 avg300=0.00 total=9\n"),
        ]);
        let two = folder(&[
            ("cpu.stat", "usage_usec 12\n"),
            ("memory.current", "1\n"),
            ("memory.max", "8192\n"),
            ("pids.max", "5\n"),
            ("io.stat", "8:0 rbytes=5 wbytes=0 rios=0 wios=0\n8:16 rbytes=1\n"),
            ("cpu.pressure", "some avg10=1.50 avg60=0.00 avg300=0.00 total=9\n"),
        ]);
        let group = |folder: &tempfile::TempDir| Cgroup {
            v2: Some(folder.path().to_owned()),
            ..Cgroup::default()
        };
        let sum = message(Mode::Unified, &[&group(&one), &group(&two)]).unwrap();
        assert_eq!(sum.type_url, "io.containerd.cgroups.v2.Metrics");
        let sum = unified::Metrics::parse_from_bytes(&sum.value).unwrap();
        assert_eq!((sum.cpu.usage_usec, sum.memory.usage), (42, 4097));
        assert_eq!((sum.memory.usage_limit, sum.pids.limit), (u64::MAX, 12));
        let io: Vec<_> =
            sum.io.usage.iter().map(|one| (one.minor, one.rbytes, one.wbytes)).collect();
        assert_eq!(io, [(0, 6, 2), (16, 1, 0)]);
        assert!(sum.cpu.psi.is_none());
    }

    #[test]
    fn several_groups_of_v1_are_added() {
        let one = folder(&[
            ("cpuacct.usage", "30\n"),
            ("cpuacct.usage_percpu", "10 20\n"),
            ("memory.usage_in_bytes", "4096\n"),
            ("memory.stat", "total_rss 1\n"),
            ("blkio.throttle.io_serviced_recursive", "8:0 Read 4\n8:0 Write 1\nTotal 5\n"),
        ]);
        let two = folder(&[
            ("cpuacct.usage", "12\n"),
            ("cpuacct.usage_percpu", "5 6 1\n"),
            ("memory.usage_in_bytes", "1\n"),
            ("memory.stat", "total_rss 2\n"),
            ("blkio.throttle.io_serviced_recursive", "8:0 Read 2\n"),
        ]);
        let group = |folder: &tempfile::TempDir| Cgroup {
            v1: ["cpuacct", "memory", "blkio"]
                .map(|name| (name.to_owned(), folder.path().to_owned()))
                .into(),
            ..Cgroup::default()
        };
        let sum = message(Mode::Hybrid, &[&group(&one), &group(&two)]).unwrap();
        assert_eq!(sum.type_url, "io.containerd.cgroups.v1.Metrics");
        let sum = legacy::Metrics::parse_from_bytes(&sum.value).unwrap();
        assert_eq!((sum.cpu.usage.total, sum.cpu.usage.per_cpu.as_slice()), (42, &[15, 26, 1][..]));
        assert_eq!((sum.memory.usage.usage, sum.memory.total_rss), (4097, 3));
        let io: Vec<_> = sum
            .blkio
            .io_serviced_recursive
            .iter()
            .map(|one| (one.op.as_str(), one.value))
            .collect();
        assert_eq!(io, [("Read", 6), ("Write", 1)]);
        assert!(sum.pids.is_none());
    }

    #[test]
    fn no_group_has_used_nothing_in_the_words_of_the_machines_version() {
        let none = message(Mode::Unified, &[]).unwrap();
        assert_eq!(none.type_url, "io.containerd.cgroups.v2.Metrics");
        let none = unified::Metrics::parse_from_bytes(&none.value).unwrap();
        assert_eq!(none.memory.as_ref().map(|memory| memory.usage), Some(0));
        let none = message(Mode::Legacy, &[]).unwrap();
        assert_eq!(none.type_url, "io.containerd.cgroups.v1.Metrics");
        let none = legacy::Metrics::parse_from_bytes(&none.value).unwrap();
        assert_eq!(none.memory.usage.as_ref().map(|entry| entry.usage), Some(0));
    }
}
