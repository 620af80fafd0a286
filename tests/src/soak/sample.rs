//! What is measured at a quiet point, when only the pods that stay are there.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result};

use super::growth::Rule;
use crate::audit::{KINDS, Snapshot};
use crate::node::Node;

/// Something that is measured.
pub struct Measure {
    /// Its name in the JSON.
    pub key: &'static str,
    /// What it is, for people.
    pub label: &'static str,
    /// Of what it is a count; empty for a plain number.
    pub unit: &'static str,
    /// How it is judged.
    pub rule: Rule,
}

const fn measure(
    key: &'static str,
    label: &'static str,
    unit: &'static str,
    rule: Rule,
) -> Measure {
    Measure { key, label, unit, rule }
}

/// How much a shim's memory may seem to grow in the second half: a few pages of an allocator that breathes.
const BREATH: f64 = 32.0;

/// All measures, in the order of the table. Those of shims are means of the shims that stay.
pub const MEASURES: &[Measure] = &[
    measure("shim_pss", "shim: memory, PSS", "KiB", Rule::Trend(BREATH)),
    measure("shim_rss", "shim: memory, RSS", "KiB", Rule::None),
    measure("shim_anonymous", "shim: anonymous memory", "KiB", Rule::Trend(BREATH)),
    measure("shim_descriptors", "shims: descriptors, all together", "", Rule::Count),
    measure("shim_threads", "shims: threads, all together", "", Rule::Count),
    measure("processes", "processes", "", Rule::Count),
    measure("mounts", "mounts", "", Rule::Count),
    measure("cgroups", "cgroups", "", Rule::Count),
    measure("links", "network links", "", Rule::Count),
    measure("namespaces", "network namespaces", "", Rule::Count),
    measure("addresses", "addresses reserved", "", Rule::Count),
    measure("firewall", "firewall rules", "", Rule::Count),
    measure("files", "files of state", "", Rule::Count),
    measure("state", "size of Mooring's state", "KiB", Rule::Trend(16.0)),
    measure("records", "containerd's records", "", Rule::Count),
    measure("containerd_rss", "containerd: memory, RSS", "KiB", Rule::None),
    measure("containerd_descriptors", "containerd: descriptors", "", Rule::None),
    measure("containerd_threads", "containerd: threads", "", Rule::None),
];

/// The values of one quiet point.
pub type Values = BTreeMap<&'static str, f64>;

/// Measures everything; `shims` are the processes of those that stay.
pub async fn take(node: &Node, shims: &[i32]) -> Result<Values> {
    let mut values = Values::new();
    let snapshot = Snapshot::take(node).await?;
    let count =
        |wanted: &dyn Fn(&str) -> bool| number(snapshot.lines().filter(|one| wanted(one)).count());
    let of = |kind: &'static str| count(&|line| line.starts_with(kind));
    values.insert("processes", of("process "));
    values.insert("mounts", of("mount "));
    values.insert("cgroups", of("cgroup "));
    values.insert("links", of("link "));
    values.insert("firewall", of("iptables "));
    values.insert("files", of("file "));
    let records = ["container record", "sandbox record", "lease", "snapshot"];
    debug_assert!(records.iter().all(|one| KINDS.contains(one)));
    values.insert("records", records.into_iter().map(of).sum());
    values.insert("namespaces", of("file /run/netns/"));
    values.insert("addresses", count(&is_reservation));
    values.insert("state", size_below("/var/lib/mooring") / 1024.0);
    let each = number(shims.len().max(1));
    for pid in shims {
        let memory = memory(*pid)?;
        for (key, field) in
            [("shim_pss", "Pss:"), ("shim_rss", "Rss:"), ("shim_anonymous", "Anonymous:")]
        {
            *values.entry(key).or_default() += memory.get(field).copied().unwrap_or(0.0) / each;
        }
        *values.entry("shim_descriptors").or_default() += descriptors(*pid);
        *values.entry("shim_threads").or_default() += threads(*pid);
    }
    let containerd = node.pid().context("containerd does not run")?;
    values.insert("containerd_rss", memory(containerd)?.get("Rss:").copied().unwrap_or(0.0));
    values.insert("containerd_descriptors", descriptors(containerd));
    values.insert("containerd_threads", threads(containerd));
    Ok(values)
}

/// A file of host-local, which is named by the address.
fn is_reservation(line: &str) -> bool {
    let name = line.rsplit('/').next().unwrap_or_default();
    line.contains("/cni/ipam/") && name.parse::<std::net::IpAddr>().is_ok()
}

fn memory(pid: i32) -> Result<BTreeMap<String, f64>> {
    let file = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(&file).with_context(|| format!("read {file}"))?;
    let field = |line: &str| {
        let mut words = line.split_whitespace().map(str::to_owned);
        Some((words.next()?, words.next()?.parse().ok()?))
    };
    Ok(text.lines().filter_map(field).collect())
}

fn descriptors(pid: i32) -> f64 {
    number(fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().count())
}

fn threads(pid: i32) -> f64 {
    number(fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().count())
}

fn size_below(at: &str) -> f64 {
    let mut sum = 0.0;
    for entry in fs::read_dir(at).into_iter().flatten().flatten() {
        match entry.metadata() {
            Ok(about) if about.is_dir() => sum += size_below(&entry.path().to_string_lossy()),
            #[expect(clippy::cast_precision_loss)]
            Ok(about) => sum += about.len() as f64,
            Err(_) => {}
        }
    }
    sum
}

#[expect(clippy::cast_precision_loss)]
fn number(count: usize) -> f64 {
    count as f64
}
