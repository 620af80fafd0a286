//! A containerd that exists in memory only: it remembers what it was asked and can be made to fail.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    future::pending,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use tokio::{
    sync::Notify,
    time::{Instant, timeout_at},
};

use super::{Containerd, Error, Image, TaskExit, TaskStatus, View};
use crate::{id::Id, mounts::Mount, released::Released};

/// What happens to a call instead of its being done.
#[derive(Clone, Debug)]
pub enum Fault {
    /// It is answered with this error.
    Fail(Error),
    /// It is not answered: the deadline ends it.
    Hang,
    /// The connection closes before anything was done.
    CloseBefore,
    /// It is done, and the connection closes before the answer.
    CloseAfter,
    /// It is done, some time later.
    Delay(Duration),
}

/// A containerd in memory. Calls are named by the trait's methods.
#[derive(Default)]
pub struct FakeContainerd {
    state: Mutex<State>,
    exited: Notify,
}

#[derive(Default)]
struct State {
    calls: Vec<String>,
    faults: HashMap<String, VecDeque<Fault>>,
    always: HashMap<String, Fault>,
    containers: BTreeMap<Id, Container>,
    leases: BTreeSet<String>,
    forgotten: BTreeSet<Id>,
    images: BTreeMap<String, Image>,
    unpacked: BTreeSet<(String, String)>,
    snapshots: BTreeMap<(String, String), Vec<Mount>>,
    view_mounts: Vec<Mount>,
}

struct Container {
    sandbox: Id,
    task: Option<TaskStatus>,
}

impl FakeContainerd {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a container of `sandbox` whose task is running.
    pub fn add_container(&self, id: &Id, sandbox: &Id) {
        let container = Container { sandbox: sandbox.clone(), task: Some(TaskStatus::Running) };
        self.state().containers.insert(id.clone(), container);
    }

    /// Removes a container with its task, as its client does.
    pub fn remove_container(&self, id: &Id) {
        self.state().containers.remove(id);
        self.exited.notify_waiters();
    }

    /// Lets a container's first process exit.
    pub fn exit(&self, id: &Id, status: u32) {
        if let Some(container) = self.state().containers.get_mut(id) {
            let exit = TaskExit { status, exited_at: SystemTime::now() };
            container.task = Some(TaskStatus::Stopped(exit));
        }
        self.exited.notify_waiters();
    }

    /// Removes the record of a sandbox from the store, where every other one has its record.
    pub fn forget_sandbox(&self, id: &Id) {
        self.state().forgotten.insert(id.clone());
    }

    /// Adds an image that is unpacked for `snapshotter`, and whose views are mounted by `mounts`.
    pub fn add_image(&self, reference: &str, image: Image, snapshotter: &str, mounts: Vec<Mount>) {
        let mut state = self.state();
        state.unpacked.insert((snapshotter.to_owned(), image.chain.clone()));
        state.images.insert(reference.to_owned(), image);
        state.view_mounts = mounts;
    }

    /// The next call of this name meets `fault`; several are met one after another.
    pub fn fault_once(&self, call: &str, fault: Fault) {
        self.state().faults.entry(call.to_owned()).or_default().push_back(fault);
    }

    /// Every call of this name meets `fault`, until [`Self::heal`].
    pub fn fault_always(&self, call: &str, fault: Fault) {
        self.state().always.insert(call.to_owned(), fault);
    }

    /// No call meets a fault any more.
    pub fn heal(&self) {
        let mut state = self.state();
        state.faults.clear();
        state.always.clear();
    }

    /// What was called, in order: the method's name and its arguments.
    pub fn calls(&self) -> Vec<String> {
        self.state().calls.clone()
    }

    pub fn leases(&self) -> Vec<String> {
        self.state().leases.iter().cloned().collect()
    }

    /// The snapshots there are, as snapshotter and key.
    pub fn snapshots(&self) -> Vec<(String, String)> {
        self.state().snapshots.keys().cloned().collect()
    }

