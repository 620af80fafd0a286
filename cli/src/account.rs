//! All that is known of one sandbox: what its shim says, or, where that does not answer, what is on disk.

use std::time::{Duration, SystemTime};

use mooring::{
    inspect::{self, GetResponse, Outcome, Owner},
    resources::Resource,
    sandbox::survey::{Found, Hands},
    teardown::{Journaled, journal::Stage},
};
use serde::Serialize;
use serde_json::Value;

use crate::{holdings, ls::State};

/// One sandbox.
#[derive(Debug, Serialize)]
pub struct Account {
    pub namespace: String,
    pub id: String,
    pub state: State,
    /// Whether its shim says all this; else it is from journal and records.
    pub told_by_shim: bool,
    /// Why the shim does not.
    pub complaint: Option<String>,
    /// Why it cannot be told whose it is.
    pub doubts: Vec<String>,
    pub pod: Option<Pod>,
    pub handler: Option<String>,
    /// The OCI runtime.
    pub runtime: Option<String>,
    pub shim: Option<Shim>,
    pub keeper: Option<Keeper>,
    pub created_at: Option<String>,
    pub exited_at: Option<String>,
    pub exit_status: Option<u32>,
    pub bundle: Option<String>,
    pub network: Option<Network>,
    pub containers: Vec<Container>,
    pub teardown: Teardown,
    /// What it holds, in the order in which a teardown releases it.
    pub holds: Vec<Holds>,
    pub operations: Vec<Operation>,
}

#[derive(Debug, Serialize)]
pub struct Pod {
    pub name: String,
    pub namespace: String,
    pub uid: String,
}

#[derive(Debug, Serialize)]
pub struct Shim {
    pub pid: i32,
    pub alive: bool,
    pub version: Option<String>,
    pub pss_bytes: Option<u64>,
    pub descriptors: Option<u32>,
    pub threads: Option<u32>,
}

#[derive(Debug, Serialize)]
pub struct Keeper {
    pub kind: String,
    /// What stands for the pod under /proc.
    pub pid: Option<u32>,
}

#[derive(Debug, Serialize)]
pub struct Network {
    /// node, client or shim.
    pub owner: &'static str,
    pub netns: Option<String>,
    pub attachments: Vec<Attachment>,
}

#[derive(Debug, Serialize)]
pub struct Attachment {
    pub network: String,
    pub interface: String,
    /// What has become of its ADD.
    pub outcome: String,
    pub addresses: Vec<String>,
    /// The CNI result.
    pub result: Value,
}

#[derive(Debug, Serialize)]
pub struct Container {
    pub id: String,
    pub pid: Option<u32>,
    pub state: String,
    pub exit_status: Option<u32>,
    pub exited_at: Option<String>,
}

#[derive(Debug, Default, Serialize)]
pub struct Teardown {
    /// How many were begun.
    pub runs: Option<u32>,
    pub current: Option<Step>,
    pub steps: Vec<Step>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Step {
    #[serde(rename = "step")]
    pub name: String,
    pub outcome: &'static str,
    pub began_at: Option<String>,
    pub ms: Option<f64>,
    pub error: Option<String>,
    pub waits_for: Vec<String>,
}

#[derive(Debug, Serialize)]
pub struct Holds {
    pub step: String,
    pub what: String,
}

#[derive(Debug, Serialize)]
pub struct Operation {
    pub name: String,
    pub subject: Option<String>,
    pub count: u64,
    pub errors: u64,
    pub total_ms: f64,
    pub longest_ms: f64,
}

impl Account {
    /// What the disk says, and why its shim does not.
    pub fn from_disk(found: &Found, complaint: Option<String>) -> Self {
        let shim = found.shim.as_ref().map(|shim| {
            let alive = shim.is_alive().unwrap_or(false);
            let (version, pss_bytes, descriptors, threads) = (None, None, None, None);
            Shim { pid: shim.pid, alive, version, pss_bytes, descriptors, threads }
        });
        let journal = found.journal.as_ref();
        let step = |name: &String, outcome| Step {
            name: name.clone(),
            outcome,
            began_at: None,
            ms: None,
            error: None,
            waits_for: Vec::new(),
        };
        let keeper = journal.into_iter().flat_map(|journal| &journal.entries).find_map(|entry| {
            let Resource::Keeper(record) = &entry.resource else { return None };
            let held = entry.stage != Stage::Released;
            held.then(|| Keeper { kind: holdings::tag(record).unwrap_or_default(), pid: None })
        });
        Self {
            namespace: found.namespace.to_string(),
            id: found.id.to_string(),
            state: State::of(found),
            told_by_shim: false,
            complaint,
            doubts: match &found.hands {
                Hands::Unsure(doubts) => doubts.clone(),
                _ => Vec::new(),
            },
            pod: None,
            handler: crate::ls::handler_of(found),
            runtime: None,
            shim,
            keeper,
            created_at: journal.map(|journal| date(journal.about.created_at)),
            exited_at: None,
            exit_status: None,
            bundle: journal.map(|journal| journal.about.bundle.display().to_string()),
            network: None,
            containers: found.containers.iter().map(Container::recorded).collect(),
            teardown: Teardown {
                runs: None,
                current: journal
                    .and_then(|journal| journal.current.as_ref())
                    .map(|name| step(name, "under_way")),
                steps: journal
                    .into_iter()
                    .flat_map(|journal| &journal.done)
                    .map(|name| step(name, "done"))
                    .collect(),
            },
            holds: holdings::of(found)
                .into_iter()
                .map(|holding| Holds { step: holding.step.to_owned(), what: holding.what })
                .collect(),
            operations: Vec::new(),
        }
    }

