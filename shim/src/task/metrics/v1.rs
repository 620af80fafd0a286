//! The v1 controllers.

use std::path::{Path, PathBuf};

use containerd_shim_protos::{
    cgroups::metrics::{
        BlkIOEntry, BlkIOStat, CPUStat, CPUUsage, HugetlbStat, MemoryEntry, MemoryOomControl,
        MemoryStat, Metrics, PidsStat, Throttle,
    },
    protobuf::MessageField,
};
use mooring::cgroup::Cgroup;

use super::{Folders, Table, device, huge_page_sizes, number, text};

pub(super) fn read<'a>(groups: &[&'a Cgroup]) -> Metrics {
    // None where the controller is off. No group at all has used nothing, which is a figure too.
    let folders = |controller: &str| {
        let of = |group: &&'a Cgroup| group.v1.get(controller).map(PathBuf::as_path);
        let found: Vec<&Path> = groups.iter().filter_map(of).collect();
        (groups.is_empty() || !found.is_empty()).then_some(found)
    };
    let mut metrics = Metrics::default();
    if let Some(folders) = &folders("pids") {
        let limit = number(folders, "pids.max");
        let pids = PidsStat {
            current: number(folders, "pids.current"),
            // Here "no limit" is zero.
            limit: if limit == u64::MAX { 0 } else { limit },
            ..PidsStat::default()
        };
        metrics.pids = MessageField::some(pids);
    }
    metrics.cpu = MessageField::some(CPUStat {
        usage: MessageField::some(folders("cpuacct").as_deref().map(usage).unwrap_or_default()),
        throttling: MessageField::some(
            folders("cpu").as_deref().map(throttling).unwrap_or_default(),
        ),
        ..CPUStat::default()
    });
    if let Some(folders) = &folders("memory") {
        metrics.memory = MessageField::some(memory(folders));
        let control = Table::read(folders, "memory.oom_control");
        metrics.memory_oom_control = MessageField::some(MemoryOomControl {
            oom_kill_disable: control.get("oom_kill_disable"),
            under_oom: control.get("under_oom"),
            oom_kill: control.get("oom_kill"),
            ..MemoryOomControl::default()
        });
    }
    if let Some(folders) = &folders("blkio") {
        metrics.blkio = MessageField::some(blkio(folders));
    }
    if let Some(folders) = &folders("hugetlb") {
        for pagesize in huge_page_sizes(folders, ".usage_in_bytes") {
            let file = |what: &str| number(folders, &format!("hugetlb.{pagesize}.{what}"));
            metrics.hugetlb.push(HugetlbStat {
                usage: file("usage_in_bytes"),
                max: file("max_usage_in_bytes"),
                failcnt: file("failcnt"),
                pagesize: pagesize.clone(),
                ..HugetlbStat::default()
            });
        }
    }
    metrics
}

/// cpuacct.stat counts in hundredths of a second on every architecture that Linux runs on today.
const NANOSECONDS_PER_TICK: u64 = 10_000_000;

fn usage(folders: Folders) -> CPUUsage {
    let stat = Table::read(folders, "cpuacct.stat");
    let mut per_cpu: Vec<u64> = Vec::new();
    for folder in folders {
        let text = text(folder, "cpuacct.usage_percpu");
        for (at, used) in
            text.split_whitespace().filter_map(|text| text.parse::<u64>().ok()).enumerate()
        {
            match per_cpu.get_mut(at) {
                Some(sum) => *sum = sum.saturating_add(used),
                None => per_cpu.push(used),
            }
        }
    }
    CPUUsage {
        total: number(folders, "cpuacct.usage"),
        user: stat.get("user").saturating_mul(NANOSECONDS_PER_TICK),
        kernel: stat.get("system").saturating_mul(NANOSECONDS_PER_TICK),
        per_cpu,
        ..CPUUsage::default()
    }
}

fn throttling(folders: Folders) -> Throttle {
    let stat = Table::read(folders, "cpu.stat");
    Throttle {
        periods: stat.get("nr_periods"),
        throttled_periods: stat.get("nr_throttled"),
        throttled_time: stat.get("throttled_time"),
        ..Throttle::default()
    }
}

