//! The unified hierarchy.

use std::{fs, path::Path};

use containerd_shim_protos::{
    cgroups_v2::metrics::{
        CPUStat, HugeTlbStat, IOEntry, IOStat, MemoryEvents, MemoryStat, Metrics, PSIData,
        PSIStats, PidsStat,
    },
    protobuf::MessageField,
};

use super::{Table, device, huge_page_sizes, number};

pub(super) fn read(folder: &Path) -> Metrics {
    let limit = number(folder, "pids.max");
    let mut metrics = Metrics {
        pids: MessageField::some(PidsStat {
            current: number(folder, "pids.current"),
            // Here "no limit" is zero.
            limit: if limit == u64::MAX { 0 } else { limit },
            ..PidsStat::default()
        }),
        cpu: MessageField::some(cpu(folder)),
        memory: MessageField::some(memory(folder)),
        memory_events: MessageField::some(events(folder)),
        io: MessageField::some(io(folder)),
        ..Metrics::default()
    };
    for pagesize in huge_page_sizes(folder, ".current") {
        let file = |what: &str| format!("hugetlb.{pagesize}.{what}");
        metrics.hugetlb.push(HugeTlbStat {
            current: number(folder, &file("current")),
            max: number(folder, &file("max")),
            failcnt: Table::read(folder, &file("events")).get("max"),
            pagesize: pagesize.clone(),
            ..HugeTlbStat::default()
        });
    }
    metrics
}

fn cpu(folder: &Path) -> CPUStat {
    let stat = Table::read(folder, "cpu.stat");
    CPUStat {
        usage_usec: stat.get("usage_usec"),
        user_usec: stat.get("user_usec"),
        system_usec: stat.get("system_usec"),
        nr_periods: stat.get("nr_periods"),
        nr_throttled: stat.get("nr_throttled"),
        throttled_usec: stat.get("throttled_usec"),
        nr_bursts: stat.get("nr_bursts"),
        burst_usec: stat.get("burst_usec"),
        psi: pressure(folder, "cpu.pressure"),
        ..CPUStat::default()
    }
}

fn memory(folder: &Path) -> MemoryStat {
    let stat = Table::read(folder, "memory.stat");
    MemoryStat {
        anon: stat.get("anon"),
        file: stat.get("file"),
        kernel_stack: stat.get("kernel_stack"),
        slab: stat.get("slab"),
        sock: stat.get("sock"),
        shmem: stat.get("shmem"),
        file_mapped: stat.get("file_mapped"),
        file_dirty: stat.get("file_dirty"),
        file_writeback: stat.get("file_writeback"),
        anon_thp: stat.get("anon_thp"),
        inactive_anon: stat.get("inactive_anon"),
        active_anon: stat.get("active_anon"),
        inactive_file: stat.get("inactive_file"),
        active_file: stat.get("active_file"),
        unevictable: stat.get("unevictable"),
        slab_reclaimable: stat.get("slab_reclaimable"),
        slab_unreclaimable: stat.get("slab_unreclaimable"),
        pgfault: stat.get("pgfault"),
        pgmajfault: stat.get("pgmajfault"),
        workingset_refault: stat
            .get("workingset_refault_anon")
            .saturating_add(stat.get("workingset_refault_file")),
        workingset_activate: stat
            .get("workingset_activate_anon")
            .saturating_add(stat.get("workingset_activate_file")),
        workingset_nodereclaim: stat.get("workingset_nodereclaim"),
        pgrefill: stat.get("pgrefill"),
        pgscan: stat.get("pgscan"),
        pgsteal: stat.get("pgsteal"),
        pgactivate: stat.get("pgactivate"),
        pgdeactivate: stat.get("pgdeactivate"),
        pglazyfree: stat.get("pglazyfree"),
        pglazyfreed: stat.get("pglazyfreed"),
        thp_fault_alloc: stat.get("thp_fault_alloc"),
        thp_collapse_alloc: stat.get("thp_collapse_alloc"),
        usage: number(folder, "memory.current"),
        usage_limit: number(folder, "memory.max"),
        max_usage: number(folder, "memory.peak"),
        swap_usage: number(folder, "memory.swap.current"),
        swap_limit: number(folder, "memory.swap.max"),
        swap_max_usage: number(folder, "memory.swap.peak"),
        psi: pressure(folder, "memory.pressure"),
        ..MemoryStat::default()
    }
}

fn events(folder: &Path) -> MemoryEvents {
    let events = Table::read(folder, "memory.events");
    MemoryEvents {
        low: events.get("low"),
        high: events.get("high"),
        max: events.get("max"),
        oom: events.get("oom"),
        oom_kill: events.get("oom_kill"),
        oom_group_kill: events.get("oom_group_kill"),
        ..MemoryEvents::default()
    }
}

fn io(folder: &Path) -> IOStat {
    let text = fs::read_to_string(folder.join("io.stat")).unwrap_or_default();
    let entry = |line: &str| {
        let (place, figures) = line.split_once(' ')?;
        let (major, minor) = device(place)?;
        let mut entry = IOEntry { major, minor, ..IOEntry::default() };
        for (name, value) in figures.split(' ').filter_map(|figure| figure.split_once('=')) {
            let value = value.parse().unwrap_or(0);
            match name {
                "rbytes" => entry.rbytes = value,
                "wbytes" => entry.wbytes = value,
                "rios" => entry.rios = value,
                "wios" => entry.wios = value,
                _ => {}
            }
        }
        Some(entry)
    };
    let usage = text.lines().filter_map(entry).collect();
    IOStat { usage, psi: pressure(folder, "io.pressure"), ..IOStat::default() }
}

/// Lines `some avg10=0.00 avg60=0.00 avg300=0.00 total=0`; absent where the kernel does not measure it.
fn pressure(folder: &Path, file: &str) -> MessageField<PSIStats> {
    let Ok(text) = fs::read_to_string(folder.join(file)) else { return MessageField::none() };
    let mut stats = PSIStats::default();
    for line in text.lines() {
        let Some((kind, figures)) = line.split_once(' ') else { continue };
        let mut data = PSIData::default();
        for (name, value) in figures.split(' ').filter_map(|figure| figure.split_once('=')) {
            let share = || value.parse().unwrap_or(0.0);
            match name {
                "avg10" => data.avg10 = share(),
                "avg60" => data.avg60 = share(),
                "avg300" => data.avg300 = share(),
                "total" => data.total = value.parse().unwrap_or(0),
                _ => {}
            }
        }
        match kind {
            "some" => stats.some = MessageField::some(data),
            "full" => stats.full = MessageField::some(data),
            _ => {}
        }
    }
    MessageField::some(stats)
}
