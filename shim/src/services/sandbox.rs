//! `containerd.runtime.sandbox.v1.Sandbox`.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use containerd_shim_protos::{
    protobuf::{MessageField, well_known_types::any::Any},
    sandbox_api::{
        CreateSandboxRequest, CreateSandboxResponse, PingRequest, PingResponse, PlatformRequest,
        PlatformResponse, SandboxMetricsRequest, SandboxMetricsResponse, SandboxStatusRequest,
        SandboxStatusResponse, ShutdownSandboxRequest, ShutdownSandboxResponse,
        StartSandboxRequest, StartSandboxResponse, StopSandboxRequest, StopSandboxResponse,
        WaitSandboxRequest, WaitSandboxResponse,
    },
    sandbox_async::Sandbox as Service,
    ttrpc::{self, asynchronous::TtrpcContext},
    types::platform::Platform,
};
use mooring::{
    cgroup,
    error::{Code, Coded},
    failpoint,
    sandbox::{self, CreateRequest, Sandbox},
    sys::architecture,
    telemetry::trace::carried,
};

use super::{
    Ending,
    convert::{mount, timestamp, value},
    status::{answer, status, to_the_end},
};
use crate::{
    task::{self, PodError, Tasks},
    watchdog,
};

/// CRI's words for the state of a sandbox.
const READY: &str = "SANDBOX_READY";
const NOT_READY: &str = "SANDBOX_NOTREADY";
/// The type of a specification, which is JSON.
const SPEC: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";
/// How long before a call's deadline its answer is given.
const LAST_WORD: Duration = Duration::from_millis(50);

/// Serves the one sandbox of this process.
pub struct SandboxService {
    sandbox: Arc<Sandbox>,
    tasks: Tasks,
    ending: Arc<Ending>,
}

impl SandboxService {
    /// Serves `sandbox`, whose containers are in `tasks`.
    pub fn new(sandbox: Arc<Sandbox>, tasks: Tasks, ending: Arc<Ending>) -> Self {
        Self { sandbox, tasks, ending }
    }

    /// Takes the sandbox down and forgets it. Nothing where none is created: the tasks are their client's.
    pub async fn abandon(&self) -> Result<(), sandbox::Error> {
        if self.sandbox.is_created() { self.sandbox.shutdown().await } else { Ok(()) }
    }

    /// Whether `id` is this shim's sandbox; nobody else's may be touched.
    fn check(&self, call: &str, id: &str) -> ttrpc::Result<()> {
        let ours = self.sandbox.id().as_str();
        if id == ours {
            return Ok(());
        }
        let reason = format!("{call} sandbox {id:?}: this is the shim of {ours:?}");
        Err(answer(Code::NotFound, reason))
    }

    /// The pod as an OCI specification. Its absence costs NRI plugins their sight, and no pod its life.
    fn spec(&self) -> Option<Any> {
        match self.sandbox.spec() {
            Ok(spec) => {
                let value = spec.to_string().into_bytes();
                Some(Any { type_url: SPEC.into(), value, ..Any::default() })
            }
            Err(error) => {
                log::warn!("describe sandbox {:?}: {error}", self.sandbox.id().as_str());
                None
            }
        }
    }

    /// What the pod's cgroup has used; without one, what its containers' have.
    fn usage(&self) -> Result<Any, task::Error> {
        let refused = |error: sandbox::Error| {
            task::Error::Pod(PodError { code: error.code(), message: error.to_string() })
        };
        let parent = self.sandbox.cgroup_parent().map_err(refused)?;
        if parent.is_empty() {
            return self.tasks.stats_of_all();
        }
        let path = cgroup::pod::parent_path(&parent)?;
        task::metrics::read(&[&cgroup::Hierarchies::read()?.group(&path)?])
    }

    /// The error of `call`, worded for the client.
    fn failed(&self, call: &'static str) -> impl FnOnce(sandbox::Error) -> ttrpc::Error + use<> {
        let id = self.sandbox.id().clone();
        move |error| {
            log::error!("{call} sandbox {:?}: {error}", id.as_str());
            status(call, "sandbox", id.as_str(), &error)
        }
    }
}

#[async_trait]
impl Service for SandboxService {
    async fn create_sandbox(
        &self,
        _: &TtrpcContext,
        request: CreateSandboxRequest,
    ) -> ttrpc::Result<CreateSandboxResponse> {
        self.check("create", &request.sandbox_id)?;
        let (sandbox, failed) = (Arc::clone(&self.sandbox), self.failed("create"));
        let request = CreateRequest {
            bundle: request.bundle_path.into(),
            rootfs: request.rootfs.into_iter().map(mount).collect(),
            options: request.options.into_option().map(value),
            netns_path: Some(request.netns_path).filter(|path| !path.is_empty()).map(Into::into),
            annotations: request.annotations.into_iter().collect(),
        };
        to_the_end(async move { sandbox.create(request).await.map_err(failed) }).await?;
        let forgotten = end_when_forgotten(Arc::clone(&self.sandbox), Arc::clone(&self.ending));
        tokio::spawn(carried(forgotten));
        Ok(CreateSandboxResponse::new())
    }

    async fn start_sandbox(
        &self,
        _: &TtrpcContext,
        request: StartSandboxRequest,
    ) -> ttrpc::Result<StartSandboxResponse> {
        self.check("start", &request.sandbox_id)?;
        let (sandbox, failed) = (Arc::clone(&self.sandbox), self.failed("start"));
        let started = to_the_end(async move { sandbox.start().await.map_err(failed) }).await?;
        Ok(StartSandboxResponse {
            pid: started.pid,
            created_at: timestamp(started.created_at),
            spec: self.spec().into(),
            ..StartSandboxResponse::default()
        })
    }

