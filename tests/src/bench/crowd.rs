//! Many pods at once, and what it takes to ask about them.

use anyhow::{Context, Result, ensure};
use k8s_cri::v1 as cri;

use super::{Bench, Section, Unit, median, timed};
use crate::cri::{ContainerSpec, Pod};
use crate::suite::Handler;

/// How many pods the statistics are of.
pub(super) const MANY: usize = 100;

/// The time until the last one, which is the slowest, was done, and that of the one in the middle.
pub(super) struct Times {
    last: f64,
    middle: f64,
}

/// Does the same with all of them at once.
pub(super) async fn at_once<T, R, F>(all: Vec<T>, what: impl Fn(T) -> F) -> Result<(Vec<R>, Times)>
where
    R: Send + 'static,
    F: Future<Output = Result<R>> + Send + 'static,
{
    let (done, last) = timed(async {
        let tasks: Vec<_> = all.into_iter().map(|one| tokio::spawn(timed(what(one)))).collect();
        let mut done = Vec::new();
        for task in tasks {
            done.push(task.await??);
        }
        Ok(done)
    })
    .await?;
    let each: Vec<f64> = done.iter().map(|(_, ms)| *ms).collect();
    let middle = median(&each).unwrap_or(last);
    Ok((done.into_iter().map(|(one, _)| one).collect(), Times { last, middle }))
}

impl Bench {
    async fn start_crowd(&self, handler: Handler, count: usize) -> Result<(Vec<Pod>, Times)> {
        let specs = (0..count).map(|_| self.pod(handler)).collect();
        at_once(specs, |spec| async move {
            let pod = spec.run().await?;
            pod.start(&ContainerSpec::idle("main")).await?;
            Ok(pod)
        })
        .await
    }

    /// Pods with one container each that are started, stopped and removed at once.
    pub(super) async fn pods(&mut self) -> Result<()> {
        let counts = [(1, 10), (10, 5), (50, 2), (MANY, 2)];
        for (count, of_forty) in counts.into_iter().filter(|one| one.0 <= self.plan.most) {
            let phases = ["start", "StopPodSandbox", "RemovePodSandbox"];
            let names = phases.map(|what| format!("{count} at once: {what}"));
            // Of so many, CNI's plugins take nearly all of the time.
            let handlers = if count > 10 { self.shims() } else { self.handlers() };
            for round in 0..self.plan.part(of_forty) {
                for &handler in &handlers {
                    let (pods, started) = self.start_crowd(handler, count).await?;
                    let (pods, stopped) = at_once(pods, |pod| async move {
                        pod.stop().await?;
                        Ok(pod)
                    })
                    .await?;
                    let (_, removed) =
                        at_once(pods, |pod| async move { pod.remove().await }).await?;
                    for (name, times) in names.iter().zip([started, stopped, removed]) {
                        for (which, ms) in
                            [("the last", times.last), ("the median one", times.middle)]
                        {
                            // One pod is the last of one.
                            if count > 1 || which == "the last" {
                                let name = format!("{name}, {which}");
                                self.table.add(Section::Pods, &name, Unit::Ms, handler, ms);
                            }
                        }
                    }
                }
                // Of many there is enough to learn from one.
                if count <= 10 || round == 0 {
                    let bare = self.floor.run(move |one| one.crowd(count)).await?;
                    for (name, ms) in names.iter().zip(bare) {
                        self.table.floor(Section::Pods, &format!("{name}, the last"), Unit::Ms, ms);
                    }
                }
            }
        }
        Ok(())
    }

    /// What a kubelet asks every ten seconds, and a scrape besides.
    pub(super) async fn statistics(&mut self) -> Result<()> {
        let many = MANY.min(self.plan.most);
        for handler in self.shims() {
            let (pods, _) = self.start_crowd(handler, many).await?;
            // The first of each builds caches.
            for round in 0..=self.plan.part(20) {
                let mut add = |name: &str, ms| {
                    if round > 0 {
                        self.table.add(Section::Statistics, name, Unit::Ms, handler, ms);
                    }
                };
                let mut cri = self.node.cri();
                let (list, ms) = timed(async {
                    let request = cri::ListPodSandboxStatsRequest { filter: None };
                    cri.list_pod_sandbox_stats(request).await.context("ListPodSandboxStats")
                })
                .await?;
                let count = list.into_inner().stats.len();
                ensure!(count == many, "statistics of {count} pods");
                add("ListPodSandboxStats", ms);
                let (list, ms) = timed(async {
                    let request = cri::ListContainerStatsRequest { filter: None };
                    cri.list_container_stats(request).await.context("ListContainerStats")
                })
                .await?;
                let count = list.into_inner().stats.len();
                ensure!(count == many, "statistics of {count} containers");
                add("ListContainerStats", ms);
                let (list, ms) = timed(async {
                    let request = cri::ListPodSandboxRequest { filter: None };
                    cri.list_pod_sandbox(request).await.context("ListPodSandbox")
                })
                .await?;
                let count = list.into_inner().items.len();
                ensure!(count == many, "{count} pods are listed");
                add("ListPodSandbox", ms);
            }
            at_once(pods, |pod| async move { pod.end().await }).await?;
        }
        Ok(())
    }
}
