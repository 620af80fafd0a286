//! What shims, journals and files say at one moment.

use std::{path::PathBuf, time::Duration};

use anyhow::Result;
use mooring::{
    inspect::{GetResponse, Shim},
    network::counters::{Interface, counters},
    sandbox::survey::{Found, Hands},
    telemetry::totals::{self, Total},
};
use tokio::task::{JoinSet, spawn_blocking};

use super::Places;
use crate::node;

/// How long one shim may take; a scrape is bounded by it, whatever hangs.
const PATIENCE: Duration = Duration::from_secs(3);
/// How many shims are asked at once.
const AT_ONCE: usize = 32;

/// All of it.
pub struct Seen {
    pub sandboxes: Vec<One>,
    /// Of shims that are gone.
    pub totals: Vec<Total>,
    /// What could not be read or asked.
    pub complaints: Vec<String>,
}

/// One sandbox, or shim of tasks.
pub struct One {
    pub found: Found,
    pub said: Option<GetResponse>,
    /// The pod's network, where it is asked for and not the node's.
    pub interfaces: Vec<Interface>,
}

/// Asks everything.
pub async fn scrape(places: &Places, pods: bool) -> Result<Seen> {
    let mut complaints = Vec::new();
    // First: what a shim adds at its end is missing once rather than counted twice.
    let mut sums = Vec::new();
    for root in places.run_roots.clone() {
        match spawn_blocking(move || (totals::read(&root), root)).await? {
            (Ok(some), _) => sums.extend(some),
            (Err(error), root) => complaints.push(format!("totals in {}: {error}", root.display())),
        }
    }
    let roots = places.state_roots.clone();
    let looked = spawn_blocking(move || node::look(&roots)).await??;
    let mut rest = looked.found.into_iter();
    let (mut asked, mut sandboxes) = (JoinSet::new(), Vec::new());
    loop {
        while asked.len() < AT_ONCE
            && let Some(found) = rest.next()
        {
            asked.spawn(one(found, pods));
        }
        let Some(answer) = asked.join_next().await else { break };
        let (one, complaint) = answer?;
        complaints.extend(complaint);
        sandboxes.push(one);
    }
    for complaint in &complaints {
        eprintln!("mooring: {complaint}");
    }
    Ok(Seen { sandboxes, totals: sums, complaints })
}

async fn one(found: Found, pods: bool) -> (One, Option<String>) {
    let living = found.shim.as_ref().filter(|_| found.hands == Hands::Shim);
    let said = match living {
        Some(record) => {
            let said = async { Shim::find(record).await?.get(PATIENCE).await };
            said.await.map(Some)
        }
        None => Ok(None),
    };
    let (said, mut complaint) = match said {
        Ok(said) => (said, None),
        Err(error) => (None, Some(format!("{}/{}: {error}", found.namespace, found.id))),
    };
    let mut interfaces = Vec::new();
    if let Some(netns) = said.as_ref().filter(|_| pods).and_then(netns) {
        let read = spawn_blocking(move || counters(&netns)).await;
        match read
            .map_err(|error| error.to_string())
            .map(|read| read.map_err(|error| error.to_string()))
        {
            Ok(Ok(some)) => interfaces = some,
            Ok(Err(error)) | Err(error) => {
                complaint = Some(format!("{}/{}: {error}", found.namespace, found.id));
            }
        }
    }
    (One { found, said, interfaces }, complaint)
}

/// The pod's network namespace, while its shim keeps it.
fn netns(said: &GetResponse) -> Option<PathBuf> {
    let is_kept = said.keeper.as_ref().is_some_and(|keeper| !keeper.kind.is_empty());
    let path = said.network.as_ref().map(|network| &network.netns).filter(|_| is_kept)?;
    (!path.is_empty()).then(|| PathBuf::from(path))
}
