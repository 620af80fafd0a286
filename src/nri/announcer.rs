//! Tells the plugins of one pod's life, one thing after another, in the order in which it was asked to.

use std::{collections::BTreeMap, sync::Arc};

use serde_json::Value;
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
    time::{Instant, timeout_at},
};

use super::{
    Event, Settings,
    api::{
        AboutRequest, Container, PodSandbox, StopContainerResponse, SynchronizeRequest,
        SynchronizeResponse,
    },
    container,
    error::{Error, Failure},
    plugin::Plugin,
    pod::Pod,
};
use crate::process::Reaper;

/// The plugins of one pod. Dropping it ends them.
///
/// What it is asked to tell is told in that order: a stop that comes while a plugin is still being synchronized waits for
/// that, and nobody is synchronized while a stop is told. A plugin that does not keep its time, or is gone, is cut off for
/// as long as this lives.
pub struct Announcer {
    orders: mpsc::UnboundedSender<Order>,
}

type Answer<T> = oneshot::Sender<Result<T, Error>>;

enum Order {
    Pod(Event, Answer<()>),
    /// The container's specification, to be adjusted.
    Create(String, Value, Answer<Value>),
    /// About a container; with a number that goes with the event.
    Container(Event, String, u32, Option<Answer<()>>),
    End(oneshot::Sender<()>),
}

impl Announcer {
    /// Starts and connects the plugins, and tells each which pods there are: `pod` where it is `known` already. A plugin
    /// that fails is logged and left out.
    pub async fn start(
        pod: &Pod,
        settings: &Settings,
        reaper: &Reaper,
        mark: (&str, &str),
        known: bool,
    ) -> Self {
        let mut connecting = JoinSet::new();
        let settings = Arc::new(settings.clone());
        let mark = (mark.0.to_owned(), mark.1.to_owned());
        for place in settings.plugins.clone() {
            let (settings, reaper, mark) = (Arc::clone(&settings), reaper.clone(), mark.clone());
            connecting.spawn(async move {
                Plugin::connect(&place, &settings, &reaper, (&mark.0, &mark.1)).await
            });
        }
        let mut plugins = Vec::new();
        while let Some(connected) = connecting.join_next().await {
            match connected {
                Ok(Ok(plugin)) => plugins.push(plugin),
                Ok(Err(error)) => log::error!("{error}; going on without it"),
                Err(error) => log::error!("an NRI plugin was lost: {error}"),
            }
        }
        plugins.sort_by_key(Plugin::name);
        let mut worker = Worker { pod: pod.message(), plugins, containers: BTreeMap::new() };
        worker.synchronize(known).await;
        let (orders, queue) = mpsc::unbounded_channel();
        tokio::spawn(worker.run(queue));
        Self { orders }
    }

    /// Tells of the pod. Where that may be refused, what a plugin says against it is the error.
    pub async fn pod(&self, event: Event) -> Result<(), Error> {
        self.ask(|answer| Order::Pod(event, answer)).await.unwrap_or(Ok(()))
    }

    /// Has the specification of a container that is to be created adjusted.
    pub async fn create(&self, container: &str, spec: Value) -> Result<Value, Error> {
        let kept = spec.clone();
        let asked = self.ask(|answer| Order::Create(container.to_owned(), spec, answer)).await;
        asked.unwrap_or(Ok(kept))
    }

    /// Tells that a container is about to be started; what a plugin says against it is the error.
    pub async fn starting(&self, container: &str) -> Result<(), Error> {
        let order =
            |answer| Order::Container(Event::StartContainer, container.to_owned(), 0, Some(answer));
        self.ask(order).await.unwrap_or(Ok(()))
    }

    /// Has it told, some time, what became of a container. `number` is its process, or the status that it ended with.
    pub fn container(&self, event: Event, container: &str, number: u32) {
        let _ = self.orders.send(Order::Container(event, container.to_owned(), number, None));
    }

    /// Ends all plugins, once everything is told. At `deadline` at the latest.
    pub async fn end(&self, deadline: Instant) {
        let (done, ended) = oneshot::channel();
        let _ = self.orders.send(Order::End(done));
        let _ = timeout_at(deadline, ended).await;
    }

    /// Nothing where nobody is there to answer: the runtime is ending.
    async fn ask<T>(&self, order: impl FnOnce(Answer<T>) -> Order) -> Option<Result<T, Error>> {
        let (answer, answered) = oneshot::channel();
        self.orders.send(order(answer)).ok()?;
        answered.await.ok()
    }
}

/// Has the plugins in its hands.
pub(super) struct Worker {
    pub(super) pod: PodSandbox,
    /// In the order in which they are called.
    pub(super) plugins: Vec<Plugin>,
    /// The containers that the plugins know.
    pub(super) containers: BTreeMap<String, Container>,
}

