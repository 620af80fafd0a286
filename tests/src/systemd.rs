//! A machine whose first process is systemd: containerd is a unit there, pods lie in slices.
//!
//! Such a machine belongs to one run of the tests from its boot to its end, so no machine is built inside of it (see
//! [`crate::machine`]), and the audit looks only at what pods and containers may leave.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// Environment variable: this machine's systemd is the tests' to command. Nobody sets it on a machine with other uses.
pub const OURS: &str = "MOORING_E2E_SYSTEMD";
/// containerd's unit.
pub const UNIT: &str = "mooring-e2e.service";

/// Whether the tests run on such a machine.
pub fn is_first() -> bool {
    std::env::var_os(OURS).is_some()
}

/// Runs `systemctl` and returns what it printed.
pub fn systemctl(arguments: &[&str]) -> Result<String> {
    let output = Command::new("systemctl").args(arguments).output().context("run systemctl")?;
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "systemctl {}: {}", arguments.join(" "), errors.trim());
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// A property of a unit.
pub fn property(unit: &str, name: &str) -> Result<String> {
    systemctl(&["show", "--value", "--property", name, unit])
}

/// The process of containerd's unit, while it has one.
pub fn main_pid() -> Option<u32> {
    let pid = property(UNIT, "MainPID").ok()?.parse().ok()?;
    (pid != 0).then_some(pid)
}

/// Writes containerd's unit for what `command` would run; its output goes to `log`.
pub fn write_unit(command: &Command, log: &Path) -> Result<()> {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words: Vec<_> = words.map(|word| format!("\"{}\"", word.display())).collect();
    let mut environment = String::new();
    for (name, value) in command.get_envs() {
        if let Some(value) = value {
            let _ = writeln!(environment, "Environment=\"{}={}\"", name.display(), value.display());
        }
    }
    // As containerd's own unit has it: the shims stay when containerd goes.
    let unit = format!(
        "[Service]\nType=notify\nExecStart={}\n{environment}KillMode=process\nDelegate=yes\nTasksMax=infinity\n\
         LimitNOFILE=infinity\nOOMScoreAdjust=-999\nTimeoutStartSec=600\nTimeoutStopSec=120\n\
         StandardOutput=append:{}\nStandardError=inherit\n",
        words.join(" "),
        log.display()
    );
    fs::create_dir_all("/run/systemd/system")?;
    fs::write(Path::new("/run/systemd/system").join(UNIT), unit)?;
    systemctl(&["daemon-reload"])?;
    Ok(())
}

/// The slice of a pod, named as the kubelet names it: a dash would be a level of its own.
pub fn pod_slice(pod: &str) -> String {
    format!("kubepods-burstable-pod{}.slice", pod.replace('-', "_"))
}

/// The pod's cgroup parent as the kubelet hands it to CRI: the slice's path.
pub fn pod_parent(pod: &str) -> String {
    format!("/kubepods.slice/kubepods-burstable.slice/{}", pod_slice(pod))
}

/// What the kubelet does before a pod.
pub fn start_slice(parent: &str) -> Result<()> {
    let slice = parent.rsplit('/').next().unwrap_or_default();
    systemctl(&["start", slice]).map(drop)
}

/// The slices of pods that there are.
pub fn pod_slices() -> Result<Vec<String>> {
    let text =
        systemctl(&["list-units", "--plain", "--no-legend", "--all", "kubepods-*-pod*.slice"])?;
    Ok(text.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect())
}

/// What the kubelet does when a pod is gone.
pub fn stop_pod_slices() -> Result<()> {
    for slice in pod_slices()? {
        systemctl(&["stop", &slice])?;
    }
    Ok(())
}

/// Units that containers left, for the audit.
pub fn units(seen: &mut BTreeSet<String>) -> Result<()> {
    let patterns = ["cri-containerd-*", "mooring-*", "runc-*", "crun-*", "*.scope"];
    let mut arguments = vec!["list-units", "--plain", "--no-legend", "--all"];
    arguments.extend(patterns);
    for line in systemctl(&arguments)?.lines() {
        let unit = line.split(' ').next().unwrap_or_default();
        if unit != UNIT {
            seen.insert(format!("systemd unit {unit}"));
        }
    }
    Ok(())
}

/// Whether a cgroup, as /proc names it or as a folder below the root, may be of a pod or a shim.
pub fn may_be_of_a_pod(cgroup: &str) -> bool {
    let mut parts = cgroup.trim_start_matches('/').split('/');
    match (parts.next().unwrap_or_default(), parts.next()) {
        ("" | "init.scope" | "user.slice", _) | ("system.slice", None) => false,
        ("system.slice", Some(unit)) => {
            unit == UNIT
                || ["cri-containerd", "mooring", "runc", "crun"]
                    .iter()
                    .any(|one| unit.starts_with(one))
        }
        (top, _) => top.strip_suffix(".mount").is_none(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nodes_own_cgroups_are_not_a_pods() {
        for cgroup in
            ["/", "/init.scope", "/system.slice/dbus.service", "/user.slice/x", "dev-mqueue.mount"]
        {
            assert!(!may_be_of_a_pod(cgroup), "{cgroup}");
        }
        for cgroup in [
            "/kubepods.slice/kubepods-burstable.slice",
            "/system.slice/mooring-e2e.service",
            "/system.slice/cri-containerd-a.scope",
            "/k8s.io/a",
        ] {
            assert!(may_be_of_a_pod(cgroup), "{cgroup}");
        }
    }

    #[test]
    fn a_pods_slice_has_three_levels() {
        assert_eq!(pod_slice("pod-1"), "kubepods-burstable-podpod_1.slice");
    }
}
