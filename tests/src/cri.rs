//! Pods and containers over CRI, as a kubelet would make them.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use k8s_cri::v1::{self as cri, NamespaceMode};

use crate::node::{IMAGE, Node};
use crate::suite::Case;
use crate::systemd;

/// How long a state may take to become visible.
const PATIENCE: Duration = Duration::from_secs(10);

/// A pod that is to be.
#[derive(Clone)]
pub struct PodSpec {
    node: Arc<Node>,
    /// The runtime handler's name.
    pub handler: String,
    /// What CRI will be given; change whatever has no method here.
    pub config: cri::PodSandboxConfig,
}

impl PodSpec {
    /// A usual pod: its own network and IPC, no shared PID namespace, a cgroup parent as a kubelet gives it.
    pub fn new(case: &Case) -> Self {
        let name = case.unique("pod");
        let logs = case.node.folder().join("logs").join(&name);
        let security = cri::LinuxSandboxSecurityContext {
            namespace_options: Some(cri::NamespaceOption {
                pid: NamespaceMode::Container as i32,
                ..Default::default()
            }),
            ..Default::default()
        };
        let config = cri::PodSandboxConfig {
            metadata: Some(cri::PodSandboxMetadata {
                name: name.clone(),
                uid: name.clone(),
                namespace: "e2e".to_owned(),
                attempt: 0,
            }),
            hostname: name.clone(),
            log_directory: logs.display().to_string(),
            linux: Some(cri::LinuxPodSandboxConfig {
                cgroup_parent: if systemd::is_first() {
                    systemd::pod_parent(&name)
                } else {
                    format!("/e2e/{name}")
                },
                security_context: Some(security),
                ..Default::default()
            }),
            ..Default::default()
        };
        Self { node: Arc::clone(&case.node), handler: case.handler.name().to_owned(), config }
    }

    /// The Linux part.
    pub fn linux(&mut self) -> &mut cri::LinuxPodSandboxConfig {
        self.config.linux.get_or_insert_default()
    }

    /// The security context.
    pub fn security(&mut self) -> &mut cri::LinuxSandboxSecurityContext {
        self.linux().security_context.get_or_insert_default()
    }

    /// Whose namespaces the pod has.
    pub fn namespaces(&mut self) -> &mut cri::NamespaceOption {
        self.security().namespace_options.get_or_insert_default()
    }

    /// Sets the PID mode.
    #[must_use]
    pub fn pid(mut self, mode: NamespaceMode) -> Self {
        self.namespaces().pid = mode as i32;
        self
    }

    /// Runs in the node's network namespace.
    #[must_use]
    pub fn host_network(mut self) -> Self {
        self.namespaces().network = NamespaceMode::Node as i32;
        self.config.hostname = String::new();
        self
    }

    /// Sets a sysctl.
    #[must_use]
    pub fn sysctl(mut self, name: &str, value: &str) -> Self {
        self.linux().sysctls.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Lets a port of the node lead into the pod.
    #[must_use]
    pub fn port(mut self, container: i32, host: i32) -> Self {
        self.config.port_mappings.push(cri::PortMapping {
            container_port: container,
            host_port: host,
            ..Default::default()
        });
        self
    }

    /// A user namespace for the pod whose ids begin at `host` outside.
    #[must_use]
    pub fn users_from(mut self, host: u32) -> Self {
        let mapping = cri::IdMapping { host_id: host, container_id: 0, length: 65536 };
        self.namespaces().userns_options = Some(cri::UserNamespace {
            mode: NamespaceMode::Pod as i32,
            uids: vec![mapping],
            gids: vec![mapping],
        });
        self
    }

    /// `RunPodSandbox`.
    pub async fn run(&self) -> Result<Pod> {
        if systemd::is_first()
            && let Some(linux) = &self.config.linux
        {
            systemd::start_slice(&linux.cgroup_parent)?;
        }
        let request = cri::RunPodSandboxRequest {
            config: Some(self.config.clone()),
            runtime_handler: self.handler.clone(),
        };
        let answer =
            Box::pin(self.node.cri().run_pod_sandbox(request)).await.context("RunPodSandbox")?;
        let id = answer.into_inner().pod_sandbox_id;
        Ok(Pod { node: Arc::clone(&self.node), spec: self.clone(), id })
    }
}

/// A container that is to be.
#[derive(Clone)]
pub struct ContainerSpec {
    /// What CRI will be given; change whatever has no method here.
    pub config: cri::ContainerConfig,
}

impl ContainerSpec {
    /// A container with this command.
    pub fn new(name: &str, command: &[&str]) -> Self {
        let config = cri::ContainerConfig {
            metadata: Some(cri::ContainerMetadata { name: name.to_owned(), attempt: 0 }),
            image: Some(cri::ImageSpec { image: IMAGE.to_owned(), ..Default::default() }),
            command: command.iter().map(ToString::to_string).collect(),
            log_path: format!("{name}.log"),
            linux: Some(cri::LinuxContainerConfig::default()),
            ..Default::default()
        };
        Self { config }
    }

