//! One pod of the soak: who it is, whether something was done to it, and how each of its calls counts.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Error, Result, anyhow};

use super::chronicle::Chronicle;
use crate::life::Life;
use crate::patience;

/// No call may take longer, or it counts as failed.
const LIMIT: Duration = Duration::from_secs(40);
/// How often an end may be cut by an absence of containerd.
const ENDS: u32 = 4;

/// What containerd says when the process that makes a pod's user namespace for CRI has died too early, before there is a
/// shim: it is tied to a thread of containerd's that may end first ("safe to return error and retry", says the source).
const HICCUPS: [&str; 2] =
    ["failed to mount netns from pid", "failed to ensure child process is alive"];

/// A pod's life was cut short; what it was is in the chronicle.
#[derive(Debug)]
pub struct Cut;

/// How the calls of a pod count.
pub struct Guest {
    chronicle: Arc<Chronicle>,
    /// Who it is, for people.
    pub who: String,
    hurt: bool,
}

impl Guest {
    /// A pod to which nothing was done.
    pub fn new(chronicle: &Arc<Chronicle>, who: String) -> Self {
        Self { chronicle: Arc::clone(chronicle), who, hurt: false }
    }

    /// From now on its calls may fail, all but the end.
    pub fn hurt(&mut self, fault: &'static str) {
        self.hurt = true;
        self.chronicle.fault(fault);
    }

    /// A call. Unless it succeeds the pod's life is cut short here.
    pub async fn call<T>(
        &mut self,
        name: &'static str,
        call: impl Future<Output = Result<T>>,
    ) -> Result<T, Cut> {
        let begun = Instant::now();
        let answer = match tokio::time::timeout(patience(LIMIT), Box::pin(call)).await {
            Ok(answer) => answer,
            Err(_) => Err(anyhow!("no answer within {} s", patience(LIMIT).as_secs())),
        };
        match answer {
            Ok(answer) => {
                self.chronicle.done(name);
                Ok(answer)
            }
            Err(error) => {
                self.count(name, begun, &error);
                Err(Cut)
            }
        }
    }

    fn count(&mut self, name: &str, begun: Instant, error: &Error) {
        let own = HICCUPS.iter().any(|one| format!("{error:#}").contains(one));
        if own || self.hurt || self.chronicle.was_away_since(begun) {
            self.hurt = true;
            self.chronicle.explained();
        } else {
            self.chronicle.failure(&self.who, format!("{name}: {error:#}"));
        }
    }

    /// The pod's end, which must succeed whatever was done to it: again only where containerd was away meanwhile.
    pub async fn end(&mut self, life: &Life) {
        for attempt in 1.. {
            let begun = Instant::now();
            match life.end().await {
                Ok(()) => return self.chronicle.done("pods"),
                Err(_) if attempt < ENDS && self.chronicle.was_away_since(begun) => {
                    self.chronicle.explained();
                }
                Err(error) => {
                    return self.chronicle.failure(&self.who, format!("the end: {error:#}"));
                }
            }
        }
    }
}
