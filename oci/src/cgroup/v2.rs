//! Limits of the unified hierarchy.

use std::{fmt::Write, fs, path::Path};

use mooring::cgroup::Cgroup;

use super::set;
use crate::{
    error::{Error, Result},
    spec::{BlockIo, Cpu, Memory, Rdma, Resources, ThrottleDevice},
};

pub(super) fn apply(group: &Cgroup, resources: &Resources) -> Result<()> {
    let folder = group.v2.as_deref();
    memory(folder, &resources.memory)?;
    cpu(folder, &resources.cpu)?;
    if let Some(limit) = resources.pids.limit.filter(|limit| *limit != 0) {
        set(folder, "pids.max", or_max(limit), "linux.resources.pids")?;
    }
    block_io(folder, &resources.block_io)?;
    for one in &resources.hugepage_limits {
        let file = format!("hugetlb.{}.max", one.page_size);
        set(folder, &file, one.limit, "linux.resources.hugepageLimits")?;
    }
    if resources.network.class_id.is_some_and(|class| class != 0) {
        return Err(Error::unsupported("linux.resources.network.classID on cgroup v2"));
    }
    if !resources.network.priorities.is_empty() {
        return Err(Error::unsupported("linux.resources.network.priorities on cgroup v2"));
    }
    for (device, limits) in &resources.rdma {
        set(folder, "rdma.max", rdma(device, limits), "linux.resources.rdma")?;
    }
    for (file, value) in &resources.unified {
        if file.contains('/') || !file.contains('.') {
            return Err(Error::invalid(format!("linux.resources.unified: {file:?} is no file")));
        }
        // Some files take one line at a time.
        for line in value.lines() {
            set(folder, file, line, "linux.resources.unified")?;
        }
    }
    Ok(())
}

fn or_max(limit: i64) -> String {
    if limit < 0 { "max".into() } else { limit.to_string() }
}

pub(super) fn rdma(device: &str, limits: &Rdma) -> String {
    let mut line = device.to_owned();
    for (name, value) in [("hca_handle", limits.hca_handles), ("hca_object", limits.hca_objects)] {
        if let Some(value) = value {
            // Writing to a text does not fail.
            let _ = write!(line, " {name}={value}");
        }
    }
    line
}

/// v1 counts swap with the rest, v2 apart.
fn swap_alone(limit: Option<i64>, both: i64) -> Result<String> {
    match (limit, both) {
        (_, -1) => Ok("max".into()),
        (Some(limit), both) if limit > 0 && both >= limit => Ok((both - limit).to_string()),
        (Some(-1 | 0) | None, both) => {
            Err(Error::invalid(format!("memory.swap {both} without a limit of memory")))
        }
        (Some(limit), both) => {
            Err(Error::invalid(format!("memory.swap {both} is below the limit {limit}")))
        }
    }
}

/// The limit of swap, as v2 has it.
pub fn swap(wanted: &Memory) -> Result<Option<String>> {
    let limit = wanted.limit.filter(|limit| *limit != 0);
    let both = wanted.swap.filter(|swap| *swap != 0).or(limit.filter(|limit| *limit == -1));
    both.map(|both| swap_alone(limit, both)).transpose()
}

/// Refuses a limit of memory below what is used, where that is wished.
pub(super) fn fits(folder: Option<&Path>, wanted: &Memory) -> Result<()> {
    let limit = wanted.limit.filter(|limit| *limit > 0);
    let wished = wanted.check_before_update == Some(true);
    let (Some(folder), Some(limit), true) = (folder, limit, wished) else { return Ok(()) };
    let used = fs::read_to_string(folder.join("memory.current")).ok();
    match used.and_then(|text| text.trim().parse::<i64>().ok()) {
        Some(used) if used > limit => {
            Err(Error::invalid(format!("memory limit {limit} is below what is used, {used}")))
        }
        _ => Ok(()),
    }
}

fn memory(folder: Option<&Path>, wanted: &Memory) -> Result<()> {
    const WHAT: &str = "linux.resources.memory";
    // Kernel memory is counted with the rest. The others have no meaning here, and no effect on how much is used.
    if wanted.kernel_tcp.is_some_and(|limit| limit > 0) {
        return Err(Error::unsupported("linux.resources.memory.kernelTCP"));
    }
    if wanted.disable_oom_killer == Some(true) {
        return Err(Error::unsupported("linux.resources.memory.disableOOMKiller on cgroup v2"));
    }
    if wanted.swappiness.is_some() {
        return Err(Error::unsupported("linux.resources.memory.swappiness on cgroup v2"));
    }
    fits(folder, wanted)?;
    if let Some(value) = swap(wanted)? {
        // A kernel that does not count swap has none to limit.
        if folder.is_some_and(|folder| folder.join("memory.swap.max").exists()) {
            set(folder, "memory.swap.max", value, WHAT)?;
        }
    }
    if let Some(limit) = wanted.limit.filter(|limit| *limit != 0) {
        set(folder, "memory.max", or_max(limit), WHAT)?;
    }
    if let Some(reservation) = wanted.reservation.filter(|one| *one != 0) {
        set(folder, "memory.low", or_max(reservation), WHAT)?;
    }
    Ok(())
}

