//! Attaching a pod to its networks and detaching it.
//!
//! What is owed follows from the record: an ADD that succeeded owes a DEL that succeeds; one that failed or was cut
//! short owes the attempt. The cached result decides in doubt, because it is written when the ADD is whole. Without one
//! nobody knows what an ADD reached that its process did not live to see the end of: then a plugin that has not done its
//! DEL yet, and would, is no attempt that was made.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use tokio::{
    task::spawn_blocking,
    time::{Duration, Instant},
};

use super::{
    AddResult, AttachmentRecord, Call, CniPlugins, Error, NetworkRecord, NetworkResult, Operation,
    Outcome, PluginError, Settings, Target,
    cache::{CachedAttachment, Slot},
    conf::{NetworkList, WITH_CHECK, WITH_STATUS},
    netns,
};
use crate::released::Released;

/// The longest that taking back a failed ADD may take where the settings do not limit a call.
const ROLLBACK: Duration = Duration::from_mins(1);
/// CNI's code for a condition that will pass.
const TRY_AGAIN: u32 = 11;

/// Attaches the pod: `lo`, STATUS, then ADD in the networks' order. What a failure leaves behind is taken back, with
/// a time of its own; the record says what is owed still. Networks that are attached already are left as they are.
///
/// The record is fresh from [`super::plan`] or comes from an earlier call that ended. One that was found after a crash
/// belongs to [`detach`].
pub async fn attach(
    plugins: &dyn CniPlugins,
    record: &mut AttachmentRecord,
    deadline: Option<Instant>,
) -> Result<AddResult, Error> {
    let attached = add(plugins, record, deadline).await;
    if let Err(error) = &attached {
        log::warn!("attach sandbox {}: {error}; detaching it", record.container_id);
        take_back(plugins, record).await;
    }
    attached
}

/// [`attach`], but what a failure leaves behind stays for [`detach`].
pub async fn add(
    plugins: &dyn CniPlugins,
    record: &mut AttachmentRecord,
    deadline: Option<Instant>,
) -> Result<AddResult, Error> {
    // Until its turn comes, a network owes nothing: a failure before that leaves none of its doing behind.
    for network in record.networks.iter_mut().filter(|n| n.outcome == Outcome::Intended) {
        network.outcome = Outcome::Removed;
    }
    if record.settings.loopback {
        let netns = record.netns.clone();
        blocking("bring lo up", move || netns::loopback_up(&netns)).await??;
    }
    let lists = record.networks.iter().map(list_of).collect::<Result<Vec<_>, _>>()?;
    for list in &lists {
        status_of(&Runner { plugins, settings: &record.settings, deadline }, list).await?;
    }
    let mut added = AddResult::default();
    for (index, list) in lists.into_iter().enumerate() {
        let Some(network) = record.networks.get_mut(index) else { continue };
        let known = network.result.clone().filter(|_| network.outcome == Outcome::Added);
        let outcome = if let Some(result) = known {
            Ok(result)
        } else {
            // Should the caller drop this future in mid-ADD, its record tells.
            network.outcome = Outcome::Intended;
            let network = network.clone();
            add_network(plugins, record, &network, list, deadline).await
        };
        let Some(network) = record.networks.get_mut(index) else { continue };
        match outcome {
            Ok(result) => {
                added.networks.push(NetworkResult::new(&network.name, &network.ifname, &result));
                network.outcome = Outcome::Added;
                network.result = Some(result);
            }
            Err(error) => {
                network.outcome = Outcome::Failed;
                return Err(error);
            }
        }
    }
    Ok(added)
}

/// Detaches the pod, in the reverse order, with the configuration and the result of the ADD. `netns_open` says
/// whether the namespace is there still. The first DEL that is owed and fails ends it; it may be repeated.
pub async fn detach(
    plugins: &dyn CniPlugins,
    record: &AttachmentRecord,
    netns_open: bool,
    deadline: Option<Instant>,
) -> Result<Released, Error> {
    let mut released = Released::AlreadyGone;
    for network in record.networks.iter().rev() {
        if network.outcome != Outcome::Removed {
            del_network(plugins, record, network, netns_open, deadline).await?;
            released = Released::Done;
        }
    }
    Ok(released)
}

async fn status_of(runner: &Runner<'_>, list: &NetworkList) -> Result<(), Error> {
    if list.speaks(WITH_STATUS) {
        for plugin in list.plugins() {
            let config = list.input(plugin, None, &Map::new());
            runner.call(Operation::Status, list.name(), &plugin.kind, config, None).await?;
        }
    }
    Ok(())
}

