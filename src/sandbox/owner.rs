//! Whether anybody owns the sandbox still.
//!
//! A client that creates a sandbox and fails before it starts it may forget it without a word: containerd 2.3's CRI does
//! when it cannot pull the pause image, once per retry. What it does remove is the sandbox's record in containerd's store.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep};

use super::{Sandbox, State};

/// How long a created sandbox waits to be started before its owner is looked for, and how often after that.
const UNSTARTED: Duration = Duration::from_mins(1);
/// How long containerd may take to say whether it knows the sandbox.
const ANSWER: Duration = Duration::from_secs(10);

impl Sandbox {
    /// Waits until it is found that the sandbox was created, is not started, and has no record in containerd's store any
    /// more. `false`: it was started or stopped meanwhile, and has an owner who will end it. A containerd that does not
    /// answer says nothing: it is asked again.
    pub async fn was_forgotten(self: &Arc<Self>) -> bool {
        loop {
            sleep(UNSTARTED).await;
            if !matches!(*self.state(), State::Created(_)) {
                return false;
            }
            let containerd = &self.env.containerd;
            let known = containerd.knows_sandbox(self.id(), Instant::now() + ANSWER).await;
            // An idle sandbox keeps no connection.
            containerd.disconnect().await;
            match known {
                Ok(true) => {}
                // It may have been started while containerd was asked.
                Ok(false) => return matches!(*self.state(), State::Created(_)),
                Err(error) => log::warn!("sandbox {}: look for its owner: {error}", self.id()),
            }
        }
    }
}
