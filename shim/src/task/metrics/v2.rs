//! The unified hierarchy.

use std::fs;

use containerd_shim_protos::{
    cgroups_v2::metrics::{
        CPUStat, HugeTlbStat, IOEntry, IOStat, MemoryEvents, MemoryStat, Metrics, PSIData,
        PSIStats, PidsStat,
    },
    protobuf::MessageField,
};

use super::{Folders, Table, device, huge_page_sizes, number, text};

pub(super) fn read(folders: Folders) -> Metrics {
    let limit = number(folders, "pids.max");
    let mut metrics = Metrics {
        pids: MessageField::some(PidsStat {
            current: number(folders, "pids.current"),
            // Here "no limit" is zero.
            limit: if limit == u64::MAX { 0 } else { limit },
            ..PidsStat::default()
        }),
        cpu: MessageField::some(cpu(folders)),
        memory: MessageField::some(memory(folders)),
        memory_events: MessageField::some(events(folders)),
        io: MessageField::some(io(folders)),
        ..Metrics::default()
    };
    for pagesize in huge_page_sizes(folders, ".current") {
        let file = |what: &str| format!("hugetlb.{pagesize}.{what}");
        metrics.hugetlb.push(HugeTlbStat {
            current: number(folders, &file("current")),
            max: number(folders, &file("max")),
            failcnt: Table::read(folders, &file("events")).get("max"),
            pagesize: pagesize.clone(),
            ..HugeTlbStat::default()
        });
    }
    metrics
}

fn cpu(folders: Folders) -> CPUStat {
    let stat = Table::read(folders, "cpu.stat");
    CPUStat {
        usage_usec: stat.get("usage_usec"),
        user_usec: stat.get("user_usec"),
        system_usec: stat.get("system_usec"),
        nr_periods: stat.get("nr_periods"),
        nr_throttled: stat.get("nr_throttled"),
        throttled_usec: stat.get("throttled_usec"),
        nr_bursts: stat.get("nr_bursts"),
        burst_usec: stat.get("burst_usec"),
        psi: pressure(folders, "cpu.pressure"),
        ..CPUStat::default()
    }
}

fn memory(folders: Folders) -> MemoryStat {
    let stat = Table::read(folders, "memory.stat");
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
        usage: number(folders, "memory.current"),
        usage_limit: number(folders, "memory.max"),
        max_usage: number(folders, "memory.peak"),
        swap_usage: number(folders, "memory.swap.current"),
        swap_limit: number(folders, "memory.swap.max"),
        swap_max_usage: number(folders, "memory.swap.peak"),
        psi: pressure(folders, "memory.pressure"),
        ..MemoryStat::default()
    }
}

fn events(folders: Folders) -> MemoryEvents {
    let events = Table::read(folders, "memory.events");
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

fn io(folders: Folders) -> IOStat {
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
    let mut usage: Vec<IOEntry> = Vec::new();
    for found in folders
        .iter()
        .flat_map(|folder| text(folder, "io.stat").lines().filter_map(entry).collect::<Vec<_>>())
    {
        match usage.iter_mut().find(|one| (one.major, one.minor) == (found.major, found.minor)) {
            Some(one) => {
                one.rbytes = one.rbytes.saturating_add(found.rbytes);
                one.wbytes = one.wbytes.saturating_add(found.wbytes);
                one.rios = one.rios.saturating_add(found.rios);
                one.wios = one.wios.saturating_add(found.wios);
            }
            None => usage.push(found),
        }
    }
    IOStat { usage, psi: pressure(folders, "io.pressure"), ..IOStat::default() }
}

/// Lines `some avg10=0.00 avg60=0.00 avg300=0.00 total=0`; absent where the kernel does not measure it, and of several
/// groups, as their waits overlap and cannot be added.
fn pressure(folders: Folders, file: &str) -> MessageField<PSIStats> {
    let [folder] = folders else { return MessageField::none() };
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
