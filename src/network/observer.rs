//! Counts and times plugin calls for whoever keeps metrics.

use std::{
    sync::Arc,
    time::{Duration, Instant as Clock},
};

use async_trait::async_trait;
use serde_json::Value;
use tokio::time::Instant;

use super::{Call, CniPlugins, Operation, PluginError};

/// Is told of every plugin call when it has ended.
pub trait CniObserver: Send + Sync {
    /// A call took `duration`, and failed if there is an `error`.
    fn observed(
        &self,
        operation: Operation,
        network: &str,
        plugin: &str,
        duration: Duration,
        error: Option<&PluginError>,
    );
}

/// Plugins whose calls an observer sees.
pub struct Observed<P> {
    plugins: P,
    observer: Arc<dyn CniObserver>,
}

impl<P> Observed<P> {
    /// Lets `observer` see every call of `plugins`.
    pub fn new(plugins: P, observer: Arc<dyn CniObserver>) -> Self {
        Self { plugins, observer }
    }
}

#[async_trait]
impl<P: CniPlugins> CniPlugins for Observed<P> {
    async fn run(
        &self,
        call: &Call,
        deadline: Option<Instant>,
    ) -> Result<Option<Value>, PluginError> {
        let started = Clock::now();
        let answer = self.plugins.run(call, deadline).await;
        let error = answer.as_ref().err();
        self.observer.observed(
            call.operation,
            &call.network,
            &call.plugin,
            started.elapsed(),
            error,
        );
        answer
    }
}

#[async_trait]
impl CniPlugins for Arc<dyn CniPlugins> {
    async fn run(
        &self,
        call: &Call,
        deadline: Option<Instant>,
    ) -> Result<Option<Value>, PluginError> {
        (**self).run(call, deadline).await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use serde_json::json;

    use super::*;
    use crate::network::fake::{FakePlugins, Fault};

    #[derive(Default)]
    struct Seen(Mutex<Vec<(Operation, String, String, bool)>>);

    impl CniObserver for Seen {
        fn observed(
            &self,
            operation: Operation,
            network: &str,
            plugin: &str,
            _: Duration,
            error: Option<&PluginError>,
        ) {
            let entry = (operation, network.to_owned(), plugin.to_owned(), error.is_some());
            self.0.lock().unwrap().push(entry);
        }
    }

    #[tokio::test]
    async fn every_call_is_seen_with_its_outcome() {
        let fake = FakePlugins::default();
        fake.fail(Operation::Del, "bridge", &[Fault::Missing]);
        let seen = Arc::new(Seen::default());
        let plugins = Observed::new(fake, Arc::clone(&seen) as Arc<dyn CniObserver>);
        let call = Call {
            operation: Operation::Del,
            network: "node".to_owned(),
            plugin: "bridge".to_owned(),
            config: json!({}),
            target: None,
            bin_dirs: Vec::new(),
        };
        plugins.run(&call, None).await.unwrap_err();
        plugins.run(&call, None).await.unwrap();
        let entry = |failed| (Operation::Del, "node".to_owned(), "bridge".to_owned(), failed);
        assert_eq!(*seen.0.lock().unwrap(), [entry(true), entry(false)]);
    }
}