    /// A container that does nothing for a long time.
    pub fn idle(name: &str) -> Self {
        Self::new(name, &["/bin/sleep", "100000"])
    }

    /// A container with a shell script.
    pub fn script(name: &str, script: &str) -> Self {
        Self::new(name, &["/bin/sh", "-c", script])
    }

    /// The resources.
    pub fn resources(&mut self) -> &mut cri::LinuxContainerResources {
        self.config.linux.get_or_insert_default().resources.get_or_insert_default()
    }

    /// The security context.
    pub fn security(&mut self) -> &mut cri::LinuxContainerSecurityContext {
        self.config.linux.get_or_insert_default().security_context.get_or_insert_default()
    }

    /// Mounts a path of the node.
    #[must_use]
    pub fn mount(mut self, host: &str, container: &str, readonly: bool) -> Self {
        self.config.mounts.push(cri::Mount {
            container_path: container.to_owned(),
            host_path: host.to_owned(),
            readonly,
            ..Default::default()
        });
        self
    }

    /// Mounts an image.
    #[must_use]
    pub fn image_volume(mut self, image: &str, container: &str) -> Self {
        self.config.mounts.push(cri::Mount {
            container_path: container.to_owned(),
            image: Some(cri::ImageSpec { image: image.to_owned(), ..Default::default() }),
            readonly: true,
            ..Default::default()
        });
        self
    }
}

/// A pod that runs.
pub struct Pod {
    node: Arc<Node>,
    /// As it was asked for.
    pub spec: PodSpec,
    /// The sandbox's id.
    pub id: String,
}

/// The result of a command that ran.
#[derive(Debug)]
pub struct Ran {
    /// The exit code.
    pub code: i32,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Pod {
    /// The node that it runs on.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// `CreateContainer`.
    pub async fn create(&self, spec: &ContainerSpec) -> Result<Container> {
        let mut config = spec.config.clone();
        let pod = self.spec.config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
        // A kubelet repeats the pod's namespaces in each container.
        if let Some(pod) = pod {
            let security =
                config.linux.get_or_insert_default().security_context.get_or_insert_default();
            if security.namespace_options.is_none() {
                security.namespace_options.clone_from(&pod.namespace_options);
            }
        }
        let request = cri::CreateContainerRequest {
            pod_sandbox_id: self.id.clone(),
            config: Some(config.clone()),
            sandbox_config: Some(self.spec.config.clone()),
        };
        let answer =
            Box::pin(self.node.cri().create_container(request)).await.context("CreateContainer")?;
        let id = answer.into_inner().container_id;
        let log = PathBuf::from(&self.spec.config.log_directory).join(&config.log_path);
        Ok(Container { node: Arc::clone(&self.node), id, log })
    }

    /// `CreateContainer` and `StartContainer`.
    pub async fn start(&self, spec: &ContainerSpec) -> Result<Container> {
        let container = self.create(spec).await?;
        container.start().await?;
        Ok(container)
    }

    /// `PodSandboxStatus`.
    pub async fn status(&self) -> Result<cri::PodSandboxStatus> {
        self.verbose_status().await.map(|(status, _)| status)
    }

    /// `PodSandboxStatus` with its verbose information.
    pub async fn verbose_status(&self) -> Result<(cri::PodSandboxStatus, HashMap<String, String>)> {
        let request =
            cri::PodSandboxStatusRequest { pod_sandbox_id: self.id.clone(), verbose: true };
        let answer =
            self.node.cri().pod_sandbox_status(request).await.context("PodSandboxStatus")?;
        let answer = answer.into_inner();
        Ok((answer.status.context("no status")?, answer.info))
    }

    /// Whether CRI calls the pod ready.
    pub async fn is_ready(&self) -> Result<bool> {
        Ok(self.status().await?.state() == cri::PodSandboxState::SandboxReady)
    }

    /// The pod's address.
    pub async fn address(&self) -> Result<String> {
        Ok(self.status().await?.network.context("no network")?.ip)
    }

    /// `PodSandboxStats`.
    pub async fn stats(&self) -> Result<cri::PodSandboxStats> {
        let request = cri::PodSandboxStatsRequest { pod_sandbox_id: self.id.clone() };
        let answer = self.node.cri().pod_sandbox_stats(request).await.context("PodSandboxStats")?;
        answer.into_inner().stats.context("no stats")
    }

    /// `StopPodSandbox`.
    pub async fn stop(&self) -> Result<()> {
        let request = cri::StopPodSandboxRequest { pod_sandbox_id: self.id.clone() };
        self.node.cri().stop_pod_sandbox(request).await.context("StopPodSandbox")?;
        Ok(())
    }

    /// `RemovePodSandbox`, again where a kubelet would ask again: on a busy machine containerd's ttrpc client may take
    /// the answer of a shim that ends at once, as any shim does then, for a closed connection.
    pub async fn remove(&self) -> Result<()> {
        for _ in 0..3 {
            let request = cri::RemovePodSandboxRequest { pod_sandbox_id: self.id.clone() };
            match self.node.cri().remove_pod_sandbox(request).await {
                Err(status) if status.message().ends_with("ttrpc: closed") => {}
                answer => return answer.map(drop).context("RemovePodSandbox"),
            }
        }
        bail!("RemovePodSandbox: the shim hangs up each time")
    }

    /// Stops and removes it.
    pub async fn end(&self) -> Result<()> {
        self.stop().await?;
        self.remove().await
    }

    /// Whether CRI lists it.
    pub async fn is_listed(&self) -> Result<bool> {
        let request = cri::ListPodSandboxRequest { filter: None };
        let list = self.node.cri().list_pod_sandbox(request).await.context("ListPodSandbox")?;
        Ok(list.into_inner().items.iter().any(|pod| pod.id == self.id))
    }

    /// Waits until CRI calls the pod ready, or not ready.
    pub async fn wait_ready(&self, ready: bool) -> Result<()> {
        let until = Instant::now() + crate::patience(PATIENCE);
        loop {
            // While containerd buries a shim, the question itself may fail.
            let answer = self.is_ready().await;
            if answer.as_ref().is_ok_and(|is| *is == ready) {
                return Ok(());
            }
            if Instant::now() > until {
                bail!("the pod's readiness does not become {ready}: {answer:?}");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// A container that was created.
pub struct Container {
    node: Arc<Node>,
    /// Its id.
    pub id: String,
    /// Where its log is.
    pub log: PathBuf,
}

impl Container {
    /// The node that it runs on.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// `StartContainer`.
    pub async fn start(&self) -> Result<()> {
        let request = cri::StartContainerRequest { container_id: self.id.clone() };
        self.node.cri().start_container(request).await.context("StartContainer")?;
        Ok(())
    }

    /// `StopContainer` with a grace period in seconds.
    pub async fn stop(&self, grace: i64) -> Result<()> {
        let request = cri::StopContainerRequest { container_id: self.id.clone(), timeout: grace };
        self.node.cri().stop_container(request).await.context("StopContainer")?;
        Ok(())
    }

    /// `RemoveContainer`.
    pub async fn remove(&self) -> Result<()> {
        let request = cri::RemoveContainerRequest { container_id: self.id.clone() };
        self.node.cri().remove_container(request).await.context("RemoveContainer")?;
        Ok(())
    }

    /// `ExecSync`.
    pub async fn exec(&self, command: &[&str]) -> Result<Ran> {
        self.exec_for(command, 20).await
    }

    /// `ExecSync` with a timeout in seconds.
    pub async fn exec_for(&self, command: &[&str], timeout: i64) -> Result<Ran> {
        let request = cri::ExecSyncRequest {
            container_id: self.id.clone(),
            cmd: command.iter().map(ToString::to_string).collect(),
            timeout,
        };
        let answer = self.node.cri().exec_sync(request).await.context("ExecSync")?.into_inner();
        Ok(Ran {
            code: answer.exit_code,
            stdout: String::from_utf8_lossy(&answer.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&answer.stderr).into_owned(),
        })
    }

    /// What a shell script prints; it must succeed.
    pub async fn shell(&self, script: &str) -> Result<String> {
        let ran = self.exec(&["/bin/sh", "-c", script]).await?;
        if ran.code != 0 {
            bail!("{script:?} in the container: {ran:?}");
        }
        Ok(ran.stdout.trim().to_owned())
    }

    /// `ContainerStatus`.
    pub async fn status(&self) -> Result<cri::ContainerStatus> {
        let request = cri::ContainerStatusRequest { container_id: self.id.clone(), verbose: false };
        let answer = self.node.cri().container_status(request).await.context("ContainerStatus")?;
        answer.into_inner().status.context("no status")
    }

    /// The container's process on the node.
    pub async fn pid(&self) -> Result<i32> {
        let request = cri::ContainerStatusRequest { container_id: self.id.clone(), verbose: true };
        let answer = self.node.cri().container_status(request).await.context("ContainerStatus")?;
        let info = answer.into_inner().info;
        let info: serde_json::Value = serde_json::from_str(info.get("info").context("no info")?)?;
        let pid = info.get("pid").and_then(serde_json::Value::as_i64).context("no pid")?;
        Ok(i32::try_from(pid)?)
    }

    /// Waits until the container has ended and returns its last status.
    pub async fn exited(&self) -> Result<cri::ContainerStatus> {
        self.exited_within(PATIENCE).await
    }

    /// Waits until the container has ended and returns its last status.
    pub async fn exited_within(&self, patience: Duration) -> Result<cri::ContainerStatus> {
        let until = Instant::now() + crate::patience(patience);
        loop {
            let status = self.status().await?;
            if status.state() == cri::ContainerState::ContainerExited {
                return Ok(status);
            }
            if Instant::now() > until {
                bail!("the container does not end: {:?}", status.state());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// `ContainerStats`.
    pub async fn stats(&self) -> Result<cri::ContainerStats> {
        let request = cri::ContainerStatsRequest { container_id: self.id.clone() };
        let answer = self.node.cri().container_stats(request).await.context("ContainerStats")?;
        answer.into_inner().stats.context("no stats")
    }

    /// The log's lines of one stream, once `enough` says so.
    pub async fn logged(&self, stream: &str, enough: impl Fn(&str) -> bool) -> Result<String> {
        let until = Instant::now() + crate::patience(PATIENCE);
        loop {
            let text = tokio::fs::read_to_string(&self.log).await.unwrap_or_default();
            let lines = text.lines().filter_map(|line| {
                let mut words = line.splitn(4, ' ').skip(1);
                (words.next() == Some(stream)).then(|| words.nth(1).unwrap_or_default())
            });
            let lines = lines.collect::<Vec<_>>().join("\n");
            if enough(&lines) {
                return Ok(lines);
            }
            if Instant::now() > until {
                bail!("the log has not what was expected of it: {text:?}");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Stops and removes every pod that CRI lists.
pub async fn remove_all_pods(case: &Case) -> Result<()> {
    let mut cri = case.node.cri();
    let list = cri.list_pod_sandbox(cri::ListPodSandboxRequest { filter: None }).await?;
    for pod in list.into_inner().items {
        let id = pod.id;
        cri.stop_pod_sandbox(cri::StopPodSandboxRequest { pod_sandbox_id: id.clone() }).await?;
        cri.remove_pod_sandbox(cri::RemovePodSandboxRequest { pod_sandbox_id: id }).await?;
    }
    Ok(())
}