    async fn platform(
        &self,
        _: &TtrpcContext,
        request: PlatformRequest,
    ) -> ttrpc::Result<PlatformResponse> {
        self.check("platform of", &request.sandbox_id)?;
        let platform = Platform {
            os: "linux".into(),
            architecture: architecture().into(),
            ..Platform::default()
        };
        Ok(PlatformResponse {
            platform: MessageField::some(platform),
            ..PlatformResponse::default()
        })
    }

    async fn stop_sandbox(
        &self,
        context: &TtrpcContext,
        request: StopSandboxRequest,
    ) -> ttrpc::Result<StopSandboxResponse> {
        if request.sandbox_id != self.sandbox.id().as_str() {
            // What this shim does not know is stopped.
            return Ok(StopSandboxResponse::new());
        }
        let timeout = patience(request.timeout_secs, context.timeout_nano);
        let (sandbox, failed) = (Arc::clone(&self.sandbox), self.failed("stop"));
        to_the_end(async move {
            let _watched = watchdog::stopping();
            sandbox.stop(timeout).await.map_err(failed)
        })
        .await?;
        Ok(StopSandboxResponse::new())
    }

    async fn wait_sandbox(
        &self,
        _: &TtrpcContext,
        request: WaitSandboxRequest,
    ) -> ttrpc::Result<WaitSandboxResponse> {
        self.check("wait for", &request.sandbox_id)?;
        let exit = self.sandbox.wait().await.map_err(self.failed("wait for"))?;
        Ok(WaitSandboxResponse {
            exit_status: exit.status,
            exited_at: timestamp(exit.at),
            ..WaitSandboxResponse::default()
        })
    }

    async fn sandbox_status(
        &self,
        _: &TtrpcContext,
        request: SandboxStatusRequest,
    ) -> ttrpc::Result<SandboxStatusResponse> {
        self.check("status of", &request.sandbox_id)?;
        let status = self.sandbox.status(request.verbose).map_err(self.failed("status of"))?;
        Ok(SandboxStatusResponse {
            sandbox_id: request.sandbox_id,
            pid: status.pid,
            state: if status.ready { READY } else { NOT_READY }.into(),
            info: status.info.into_iter().collect(),
            created_at: timestamp(status.created_at),
            exited_at: status.exited_at.map(timestamp).unwrap_or_default(),
            ..SandboxStatusResponse::default()
        })
    }

    async fn ping_sandbox(
        &self,
        _: &TtrpcContext,
        request: PingRequest,
    ) -> ttrpc::Result<PingResponse> {
        self.check("ping", &request.sandbox_id)?;
        failpoint::pass("ping");
        self.sandbox.ping().map_err(self.failed("ping"))?;
        Ok(PingResponse::new())
    }

    async fn shutdown_sandbox(
        &self,
        context: &TtrpcContext,
        request: ShutdownSandboxRequest,
    ) -> ttrpc::Result<ShutdownSandboxResponse> {
        self.check("shut down", &request.sandbox_id)?;
        let (sandbox, failed) = (Arc::clone(&self.sandbox), self.failed("shut down"));
        let (ending, stream) = (Arc::clone(&self.ending), context.mh.stream_id);
        to_the_end(async move {
            let _watched = watchdog::stopping();
            sandbox.shutdown().await.map_err(failed)?;
            // Also when the client has gone meanwhile: nobody asks a second time.
            ending.after(stream);
            Ok(())
        })
        .await?;
        Ok(ShutdownSandboxResponse::new())
    }

    async fn sandbox_metrics(
        &self,
        _: &TtrpcContext,
        request: SandboxMetricsRequest,
    ) -> ttrpc::Result<SandboxMetricsResponse> {
        self.check("metrics of", &request.sandbox_id)?;
        let data = self
            .usage()
            .map_err(|error| status("metrics of", "sandbox", &request.sandbox_id, &error))?;
        let mut response = SandboxMetricsResponse::new();
        let metric = response.metrics.mut_or_insert_default();
        metric.timestamp = timestamp(SystemTime::now());
        metric.id = request.sandbox_id;
        metric.data = MessageField::some(data);
        Ok(response)
    }
}

/// A sandbox that its client has forgotten before it was started would stay for ever: it is taken down, and the shim ends.
async fn end_when_forgotten(sandbox: Arc<Sandbox>, ending: Arc<Ending>) {
    if !sandbox.was_forgotten().await {
        return;
    }
    log::warn!(
        "sandbox {}: created, not started, and forgotten by containerd: ending",
        sandbox.id()
    );
    super::give_up(|| sandbox.shutdown()).await;
    ending.begin();
}

/// The shorter of what the request and its transport allow; nothing is for ever.
fn patience(seconds: u32, nanos: i64) -> Option<Duration> {
    let seconds = (seconds > 0).then(|| Duration::from_secs(seconds.into()));
    let nanos = u64::try_from(nanos).ok().filter(|n| *n > 0).map(Duration::from_nanos);
    // The server ends the call at its deadline without a word; before that there can be an answer that says more.
    let nanos = nanos.map(|limit| limit.saturating_sub((limit / 10).min(LAST_WORD)));
    seconds.into_iter().chain(nanos).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shorter_patience_counts() {
        let seconds = |s| Some(Duration::from_secs(s));
        assert_eq!(patience(0, 0), None);
        assert_eq!(patience(3, 0), seconds(3));
        let before = Some(Duration::from_millis(1950));
        assert_eq!(patience(0, 2_000_000_000), before);
        assert_eq!(patience(3, 2_000_000_000), before);
        assert_eq!(patience(0, 100), Some(Duration::from_nanos(90)));
        assert_eq!(patience(1, -1), seconds(1));
    }
}