fn cpu(folder: Option<&Path>, wanted: &Cpu) -> Result<()> {
    const WHAT: &str = "linux.resources.cpu";
    if wanted.realtime_period.is_some_and(|one| one != 0)
        || wanted.realtime_runtime.is_some_and(|one| one != 0)
    {
        return Err(Error::unsupported("linux.resources.cpu.realtimeRuntime on cgroup v2"));
    }
    if let Some(idle) = wanted.idle {
        set(folder, "cpu.idle", idle, WHAT)?;
    }
    if let Some(shares) = wanted.shares.filter(|shares| *shares != 0) {
        // An idle group has no weight.
        if wanted.idle != Some(1) {
            set(folder, "cpu.weight", weight_of(shares), WHAT)?;
        }
    }
    let (quota, period) =
        (wanted.quota.filter(|one| *one != 0), wanted.period.filter(|one| *one != 0));
    let burst = || match wanted.burst {
        Some(burst) => set(folder, "cpu.max.burst", burst, WHAT),
        None => Ok(()),
    };
    if quota.is_some() || period.is_some() {
        // A burst may not be above the quota: whichever order is possible.
        let early = burst().is_ok();
        let quota = quota.map_or_else(|| "max".to_owned(), or_max);
        let line = match (quota.as_str(), period) {
            ("max", None) => quota,
            (quota, period) => format!("{quota} {}", period.unwrap_or(100_000)),
        };
        set(folder, "cpu.max", line, WHAT)?;
        if !early {
            burst()?;
        }
    } else {
        burst()?;
    }
    for (file, value) in [("cpuset.cpus", &wanted.cpus), ("cpuset.mems", &wanted.mems)] {
        if !value.is_empty() {
            set(folder, file, value, WHAT)?;
        }
    }
    Ok(())
}

/// v1's measure of shares in v2's.
pub fn weight_of(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

fn block_io(folder: Option<&Path>, wanted: &BlockIo) -> Result<()> {
    const WHAT: &str = "linux.resources.blockIO";
    if wanted.leaf_weight.is_some_and(|weight| weight != 0)
        || wanted.weight_device.iter().any(|one| one.leaf_weight.is_some_and(|weight| weight != 0))
    {
        return Err(Error::unsupported("linux.resources.blockIO.leafWeight"));
    }
    let bfq = folder.is_some_and(|folder| folder.join("io.bfq.weight").exists());
    if let Some(weight) = wanted.weight.filter(|weight| *weight != 0) {
        if bfq {
            set(folder, "io.bfq.weight", weight, WHAT)?;
        } else {
            let weight = 1 + (u64::from(weight.clamp(10, 1000)) - 10) * 9999 / 990;
            set(folder, "io.weight", weight, WHAT)?;
        }
    }
    for one in &wanted.weight_device {
        if let Some(weight) = one.weight {
            if !bfq {
                return Err(Error::unsupported("linux.resources.blockIO.weightDevice without bfq"));
            }
            let line = format!("{}:{} {weight}", one.major, one.minor);
            set(folder, "io.bfq.weight", line, WHAT)?;
        }
    }
    for (name, list) in [
        ("rbps", &wanted.throttle_read_bps_device),
        ("wbps", &wanted.throttle_write_bps_device),
        ("riops", &wanted.throttle_read_iops_device),
        ("wiops", &wanted.throttle_write_iops_device),
    ] {
        for ThrottleDevice { major, minor, rate } in list {
            let rate = if *rate == 0 { "max".to_owned() } else { rate.to_string() };
            set(folder, "io.max", format!("{major}:{minor} {name}={rate}"), WHAT)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn swap_is_counted_apart() {
        assert_eq!(swap_alone(Some(100), 150).unwrap(), "50");
        assert_eq!(swap_alone(Some(100), 100).unwrap(), "0");
        assert_eq!(swap_alone(Some(100), -1).unwrap(), "max");
        assert!(swap_alone(Some(100), 50).is_err());
        assert!(swap_alone(None, 50).is_err());
    }

    #[test]
    fn shares_become_weights() {
        assert_eq!((weight_of(2), weight_of(1024), weight_of(262_144)), (1, 39, 10_000));
    }

    #[test]
    fn what_v2_has_not_is_refused_by_name() {
        let memory_of = |wanted| memory(None, &wanted).unwrap_err().to_string();
        let said = memory_of(Memory { swappiness: Some(0), ..Memory::default() });
        assert!(said.contains("swappiness"), "{said}");
        let said = memory_of(Memory { disable_oom_killer: Some(true), ..Memory::default() });
        assert!(said.contains("disableOOMKiller"), "{said}");
        let cpu = cpu(None, &Cpu { realtime_period: Some(1), ..Cpu::default() });
        assert!(cpu.unwrap_err().to_string().contains("realtimeRuntime"));
    }
}
