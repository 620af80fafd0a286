//! A shim's own socket, without containerd between.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use containerd_shim_protos::sandbox_api::{PingRequest, StartSandboxRequest, StopSandboxRequest};
use containerd_shim_protos::sandbox_async::SandboxClient;
use containerd_shim_protos::ttrpc::asynchronous::Client;
use containerd_shim_protos::ttrpc::context;
use serde_json::Value;

use crate::node::Node;

/// A connection to the shim of a sandbox.
pub struct Direct {
    sandbox: SandboxClient,
}

impl Direct {
    /// Connects to where the sandbox's bundle says its shim is.
    pub async fn to(node: &Node, namespace: &str, id: &str) -> Result<Self> {
        let state = node.folder().join("state/io.containerd.sandbox.controller.v1.shim");
        let file = state.join(namespace).join(id).join("bootstrap.json");
        let text = fs::read(&file).with_context(|| format!("read {}", file.display()))?;
        let bootstrap: Value = serde_json::from_slice(&text)?;
        let address = bootstrap.get("address").and_then(Value::as_str).context("no address")?;
        let client =
            Client::connect(address).await.map_err(|error| anyhow!("{address}: {error}"))?;
        Ok(Self { sandbox: SandboxClient::new(client) })
    }

    /// `PingSandbox`.
    pub async fn ping(&self, id: &str, limit: Duration) -> Result<()> {
        let request = PingRequest { sandbox_id: id.to_owned(), ..Default::default() };
        let answer = self.sandbox.ping_sandbox(context::with_duration(limit), &request).await;
        answer.map(drop).map_err(|error| anyhow!("PingSandbox: {error}"))
    }

    /// `StartSandbox`: the number that stands for the pod, and its specification.
    pub async fn start(&self, id: &str, limit: Duration) -> Result<(u32, Value)> {
        let request = StartSandboxRequest { sandbox_id: id.to_owned(), ..Default::default() };
        let answer = self.sandbox.start_sandbox(context::with_duration(limit), &request).await;
        let answer = answer.map_err(|error| anyhow!("StartSandbox: {error}"))?;
        let spec = answer.spec.as_ref().context("it answered no specification")?;
        Ok((answer.pid, serde_json::from_slice(&spec.value)?))
    }

    /// `StopSandbox`.
    pub async fn stop(&self, id: &str, limit: Duration) -> Result<()> {
        let request = StopSandboxRequest { sandbox_id: id.to_owned(), ..Default::default() };
        let context = context::with_duration(limit);
        let stopped = self.sandbox.stop_sandbox(context, &request).await;
        stopped.map(drop).map_err(|error| anyhow!("StopSandbox: {error}"))
    }
}
