//! The pod's network: its namespace, the CNI configuration, and the plugins that attach and detach it.
//!
//! An attachment is a resource like any other: [`plan`] makes its record, which the journal stores before
//! anything runs; [`attach`] acquires it and [`detach`] releases it, whatever has become of the configuration,
//! of the namespace or of this process in between. [`netns`] does the same for the namespace itself.

mod attachment;
mod cache;
mod conf;
pub mod counters;
mod error;
mod exec;
mod gc;
pub mod links;
mod netlink;
pub mod netns;
mod observer;
mod plugin;
mod record;
mod result;
mod settings;

#[cfg(test)]
pub(crate) mod fake;

pub use attachment::{add, attach, detach, detach_cached};
pub use cache::{CacheProblem, CachedAttachment, cached_attachments};
pub use conf::{ConfProblem, NetworkList, is_ifname, load};
pub use error::Error;
pub use exec::{ExecPlugins, understand};
pub use gc::{Collection, GcReport, gc};
pub use observer::{CniObserver, Observed};
pub use plugin::{Call, CniPlugins, Operation, PluginError, Target};
pub use record::{AttachRequest, AttachmentRecord, NetworkRecord, Outcome, kubernetes_args, plan};
pub use result::{AddResult, Address, Interface, NetworkResult};
pub use settings::Settings;
