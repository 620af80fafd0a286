//! Every call of CRI in a pod's life, one pod after another.

use anyhow::{Context, Result, ensure};
use k8s_cri::v1::{self as cri, NamespaceMode};

use super::floor::Floor;
use super::{Bench, Section, Unit, timed};
use crate::cri::{Container, ContainerSpec, Pod, PodSpec};
use crate::node::version;
use crate::stream::Wish;
use crate::suite::Handler;

/// The laps of one life.
type Laps = Vec<(&'static str, f64)>;

macro_rules! lap {
    ($laps:ident, $name:literal, $call:expr) => {{
        let (done, ms) = timed(async { $call.await }).await?;
        $laps.push(($name, ms));
        done
    }};
}

impl Bench {
    /// The usual pod of this run.
    pub(super) fn pod(&self, handler: Handler) -> PodSpec {
        let spec = PodSpec::new(&self.case(handler));
        if self.plan.shared_pid { spec.pid(NamespaceMode::Pod) } else { spec }
    }

    pub(super) async fn calls(&mut self) -> Result<()> {
        // The first pod of each pays for caches and the code's pages.
        for handler in self.handlers() {
            self.life(handler).await?;
        }
        self.floor.run(Floor::life).await?;
        for _ in 0..self.plan.rounds {
            for handler in self.handlers() {
                for (call, ms) in self.life(handler).await? {
                    self.table.add(Section::Calls, call, Unit::Ms, handler, ms);
                }
            }
            for (call, ms) in self.floor.run(Floor::life).await? {
                self.table.floor(Section::Calls, call, Unit::Ms, ms);
            }
        }
        Ok(())
    }

    async fn life(&self, handler: Handler) -> Result<Laps> {
        let mut laps = Laps::new();
        let spec = self.pod(handler);
        let pod = lap!(laps, "RunPodSandbox", spec.run());
        let status = lap!(laps, "PodSandboxStatus", pod.status());
        ensure!(status.network.is_some_and(|one| !one.ip.is_empty()), "a pod without address");
        ensure!(lap!(laps, "ListPodSandbox", pod.is_listed()), "a pod that is not listed");
        let container = lap!(laps, "CreateContainer", pod.create(&ContainerSpec::idle("main")));
        lap!(laps, "StartContainer", container.start());
        let status = lap!(laps, "ContainerStatus", container.status());
        let running = cri::ContainerState::ContainerRunning;
        ensure!(status.state() == running, "a container that does not run: {:?}", status.state());
        ensure!(lap!(laps, "ListContainers", self.lists(&container)), "a container not listed");
        let ran = lap!(laps, "ExecSync", container.exec(&["/bin/true"]));
        ensure!(ran.code == 0, "true: {ran:?}");
        lap!(laps, "Exec, to its end", streamed(&container));
        lap!(laps, "UpdateContainerResources", self.update(&container));
        lap!(laps, "ContainerStats", container.stats());
        lap!(laps, "PodSandboxStats", pod.stats());
        lap!(laps, "ReopenContainerLog", self.reopen(&container));
        lap!(laps, "StopContainer", container.stop(0));
        lap!(laps, "RemoveContainer", container.remove());
        // What a kubelet does to a pod that shall go: the container is still running.
        pod.start(&ContainerSpec::idle("running")).await?;
        lap!(laps, "StopPodSandbox", pod.stop());
        lap!(laps, "RemovePodSandbox", pod.remove());
        Ok(laps)
    }

    async fn lists(&self, container: &Container) -> Result<bool> {
        let request = cri::ListContainersRequest { filter: None };
        let list = self.node.cri().list_containers(request).await.context("ListContainers")?;
        Ok(list.into_inner().containers.iter().any(|one| one.id == container.id))
    }

    async fn update(&self, container: &Container) -> Result<()> {
        let linux = cri::LinuxContainerResources { cpu_shares: 512, ..Default::default() };
        let request = cri::UpdateContainerResourcesRequest {
            container_id: container.id.clone(),
            linux: Some(linux),
            ..Default::default()
        };
        let done = self.node.cri().update_container_resources(request).await;
        done.map(drop).context("UpdateContainerResources")
    }

    async fn reopen(&self, container: &Container) -> Result<()> {
        let request = cri::ReopenContainerLogRequest { container_id: container.id.clone() };
        let done = self.node.cri().reopen_container_log(request).await;
        done.map(drop).context("ReopenContainerLog")
    }

    /// Pods with several containers: started one after another, as a kubelet does, and stopped with the pod.
    pub(super) async fn containers(&mut self) -> Result<()> {
        let most = self.plan.most;
        for (count, of_forty) in [(1, 10), (5, 10), (20, 5)].into_iter().filter(|one| one.0 <= most)
        {
            let [start, stop] =
                ["start", "StopPodSandbox"].map(|what| format!("{count} in a pod: {what}"));
            for _ in 0..self.plan.part(of_forty) {
                for handler in self.handlers() {
                    let (pod, ms) = timed(self.pod_of(handler, count)).await?;
                    self.table.add(Section::Containers, &start, Unit::Ms, handler, ms);
                    let ((), ms) = timed(pod.stop()).await?;
                    self.table.add(Section::Containers, &stop, Unit::Ms, handler, ms);
                    pod.remove().await?;
                }
                let (started, stopped) = self.floor.run(move |one| one.pod_of(count)).await?;
                self.table.floor(Section::Containers, &start, Unit::Ms, started);
                self.table.floor(Section::Containers, &stop, Unit::Ms, stopped);
            }
        }
        Ok(())
    }

    pub(super) async fn pod_of(&self, handler: Handler, containers: usize) -> Result<Pod> {
        let pod = self.pod(handler).run().await?;
        for number in 0..containers {
            pod.start(&ContainerSpec::idle(&format!("main-{number}"))).await?;
        }
        Ok(pod)
    }

    /// Pods on the node's network, which CRI of containerd 2.1 has for its own sandboxes only: it crashes when such a
    /// pod is a shim's sandbox.
    pub(super) async fn host(&mut self) -> Result<()> {
        let crashes = version()? < (2, 2);
        for _ in 0..self.plan.part(10) {
            for handler in self.shims() {
                if handler.is_mooring() && crashes {
                    continue;
                }
                let spec = self.pod(handler).host_network();
                let mut laps = Laps::new();
                let pod = lap!(laps, "RunPodSandbox, node's network", spec.run());
                pod.start(&ContainerSpec::idle("main")).await?;
                lap!(laps, "StopPodSandbox, node's network", pod.stop());
                lap!(laps, "RemovePodSandbox, node's network", pod.remove());
                for (call, ms) in laps {
                    self.table.add(Section::Host, call, Unit::Ms, handler, ms);
                }
            }
        }
        Ok(())
    }
}

/// Exec with streams, read to its end.
async fn streamed(container: &Container) -> Result<()> {
    let mut session = container.open_exec(&["/bin/true"], Wish::default()).await?;
    session.to_end().await?;
    let status = session.status.take().context("an exec without status")?;
    ensure!(status.contains("Success"), "true: {status}");
    Ok(())
}
