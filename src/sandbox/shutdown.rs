//! ShutdownSandbox: what is left after the stop goes too, down to the journal.

use std::{sync::Arc, time::Duration};

use super::{Error, Sandbox, State, blocking};
use crate::{interleave::point, teardown::journal, telemetry::totals};

/// How long a shutdown waits for a teardown that its client did not ask for.
const STOP: Duration = Duration::from_mins(1);

impl Sandbox {
    /// Removes everything of the sandbox; the shim may end afterwards. An error leaves the journal, so that the
    /// call can be repeated; a journal that cannot be removed is none.
    pub async fn shutdown(self: &Arc<Self>) -> Result<(), Error> {
        self.stop(Some(STOP)).await?;
        self.telemetry.timed("sandbox_remove", self.remove()).await?;
        self.last_words().await;
        Ok(())
    }

    async fn remove(self: &Arc<Self>) -> Result<(), Error> {
        if let Some(tasks) = self.tasks.get() {
            tasks.clear().await?;
        }
        let _life = self.lifecycle.lock().await;
        let pod = self.state().pod().cloned();
        self.announce_removal().await;
        if let Some(pod) = pod {
            // What was in use by the tasks, such as the group above theirs.
            self.run_plan(&pod).await?;
            let run_dir = self.env.run_dir();
            let state_dir = self.env.state_dir();
            blocking(move || {
                // The journal goes last: until then a crash can be cleaned up after.
                remove_run_dir(&run_dir);
                if let Err(error) = journal::remove_folder(&state_dir, pod.store.lock()) {
                    // Nothing of the sandbox is left, so it names nothing. Its disk may be broken or read-only.
                    log::warn!("sandbox {}: {error}", pod.store.id());
                }
            })
            .await?;
        }
        *self.state() = State::Empty;
        Ok(())
    }
}

impl Sandbox {
    /// Adds what was measured to the node's sums, where the options want that. A loss of numbers keeps nothing.
    async fn last_words(&self) {
        let options = &self.env.options;
        if !options.keep_totals {
            return;
        }
        let (run_root, runtime) = (options.run_root.clone(), options.runtime_type());
        let measured = self.telemetry.all();
        let added = blocking(move || totals::add(&run_root, &runtime, measured)).await;
        let added =
            added.and_then(|added| added.map_err(|error| Error::Internal(error.to_string())));
        if let Err(error) = added {
            log::warn!("sandbox {}: add to the node's totals: {error}", self.id());
        }
    }
}

/// Removes the folder of the pod's files, which the teardown has emptied, and its parent with the last of them.
pub(super) fn remove_run_dir(run_dir: &std::path::Path) {
    point("remove the pod's folder");
    // Whatever is still in one of them is somebody else's, or is removed with its own record.
    let _ = std::fs::remove_dir(run_dir);
    if let Some(parent) = run_dir.parent() {
        point("remove the namespace's folder");
        let _ = std::fs::remove_dir(parent);
    }
}