    /// What the shim says of what was found.
    pub fn from_shim(found: &Found, said: GetResponse) -> Self {
        let disk = Self::from_disk(found, None);
        let some = |text: String| Some(text).filter(|text| !text.is_empty());
        let pod = said.pod.into_option().filter(|pod| !pod.name.is_empty());
        let process = said.shim.unwrap_or_default();
        let exited = said.exited_at != 0;
        Self {
            state: State::said(said.state.enum_value_or_default()),
            told_by_shim: true,
            pod: pod.map(|pod| Pod { name: pod.name, namespace: pod.namespace, uid: pod.uid }),
            runtime: some(said.runtime),
            shim: disk.shim.map(|shim| Shim {
                version: some(said.version),
                pss_bytes: Some(process.pss),
                descriptors: Some(process.descriptors),
                threads: Some(process.threads),
                ..shim
            }),
            keeper: said.keeper.into_option().and_then(|keeper| {
                Some(Keeper { kind: some(keeper.kind)?, pid: number(keeper.pid) })
            }),
            created_at: moment(said.created_at).or(disk.created_at),
            exited_at: moment(said.exited_at),
            exit_status: exited.then_some(said.exit_status),
            bundle: some(said.bundle).or(disk.bundle),
            network: said.network.into_option().map(Network::said),
            containers: said.containers.into_iter().map(Container::said).collect(),
            teardown: Teardown {
                runs: Some(said.teardowns),
                current: said.current.into_option().map(Step::said),
                steps: said.steps.into_iter().map(Step::said).collect(),
            },
            holds: said.entries.iter().filter_map(held).collect(),
            operations: said.operations.into_iter().map(Operation::said).collect(),
            ..disk
        }
    }
}

/// What an entry of the journal means; of a kind that this release does not know, its record.
fn held(entry: &inspect::Entry) -> Option<Holds> {
    if entry.stage == "released" {
        return None;
    }
    let what = match serde_json::from_str::<Resource>(&entry.record) {
        Ok(resource) if Journaled::kind(&resource) == entry.kind => holdings::words(&resource)?,
        _ => format!("{}: {}", entry.kind, entry.record),
    };
    Some(Holds { step: entry.step.clone(), what })
}

impl Network {
    fn said(network: inspect::Network) -> Self {
        let owner = match network.owner.enum_value_or_default() {
            Owner::NODE => "node",
            Owner::CLIENT => "client",
            Owner::SHIM => "shim",
        };
        let netns = Some(network.netns).filter(|path| !path.is_empty());
        let attachments = network.attachments.into_iter().map(|one| {
            let result: Value = serde_json::from_str(&one.result).unwrap_or_default();
            Attachment {
                network: one.name,
                interface: one.interface,
                outcome: one.outcome,
                addresses: addresses(&result),
                result,
            }
        });
        Self { owner, netns, attachments: attachments.collect() }
    }
}

/// The addresses in a CNI result.
fn addresses(result: &Value) -> Vec<String> {
    let ips = result.get("ips").and_then(Value::as_array).into_iter().flatten();
    ips.filter_map(|ip| ip.get("address")?.as_str()).map(str::to_owned).collect()
}

impl Container {
    fn recorded(record: &mooring::container::Record) -> Self {
        let (pid, runs) = crate::ls::init_of(record);
        Self {
            id: record.id.to_string(),
            pid: pid.and_then(|pid| u32::try_from(pid).ok()),
            state: if runs { "running" } else { "stopped" }.into(),
            exit_status: None,
            exited_at: None,
        }
    }

    fn said(one: inspect::Container) -> Self {
        let exited = one.exited_at != 0;
        Self {
            id: one.id,
            pid: number(one.pid),
            state: one.state,
            exit_status: exited.then_some(one.exit_status),
            exited_at: moment(one.exited_at),
        }
    }
}

impl Step {
    /// As a shim says it.
    pub fn said(step: inspect::Step) -> Self {
        let outcome = match step.outcome.enum_value() {
            Ok(Outcome::UNDER_WAY) => "under_way",
            Ok(Outcome::DONE) => "done",
            Ok(Outcome::ALREADY_GONE) => "already_gone",
            Ok(Outcome::IN_USE) => "in_use",
            Ok(Outcome::WARNED) => "warned",
            Ok(Outcome::FAILED) => "failed",
            Err(_) => "unknown",
        };
        Self {
            name: step.name,
            outcome,
            began_at: moment(step.began_at),
            ms: Some(ms(step.took)),
            error: Some(step.error).filter(|error| !error.is_empty()),
            waits_for: step.waits_for,
        }
    }
}

impl Operation {
    fn said(series: inspect::Series) -> Self {
        Self {
            name: series.name,
            subject: Some(series.subject).filter(|subject| !subject.is_empty()),
            count: series.count,
            errors: series.errors,
            total_ms: ms(series.total),
            longest_ms: ms(series.longest),
        }
    }
}

fn number(pid: u32) -> Option<u32> {
    Some(pid).filter(|pid| *pid != 0)
}

fn ms(nanos: i64) -> f64 {
    Duration::from_nanos(nanos.unsigned_abs()).as_secs_f64() * 1e3
}

/// A moment of the inspection service's; none where it never was.
fn moment(nanos: i64) -> Option<String> {
    let since = u64::try_from(nanos).ok().filter(|nanos| *nanos > 0)?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_nanos(since)).map(date)
}

fn date(at: SystemTime) -> String {
    humantime::format_rfc3339_millis(at).to_string()
}
