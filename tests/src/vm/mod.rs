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

/// Environment variable: the machine is an emulated one, and all that it has is the tests', its clock too.
pub const GUEST: &str = "MOORING_E2E_GUEST";

/// Whether this is such a machine.
pub fn is_emulated() -> bool {
    std::env::var_os(GUEST).is_some()
}

/// How the machine is set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// A plain first process, runc.
    Runc,
    /// A plain first process, crun.
    Crun,
    /// systemd, runc through systemd's cgroups, containerd as a unit, AppArmor enforced.
    Systemd,
}

impl Variant {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Runc, Self::Crun, Self::Systemd];

    /// As the command line calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Runc => "runc",
            Self::Crun => "crun",
            Self::Systemd => "systemd",
        }
    }

    /// The variant of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|one| one.name() == name)
    }

    /// The OCI runtime's program in the prerequisites' `bin`.
    fn runtime(self) -> &'static str {
        match self {
            Self::Runc | Self::Systemd => "runc",
            Self::Crun => "crun",
        }
    }

    /// The first process of the guest.
    fn first(self) -> &'static str {
        match self {
            Self::Runc | Self::Crun => "/payload/vm",
            Self::Systemd => "/lib/systemd/systemd",
        }
    }

    /// What the kernel is told beside what all variants have in common.
    fn kernel(self) -> &'static str {
        match self {
            Self::Runc | Self::Crun => "apparmor=0",
            Self::Systemd => "apparmor=1 security=apparmor systemd.show_status=no",
        }
    }

    /// What of the suite is run where all of it would take too long: see [`ONLY`]. Each property of a pod that depends
    /// on the cgroup version, the kernel, the libc, the OCI runtime or systemd is there once.
    fn core(self) -> Vec<&'static str> {
        match self {
            Self::Runc => {
                let more = [
                    "cri_lifecycle::runc",
                    "cri_resources::runc::container_stats",
                    "builtin::mooring::",
                    "builtin_by_hand::mooring::",
                ];
                [&more[..], &CORE, &OPERATORS].concat()
            }
            Self::Crun => CORE.to_vec(),
            Self::Systemd => {
                let ours = ["systemd::", "cri_lifecycle::mooring", "cri_resources::mooring"];
                [&ours[..], &OPERATORS].concat()
            }
        }
    }
}

/// Of a machine with a plain first process, on Mooring's handler.
const CORE: [&str; 16] = [
    "cri_lifecycle::mooring",
    "mooring::container_stats_count_memory_and_cpu",
    "mooring::pod_stats_count_the_pod_and_list_its_containers",
    "mooring::limits_are_set_and_updated",
    "mooring::a_container_without_memory_is_reported_as_oom_killed",
    "mooring::two_containers_share_network_ipc_and_hostname",
    "mooring::a_user_namespaced_pod_may_share_its_pid_namespace",
    "mooring::logs_have_both_streams_to_the_last_line",
    "mooring::stop_and_remove_may_be_repeated",
    "mooring::containers_of_a_killed_shim_are_exited_within_ten_seconds",
    "mooring::a_shim_killed_with_shared_pids_leaves_nothing",
    "mooring::a_frozen_container_keeps_no_pod_of_cri",
    "mooring::what_forks_for_ever_goes",
    "mooring::what_forks_for_ever_in_shared_pids_goes",
    "mooring::what_forks_for_ever_in_the_nodes_pids_goes",
    "mooring::a_clock_that_jumps",
];

/// What an operator asks of a pod: groups, memory and network are counted otherwise on each of these machines.
const OPERATORS: [&str; 2] =
    ["mooring::inspect_tells_what_a_shim_knows", "mooring::a_scrape_tells_what_the_node_does"];

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
