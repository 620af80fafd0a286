//! Resource usage of a control group, as containerd's messages, read straight from the kernel's files.
//!
//! A file that is not there (a controller that is off, an older kernel) leaves its figures zero.

mod v1;
mod v2;

use std::{collections::HashMap, fs, path::Path};

use containerd_shim_protos::protobuf::{Message, well_known_types::any::Any};
use mooring::cgroup::Cgroup;

use super::Error;

/// Reads the group's usage: `io.containerd.cgroups.v2.Metrics` on a unified machine, else `…v1.Metrics`.
pub fn read(group: &Cgroup) -> Result<Any, Error> {
    let (type_url, bytes) = if group.is_unified() {
        let folder = group.v2.as_deref().unwrap_or(Path::new(""));
        ("io.containerd.cgroups.v2.Metrics", v2::read(folder).write_to_bytes())
    } else {
        ("io.containerd.cgroups.v1.Metrics", v1::read(group).write_to_bytes())
    };
    let value = bytes.map_err(|error| Error::at("encode", "metrics")(error.into()))?;
    Ok(Any { type_url: type_url.to_owned(), value, ..Any::default() })
}

/// A file with one number, or `max` for none.
fn number(folder: &Path, file: &str) -> u64 {
    let text = fs::read_to_string(folder.join(file)).unwrap_or_default();
    match text.trim() {
        "max" => u64::MAX,
        text => text.parse().unwrap_or(0),
    }
}

/// A file of lines `name number`.
struct Table(HashMap<String, u64>);

impl Table {
    fn read(folder: &Path, file: &str) -> Self {
        let text = fs::read_to_string(folder.join(file)).unwrap_or_default();
        let line = |line: &str| {
            let (name, value) = line.split_once(' ')?;
            Some((name.to_owned(), value.trim().parse().ok()?))
        };
        Self(text.lines().filter_map(line).collect())
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

/// The sizes of huge pages that the folder has files for, as `2MB`.
fn huge_page_sizes(folder: &Path, ending: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let size = |name: String| {
        let size = name.strip_prefix("hugetlb.")?.strip_suffix(ending)?;
        (!size.contains('.')).then(|| size.to_owned())
    };
    entries.flatten().filter_map(|entry| size(entry.file_name().into_string().ok()?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_and_devices_are_read_and_torn_lines_skipped() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("t"), "a 1\nb\nc x\nd 18446744073709551615\n").unwrap();
        let table = Table::read(folder.path(), "t");
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
        let metrics = v2::read(folder.path());
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
}
