//! What a sandbox is, how it is set up and how it is taken down completely.
//!
//! The library knows nothing of being a process, and of ttrpc nothing but the messages of [`inspect`]: the shim's services
//! translate requests into calls of [`sandbox`], and the parties outside (containerd, CNI plugins, the kernel) are traits.
#![forbid(unsafe_code)]

pub mod cgroup;
pub mod container;
pub mod containerd;
pub mod error;
pub mod failpoint;
pub mod id;
pub mod inspect;
mod interleave;
pub mod keeper;
pub mod mounts;
pub mod network;
pub mod nri;
pub mod options;
pub mod process;
pub mod released;
pub mod resources;
pub mod runtime;
pub mod sandbox;
pub mod sys;
pub mod teardown;
pub mod telemetry;
pub mod volumes;