impl Worker {
    async fn run(mut self, mut queue: mpsc::UnboundedReceiver<Order>) {
        while let Some(order) = queue.recv().await {
            match order {
                Order::Pod(event, answer) => {
                    let _ = answer.send(self.tell(event, None).await);
                }
                Order::Create(id, spec, answer) => {
                    let created = self.create(&id, spec).await;
                    let is_refused = created.is_err();
                    let _ = answer.send(created);
                    if is_refused {
                        // Those that were asked before have taken it for one to be.
                        let _ = self.of_container(Event::RemoveContainer, &id, 0).await;
                    }
                }
                Order::Container(event, id, number, answer) => {
                    let told = self.of_container(event, &id, number).await;
                    if let Some(answer) = answer {
                        let _ = answer.send(told);
                    }
                }
                Order::End(done) => {
                    let mut ends = JoinSet::new();
                    self.plugins.drain(..).for_each(|plugin| {
                        ends.spawn(plugin.end());
                    });
                    ends.join_all().await;
                    let _ = done.send(());
                    return;
                }
            }
        }
    }

    /// Tells each plugin what is there before it hears of anything else.
    async fn synchronize(&mut self, known: bool) {
        let pods = if known { vec![self.pod.clone()] } else { vec![] };
        let request = SynchronizeRequest { pods, ..SynchronizeRequest::default() };
        let mut index = 0;
        while let Some(plugin) = self.plugins.get(index) {
            let answer = plugin.call::<SynchronizeResponse>("Synchronize", &request).await;
            match answer {
                Ok(answer) => {
                    if !answer.update.is_empty() {
                        log::warn!(
                            "NRI plugin {:?}: {}",
                            plugin.name(),
                            updates(answer.update.len())
                        );
                    }
                    index += 1;
                }
                Err(Failure::Unknown) => index += 1,
                // One that does not know what there is had better not be asked.
                Err(failure) => self.cut(index, "Synchronize", &failure),
            }
        }
    }

    /// Ends a plugin, for good.
    pub(super) fn cut(&mut self, index: usize, method: &'static str, failure: &Failure) {
        let plugin = self.plugins.remove(index);
        // Dropping it kills its program at once: the shim may end before a plugin that hangs would.
        log::error!("NRI plugin {:?}: {method}: {failure}; it is asked no more", plugin.name());
    }

    /// Tells all plugins that want to hear of it.
    async fn tell(&mut self, event: Event, about: Option<&Container>) -> Result<(), Error> {
        let request = AboutRequest {
            pod: Some(self.pod.clone()).into(),
            container: about.cloned().into(),
            ..AboutRequest::default()
        };
        let mut index = 0;
        while let Some(plugin) = self.plugins.get(index) {
            index += 1;
            if !plugin.wants(event) {
                continue;
            }
            let told = if event == Event::StopContainer {
                let answer = plugin.call::<StopContainerResponse>(event.method(), &request).await;
                answer.map(|answer| {
                    if !answer.update.is_empty() {
                        log::warn!(
                            "NRI plugin {:?}: {}",
                            plugin.name(),
                            updates(answer.update.len())
                        );
                    }
                })
            } else {
                plugin.tell(event, &request).await
            };
            match told {
                Ok(()) | Err(Failure::Unknown) => {}
                Err(failure) if failure.is_the_end() => {
                    index -= 1;
                    self.cut(index, event.method(), &failure);
                }
                Err(failure) => {
                    let error = Error { plugin: plugin.name(), method: event.method(), failure };
                    if event.may_be_refused() {
                        return Err(error);
                    }
                    log::warn!("{error}");
                }
            }
        }
        Ok(())
    }

    /// The same of a container that they know; what they do not know does not concern them.
    async fn of_container(&mut self, event: Event, id: &str, number: u32) -> Result<(), Error> {
        let Some(known) = self.containers.get_mut(id) else { return Ok(()) };
        match event {
            Event::PostCreateContainer => {
                known.state = container::CREATED;
                known.pid = number;
                known.created_at = container::now();
            }
            Event::PostStartContainer => {
                known.state = container::RUNNING;
                known.pid = number;
                known.started_at = container::now();
            }
            Event::StopContainer => {
                known.state = container::STOPPED;
                known.finished_at = container::now();
                known.exit_code = i32::try_from(number).unwrap_or(i32::MAX);
            }
            _ => {}
        }
        let about = known.clone();
        if event == Event::RemoveContainer {
            self.containers.remove(id);
        }
        self.tell(event, Some(&about)).await
    }
}

fn updates(count: usize) -> String {
    format!("it asks for {count} updates of containers, which Mooring does not do")
}
