//! The worker of one pod.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Result;
use futures_util::future::join_all;
use k8s_cri::v1 as cri;
use k8s_cri::v1::{ContainerState, PodSandboxState};
use tokio::sync::watch;

use super::runtime::Runtime;
use super::{Manifest, Part, Phase, Restart, View, locked};

/// From one look at a pod to the next. A kubelet's second is for larger nodes.
const LOOK: Duration = Duration::from_millis(200);
/// From one probe of a container to the next.
const PROBE: Duration = Duration::from_secs(1);
/// So many probes in a row must fail before their container is stopped.
const TOO_MANY: u32 = 3;
/// The shortest and the longest pause before a container is started again.
const PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(2));

/// What is remembered of a container by its name.
#[derive(Default)]
struct Memory {
    /// When it may be started again, and how long it had to wait for it.
    pause: Option<(Instant, Duration)>,
    /// When it was probed last, and how many probes have failed since one answered.
    probed: Option<Instant>,
    failed: u32,
    answered: bool,
}

pub(super) struct Worker {
    runtime: Runtime,
    manifest: Manifest,
    view: Arc<Mutex<View>>,
    deleted: watch::Receiver<bool>,
    memory: BTreeMap<String, Memory>,
    /// Attempts whose end was counted.
    counted: BTreeSet<String>,
}

/// How a container that was looked at is.
enum Look {
    /// As it shall be.
    Runs,
    /// It has ended, and shall not run again.
    Done,
    /// Something is still to be done or to be waited for.
    Pending,
}

impl Worker {
    pub(super) fn new(
        runtime: Runtime,
        manifest: Manifest,
        view: Arc<Mutex<View>>,
        deleted: watch::Receiver<bool>,
    ) -> Self {
        let (memory, counted) = Default::default();
        Self { runtime, manifest, view, deleted, memory, counted }
    }

    /// Until the pod was deleted and nothing of it is shown.
    pub(super) async fn run(mut self) {
        loop {
            let deleted = *self.deleted.borrow_and_update();
            let done = if deleted { self.kill().await } else { self.sync().await.map(|()| false) };
            match done {
                Ok(true) => return,
                Ok(false) => {}
                Err(error) => locked(&self.view).errors.push(format!("{error:#}")),
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                _ = self.deleted.changed(), if !deleted => {}
            }
        }
    }

    async fn sync(&mut self) -> Result<()> {
        let sandboxes = self.runtime.sandboxes().await?;
        let containers = self.runtime.containers().await?;
        for one in &containers {
            self.count_exit(one).await?;
        }
        let newest = sandboxes.first();
        let Some(sandbox) = newest.filter(|one| one.state() == PodSandboxState::SandboxReady)
        else {
            if locked(&self.view).phase == Phase::Succeeded {
                return Ok(());
            }
            locked(&self.view).phase = Phase::Pending;
            for one in &sandboxes {
                self.end_sandbox(&one.id, &containers).await?;
            }
            let attempt =
                newest.and_then(|one| one.metadata.as_ref()).map_or(0, |one| one.attempt + 1);
            self.runtime.run(attempt).await?;
            locked(&self.view).sandboxes += 1;
            return Ok(());
        };
        let phase = self.sync_containers(sandbox, &containers).await;
        locked(&self.view).phase = *phase.as_ref().unwrap_or(&Phase::Pending);
        phase?;
        self.collect(&sandboxes, &containers).await
    }

    /// Stops what runs in a sandbox, and it.
    async fn end_sandbox(&self, id: &str, containers: &[cri::Container]) -> Result<()> {
        let own = containers.iter().filter(|one| one.pod_sandbox_id == id);
        let alive = own.filter(|one| {
            matches!(
                one.state(),
                ContainerState::ContainerRunning | ContainerState::ContainerUnknown
            )
        });
        let stopped = join_all(alive.map(|one| self.end_container(one))).await;
        stopped.into_iter().collect::<Result<()>>()?;
        self.runtime.stop(id).await
    }

    async fn end_container(&self, container: &cri::Container) -> Result<()> {
        let name = container.metadata.as_ref().map_or("", |one| &one.name);
        let parts = self.manifest.init.iter().chain(&self.manifest.main);
        if let Some(script) = parts.filter(|one| one.name() == name).find_map(|one| one.pre_stop) {
            // A hook that fails holds nothing up.
            let _ = self.runtime.exec(&container.id, script).await;
        }
        self.runtime.stop_container(&container.id, self.manifest.grace).await
    }

    async fn sync_containers(
        &mut self,
        sandbox: &cri::PodSandbox,
        containers: &[cri::Container],
    ) -> Result<Phase> {
        for part in self.manifest.init.clone() {
            match self.sync_part(sandbox, containers, &part).await? {
                Look::Runs if part.restart == Restart::Always => {}
                Look::Done => {}
                Look::Runs | Look::Pending => return Ok(Phase::Pending),
            }
        }
        let (mut pending, mut running) = (false, false);
        for part in self.manifest.main.clone() {
            match self.sync_part(sandbox, containers, &part).await? {
                Look::Runs => running = true,
                Look::Done => {}
                Look::Pending => pending = true,
            }
        }
        Ok(match (pending, running) {
            (true, _) => Phase::Pending,
            (false, true) => Phase::Running,
            (false, false) => Phase::Succeeded,
        })
    }

