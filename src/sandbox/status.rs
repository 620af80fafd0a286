//! SandboxStatus: what the sandbox is, and in words what it is doing.

use std::{collections::BTreeMap, path::PathBuf, time::SystemTime};

use serde_json::json;

use super::{Error, Pod, Sandbox, State, create::Network};
use crate::{
    keeper::{Keeper, Place},
    network::netns,
    resources::Resource,
};

/// The state of a sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// The number under /proc that stands for the pod; 0 where none does.
    pub pid: u32,
    pub ready: bool,
    pub created_at: SystemTime,
    pub exited_at: Option<SystemTime>,
    /// In a verbose status: a JSON object under `info`.
    pub info: BTreeMap<String, String>,
}

impl Sandbox {
    /// The sandbox's state. `verbose` adds what an operator looks for, as JSON.
    pub fn status(&self, verbose: bool) -> Result<Status, Error> {
        let state = self.state();
        let pod = state.pod().cloned().ok_or(Error::NotFound)?;
        let (pid, ready) =
            (state.pid(), matches!(*state, State::Ready { .. }) && !self.door.is_closed());
        let word = match &*state {
            State::Empty | State::Created(_) => "created",
            State::Ready { .. } => "running",
            State::Down { .. } => "stopping",
            State::Stopped { .. } => "deleted",
        };
        drop(state);
        let exited_at = self.exit.borrow().map(|exit| exit.at);
        let mut info = BTreeMap::new();
        if verbose {
            let netns = pod.netns();
            let attachment = pod.find(|resource| match resource {
                Resource::Network(record) => serde_json::to_value(&record.networks).ok(),
                _ => None,
            });
            let document = json!({
                "pid": pid,
                "processStatus": word,
                "netNamespaceClosed": netns.as_deref().is_some_and(|path| !netns::is_open(path)),
                "netNamespacePath": netns,
                "image": "",
                "snapshotKey": "",
                "snapshotter": "",
                "runtimeType": self.env.options.runtime_type(),
                "config": pod.config.original,
                "runtimeSpec": self.spec().unwrap_or_default(),
                "annotations": pod.annotations,
                "bundle": pod.bundle,
                "networks": attachment,
                "teardown": self.progress.to_json(),
                "handler": self.env.options.runtime.binary,
                "metrics": self.telemetry.to_json(),
            });
            info.insert("info".to_owned(), document.to_string());
        }
        Ok(Status { pid, ready, created_at: pod.created_at, exited_at, info })
    }

    /// The process or thread that stands for the pod, while one does.
    pub fn own_pid(&self) -> Option<u32> {
        match self.place()? {
            Place::Process(pid) => Some(pid),
            Place::Pins(_) => None,
        }
    }

    /// Where the pod's namespaces are, while something keeps them.
    pub(super) fn place(&self) -> Option<Place> {
        match &*self.state() {
            State::Ready { keeper, .. } => keeper.as_ref().map(Keeper::place),
            _ => None,
        }
    }

    /// Whether the sandbox is there and has not ended.
    pub fn ping(&self) -> Result<(), Error> {
        match *self.state() {
            State::Empty => Err(Error::NotFound),
            _ => Ok(()),
        }
    }

    /// The cgroup that the pod's metrics are read from, as its client named it; empty where it named none.
    pub fn cgroup_parent(&self) -> Result<String, Error> {
        let state = self.state();
        Ok(state.pod().ok_or(Error::NotFound)?.config.cgroup_parent.clone())
    }
}

impl Pod {
    /// The pod's network namespace; none with the node's, or where the shim's own is not there yet.
    pub(super) fn netns(&self) -> Option<PathBuf> {
        match &self.network {
            Network::Host => None,
            Network::Client(path) | Network::Attach(path) => Some(path.clone()),
            Network::Own => self.find(|resource| match resource {
                Resource::Netns(record) => Some(record.path.clone()),
                _ => None,
            }),
        }
    }

    /// The first answer that one of its resources gives.
    pub(super) fn find<T>(&self, answer: impl Fn(&Resource) -> Option<T>) -> Option<T> {
        self.store.look(|journal| journal.entries.iter().find_map(|entry| answer(&entry.resource)))
    }
}
