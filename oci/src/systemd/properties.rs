//! Limits as systemd has them. What it has no property for is written to the group's files alone; what it has is set here
//! as well, or it would put back its own at the next occasion.

use super::wire::{Property, Value};
use crate::{
    cgroup::v2,
    error::{Error, Result},
    spec::Resources,
};

/// No limit.
const INFINITE: u64 = u64::MAX;

fn number(name: &'static str, number: u64) -> Property {
    Property::new(name, Value::Number(number))
}

/// A limit as specifications have it: none is below zero, and zero says nothing.
fn limit(name: &'static str, wanted: Option<i64>) -> Option<Property> {
    let wanted = wanted.filter(|wanted| *wanted != 0)?;
    Some(number(name, u64::try_from(wanted).unwrap_or(INFINITE)))
}

/// The properties that `resources` are on cgroup v2.
pub fn of(resources: &Resources) -> Result<Vec<Property>> {
    let (memory, cpu) = (&resources.memory, &resources.cpu);
    let mut all: Vec<Property> = [
        limit("MemoryMax", memory.limit),
        limit("MemoryLow", memory.reservation),
        limit("TasksMax", resources.pids.limit),
    ]
    .into_iter()
    .flatten()
    .collect();
    if let Some(swap) = v2::swap(memory)? {
        all.push(number("MemorySwapMax", read("linux.resources.memory.swap", &swap)?));
    }
    let shares = cpu.shares.filter(|shares| *shares != 0);
    match (cpu.idle, shares) {
        // The weight of an idle group.
        (Some(1), _) => all.push(number("CPUWeight", 0)),
        (_, Some(shares)) => all.push(number("CPUWeight", v2::weight_of(shares))),
        (_, None) => {}
    }
    let (quota, period) = (cpu.quota.filter(|one| *one != 0), cpu.period.filter(|one| *one != 0));
    if quota.is_some() || period.is_some() {
        all.extend(share(quota.and_then(|quota| u64::try_from(quota).ok()), period));
    }
    for (name, list) in [("AllowedCPUs", &cpu.cpus), ("AllowedMemoryNodes", &cpu.mems)] {
        if !list.is_empty() {
            all.push(Property::new(name, Value::Bytes(bits(list)?)));
        }
    }
    for (file, value) in &resources.unified {
        all.extend(unified(file, value.trim())?);
    }
    Ok(all)
}

/// How much of a second may be used up. systemd keeps whole hundredths of it, and rounds down: a container that makes
/// groups of its own must be able to give them all that it has.
fn share(quota: Option<u64>, period: Option<u64>) -> Vec<Property> {
    const HUNDREDTH: u64 = 10_000;
    let mut all: Vec<Property> =
        period.iter().map(|period| number("CPUQuotaPeriodUSec", *period)).collect();
    let of_second = quota.map_or(INFINITE, |quota| {
        (quota.saturating_mul(1_000_000) / period.unwrap_or(100_000)).next_multiple_of(HUNDREDTH)
    });
    all.push(number("CPUQuotaPerSecUSec", of_second));
    all
}

/// A file of the group, where systemd has a property for it.
fn unified(file: &str, value: &str) -> Result<Vec<Property>> {
    const FILES: [(&str, &str); 8] = [
        ("cpu.weight", "CPUWeight"),
        ("memory.high", "MemoryHigh"),
        ("memory.low", "MemoryLow"),
        ("memory.max", "MemoryMax"),
        ("memory.min", "MemoryMin"),
        ("memory.swap.max", "MemorySwapMax"),
        ("memory.zswap.max", "MemoryZSwapMax"),
        ("pids.max", "TasksMax"),
    ];
    let what = format!("linux.resources.unified: {file}");
    if let Some((_, name)) = FILES.iter().find(|(known, _)| *known == file) {
        return Ok(vec![number(name, read(&what, value)?)]);
    }
    Ok(match file {
        "cpuset.cpus" => vec![Property::new("AllowedCPUs", Value::Bytes(bits(value)?))],
        "cpuset.mems" => vec![Property::new("AllowedMemoryNodes", Value::Bytes(bits(value)?))],
        "cpu.idle" if value == "1" => vec![number("CPUWeight", 0)],
        "cpu.max" => {
            let mut words = value.split_whitespace();
            let quota = match words.next() {
                Some("max") => None,
                other => Some(read(&what, other.unwrap_or_default())?),
            };
            let period = words.next().map(|period| read(&what, period)).transpose()?;
            share(quota, period.filter(|period| *period != 0))
        }
        _ => Vec::new(),
    })
}

