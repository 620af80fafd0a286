//! The test programs on an emulated machine that has cgroup v2 alone, in one of several variants.
//!
//! The host's side ([`host`]) packs the compiled tests, the shim and the prerequisites onto a disk, boots a kernel
//! with it and passes on what the guest prints; the guest's side ([`guest`]) is the first process there, or a service
//! of systemd, and runs one test program after another.

pub mod guest;
pub mod host;

use std::path::PathBuf;

use serde_json::{Value, json};

/// Environment variable: only tests with one of these texts (separated by commas) in `program::handler::name` are run.
pub const ONLY: &str = "MOORING_E2E_ONLY";
/// Environment variable: how many times longer than usual a thing may take.
pub const PATIENCE: &str = "MOORING_E2E_PATIENCE";

/// How the machine is set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// A plain first process, runc.
    Runc,
    /// A plain first process, crun.
    Crun,
}

impl Variant {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Runc, Self::Crun];

    /// As the command line calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Runc => "runc",
            Self::Crun => "crun",
        }
    }

    /// The variant of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|one| one.name() == name)
    }

    /// The OCI runtime's program in the prerequisites' `bin`.
    fn runtime(self) -> &'static str {
        match self {
            Self::Runc => "runc",
            Self::Crun => "crun",
        }
    }

    /// The first process of the guest.
    fn first(self) -> &'static str {
        match self {
            Self::Runc | Self::Crun => "/payload/vm",
        }
    }

    /// What the kernel is told beside what all variants have in common.
    fn kernel(self) -> &'static str {
        match self {
            Self::Runc | Self::Crun => "apparmor=0",
        }
    }

    /// What of the suite is run where all of it would take too long: see [`ONLY`]. Each property of a pod that depends
    /// on the cgroup version, the kernel, the libc or the OCI runtime is there once.
    fn core(self) -> &'static [&'static str] {
        match self {
            Self::Runc | Self::Crun => &[
                "cri_lifecycle::",
                "cri_resources::",
                "::two_containers_share_network_ipc_and_hostname",
                "::a_shared_pid_namespace_shows_all_processes_of_the_pod",
                "::a_privileged_container_may_mount_and_sees_devices",
                "::a_user_namespaced_pod_may_share_its_pid_namespace",
                "::given_sysctls_are_set_in_the_pod_alone",
                "::logs_have_both_streams_to_the_last_line",
                "::exec_with_a_terminal_has_one_of_the_wanted_size",
                "::stop_and_remove_may_be_repeated",
                "::containers_of_a_killed_shim_are_exited_within_ten_seconds",
                "::a_shim_killed_with_shared_pids_leaves_nothing",
                "::a_shim_killed_in_a_user_namespace_leaves_nothing",
                "::a_pod_with_shared_pids_lives_through_a_restart",
                "::a_frozen_container_keeps_no_pod_of_cri",
                "mooring::a_sandbox_lives_from_create_to_shutdown",
            ],
        }
    }
}

/// What the guest is to do, as it is written onto the disk.
struct Job {
    variant: Variant,
    /// Where the host has the prerequisites: programs in there know their libraries by this path.
    deps: PathBuf,
    /// Names of test programs.
    programs: Vec<String>,
    /// See [`ONLY`].
    only: String,
}

impl Job {
    const FILE: &str = "job.json";

    fn to_json(&self) -> Value {
        json!({
            "variant": self.variant.name(), "deps": self.deps, "programs": self.programs, "only": self.only,
        })
    }

    fn from_json(value: &Value) -> Option<Self> {
        let text = |key: &str| value.get(key).and_then(Value::as_str);
        let programs = value.get("programs")?.as_array()?;
        Some(Self {
            variant: Variant::named(text("variant")?)?,
            deps: text("deps")?.into(),
            programs: programs.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
            only: text("only")?.to_owned(),
        })
    }
}

/// Words that begin a line of the guest which the host shows.
mod line {
    pub const PASS: &str = "PASS";
    pub const FAIL: &str = "FAIL";
    pub const SKIP: &str = "SKIP";
    /// Something that is no result.
    pub const NOTE: &str = "NOTE";
    /// A line of why something failed.
    pub const WHY: &str = "  | ";
    /// The last line, with the number of tests that ran.
    pub const DONE: &str = "DONE";
}
