//! That a pod was announced, as a resource: its release tells the plugins of the pod's end.

use serde::{Deserialize, Serialize};
use tokio::time::{Instant, timeout_at};

use super::{Announcer, Event, Pod, Settings};
use crate::{id::Id, process::Reaper, released::Released};

/// What is in the environment of a program that a shim has started, so that it is found when the shim is gone.
const VARIABLE: &str = "MOORING_NRI_POD";

/// The variable of the plugins of a sandbox, and its value.
pub fn mark(namespace: &Id, id: &Id) -> (&'static str, String) {
    (VARIABLE, format!("{namespace}/{id}"))
}

/// A pod that plugins were told of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NriRecord {
    /// The plugins of then, whatever is configured now.
    pub settings: Settings,
    pub pod: Pod,
    /// In the environment of those that were started.
    pub mark: String,
}

impl NriRecord {
    /// `MOORING_NRI_POD=…`, by which programs that outlived their shim are found.
    pub fn variable(&self) -> String {
        format!("{VARIABLE}={}", self.mark)
    }

    /// The plugins, told of the pod where it is `known` to them.
    pub async fn acquire(&self, reaper: &Reaper, known: bool) -> Announcer {
        Announcer::start(&self.pod, &self.settings, reaper, (VARIABLE, &self.mark), known).await
    }

    /// Tells of the pod's end without the shim: the plugins are started or connected again. Whatever fails, and whoever
    /// takes longer than `deadline`, is logged: nobody's pod stays for it.
    pub async fn release(&self, reaper: &Reaper, deadline: Instant) -> Released {
        let told = timeout_at(deadline, async {
            let announcer = self.acquire(reaper, true).await;
            for event in [Event::StopPodSandbox, Event::RemovePodSandbox] {
                if let Err(error) = announcer.pod(event).await {
                    log::warn!("{error}");
                }
            }
            announcer.end(deadline).await;
        });
        if told.await.is_err() {
            log::warn!(
                "sandbox {}: not all NRI plugins could be told of its end in time",
                self.pod.id
            );
        }
        Released::Done
    }
}