    async fn sync_part(
        &mut self,
        sandbox: &cri::PodSandbox,
        containers: &[cri::Container],
        part: &Part,
    ) -> Result<Look> {
        let named = |one: &&cri::Container| {
            one.metadata.as_ref().is_some_and(|metadata| metadata.name == part.name())
        };
        let newest = containers.iter().find(named);
        let attempt = newest.and_then(|one| one.metadata.as_ref()).map_or(0, |one| one.attempt + 1);
        let here = newest.filter(|one| one.pod_sandbox_id == sandbox.id);
        match here.map(|one| (one, one.state())) {
            Some((one, ContainerState::ContainerRunning)) => {
                if part.restart == Restart::OnFailure {
                    return Ok(Look::Runs);
                }
                return self.probe(one, part).await;
            }
            Some((one, ContainerState::ContainerExited)) => {
                let failed = self.runtime.exit_code(&one.id).await? != 0;
                if part.restart == Restart::OnFailure && !failed {
                    return Ok(Look::Done);
                }
                let memory = self.memory.entry(part.name().to_owned()).or_default();
                let (until, _) = *memory.pause.get_or_insert((Instant::now() + PAUSES.0, PAUSES.0));
                if Instant::now() < until {
                    return Ok(Look::Pending);
                }
            }
            Some((one, _)) => self.runtime.stop_container(&one.id, 0).await?,
            None => {}
        }
        let memory = self.memory.entry(part.name().to_owned()).or_default();
        let pause = memory.pause.map_or(PAUSES.0, |(_, before)| (before * 2).min(PAUSES.1));
        *memory =
            Memory { pause: here.map(|_| (Instant::now() + pause, pause)), ..Memory::default() };
        self.runtime.start(sandbox, &part.spec, attempt).await?;
        locked(&self.view).started += 1;
        Ok(Look::Pending)
    }

    async fn probe(&mut self, container: &cri::Container, part: &Part) -> Result<Look> {
        let Some(script) = part.probe else { return Ok(Look::Runs) };
        let memory = self.memory.entry(part.name().to_owned()).or_default();
        if memory.probed.is_none_or(|last| last.elapsed() >= PROBE) {
            memory.probed = Some(Instant::now());
            let answer = self.runtime.exec(&container.id, script).await;
            let well = answer.as_ref().is_ok_and(|code| *code == 0);
            memory.failed = if well { 0 } else { memory.failed + 1 };
            memory.answered |= well;
            {
                let mut view = locked(&self.view);
                if well {
                    view.probes.0 += 1;
                } else {
                    view.probes.1 += 1;
                }
            }
            if memory.failed >= TOO_MANY {
                self.runtime.stop_container(&container.id, self.manifest.grace).await?;
                return Ok(Look::Pending);
            }
            answer?;
        }
        Ok(if memory.answered { Look::Runs } else { Look::Pending })
    }

    /// Notes the exit code of an attempt, once.
    async fn count_exit(&mut self, one: &cri::Container) -> Result<()> {
        if one.state() != ContainerState::ContainerExited || self.counted.contains(&one.id) {
            return Ok(());
        }
        let code = self.runtime.exit_code(&one.id).await?;
        self.counted.insert(one.id.clone());
        let name = one.metadata.as_ref().map(|metadata| metadata.name.clone()).unwrap_or_default();
        locked(&self.view).exits.entry(name).or_default().push(code);
        Ok(())
    }

    /// Removes dead containers that newer ones of their name have replaced, and sandboxes that are not the newest.
    async fn collect(
        &self,
        sandboxes: &[cri::PodSandbox],
        containers: &[cri::Container],
    ) -> Result<()> {
        let mut seen = BTreeSet::new();
        for one in containers {
            let newest = seen.insert(one.metadata.as_ref().map(|metadata| &metadata.name));
            if !newest && one.state() == ContainerState::ContainerExited {
                self.runtime.remove_container(&one.id).await?;
            }
        }
        for old in sandboxes.iter().skip(1) {
            if !containers.iter().any(|one| one.pod_sandbox_id == old.id) {
                self.runtime.stop(&old.id).await?;
                self.runtime.remove(&old.id).await?;
            }
        }
        Ok(())
    }

    /// Takes the pod down. Answers whether nothing of it is left.
    async fn kill(&mut self) -> Result<bool> {
        let sandboxes = self.runtime.sandboxes().await?;
        let containers = self.runtime.containers().await?;
        for sandbox in &sandboxes {
            self.end_sandbox(&sandbox.id, &containers).await?;
        }
        for one in &self.runtime.containers().await? {
            self.count_exit(one).await?;
            self.runtime.remove_container(&one.id).await?;
        }
        for sandbox in &sandboxes {
            self.runtime.remove(&sandbox.id).await?;
        }
        Ok(sandboxes.is_empty() && self.runtime.containers().await?.is_empty())
    }
}
