//! A short soak: pods come and go beside others that stay, with faults, and nothing grows. The long one is `make soak`.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::{Result, ensure};
use mooring_e2e::node::Settings;
use mooring_e2e::soak::{Plan, soak};
use mooring_e2e::suite;
use mooring_e2e::suite::Case;

async fn a_short_soak_leaves_and_grows_nothing(case: Case) -> Result<()> {
    let plan =
        Plan { time: Duration::from_secs(25), round: Duration::from_secs(8), pods: 8, seed: 7 };
    let report = soak(&case, &plan, &Arc::new(AtomicBool::new(false))).await?;
    let complaints = report.complaints();
    ensure!(complaints.is_empty(), "{}", complaints.join("\n"));
    ensure!(report.sums.of(&["pods"]) > 5, "too little happened: {:?}", report.sums);
    Ok(())
}

suite!(Settings::default();
    both: ;
    mooring: a_short_soak_leaves_and_grows_nothing);
