//! `containerd.runtime.sandbox.v1.Sandbox`.

use std::{sync::Arc, time::Duration};

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
    types::{mount::Mount as WireMount, platform::Platform},
};
use mooring::{error::Code, id::Id, options::AnyValue};

use super::{
    Ending,
    pod::{CreateRequest, Mount, Pod},
    status::{answer, status, timestamp, to_the_end},
};
use crate::memory;

/// CRI's words for the state of a sandbox.
const READY: &str = "SANDBOX_READY";
const NOT_READY: &str = "SANDBOX_NOTREADY";

/// Serves the one sandbox of this process.
pub struct SandboxService {
    id: Id,
    pod: Arc<dyn Pod>,
    ending: Arc<Ending>,
}

impl SandboxService {
    /// Serves `pod` under the name `id`.
    pub fn new(id: Id, pod: Arc<dyn Pod>, ending: Arc<Ending>) -> Self {
        Self { id, pod, ending }
    }

    /// Whether `id` is this shim's sandbox; nobody else's may be touched.
    fn check(&self, deed: &str, id: &str) -> ttrpc::Result<()> {
        if id == self.id.as_str() {
            return Ok(());
        }
        let reason = format!("{deed} sandbox {id:?}: this is the shim of {:?}", self.id.as_str());
        Err(answer(Code::NotFound, reason))
    }

    /// The error of `deed`, worded for the client.
    fn failed(&self, deed: &'static str) -> impl FnOnce(super::pod::Error) -> ttrpc::Error + use<> {
        let id = self.id.clone();
        move |error| {
            let error = status(deed, "sandbox", id.as_str(), &error);
            log::error!("{error}");
            error
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
        let (pod, failed) = (Arc::clone(&self.pod), self.failed("create"));
        let request = CreateRequest {
            bundle: request.bundle_path.into(),
            rootfs: request.rootfs.into_iter().map(mount).collect(),
            options: request.options.into_option().map(value),
            netns_path: Some(request.netns_path).filter(|path| !path.is_empty()).map(Into::into),
            annotations: request.annotations,
        };
        to_the_end(async move { pod.create(request).await.map_err(failed) }).await?;
        Ok(CreateSandboxResponse::new())
    }

    async fn start_sandbox(
        &self,
        _: &TtrpcContext,
        request: StartSandboxRequest,
    ) -> ttrpc::Result<StartSandboxResponse> {
        self.check("start", &request.sandbox_id)?;
        let (pod, failed) = (Arc::clone(&self.pod), self.failed("start"));
        let started = to_the_end(async move { pod.start().await.map_err(failed) }).await?;
        memory::worked();
        Ok(StartSandboxResponse {
            pid: started.pid,
            created_at: MessageField::some(timestamp(started.created_at)),
            spec: started.spec.map(any).into(),
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
        self.check("stop", &request.sandbox_id)?;
        let timeout = patience(request.timeout_secs, context.timeout_nano);
        let (pod, failed) = (Arc::clone(&self.pod), self.failed("stop"));
        to_the_end(async move { pod.stop(timeout).await.map_err(failed) }).await?;
        memory::worked();
        Ok(StopSandboxResponse::new())
    }

    async fn wait_sandbox(
        &self,
        _: &TtrpcContext,
        request: WaitSandboxRequest,
    ) -> ttrpc::Result<WaitSandboxResponse> {
        self.check("wait for", &request.sandbox_id)?;
        let exit = self.pod.wait().await.map_err(self.failed("wait for"))?;
        Ok(WaitSandboxResponse {
            exit_status: exit.status,
            exited_at: MessageField::some(timestamp(exit.at)),
            ..WaitSandboxResponse::default()
        })
    }

    async fn sandbox_status(
        &self,
        _: &TtrpcContext,
        request: SandboxStatusRequest,
    ) -> ttrpc::Result<SandboxStatusResponse> {
        self.check("status of", &request.sandbox_id)?;
        let status = self.pod.status(request.verbose).await.map_err(self.failed("status of"))?;
        Ok(SandboxStatusResponse {
            sandbox_id: request.sandbox_id,
            pid: status.pid,
            state: if status.ready { READY } else { NOT_READY }.into(),
            info: status.info.into_iter().collect(),
            created_at: MessageField::some(timestamp(status.created_at)),
            exited_at: status.exited_at.map(timestamp).into(),
            ..SandboxStatusResponse::default()
        })
    }

    async fn ping_sandbox(
        &self,
        _: &TtrpcContext,
        request: PingRequest,
    ) -> ttrpc::Result<PingResponse> {
        self.check("ping", &request.sandbox_id)?;
        self.pod.ping().await.map_err(self.failed("ping"))?;
        Ok(PingResponse::new())
    }

    async fn shutdown_sandbox(
        &self,
        context: &TtrpcContext,
        request: ShutdownSandboxRequest,
    ) -> ttrpc::Result<ShutdownSandboxResponse> {
        self.check("shut down", &request.sandbox_id)?;
        let (pod, failed) = (Arc::clone(&self.pod), self.failed("shut down"));
        let (ending, stream) = (Arc::clone(&self.ending), context.mh.stream_id);
        to_the_end(async move {
            pod.shutdown().await.map_err(failed)?;
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
        let metrics = self.pod.metrics().await.map_err(self.failed("metrics of"))?;
        let mut response = SandboxMetricsResponse::new();
        let metric = response.metrics.mut_or_insert_default();
        metric.timestamp = MessageField::some(timestamp(metrics.at));
        metric.id = request.sandbox_id;
        metric.data = MessageField::some(any(metrics.data));
        Ok(response)
    }
}

/// The shorter of what the request and its transport allow; nothing is for ever.
fn patience(seconds: u32, nanos: i64) -> Option<Duration> {
    let seconds = (seconds > 0).then(|| Duration::from_secs(seconds.into()));
    let nanos = u64::try_from(nanos).ok().filter(|n| *n > 0).map(Duration::from_nanos);
    seconds.into_iter().chain(nanos).min()
}

/// Go's name of this machine's architecture.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "x86" => "386",
        "aarch64" => "arm64",
        "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
        other => other,
    }
}

fn mount(mount: WireMount) -> Mount {
    Mount {
        kind: mount.type_,
        source: mount.source,
        target: Some(mount.target).filter(|target| !target.is_empty()).map(Into::into),
        options: mount.options,
    }
}

fn value(any: Any) -> AnyValue {
    AnyValue { type_url: any.type_url, value: any.value }
}

fn any(value: AnyValue) -> Any {
    Any { type_url: value.type_url, value: value.value, ..Any::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shorter_patience_counts() {
        let seconds = |s| Some(Duration::from_secs(s));
        assert_eq!(patience(0, 0), None);
        assert_eq!(patience(3, 0), seconds(3));
        assert_eq!(patience(0, 2_000_000_000), seconds(2));
        assert_eq!(patience(3, 2_000_000_000), seconds(2));
        assert_eq!(patience(1, -1), seconds(1));
    }
}