    async fn call<T>(
        &self,
        name: &str,
        object: &str,
        deadline: Instant,
        body: impl FnOnce(&mut State) -> Result<T, Error> + Send,
    ) -> Result<T, Error> {
        let call = format!("{name} {object}");
        let fault = {
            let mut state = self.state();
            state.calls.push(call.clone());
            let next = state.faults.get_mut(name).and_then(VecDeque::pop_front);
            next.or_else(|| state.always.get(name).cloned())
        };
        let closed = |call| Error::Unavailable { call, message: "connection closed".to_owned() };
        let late = |call| Error::DeadlineExceeded { call };
        match fault {
            None => body(&mut self.state()),
            Some(Fault::Fail(error)) => Err(error),
            Some(Fault::CloseBefore) => Err(closed(call)),
            Some(Fault::CloseAfter) => {
                let done = body(&mut self.state());
                done.and_then(|_| Err(closed(call)))
            }
            Some(Fault::Hang) => timeout_at(deadline, pending()).await.unwrap_or(Err(late(call))),
            Some(Fault::Delay(time)) => {
                if timeout_at(deadline, tokio::time::sleep(time)).await.is_err() {
                    return Err(late(call));
                }
                body(&mut self.state())
            }
        }
    }
}

fn absent(call: &str, object: &str) -> Error {
    Error::NotFound { call: format!("{call} {object}"), message: "no such thing".to_owned() }
}

impl State {
    fn task(&mut self, call: &str, container: &Id) -> Result<&mut TaskStatus, Error> {
        let found = self.containers.get_mut(container).and_then(|one| one.task.as_mut());
        found.ok_or_else(|| absent(call, container.as_str()))
    }
}

#[async_trait]
impl Containerd for FakeContainerd {
    async fn containers_of(&self, sandbox: &Id, deadline: Instant) -> Result<Vec<Id>, Error> {
        self.call("containers_of", sandbox.as_str(), deadline, |state| {
            let found = state.containers.iter().filter(|(_, one)| one.sandbox == *sandbox);
            Ok(found.map(|(id, _)| id.clone()).collect())
        })
        .await
    }

    async fn kill_task(
        &self,
        container: &Id,
        signal: u32,
        all: bool,
        deadline: Instant,
    ) -> Result<(), Error> {
        let object = format!("{container} {signal} {all}");
        let answer = self.call("kill_task", &object, deadline, |state| {
            let task = state.task("kill_task", container)?;
            if matches!(task, TaskStatus::Stopped(_)) {
                return Err(absent("kill_task", container.as_str()));
            }
            if signal == 9 {
                let exit = TaskExit { status: 128 + signal, exited_at: SystemTime::now() };
                *task = TaskStatus::Stopped(exit);
            }
            Ok(())
        });
        let answer = answer.await;
        self.exited.notify_waiters();
        answer
    }

    async fn wait_task(&self, container: &Id, deadline: Instant) -> Result<TaskExit, Error> {
        let waiting = async {
            self.call("wait_task", container.as_str(), deadline, |_| Ok(())).await?;
            loop {
                let mut changed = std::pin::pin!(self.exited.notified());
                changed.as_mut().enable();
                if let TaskStatus::Stopped(exit) = *self.state().task("wait_task", container)? {
                    return Ok(exit);
                }
                changed.await;
            }
        };
        let call = format!("wait_task {container}");
        timeout_at(deadline, waiting).await.unwrap_or(Err(Error::DeadlineExceeded { call }))
    }

    async fn task_status(&self, container: &Id, deadline: Instant) -> Result<TaskStatus, Error> {
        self.call("task_status", container.as_str(), deadline, |state| {
            state.task("task_status", container).copied()
        })
        .await
    }

    async fn delete_task(&self, container: &Id, deadline: Instant) -> Result<TaskExit, Error> {
        self.call("delete_task", container.as_str(), deadline, |state| {
            let TaskStatus::Stopped(exit) = *state.task("delete_task", container)? else {
                return Err(Error::FailedPrecondition {
                    call: format!("delete_task {container}"),
                    message: "not stopped".to_owned(),
                });
            };
            if let Some(container) = state.containers.get_mut(container) {
                container.task = None;
            }
            Ok(exit)
        })
        .await
    }

