//! Collecting what attachments of vanished pods have left.

use serde_json::json;
use tokio::time::Instant;

use super::{
    CachedAttachment, CniPlugins, Error, Operation, Settings,
    attachment::{Runner, blocking, del_cached},
    cache::cached_attachments,
    conf::{self, NetworkList},
};

#[derive(Debug, Default)]
pub struct GcReport {
    /// Attachments that were not valid any more and are detached now: network, container, interface.
    pub released: Vec<(String, String, String)>,
    /// What went wrong; the collection went on.
    pub errors: Vec<Error>,
}

/// Detaches every cached attachment that `is_valid` refuses, then tells the plugins of CNI 1.1 which ones are left, so
/// that they remove what belongs to none.
///
/// The cache is shared with other users of CNI: `is_valid` must say yes to whatever it does not know to be gone.
/// Attachments that are in no cache at all are not protected from the plugins.
pub async fn gc(
    plugins: &dyn CniPlugins,
    settings: &Settings,
    is_valid: &(dyn Fn(&CachedAttachment) -> bool + Sync),
    deadline: Option<Instant>,
) -> GcReport {
    let mut report = GcReport::default();
    let loading = settings.clone();
    let load = move || (conf::load(&loading), cached_attachments(&loading.cache_dir));
    let (lists, (cached, problems)) = match blocking("read the CNI cache", load).await {
        Ok(read) => read,
        Err(error) => {
            report.errors.push(error);
            return report;
        }
    };
    let unreadable = !problems.is_empty();
    report.errors.extend(problems);
    let mut left = Vec::new();
    for attachment in cached {
        if is_valid(&attachment) {
            left.push(attachment);
            continue;
        }
        let name = (
            attachment.list.name().to_owned(),
            attachment.container_id.clone(),
            attachment.ifname.clone(),
        );
        match del_cached(plugins, settings, attachment.clone(), deadline).await {
            Ok(()) => report.released.push(name),
            Err(error) => {
                // Its cached result is what the next attempt needs: it must not be collected from under it.
                left.push(attachment);
                report.errors.push(error);
            }
        }
    }
    match lists {
        // Whose attachment an unreadable file was is not known, so plugins are not told that it is none.
        Ok(_) if unreadable => {}
        Ok(lists) => {
            let runner = Runner { plugins, settings, deadline };
            for list in lists.iter().filter(|list| list.collects_garbage()) {
                report.errors.extend(collect(&runner, list, &left).await);
            }
        }
        Err(error) => report.errors.push(error),
    }
    report
}

async fn collect(runner: &Runner<'_>, list: &NetworkList, left: &[CachedAttachment]) -> Vec<Error> {
    let valid: Vec<_> = left
        .iter()
        .filter(|attachment| attachment.list.name() == list.name())
        .map(|a| json!({"containerID": a.container_id, "ifname": a.ifname}))
        .collect();
    let mut errors = Vec::new();
    for plugin in list.plugins() {
        let mut config = list.input(plugin, None, &serde_json::Map::new());
        config.insert("cni.dev/valid-attachments".to_owned(), valid.clone().into());
        let call = runner.call(Operation::Gc, list.name(), &plugin.kind, config, None).await;
        errors.extend(call.err());
    }
    errors
}

#[cfg(test)]
mod tests;
