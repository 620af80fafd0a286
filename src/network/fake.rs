//! CNI plugins in memory, for tests: they keep a log of their calls and fail where they are told to.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{Call, CniPlugins, Operation, PluginError};

/// Plugins that succeed unless told otherwise. An ADD answers with its prevResult and one more interface, named after
/// the plugin; the first one in a chain gives an address too.
#[derive(Default)]
pub(crate) struct FakePlugins {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    calls: Vec<Call>,
    failures: HashMap<(Operation, String), Vec<Fault>>,
}

/// How a fake plugin fails.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    Reported(u32, &'static str),
    Missing,
    /// It hangs until its deadline.
    Hangs,
}

impl FakePlugins {
    /// Lets the next calls of `plugin` fail, one fault each.
    pub(crate) fn fail(&self, operation: Operation, plugin: &str, faults: &[Fault]) {
        let mut faults = faults.to_vec();
        faults.reverse();
        self.state().failures.insert((operation, plugin.to_owned()), faults);
    }

    pub(crate) fn calls(&self) -> Vec<Call> {
        self.state().calls.clone()
    }

    /// Every call so far as `OPERATION plugin`, and the log is empty again.
    pub(crate) fn take_log(&self) -> Vec<String> {
        let calls = std::mem::take(&mut self.state().calls);
        calls.iter().map(|call| format!("{} {}", call.operation, call.plugin)).collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl CniPlugins for FakePlugins {
    async fn run(
        &self,
        call: &Call,
        deadline: Option<Instant>,
    ) -> Result<Option<Value>, PluginError> {
        let fault = {
            let mut state = self.state();
            state.calls.push(call.clone());
            let key = (call.operation, call.plugin.clone());
            state.failures.get_mut(&key).and_then(Vec::pop)
        };
        match fault {
            None => {}
            Some(Fault::Reported(code, msg)) => {
                let (msg, details) = (msg.to_owned(), String::new());
                return Err(PluginError::Reported { code, msg, details });
            }
            Some(Fault::Missing) => {
                return Err(PluginError::Missing { bin_dirs: call.bin_dirs.clone() });
            }
            Some(Fault::Hangs) => {
                match deadline {
                    Some(deadline) => tokio::time::sleep_until(deadline).await,
                    None => std::future::pending().await,
                }
                return Err(PluginError::Deadline);
            }
        }
        if call.operation != Operation::Add {
            return Ok(None);
        }
        let target = call.target.as_ref().expect("an ADD has a target");
        let interface = json!({"name": call.plugin, "mac": "", "sandbox": target.netns});
        let mut result = call.config.get("prevResult").cloned().unwrap_or_else(|| {
            json!({
                "cniVersion": call.config["cniVersion"],
                "interfaces": [],
                "ips": [{"address": "192.0.2.7/24", "interface": 0}],
            })
        });
        result["interfaces"].as_array_mut().expect("interfaces are a list").push(interface);
        Ok(Some(result))
    }
}