fn memory(folders: Folders) -> MemoryStat {
    let stat = Table::read(folders, "memory.stat");
    let entry = |prefix: &str| {
        let file = |what: &str| number(folders, &format!("{prefix}.{what}"));
        MessageField::some(MemoryEntry {
            limit: file("limit_in_bytes"),
            usage: file("usage_in_bytes"),
            max: file("max_usage_in_bytes"),
            failcnt: file("failcnt"),
            ..MemoryEntry::default()
        })
    };
    MemoryStat {
        cache: stat.get("cache"),
        rss: stat.get("rss"),
        rss_huge: stat.get("rss_huge"),
        mapped_file: stat.get("mapped_file"),
        dirty: stat.get("dirty"),
        writeback: stat.get("writeback"),
        pg_pg_in: stat.get("pgpgin"),
        pg_pg_out: stat.get("pgpgout"),
        pg_fault: stat.get("pgfault"),
        pg_maj_fault: stat.get("pgmajfault"),
        inactive_anon: stat.get("inactive_anon"),
        active_anon: stat.get("active_anon"),
        inactive_file: stat.get("inactive_file"),
        active_file: stat.get("active_file"),
        unevictable: stat.get("unevictable"),
        hierarchical_memory_limit: stat.get("hierarchical_memory_limit"),
        hierarchical_swap_limit: stat.get("hierarchical_memsw_limit"),
        total_cache: stat.get("total_cache"),
        total_rss: stat.get("total_rss"),
        total_rss_huge: stat.get("total_rss_huge"),
        total_mapped_file: stat.get("total_mapped_file"),
        total_dirty: stat.get("total_dirty"),
        total_writeback: stat.get("total_writeback"),
        total_pg_pg_in: stat.get("total_pgpgin"),
        total_pg_pg_out: stat.get("total_pgpgout"),
        total_pg_fault: stat.get("total_pgfault"),
        total_pg_maj_fault: stat.get("total_pgmajfault"),
        total_inactive_anon: stat.get("total_inactive_anon"),
        total_active_anon: stat.get("total_active_anon"),
        total_inactive_file: stat.get("total_inactive_file"),
        total_active_file: stat.get("total_active_file"),
        total_unevictable: stat.get("total_unevictable"),
        usage: entry("memory"),
        swap: entry("memory.memsw"),
        kernel: entry("memory.kmem"),
        kernel_tcp: entry("memory.kmem.tcp"),
        ..MemoryStat::default()
    }
}

fn blkio(folders: Folders) -> BlkIOStat {
    let first = |files: [&str; 2]| {
        files
            .into_iter()
            .map(|file| entries(folders, file))
            .find(|all| !all.is_empty())
            .unwrap_or_default()
    };
    BlkIOStat {
        io_service_bytes_recursive: first([
            "blkio.bfq.io_service_bytes_recursive",
            "blkio.throttle.io_service_bytes_recursive",
        ]),
        io_serviced_recursive: first([
            "blkio.bfq.io_serviced_recursive",
            "blkio.throttle.io_serviced_recursive",
        ]),
        io_queued_recursive: entries(folders, "blkio.bfq.io_queued_recursive"),
        io_service_time_recursive: entries(folders, "blkio.bfq.io_service_time_recursive"),
        io_wait_time_recursive: entries(folders, "blkio.bfq.io_wait_time_recursive"),
        io_merged_recursive: entries(folders, "blkio.bfq.io_merged_recursive"),
        io_time_recursive: entries(folders, "blkio.bfq.time_recursive"),
        sectors_recursive: entries(folders, "blkio.bfq.sectors_recursive"),
        ..BlkIOStat::default()
    }
}

/// Lines `8:0 Read 4096`, or `8:0 4096` where there are no kinds; the total of all devices is left out.
fn entries(folders: Folders, file: &str) -> Vec<BlkIOEntry> {
    let entry = |line: &str| {
        let parts: Vec<&str> = line.split_whitespace().collect();
        let (place, op, value) = match parts[..] {
            [place, op, value] => (place, op, value),
            [place, value] => (place, "", value),
            _ => return None,
        };
        let (major, minor) = device(place)?;
        let (op, value) = (op.to_owned(), value.parse().ok()?);
        Some(BlkIOEntry { op, major, minor, value, ..BlkIOEntry::default() })
    };
    let mut all: Vec<BlkIOEntry> = Vec::new();
    for found in folders
        .iter()
        .flat_map(|folder| text(folder, file).lines().filter_map(entry).collect::<Vec<_>>())
    {
        let same = |one: &&mut BlkIOEntry| {
            (one.major, one.minor, &one.op) == (found.major, found.minor, &found.op)
        };
        match all.iter_mut().find(same) {
            Some(one) => one.value = one.value.saturating_add(found.value),
            None => all.push(found),
        }
    }
    all
}
