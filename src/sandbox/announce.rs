//! What NRI plugins are told of the sandbox and its containers. Nothing where the options name no plugin, nor of the pods
//! of containerd's CRI, which tells plugins of its own.

use std::{
    sync::{Arc, PoisonError},
    time::Duration,
};

use serde_json::Value;
use tokio::time::{Instant, timeout_at};

use super::{Error, Pod, Sandbox};
use crate::{
    id::Id,
    keeper::{Keeper, Place},
    network::NetworkResult,
    nri::{self, Announcer, Event, NriRecord},
    released::Released,
    resources::Resource,
};

/// The namespace of containerd that its CRI works in.
const CRI: &str = "k8s.io";
/// How long the plugins may take to hear of the removal, and to end.
const REMOVAL: Duration = Duration::from_secs(30);

impl Sandbox {
    /// Tells the plugins, if there are any to be told, of a pod whose namespaces and network are there.
    pub(super) async fn announce(&self, pod: &Arc<Pod>, keeper: &Keeper) -> Result<(), Error> {
        let is_cris = self.env.namespace.as_str() == CRI && !pod.config.is_spec();
        if self.env.options.nri.plugins.is_empty() || is_cris {
            return Ok(());
        }
        self.still_wanted()?;
        // On the heap, here and below: whoever has no plugins does not pay for the room.
        Box::pin(self.announce_start(pod, keeper)).await
    }

    async fn announce_start(&self, pod: &Arc<Pod>, keeper: &Keeper) -> Result<(), Error> {
        let settings = &self.env.options.nri;
        let record = NriRecord {
            settings: settings.clone(),
            pod: self.described(pod, &keeper.place())?,
            mark: nri::mark(&self.env.namespace, self.id()).1,
        };
        let entry = pod.intend(Resource::Nri(Box::new(record.clone()))).await?;
        let announcer = Arc::new(record.acquire(&self.env.reaper, false).await);
        // Nobody has heard of the pod yet.
        self.still_wanted()?;
        *self.nri.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&announcer));
        announcer.pod(Event::RunPodSandbox).await?;
        pod.held(entry, Resource::Nri(Box::new(record))).await
    }

    /// The pod in NRI's words.
    fn described(&self, pod: &Pod, place: &Place) -> Result<nri::Pod, Error> {
        let config = &pod.config;
        let or = |given: &str, otherwise: &Id| {
            if given.is_empty() { otherwise.to_string() } else { given.to_owned() }
        };
        let labels = config.original.get("labels").and_then(Value::as_object);
        let labels = labels.into_iter().flatten();
        let labels =
            labels.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())));
        let described = nri::Pod {
            id: self.id().to_string(),
            name: or(&config.name, self.id()),
            uid: or(&config.uid, self.id()),
            namespace: or(&config.namespace, &self.env.namespace),
            labels: labels.collect(),
            runtime: self.env.options.runtime_type(),
            cgroup_parent: config.cgroup_parent.clone(),
            pid: match place {
                Place::Process(pid) => *pid,
                Place::Pins(_) => 0,
            },
            ips: pod.ips(),
            ..nri::Pod::default()
        };
        Ok(described.with_spec(&self.spec_at(pod, Some(place))?))
    }

    /// The one that tells the plugins of this pod.
    fn announcer(&self) -> Option<Arc<Announcer>> {
        self.nri.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Tells that the pod is stopped, by `deadline` at the latest. Nothing that a plugin does keeps the pod.
    pub(super) async fn announce_stop(&self, deadline: Instant) -> Released {
        // A start that failed before the plugins were there.
        let Some(announcer) = self.announcer() else { return Released::AlreadyGone };
        match timeout_at(deadline, Box::pin(announcer.pod(Event::StopPodSandbox))).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => log::warn!("sandbox {}: {error}", self.id()),
            Err(_) => log::warn!("sandbox {}: NRI plugins take too long", self.id()),
        }
        Released::Done
    }

    /// Tells that the pod is removed, and ends the plugins.
    pub(super) async fn announce_removal(&self) {
        let announcer = self.nri.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(announcer) = announcer else { return };
        let deadline = Instant::now() + REMOVAL;
        match timeout_at(deadline, Box::pin(announcer.pod(Event::RemovePodSandbox))).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => log::warn!("sandbox {}: {error}", self.id()),
            Err(_) => log::warn!("sandbox {}: NRI plugins take too long", self.id()),
        }
        Box::pin(announcer.end(deadline)).await;
    }

    /// The specification of a container that is about to be created, as the plugins want it; nothing where there are none.
    pub(super) async fn adjusted(
        &self,
        container: &Id,
        spec: &Value,
    ) -> Result<Option<Value>, Error> {
        match self.announcer() {
            Some(announcer) => {
                Ok(Some(Box::pin(announcer.create(container.as_str(), spec.clone())).await?))
            }
            None => Ok(None),
        }
    }

    /// Tells that a container is about to be started. A plugin may refuse.
    pub async fn container_starts(&self, container: &Id) -> Result<(), Error> {
        match self.announcer() {
            Some(announcer) => Ok(Box::pin(announcer.starting(container.as_str())).await?),
            None => Ok(()),
        }
    }

    /// Has the plugins told, some time, what became of a container: with its process's number, or the status of its end.
    pub fn container_is(&self, event: Event, container: &Id, number: u32) {
        if let Some(announcer) = self.announcer() {
            announcer.container(event, container.as_str(), number);
        }
    }
}

impl Pod {
    /// The addresses in the pod's first network, where the shim attached it.
    fn ips(&self) -> Vec<String> {
        let found = self.find(|resource| match resource {
            Resource::Network(record) => record.networks.first().cloned(),
            _ => None,
        });
        let Some((network, result)) = found.and_then(|mut network| {
            let result = network.result.take()?;
            Some((network, result))
        }) else {
            return Vec::new();
        };
        let result = NetworkResult::new(&network.name, &network.ifname, &result);
        result.ips().map(|ip| ip.to_string()).collect()
    }
}
