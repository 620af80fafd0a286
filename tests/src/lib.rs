//! Harness of the end-to-end tests and of the benchmark: a machine of namespaces, a private containerd in it, clients
//! of its services, and an audit that finds whatever a test left behind.
//!
//! A test binary is a list of async functions ([`suite::Suite`]); each gets a [`suite::Case`] and runs once per
//! runtime handler.
#![forbid(unsafe_code)]

pub mod audit;
pub mod bench;
pub mod between;
pub mod bundle;
pub mod cgroups;
pub mod cri;
pub mod daemon;
pub mod direct;
pub mod faults;
pub mod fuse;
pub mod hidden;
pub mod images;
pub mod kubelet;
pub mod life;
pub mod machine;
pub mod node;
pub mod nri;
pub mod oci;
pub mod otlp;
pub mod plugins;
pub mod random;
pub mod registry;
pub mod remains;
pub mod services;
pub mod soak;
pub mod strangers;
pub mod stream;
pub mod suite;
pub mod systemd;
pub mod tool;
pub mod vm;

#[cfg(test)]
mod deploy;
#[cfg(test)]
mod documents;

/// How long a thing may take on this machine that takes `usual` at most on an ordinary one: see [`vm::PATIENCE`].
pub fn patience(usual: std::time::Duration) -> std::time::Duration {
    let factor = std::env::var(vm::PATIENCE).ok().and_then(|text| text.parse().ok());
    usual * factor.unwrap_or(1)
}
