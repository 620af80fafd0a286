//! CRI, as one pod's worker uses it.

use std::sync::Arc;

use anyhow::{Context, Result};
use k8s_cri::v1 as cri;

use crate::cri::{ContainerSpec, PodSpec};
use crate::node::Node;

/// The label by which a kubelet finds what belongs to a pod.
const UID: &str = "io.kubernetes.pod.uid";

pub(super) struct Runtime {
    node: Arc<Node>,
    sandbox: PodSpec,
    uid: String,
}

impl Runtime {
    pub(super) fn new(node: &Arc<Node>, sandbox: &PodSpec) -> Self {
        let mut sandbox = sandbox.clone();
        let uid = sandbox.config.metadata.as_ref().map(|one| one.uid.clone()).unwrap_or_default();
        sandbox.config.labels.insert(UID.to_owned(), uid.clone());
        Self { node: Arc::clone(node), sandbox, uid }
    }

    fn label(&self) -> std::collections::HashMap<String, String> {
        std::iter::once((UID.to_owned(), self.uid.clone())).collect()
    }

    /// The pod's sandboxes, the newest first.
    pub(super) async fn sandboxes(&self) -> Result<Vec<cri::PodSandbox>> {
        let filter = cri::PodSandboxFilter {
            label_selector: self.label(),
            ..cri::PodSandboxFilter::default()
        };
        let request = cri::ListPodSandboxRequest { filter: Some(filter) };
        let list = self.node.cri().list_pod_sandbox(request).await.context("ListPodSandbox")?;
        let mut all = list.into_inner().items;
        all.sort_by_key(|one| std::cmp::Reverse(one.created_at));
        Ok(all)
    }

    /// The pod's containers, the newest first.
    pub(super) async fn containers(&self) -> Result<Vec<cri::Container>> {
        let filter = cri::ContainerFilter {
            label_selector: self.label(),
            ..cri::ContainerFilter::default()
        };
        let request = cri::ListContainersRequest { filter: Some(filter) };
        let list = self.node.cri().list_containers(request).await.context("ListContainers")?;
        let mut all = list.into_inner().containers;
        all.sort_by_key(|one| std::cmp::Reverse(one.created_at));
        Ok(all)
    }

    fn config(&self, attempt: u32) -> cri::PodSandboxConfig {
        let mut config = self.sandbox.config.clone();
        config.metadata.get_or_insert_default().attempt = attempt;
        config
    }

    pub(super) async fn run(&self, attempt: u32) -> Result<()> {
        let mut spec = self.sandbox.clone();
        spec.config = self.config(attempt);
        spec.run().await.map(drop)
    }

    /// Creates and starts a container.
    pub(super) async fn start(
        &self,
        sandbox: &cri::PodSandbox,
        spec: &ContainerSpec,
        attempt: u32,
    ) -> Result<()> {
        let mut config = spec.config.clone();
        config.metadata.get_or_insert_default().attempt = attempt;
        config.labels = self.label();
        config.log_path = format!("{}-{attempt}", config.log_path);
        let pod = self.sandbox.config.linux.as_ref().and_then(|one| one.security_context.as_ref());
        if let Some(pod) = pod {
            let own = config.linux.get_or_insert_default().security_context.get_or_insert_default();
            own.namespace_options.clone_from(&pod.namespace_options);
        }
        let request = cri::CreateContainerRequest {
            pod_sandbox_id: sandbox.id.clone(),
            config: Some(config),
            sandbox_config: Some(
                self.config(sandbox.metadata.as_ref().map_or(0, |one| one.attempt)),
            ),
        };
        let answer = Box::pin(self.node.cri().create_container(request)).await;
        let container_id = answer.context("CreateContainer")?.into_inner().container_id;
        let request = cri::StartContainerRequest { container_id };
        self.node.cri().start_container(request).await.context("StartContainer")?;
        Ok(())
    }

    /// The exit code of a shell script in a container.
    pub(super) async fn exec(&self, container: &str, script: &str) -> Result<i32> {
        let request = cri::ExecSyncRequest {
            container_id: container.to_owned(),
            cmd: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
            timeout: 10,
        };
        let answer = self.node.cri().exec_sync(request).await.context("ExecSync")?;
        Ok(answer.into_inner().exit_code)
    }

    pub(super) async fn exit_code(&self, container: &str) -> Result<i32> {
        let request =
            cri::ContainerStatusRequest { container_id: container.to_owned(), verbose: false };
        let answer = self.node.cri().container_status(request).await.context("ContainerStatus")?;
        Ok(answer.into_inner().status.context("no status")?.exit_code)
    }

    pub(super) async fn stop_container(&self, container: &str, grace: i64) -> Result<()> {
        let request =
            cri::StopContainerRequest { container_id: container.to_owned(), timeout: grace };
        self.node.cri().stop_container(request).await.context("StopContainer")?;
        Ok(())
    }

    pub(super) async fn remove_container(&self, container: &str) -> Result<()> {
        let request = cri::RemoveContainerRequest { container_id: container.to_owned() };
        self.node.cri().remove_container(request).await.context("RemoveContainer")?;
        Ok(())
    }

    pub(super) async fn stop(&self, sandbox: &str) -> Result<()> {
        let request = cri::StopPodSandboxRequest { pod_sandbox_id: sandbox.to_owned() };
        self.node.cri().stop_pod_sandbox(request).await.context("StopPodSandbox")?;
        Ok(())
    }

    pub(super) async fn remove(&self, sandbox: &str) -> Result<()> {
        let request = cri::RemovePodSandboxRequest { pod_sandbox_id: sandbox.to_owned() };
        self.node.cri().remove_pod_sandbox(request).await.context("RemovePodSandbox")?;
        Ok(())
    }
}
