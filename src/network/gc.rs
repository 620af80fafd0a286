//! Collecting what attachments of vanished pods have left.

use std::collections::BTreeSet;

use serde_json::json;
use tokio::time::Instant;

use super::{
    CachedAttachment, CniPlugins, Error, Operation, Settings,
    attachment::{Runner, blocking, detach_cached},
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

/// What is collected.
#[derive(Clone, Copy)]
pub struct Collection<'a> {
    /// Whether a cached attachment is somebody's still. The cache is shared with other users of CNI: it must say yes to
    /// whatever it does not know to be gone.
    pub is_valid: &'a (dyn Fn(&CachedAttachment) -> bool + Sync),
    /// Whether the plugins of the network of this name are told which attachments are valid.
    pub is_told: &'a (dyn Fn(&str) -> bool + Sync),
    /// Further valid attachments, such as those of journals: network, container, interface.
    pub valid: &'a [(String, String, String)],
}

impl<'a> Collection<'a> {
    /// Of every network, with the cached attachments that `is_valid` accepts.
    pub fn of(is_valid: &'a (dyn Fn(&CachedAttachment) -> bool + Sync)) -> Self {
        Self { is_valid, is_told: &|_| true, valid: &[] }
    }
}

/// Detaches every cached attachment that is not valid, then tells the plugins of CNI 1.1 which ones are left, so
/// that they remove what belongs to none.
///
/// Attachments that are neither in the cache nor in the collection's list are not protected from the plugins.
pub async fn gc(
    plugins: &dyn CniPlugins,
    settings: &Settings,
    wanted: Collection<'_>,
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
        if (wanted.is_valid)(&attachment) {
            left.push(attachment);
            continue;
        }
        let name = (
            attachment.list.name().to_owned(),
            attachment.container_id.clone(),
            attachment.ifname.clone(),
        );
        match detach_cached(plugins, settings, attachment.clone(), deadline).await {
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
            let told =
                |list: &&NetworkList| list.collects_garbage() && (wanted.is_told)(list.name());
            for list in lists.iter().filter(told) {
                report.errors.extend(collect(&runner, list, &left, wanted.valid).await);
            }
        }
        Err(error) => report.errors.push(error),
    }
    report
}

async fn collect(
    runner: &Runner<'_>,
    list: &NetworkList,
    left: &[CachedAttachment],
    more: &[(String, String, String)],
) -> Vec<Error> {
    let cached = left.iter().filter(|attachment| attachment.list.name() == list.name());
    let cached = cached.map(|one| (&one.container_id, &one.ifname));
    let more = more.iter().filter(|(network, ..)| network == list.name());
    let all: BTreeSet<_> = cached.chain(more.map(|(_, id, ifname)| (id, ifname))).collect();
    let valid: Vec<_> =
        all.into_iter().map(|(id, ifname)| json!({"containerID": id, "ifname": ifname})).collect();
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
