//! Limits of the controllers that have a hierarchy each.

use std::{fs, path::Path};

use mooring::cgroup::Cgroup;

use super::set;
use crate::{
    error::{Error, Result},
    spec::{BlockIo, Cpu, Memory, Resources, ThrottleDevice},
};

pub(super) fn apply(group: &Cgroup, resources: &Resources) -> Result<()> {
    let of = |controller: &str| group.v1.get(controller).map(std::path::PathBuf::as_path);
    memory(of("memory"), &resources.memory)?;
    cpu(of("cpu"), of("cpuset"), &resources.cpu)?;
    if let Some(limit) = resources.pids.limit.filter(|limit| *limit != 0) {
        let limit = if limit < 0 { "max".to_owned() } else { limit.to_string() };
        set(of("pids"), "pids.max", limit, "linux.resources.pids")?;
    }
    block_io(of("blkio"), &resources.block_io)?;
    for one in &resources.hugepage_limits {
        let file = format!("hugetlb.{}.limit_in_bytes", one.page_size);
        set(of("hugetlb"), &file, one.limit, "linux.resources.hugepageLimits")?;
    }
    if let Some(class) = resources.network.class_id.filter(|class| *class != 0) {
        set(of("net_cls"), "net_cls.classid", class, "linux.resources.network.classID")?;
    }
    for one in &resources.network.priorities {
        let line = format!("{} {}", one.name, one.priority);
        set(of("net_prio"), "net_prio.ifpriomap", line, "linux.resources.network.priorities")?;
    }
    for (device, limits) in &resources.rdma {
        let line = super::v2::rdma(device, limits);
        set(of("rdma"), "rdma.max", line, "linux.resources.rdma")?;
    }
    Ok(())
}

fn memory(folder: Option<&Path>, wanted: &Memory) -> Result<()> {
    const WHAT: &str = "linux.resources.memory";
    if wanted.kernel_tcp.is_some_and(|limit| limit > 0) {
        return Err(Error::unsupported("linux.resources.memory.kernelTCP"));
    }
    let (file, swap_file) = ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes");
    let limit = wanted.limit.filter(|limit| *limit != 0);
    // Swap is counted with the rest; without one, no limit of the rest is no limit of both.
    let swap = wanted.swap.filter(|swap| *swap != 0).or(limit.filter(|limit| *limit == -1));
    let has_swap = folder.is_some_and(|folder| folder.join(swap_file).exists());
    let now = folder
        .and_then(|folder| fs::read_to_string(folder.join(swap_file)).ok())
        .and_then(|text| text.trim().parse::<i64>().ok());
    // The rest may never be above both, not even for a moment.
    let raises = swap.zip(now).is_some_and(|(swap, now)| swap == -1 || swap > now);
    let set_swap = || match swap {
        // A kernel that does not count swap has none to limit, as far as a client can tell.
        Some(_) if !has_swap => Ok(()),
        Some(swap) => set(folder, swap_file, swap, WHAT),
        None => Ok(()),
    };
    if raises {
        set_swap()?;
    }
    if let Some(limit) = limit {
        set(folder, file, limit, WHAT)?;
    }
    if !raises {
        set_swap()?;
    }
    if let Some(reservation) = wanted.reservation.filter(|one| *one != 0) {
        set(folder, "memory.soft_limit_in_bytes", reservation, WHAT)?;
    }
    if wanted.disable_oom_killer == Some(true) {
        set(folder, "memory.oom_control", 1, WHAT)?;
    }
    if let Some(swappiness) = wanted.swappiness {
        set(folder, "memory.swappiness", swappiness, WHAT)?;
    }
    Ok(())
}

fn cpu(folder: Option<&Path>, sets: Option<&Path>, wanted: &Cpu) -> Result<()> {
    const WHAT: &str = "linux.resources.cpu";
    if let Some(period) = wanted.realtime_period.filter(|period| *period != 0) {
        set(folder, "cpu.rt_period_us", period, WHAT)?;
    }
    if let Some(runtime) = wanted.realtime_runtime.filter(|runtime| *runtime != 0) {
        set(folder, "cpu.rt_runtime_us", runtime, WHAT)?;
    }
    if let Some(shares) = wanted.shares.filter(|shares| *shares != 0) {
        set(folder, "cpu.shares", shares, WHAT)?;
    }
    let quota = || match wanted.quota.filter(|quota| *quota != 0) {
        Some(quota) => set(folder, "cpu.cfs_quota_us", quota, WHAT),
        None => Ok(()),
    };
    if let Some(period) = wanted.period.filter(|period| *period != 0) {
        // The new period may be too short for the quota that is there, and the new quota too long for the old period.
        if set(folder, "cpu.cfs_period_us", period, WHAT).is_err() {
            quota()?;
            set(folder, "cpu.cfs_period_us", period, WHAT)?;
        }
    }
    quota()?;
    if let Some(burst) = wanted.burst {
        set(folder, "cpu.cfs_burst_us", burst, WHAT)?;
    }
    if let Some(idle) = wanted.idle {
        set(folder, "cpu.idle", idle, WHAT)?;
    }
    for (file, value) in [("cpuset.cpus", &wanted.cpus), ("cpuset.mems", &wanted.mems)] {
        if !value.is_empty() {
            set(sets, file, value, WHAT)?;
        }
    }
    Ok(())
}

fn block_io(folder: Option<&Path>, wanted: &BlockIo) -> Result<()> {
    const WHAT: &str = "linux.resources.blockIO";
    if wanted.leaf_weight.is_some_and(|weight| weight != 0)
        || wanted.weight_device.iter().any(|one| one.leaf_weight.is_some_and(|weight| weight != 0))
    {
        return Err(Error::unsupported("linux.resources.blockIO.leafWeight"));
    }
    let bfq = folder.is_some_and(|folder| folder.join("blkio.bfq.weight").exists());
    let (weight, device) = if bfq {
        ("blkio.bfq.weight", "blkio.bfq.weight_device")
    } else {
        ("blkio.weight", "blkio.weight_device")
    };
    if let Some(value) = wanted.weight.filter(|value| *value != 0) {
        set(folder, weight, value, WHAT)?;
    }
    for one in &wanted.weight_device {
        if let Some(value) = one.weight {
            set(folder, device, format!("{}:{} {value}", one.major, one.minor), WHAT)?;
        }
    }
    for (file, list) in [
        ("blkio.throttle.read_bps_device", &wanted.throttle_read_bps_device),
        ("blkio.throttle.write_bps_device", &wanted.throttle_write_bps_device),
        ("blkio.throttle.read_iops_device", &wanted.throttle_read_iops_device),
        ("blkio.throttle.write_iops_device", &wanted.throttle_write_iops_device),
    ] {
        for ThrottleDevice { major, minor, rate } in list {
            set(folder, file, format!("{major}:{minor} {rate}"), WHAT)?;
        }
    }
    Ok(())
}