    async fn create_lease(
        &self,
        id: &str,
        _labels: &BTreeMap<String, String>,
        deadline: Instant,
    ) -> Result<(), Error> {
        self.call("create_lease", id, deadline, |state| {
            if state.leases.insert(id.to_owned()) {
                return Ok(());
            }
            let call = format!("create_lease {id}");
            Err(Error::AlreadyExists { call, message: "the lease exists".to_owned() })
        })
        .await
    }

    async fn delete_lease(&self, id: &str, deadline: Instant) -> Result<Released, Error> {
        self.call("delete_lease", id, deadline, |state| {
            let found = state.leases.remove(id);
            Ok(if found { Released::Done } else { Released::AlreadyGone })
        })
        .await
    }

    async fn knows_sandbox(&self, sandbox: &Id, deadline: Instant) -> Result<bool, Error> {
        self.call("knows_sandbox", sandbox.as_str(), deadline, |state| {
            Ok(!state.forgotten.contains(sandbox))
        })
        .await
    }

    async fn image_chain(&self, reference: &str, deadline: Instant) -> Result<Image, Error> {
        self.call("image_chain", reference, deadline, |state| {
            state.images.get(reference).cloned().ok_or_else(|| absent("image_chain", reference))
        })
        .await
    }

    async fn view_snapshot(&self, view: &View, deadline: Instant) -> Result<Vec<Mount>, Error> {
        let object = format!("{} {} {}", view.snapshotter, view.key, view.parent);
        self.call("view_snapshot", &object, deadline, |state| {
            if !state.unpacked.contains(&(view.snapshotter.clone(), view.parent.clone())) {
                return Err(absent("view_snapshot", &view.parent));
            }
            let key = (view.snapshotter.clone(), view.key.clone());
            let mounts = state.view_mounts.clone();
            Ok(state.snapshots.entry(key).or_insert(mounts).clone())
        })
        .await
    }

    async fn remove_snapshot(
        &self,
        snapshotter: &str,
        key: &str,
        deadline: Instant,
    ) -> Result<Released, Error> {
        self.call("remove_snapshot", &format!("{snapshotter} {key}"), deadline, |state| {
            let found = state.snapshots.remove(&(snapshotter.to_owned(), key.to_owned()));
            Ok(if found.is_some() { Released::Done } else { Released::AlreadyGone })
        })
        .await
    }

    async fn disconnect(&self) {
        self.state().calls.push("disconnect".to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> Id {
        Id::new(text).unwrap()
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(5)
    }

    #[tokio::test]
    async fn a_waiter_sees_the_kill() {
        let fake = FakeContainerd::default();
        fake.add_container(&id("c"), &id("pod"));
        let (container, pod) = (id("c"), id("pod"));
        let (exit, killed) = tokio::join!(
            fake.wait_task(&container, soon()),
            fake.kill_task(&container, 9, true, soon()),
        );
        killed.unwrap();
        assert_eq!(exit.unwrap().status, 137);
        assert_eq!(fake.containers_of(&pod, soon()).await.unwrap(), [id("c")]);
        assert!(fake.containers_of(&container, soon()).await.unwrap().is_empty());
        assert!(fake.kill_task(&container, 9, true, soon()).await.unwrap_err().is_not_found());
    }

    #[tokio::test(start_paused = true)]
    async fn faults_are_met_one_after_another() {
        let fake = FakeContainerd::default();
        fake.fault_once("create_lease", Fault::Hang);
        fake.fault_once("create_lease", Fault::CloseAfter);
        let labels = BTreeMap::new();
        let error = fake.create_lease("l", &labels, soon()).await.unwrap_err();
        assert!(matches!(error, Error::DeadlineExceeded { .. }));
        assert!(fake.leases().is_empty());
        assert!(fake.create_lease("l", &labels, soon()).await.unwrap_err().is_retryable());
        assert_eq!(fake.leases(), ["l"]);
        assert_eq!(fake.calls().len(), 2);
    }
}
