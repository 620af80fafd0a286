//! `mooring.v1.Inspect` of protos/mooring/v1/inspect.proto: what an operator asks of this shim. It decides nothing.

use std::{
    fs,
    sync::Arc,
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use containerd_shim_protos::ttrpc::{
    self,
    asynchronous::{ServerStreamSender, TtrpcContext},
};
use mooring::{
    error::Code,
    id::Id,
    inspect::{
        Attachment, Container, Entry, GetRequest, GetResponse, Inspect, Keeper, Network, Outcome,
        Owner, Pod, Process, Series, State, Step, StopRequest, StopResponse, VersionRequest,
        VersionResponse, WatchRequest, WatchResponse,
    },
    keeper::KeeperRecord,
    sandbox::{
        Sandbox,
        inspect::{Inspection, NetworkOwner, News, Phase},
        progress::{Current, Ended},
    },
    sys::memory,
    teardown::{self, Journaled, journal::Stage},
    telemetry,
};

use super::status::{answer, status, to_the_end};
use crate::{
    task::{self, Status, Tasks},
    watchdog,
};

/// How often a step that is under way is told again to whoever follows; a follower that has gone is noticed then.
const AGAIN: Duration = Duration::from_secs(2);

/// Answers for the one sandbox of this process.
pub struct InspectService {
    sandbox: Arc<Sandbox>,
    tasks: Tasks,
}

impl InspectService {
    /// Answers for `sandbox`, whose containers are in `tasks`.
    pub fn new(sandbox: Arc<Sandbox>, tasks: Tasks) -> Self {
        Self { sandbox, tasks }
    }

    fn containers(&self) -> Vec<Container> {
        let ids = self.tasks.ids();
        let states =
            ids.iter().filter_map(|id| Some((id, self.tasks.state(id.as_str(), "").ok()?)));
        states.map(|(id, state)| container(id, &state)).collect()
    }
}

#[async_trait]
impl Inspect for InspectService {
    async fn get(&self, _: &TtrpcContext, _: GetRequest) -> ttrpc::Result<GetResponse> {
        let current = self.sandbox.current_step().await;
        let shim = tokio::task::spawn_blocking(process).await.unwrap_or_default();
        let env = self.sandbox.environment();
        let mut all = GetResponse {
            version: env!("CARGO_PKG_VERSION").into(),
            namespace: env.namespace.to_string(),
            id: env.id.to_string(),
            runtime_type: env.options.runtime_type(),
            runtime: env.options.runtime.binary.display().to_string(),
            current: current.as_ref().map(under_way).into(),
            steps: self.sandbox.steps().iter().map(over).collect(),
            containers: self.containers(),
            operations: self.sandbox.operations().into_iter().map(series).collect(),
            shim: Some(shim).into(),
            teardowns: self.sandbox.teardowns(),
            keeps_totals: env.options.keep_totals,
            ..GetResponse::default()
        };
        if let Some(sandbox) = self.sandbox.inspect() {
            fill(&mut all, sandbox);
        }
        Ok(all)
    }

    async fn watch(
        &self,
        _: &TtrpcContext,
        _: WatchRequest,
        answers: ServerStreamSender<WatchResponse>,
    ) -> ttrpc::Result<()> {
        let mut following = self.sandbox.follow();
        loop {
            if let Ok(false) = tokio::time::timeout(AGAIN, following.changed()).await {
                return Ok(());
            }
            for news in told(&following.look(&self.sandbox)) {
                answers.send(&news).await?;
            }
        }
    }

    async fn stop(&self, _: &TtrpcContext, request: StopRequest) -> ttrpc::Result<StopResponse> {
        let ours = self.sandbox.id().as_str();
        if request.id != ours {
            let reason = format!("stop sandbox {:?}: this is the shim of {ours:?}", request.id);
            return Err(answer(Code::NotFound, reason));
        }
        if !self.sandbox.is_created() {
            let reason = format!(
                "stop {ours:?}: this shim serves tasks without a sandbox, which are their client's"
            );
            return Err(answer(Code::FailedPrecondition, reason));
        }
        let timeout = u64::try_from(request.timeout).ok().filter(|nanos| *nanos > 0);
        let sandbox = Arc::clone(&self.sandbox);
        to_the_end(async move {
            let _watched = watchdog::stopping();
            log::info!("sandbox {}: an operator stops it", sandbox.id());
            let stopped = sandbox.stop(timeout.map(Duration::from_nanos)).await;
            stopped.map_err(|error| status("stop", "sandbox", sandbox.id().as_str(), &error))
        })
        .await?;
        Ok(StopResponse::new())
    }

    async fn version(&self, _: &TtrpcContext, _: VersionRequest) -> ttrpc::Result<VersionResponse> {
        Ok(VersionResponse { version: env!("CARGO_PKG_VERSION").into(), ..Default::default() })
    }
}

fn fill(all: &mut GetResponse, sandbox: Inspection) {
    let (name, namespace, uid) = sandbox.pod;
    all.state = state(sandbox.phase).into();
    all.pod = Some(Pod { name, namespace, uid, ..Pod::default() }).into();
    let kind = sandbox.keeper.as_ref().map(|keeper| match keeper {
        KeeperRecord::Thread => "thread",
        KeeperRecord::Holder { .. } => "holder",
        KeeperRecord::Pinned { .. } => "pinned",
    });
    let kind = kind.unwrap_or_default().to_owned();
    all.keeper = Some(Keeper { kind, pid: sandbox.pid, ..Keeper::default() }).into();
    all.created_at = nanos(sandbox.created_at);
    all.exited_at = sandbox.exit.map_or(0, |exit| nanos(exit.at));
    all.exit_status = sandbox.exit.map_or(0, |exit| exit.status);
    all.bundle = sandbox.bundle.display().to_string();
    let owner = match sandbox.network {
        NetworkOwner::Node => Owner::NODE,
        NetworkOwner::Client => Owner::CLIENT,
        NetworkOwner::Shim => Owner::SHIM,
    };
    let attachments = sandbox.attachments.into_iter().map(|network| Attachment {
        name: network.name,
        interface: network.ifname,
        outcome: word(&network.outcome).to_lowercase(),
        result: network.result.map(|result| result.to_string()).unwrap_or_default(),
        ..Attachment::default()
    });
    all.network = Some(Network {
        owner: owner.into(),
        netns: sandbox.netns.map(|path| path.display().to_string()).unwrap_or_default(),
        attachments: attachments.collect(),
        ..Network::default()
    })
    .into();
    all.entries = sandbox.entries.iter().map(entry).collect();
}

fn entry(entry: &teardown::journal::Entry<mooring::resources::Resource>) -> Entry {
    Entry {
        kind: Journaled::kind(&entry.resource).into(),
        step: entry.resource.step().name().into(),
        stage: match entry.stage {
            Stage::Intended => "intended",
            Stage::Held => "held",
            Stage::Released => "released",
        }
        .into(),
        record: serde_json::to_string(&entry.resource).unwrap_or_default(),
        ..Entry::default()
    }
}

fn word<T: serde::Serialize>(of: &T) -> String {
    match serde_json::to_value(of) {
        Ok(serde_json::Value::String(word)) => word,
        _ => String::new(),
    }
}

fn container(id: &Id, state: &task::State) -> Container {
    let ended = state.ended.as_ref();
    Container {
        id: id.to_string(),
        pid: state.pid,
        state: match state.status {
            Status::Created => "created",
            Status::Running => "running",
            Status::Paused => "paused",
            Status::Pausing => "pausing",
            Status::Stopped => "stopped",
        }
        .into(),
        exit_status: ended.map_or(0, |ended| ended.status),
        exited_at: ended.map_or(0, |ended| nanos(ended.at)),
        ..Container::default()
    }
}

/// What there is to tell of the teardown; at least the state, and with it that the follower is there still.
fn told(news: &News) -> Vec<WatchResponse> {
    let state = state(news.phase);
    let steps = news.ended.iter().map(over).chain(news.current.as_ref().map(under_way));
    let tell = |step| WatchResponse { step, state: state.into(), ..WatchResponse::default() };
    let told: Vec<_> = steps.map(|step| tell(Some(step).into())).collect();
    if told.is_empty() { vec![tell(None.into())] } else { told }
}

fn state(phase: Phase) -> State {
    match phase {
        Phase::Tasks => State::TASKS,
        Phase::Created => State::CREATED,
        Phase::Ready => State::READY,
        Phase::Stopping => State::STOPPING,
        Phase::Stopped => State::STOPPED,
    }
}

fn under_way(current: &Current) -> Step {
    Step {
        name: current.step.name().into(),
        outcome: Outcome::UNDER_WAY.into(),
        began_at: nanos(current.began_at),
        took: length(current.so_far),
        waits_for: current.waits_for.clone(),
        ..Step::default()
    }
}

fn over(Ended { report, began_at, .. }: &Ended) -> Step {
    let outcome = match report.outcome {
        teardown::Outcome::Done => Outcome::DONE,
        teardown::Outcome::AlreadyGone => Outcome::ALREADY_GONE,
        teardown::Outcome::InUse => Outcome::IN_USE,
        teardown::Outcome::Warned(_) => Outcome::WARNED,
        teardown::Outcome::Failed(_) => Outcome::FAILED,
    };
    Step {
        name: report.step.name().into(),
        outcome: outcome.into(),
        began_at: nanos(*began_at),
        took: length(report.took),
        error: report.outcome.error().unwrap_or_default().to_owned(),
        ..Step::default()
    }
}

fn series((name, subject, series): (String, String, telemetry::Series)) -> Series {
    Series {
        name,
        subject,
        count: series.count,
        errors: series.errors,
        total: length(series.total),
        longest: length(series.longest),
        within: series.within.iter().map(|count| u64::from(*count)).collect(),
        ..Series::default()
    }
}

/// What the kernel says of this process. Blocks.
fn process() -> Process {
    let count = |folder| fs::read_dir(folder).map_or(0, Iterator::count);
    let pid = std::process::id();
    Process {
        pid,
        pss: memory::pss(pid).unwrap_or_default(),
        descriptors: u32::try_from(count("/proc/self/fd")).unwrap_or(u32::MAX),
        threads: u32::try_from(count("/proc/self/task")).unwrap_or(u32::MAX),
        ..Process::default()
    }
}

#[expect(clippy::disallowed_methods, reason = "a time to be shown, of no wait")]
fn nanos(at: SystemTime) -> i64 {
    at.duration_since(SystemTime::UNIX_EPOCH).map_or(0, length)
}

fn length(length: Duration) -> i64 {
    i64::try_from(length.as_nanos()).unwrap_or(i64::MAX)
}
