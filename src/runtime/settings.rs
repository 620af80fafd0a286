//! Which runtime, and how it is called.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};

/// Which program is called, with which global flags. Kept in records, so that whoever cleans up calls the same one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RuntimeSettings {
    /// The program; a name without a slash is looked for in PATH.
    pub binary: PathBuf,
    /// Its state folder; a container's settings have containerd's namespace at its end.
    pub root: PathBuf,
    /// Whether groups are made by systemd.
    pub systemd_cgroup: bool,
    /// Whether the root file system is entered by chroot instead of `pivot_root`.
    pub no_pivot_root: bool,
    /// Whether the container shares the session keyring.
    pub no_new_keyring: bool,
    /// The owner of the container's stdio.
    pub io_uid: u32,
    pub io_gid: u32,
    /// The program that checkpoints and restores: a name that is found in PATH, or a path that ends in that name.
    pub criu: PathBuf,
    /// Where criu leaves its log and statistics of a restore; empty for the bundle.
    pub criu_work: PathBuf,
    /// How long one call may take.
    pub timeout: Duration,
}

impl Default for RuntimeSettings {
    fn default() -> Self {
        Self {
            binary: "runc".into(),
            root: "/run/containerd/runc".into(),
            systemd_cgroup: false,
            no_pivot_root: false,
            no_new_keyring: false,
            io_uid: 0,
            io_gid: 0,
            criu: super::criu::NAME.into(),
            criu_work: PathBuf::new(),
            timeout: Duration::from_mins(2),
        }
    }
}

impl RuntimeSettings {
    /// Whether the runtime is the one in the shim's own program.
    #[must_use]
    pub fn is_builtin(&self) -> bool {
        self.binary == Path::new(super::BUILTIN)
    }

    /// The settings for the containers of a containerd namespace.
    #[must_use]
    pub fn in_namespace(&self, namespace: impl AsRef<Path>) -> Self {
        Self { root: self.root.join(namespace), ..self.clone() }
    }
}
