//! A short benchmark: what it measures is there, and nothing is left. The long one is `make bench`.

use std::time::Duration;

use anyhow::{Result, ensure};
use mooring_e2e::bench::{Plan, Section, bench};
use mooring_e2e::node::Settings;
use mooring_e2e::suite;
use mooring_e2e::suite::{Case, Handler};

async fn a_short_benchmark_measures_every_part_and_leaves_nothing(case: Case) -> Result<()> {
    let plan = Plan {
        handlers: Handler::ALL.to_vec(),
        sections: Section::ALL.to_vec(),
        rounds: 1,
        idle: 2,
        most: 3,
        settle: Duration::from_millis(500),
        shared_pid: false,
        seed: 1,
    };
    let table = bench(&case.node, &plan, |_, _| {}).await?;
    for section in Section::ALL {
        ensure!(table.of(section).count() > 0, "nothing was measured of {}", section.name());
    }
    for row in &table.rows {
        let [runc, mooring, builtin] = Handler::ALL.map(|one| row.of(one).len());
        // CRI of containerd 2.1 has none for a shim's sandbox, and the shim of runc makes no network.
        let alone = [Section::Host, Section::Service].contains(&row.section);
        ensure!(alone || runc == mooring, "{}: {runc} and {mooring} samples", row.name);
        let same_shim = row.section == Section::Statistics || row.name.contains("in an hour");
        let expected = if alone || same_shim { 0 } else { mooring };
        ensure!(builtin == expected, "{}: {builtin} samples of the built-in runtime", row.name);
        let all = row.samples.values().flatten().chain(&row.floor);
        ensure!(all.clone().count() > 0, "{}: no samples", row.name);
        ensure!(all.clone().all(|one| one.is_finite()), "{}: {row:?}", row.name);
    }
    for (call, expected) in [("RunPodSandbox", 1), ("ExecSync", 1), ("PodSandboxStatus", 0)] {
        let row = table.find(Section::Calls, call);
        let floor = row.map(|row| row.floor.len());
        ensure!(floor == Some(expected), "{call}: {floor:?} samples of the floor");
    }
    Ok(())
}

suite!(Settings::default();
    both: ;
    mooring: a_short_benchmark_measures_every_part_and_leaves_nothing);
