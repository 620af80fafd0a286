//! CNI plugins that answer at once and note what they were asked.

use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use mooring::network::{Call, CniPlugins, Operation, PluginError};
use serde_json::{Value, json};
use tokio::time::Instant;

/// Plugins whose ADD gives `result`, or fails like `failure` where there is none.
pub struct Plugins {
    result: Option<Value>,
    calls: Mutex<Vec<Call>>,
}

impl Plugins {
    pub fn giving(result: Option<Value>) -> Self {
        Self { result, calls: Mutex::default() }
    }

    pub fn succeeding() -> Self {
        Self::giving(Some(json!({"cniVersion": "1.0.0", "ips": [{"address": "192.0.2.7/24"}]})))
    }

    /// What they were asked since the last time.
    pub fn take(&self) -> Vec<Call> {
        std::mem::take(&mut self.calls.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[async_trait]
impl CniPlugins for Plugins {
    async fn run(&self, call: &Call, _: Option<Instant>) -> Result<Option<Value>, PluginError> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).push(call.clone());
        if call.operation != Operation::Add {
            return Ok(None);
        }
        self.result.clone().map(Some).ok_or_else(|| PluginError::Missing { bin_dirs: vec![] })
    }
}