fn read(what: &str, value: &str) -> Result<u64> {
    if value == "max" {
        return Ok(INFINITE);
    }
    value.parse().map_err(|_| Error::invalid(format!("{what}: {value:?} is no number")))
}

/// A list as `0-3,7`, a bit for each.
fn bits(numbers: &str) -> Result<Vec<u8>> {
    /// More than any kernel has.
    const MOST: usize = 1 << 16;
    let invalid = || Error::invalid(format!("{numbers:?} is no list of processors or nodes"));
    let mut bits = Vec::new();
    for part in numbers.trim().split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let read = |text: &str| text.trim().parse::<usize>().ok().filter(|one| *one < MOST);
        let (first, last) = (read(first).ok_or_else(invalid)?, read(last).ok_or_else(invalid)?);
        if first > last {
            return Err(invalid());
        }
        bits.resize(bits.len().max(last / 8 + 1), 0);
        for one in first..=last {
            if let Some(byte) = bits.get_mut(one / 8) {
                *byte |= 1 << (one % 8);
            }
        }
    }
    Ok(bits)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn said(resources: &serde_json::Value) -> String {
        let read = crate::load::resources(resources.to_string().as_bytes()).unwrap();
        match of(&read) {
            Err(error) => error.to_string(),
            Ok(all) => {
                let one = |one: Property| match one.value {
                    Value::Number(INFINITE) => format!("{}=max", one.name),
                    Value::Number(number) => format!("{}={number}", one.name),
                    other => format!("{}={other:?}", one.name),
                };
                all.into_iter().map(one).collect::<Vec<_>>().join(" ")
            }
        }
    }

    #[test]
    fn limits_are_systemds_properties() {
        for (resources, wanted) in [
            (json!({}), ""),
            (
                json!({"memory": {"limit": 100, "swap": 150, "reservation": 50}, "pids": {"limit": 7}}),
                "MemoryMax=100 MemoryLow=50 TasksMax=7 MemorySwapMax=50",
            ),
            (
                json!({"memory": {"limit": -1}, "pids": {"limit": -1}}),
                "MemoryMax=max TasksMax=max MemorySwapMax=max",
            ),
            (json!({"cpu": {"shares": 1024}}), "CPUWeight=39"),
            (json!({"cpu": {"shares": 1024, "idle": 1}}), "CPUWeight=0"),
            (
                json!({"cpu": {"quota": 12_345, "period": 50_000}}),
                "CPUQuotaPeriodUSec=50000 CPUQuotaPerSecUSec=250000",
            ),
            (json!({"cpu": {"quota": 50_000}}), "CPUQuotaPerSecUSec=500000"),
            (json!({"cpu": {"quota": -1}}), "CPUQuotaPerSecUSec=max"),
            (
                json!({"cpu": {"cpus": "0-2,9", "mems": "0"}}),
                "AllowedCPUs=Bytes([7, 2]) AllowedMemoryNodes=Bytes([1])",
            ),
            (
                json!({"unified": {"cpu.max": "max 20000", "memory.high": "max", "hugetlb.2MB.max": "0", "pids.max": "9"}}),
                "CPUQuotaPeriodUSec=20000 CPUQuotaPerSecUSec=max MemoryHigh=max TasksMax=9",
            ),
            (
                json!({"unified": {"memory.max": "many"}}),
                "linux.resources.unified: memory.max: \"many\" is no number",
            ),
            (json!({"cpu": {"cpus": "3-1"}}), "\"3-1\" is no list of processors or nodes"),
            (
                json!({"cpu": {"cpus": "99999999"}}),
                "\"99999999\" is no list of processors or nodes",
            ),
        ] {
            assert_eq!(said(&resources), wanted);
        }
    }
}