async fn add_network(
    plugins: &dyn CniPlugins,
    record: &AttachmentRecord,
    network: &NetworkRecord,
    list: NetworkList,
    deadline: Option<Instant>,
) -> Result<Value, Error> {
    let slot = slot_of(record, network)?;
    let runner = Runner { plugins, settings: &record.settings, deadline };
    let target = target_of(record, network, true);
    let mut result = None;
    for plugin in list.plugins() {
        let config = list.input(plugin, result.as_ref(), &record.capabilities);
        let (name, kind) = (list.name(), &plugin.kind);
        let answer = runner.call(Operation::Add, name, kind, config, Some(&target)).await?;
        result = Some(with_version(answer.unwrap_or_default(), list.cni_version()));
    }
    let result = result.unwrap_or_default();
    let attachment = CachedAttachment {
        container_id: target.container_id,
        ifname: target.ifname,
        netns: target.netns,
        args: target.args,
        capabilities: record.capabilities.clone(),
        list,
        result: Some(result.clone()),
    };
    blocking("keep the CNI result", move || slot.store(&attachment)).await??;
    Ok(result)
}

async fn del_network(
    plugins: &dyn CniPlugins,
    record: &AttachmentRecord,
    network: &NetworkRecord,
    netns_open: bool,
    deadline: Option<Instant>,
) -> Result<(), Error> {
    let (past, is_cached) = past_of(record, network).await?;
    let owed = match network.outcome {
        Outcome::Added => Owed::Success,
        // The process died after the ADD was whole and before the journal knew.
        Outcome::Intended if is_cached => Owed::Success,
        Outcome::Intended => Owed::Answer,
        Outcome::Failed | Outcome::Removed => Owed::Attempt,
    };
    let runner = Runner { plugins, settings: &record.settings, deadline };
    let target = target_of(record, network, netns_open);
    runner.del_each(&past, &target, owed).await?;
    let slot = slot_of(record, network)?;
    blocking("forget the CNI result", move || slot.remove()).await??;
    Ok(())
}

/// Detaches what only the cache knows, by the configuration and the result that it has.
pub async fn detach_cached(
    plugins: &dyn CniPlugins,
    settings: &Settings,
    attachment: CachedAttachment,
    deadline: Option<Instant>,
) -> Result<(), Error> {
    let CachedAttachment { container_id, ifname, netns, args, capabilities, list, result } =
        attachment;
    let slot = Slot::new(&settings.cache_dir, list.name(), &container_id, &ifname)?;
    let netns = if netns::is_open(&netns) { netns } else { PathBuf::new() };
    let target = Target { container_id, netns, ifname, args };
    let runner = Runner { plugins, settings, deadline };
    runner.del_each(&Past { list, capabilities, result }, &target, Owed::Success).await?;
    blocking("forget the CNI result", move || slot.remove()).await??;
    Ok(())
}

async fn take_back(plugins: &dyn CniPlugins, record: &mut AttachmentRecord) {
    let time = record.settings.call_timeout().unwrap_or(ROLLBACK);
    let deadline = Instant::now().checked_add(time);
    for index in (0..record.networks.len()).rev() {
        let Some(network) = record.networks.get(index) else { continue };
        if network.outcome == Outcome::Removed {
            continue;
        }
        let taken = del_network(plugins, record, network, true, deadline).await;
        let Some(network) = record.networks.get_mut(index) else { continue };
        match taken {
            Ok(()) if network.outcome == Outcome::Added => {
                network.outcome = Outcome::Removed;
                network.result = None;
            }
            // The DEL after a failed ADD is an attempt: nobody knows what it reached, so it is made again at the end.
            Ok(()) => {}
            Err(error) => log::warn!("take back sandbox {}: {error}", record.container_id),
        }
    }
}

/// What has to come of a DEL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owed {
    Success,
    /// Success, or a complaint that will be the same the next time.
    Answer,
    /// Whatever comes of it.
    Attempt,
}

impl Owed {
    /// Whether a DEL that failed by `error` is done with.
    fn is_met_by(self, error: &Error) -> bool {
        match self {
            Self::Success => false,
            Self::Answer => !is_passing(error),
            Self::Attempt => true,
        }
    }
}

/// Whether the next call may find the plugin in another mood: it says "try again later", or was not run to its end.
fn is_passing(error: &Error) -> bool {
    let Error::Plugin { source, .. } = error else { return false };
    matches!(
        **source,
        PluginError::Reported { code: TRY_AGAIN, .. } | PluginError::Deadline | PluginError::Run(_)
    )
}

