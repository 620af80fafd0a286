//! What the daemon is started with, and what it says when it is ready.

use std::path::PathBuf;

use log::LevelFilter;
use mooring::{
    id::Id,
    options::{AnyValue, Profile},
};

/// What the daemon tells whoever started it when it serves; anything else is why it does not.
pub const READY: &[u8] = b"ready";

/// What the daemon must know about its start.
#[derive(Debug)]
pub struct Launch {
    pub namespace: Id,
    /// The sandbox, or the container where there is no sandbox.
    pub id: Id,
    pub bundle: PathBuf,
    /// The socket that this shim listens on.
    pub socket: PathBuf,
    pub grpc_address: PathBuf,
    /// containerd's ttrpc socket, where events go.
    pub ttrpc_address: PathBuf,
    /// What the shim's name stands for.
    pub profile: Option<Profile>,
    pub options: Option<AnyValue>,
    pub level: LevelFilter,
    /// Whether the start was asked for by bootstrap parameters, as containerd does from 2.3 on.
    pub bootstrap: bool,
}
