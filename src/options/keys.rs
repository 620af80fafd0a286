//! Every key, declared once: its name, the field that it sets, how its value is read, and what it means.
//!
//! Parsing, the table of docs/options.md and examples/config.toml come from here. A new option is a field with its
//! default in the struct that it configures, and a line in this table.

#[cfg(test)]
use super::value::Show;
use super::{
    Options,
    value::{self, Setting},
};

/// One key of a configuration.
pub(super) struct Key {
    pub name: &'static str,
    /// Sets the option to a value, or says what is wrong with the value.
    pub set: fn(&mut Options, &toml::Value) -> Result<(), value::Wrong>,
    /// The option's value, as TOML has it.
    #[cfg(test)]
    pub show: fn(&Options) -> String,
    #[cfg(test)]
    pub meaning: &'static str,
}

macro_rules! keys {
    ($($name:literal => $($field:ident).+, $read:path, $meaning:literal;)*) => {
        /// The keys, in the order in which they are shown.
        pub(super) static KEYS: &[Key] = &[$(Key {
            name: $name,
            set: |options, value| {
                options.$($field).+ = $read(value)?;
                Ok(())
            },
            #[cfg(test)]
            show: |options| options.$($field).+.show(),
            #[cfg(test)]
            meaning: $meaning,
        }),*];
    };
}

keys! {
    "BinaryName" => runtime.binary, value::program,
        "the OCI runtime: a path, a name that is found in PATH, or `builtin`, which is the one in the shim itself (docs/builtin.md)";
    "Root" => runtime.root, Setting::read,
        "where the OCI runtime keeps its state; containerd's namespace is added to it";
    "SystemdCgroup" => runtime.systemd_cgroup, Setting::read,
        "the OCI runtime has systemd make the cgroups; must agree with the kubelet's cgroup driver";
    "NoPivotRoot" => runtime.no_pivot_root, Setting::read,
        "passed to the OCI runtime (`--no-pivot`)";
    "NoNewKeyring" => runtime.no_new_keyring, Setting::read,
        "passed to the OCI runtime (`--no-new-keyring`)";
    "ShimCgroup" => shim_cgroup, Setting::read,
        "the cgroup that the shim moves itself into; empty: it stays where containerd started it";
    "IoUid" => runtime.io_uid, Setting::read,
        "the owner of containers' fifos and pipes, unless a user namespace decides";
    "IoGid" => runtime.io_gid, Setting::read,
        "their group";
    "CriuPath" => runtime.criu, value::criu,
        "the criu that the OCI runtime finds in PATH: a path that ends in `criu`, or that name alone; for checkpoints (docs/checkpoint.md)";
    "CriuWorkPath" => runtime.criu_work, value::folder,
        "where criu leaves its log and statistics of a restore; empty: `criu-work` in the bundle";
    "RuntimeTimeout" => runtime.timeout, value::some_time,
        "how long one call of the OCI runtime may take; then it is killed with everything that it started, and the request fails with `DeadlineExceeded`";
    "NetworkOwner" => network_owner, Setting::read,
        "who makes a pod's network: `client`, `shim`, or `auto`, which is the client where it gave a network namespace (Kubernetes does), else the shim";
    "Keeper" => keeper, Setting::read,
        "what holds the namespaces of a pod that needs no process: `thread`, one of the shim's, or `pinned`, mounts below the pod's folder: then no pid stands for the pod (docs/namespaces.md)";
    "KeepTotals" => keep_totals, Setting::read,
        "whether a shim at its end adds what it measured to `totals.json` in RunRoot, for `mooring metrics` (docs/metrics.md)";
    "CniConfDir" => network.conf_dir, Setting::read,
        "pods that the shim networks: where network configurations lie";
    "CniBinDirs" => network.bin_dirs, Setting::read,
        "where plugins are looked for, in this order";
    "CniMaxConfNum" => network.max_conf_num, Setting::read,
        "how many configurations are used, in lexical order; 0 is all";
    "CniIfName" => network.ifname, value::interface,
        "the interface in the first network; further ones count on (`eth1` …)";
    "CniLoopback" => network.loopback, Setting::read,
        "whether `lo` is brought up";
    "CniCacheDir" => network.cache_dir, Setting::read,
        "results of ADD are kept in `results/` below it, in libcni's layout";
    "CniTimeout" => network.timeout, Setting::read,
        "how long one call of a plugin may take; 0 leaves only the request's own deadline";
    "NriPlugins" => nri.plugins, Setting::read,
        "pods of other clients than CRI: the NRI plugins that are told of them, programs called `NN-NAME` or sockets at which plugins listen; none: nobody is told (docs/nri.md)";
    "NriConfDir" => nri.conf_dir, Setting::read,
        "where the plugins' own configurations lie, `NN-NAME.conf` or `NAME.conf`";
    "NriTimeout" => nri.timeout, value::some_time,
        "how long one call of an NRI plugin may take; then the plugin is asked no more";
    "StateRoot" => state_root, Setting::read,
        "journals and records; must survive a reboot";
    "RunRoot" => run_root, Setting::read,
        "files and mounts of pods; may vanish with a reboot";
    "ContainerdTimeout" => containerd_timeout, Setting::read,
        "how long a teardown waits for containerd before it kills containers on its own";
}

/// Keys that are known and have no effect: the checkpoint to restore, which containerd reads itself and passes on, and
/// those of containerd's own message, which it leaves in the text.
pub(super) const WITHOUT_EFFECT: [&str; 3] = ["CriuImagePath", "TypeUrl", "ConfigPath"];