/// What an earlier ADD was given, and what it gave.
struct Past {
    list: NetworkList,
    capabilities: Map<String, Value>,
    result: Option<Value>,
}

/// The past of an attachment, and whether there is a cached result of it. A damaged one counts as there, since
/// results are written whole; then the record's own copy serves.
async fn past_of(
    record: &AttachmentRecord,
    network: &NetworkRecord,
) -> Result<(Past, bool), Error> {
    let slot = slot_of(record, network)?;
    let is_cached = match blocking("read the CNI result", move || slot.load()).await? {
        Ok(Some(CachedAttachment { list, capabilities, result, .. })) => {
            return Ok((Past { list, capabilities, result }, true));
        }
        Ok(None) => false,
        Err(error) => {
            log::warn!("{error}; going on with what the journal holds");
            true
        }
    };
    let past = Past {
        list: list_of(network)?,
        capabilities: record.capabilities.clone(),
        result: network.result.clone(),
    };
    Ok((past, is_cached))
}

/// Makes plugin calls under the settings' and the caller's limits.
pub(super) struct Runner<'a> {
    pub(super) plugins: &'a dyn CniPlugins,
    pub(super) settings: &'a Settings,
    pub(super) deadline: Option<Instant>,
}

impl Runner<'_> {
    pub(super) async fn call(
        &self,
        operation: Operation,
        network: &str,
        plugin: &str,
        config: Map<String, Value>,
        target: Option<&Target>,
    ) -> Result<Option<Value>, Error> {
        let call = Call {
            operation,
            network: network.to_owned(),
            plugin: plugin.to_owned(),
            config: config.into(),
            target: target.cloned(),
            bin_dirs: self.settings.bin_dirs.clone(),
        };
        let now = Instant::now();
        let own = self.settings.call_timeout().and_then(|time| now.checked_add(time));
        let deadline = [self.deadline, own].into_iter().flatten().min();
        let answer = if deadline.is_some_and(|deadline| deadline <= now) {
            Err(PluginError::Deadline)
        } else {
            self.plugins.run(&call, deadline).await
        };
        answer.map_err(|source| Error::Plugin {
            operation,
            plugin: call.plugin,
            network: call.network,
            source: Box::new(source),
        })
    }

    /// DEL of every plugin, in reverse. Where what is owed is met by a failure it is only logged.
    async fn del_each(&self, past: &Past, target: &Target, owed: Owed) -> Result<(), Error> {
        let Past { list, capabilities, result } = past;
        let previous = result.as_ref().filter(|_| list.speaks(WITH_CHECK));
        for plugin in list.plugins().iter().rev() {
            let config = list.input(plugin, previous, capabilities);
            let name = list.name();
            match self.call(Operation::Del, name, &plugin.kind, config, Some(target)).await {
                Ok(_) => {}
                Err(error) if owed.is_met_by(&error) || is_gone(&error, &target.netns) => {
                    log::warn!("{error}");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Some plugins complain of a namespace that is gone where they should not. The reference forgives them, so that a pod
/// whose namespace was lost can be removed.
fn is_gone(error: &Error, netns: &Path) -> bool {
    let Error::Plugin { operation: Operation::Del, source, .. } = error else { return false };
    let PluginError::Reported { msg, details, .. } = &**source else { return false };
    let says = |text| msg.contains(text) || details.contains(text);
    netns.as_os_str().is_empty() && says("no such file or directory")
}

fn list_of(network: &NetworkRecord) -> Result<NetworkList, Error> {
    NetworkList::from_value(network.config.clone())
        .map_err(|problem| Error::Record { network: network.name.clone(), problem })
}

fn slot_of(record: &AttachmentRecord, network: &NetworkRecord) -> Result<Slot, Error> {
    let cache_dir = &record.settings.cache_dir;
    Slot::new(cache_dir, &network.name, &record.container_id, &network.ifname)
}

fn target_of(record: &AttachmentRecord, network: &NetworkRecord, netns_open: bool) -> Target {
    Target {
        container_id: record.container_id.clone(),
        netns: if netns_open { record.netns.clone() } else { PathBuf::new() },
        ifname: network.ifname.clone(),
        args: record.args.clone(),
    }
}

/// A result without version is in the version that was asked for.
fn with_version(mut result: Value, version: &str) -> Value {
    if let Some(result) = result.as_object_mut() {
        result.entry("cniVersion").or_insert_with(|| version.into());
    }
    result
}

/// Runs what may sleep beside the async thread.
pub(super) async fn blocking<T: Send + 'static>(
    action: &'static str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Error> {
    spawn_blocking(work).await.map_err(|_| Error::Lost { action })
}

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
