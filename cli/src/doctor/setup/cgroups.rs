//! How cgroups are made, and whether the kubelet makes them in the same way.

use std::{fs, path::Path};

use mooring::cgroup::{Hierarchies, Mode};

use super::{Remark, Setup};

const PART: &str = "cgroups";
const KUBELET: &str = "/var/lib/kubelet/config.yaml";

pub fn remarks(setup: &Setup<'_>) -> Vec<Remark> {
    let mut all = vec![mode(setup)];
    let systemd = Path::new("/run/systemd/system").exists();
    let kubelet = kubelets_driver(setup);
    for options in &setup.options {
        let ours = options.runtime.systemd_cgroup;
        let kind = options.runtime_type();
        if ours && !systemd {
            let what = format!(
                "{kind}: SystemdCgroup = true, and systemd is not this machine's first process"
            );
            all.push(Remark::problem(PART, what).remedy("SystemdCgroup = false"));
        }
        if let Some(driver) = &kubelet {
            all.push(agreement(&kind, ours, driver));
        }
    }
    all
}

fn mode(setup: &Setup<'_>) -> Remark {
    match Hierarchies::read().map(|all| all.mode()) {
        Ok(Mode::Unified) => Remark::good(PART, "version 2"),
        Ok(mode) => {
            let text = if mode == Mode::Hybrid {
                "version 1, and 2 without controllers"
            } else {
                "version 1"
            };
            let crun = setup.options.iter().any(|one| one.runtime.binary.ends_with("crun"));
            if crun {
                return Remark::problem(PART, format!("{text}: crun may refuse it"))
                    .remedy("use runc, or cgroup version 2");
            }
            Remark::note(PART, text)
        }
        Err(error) => Remark::problem(PART, error.to_string()),
    }
}

fn agreement(kind: &str, ours: bool, driver: &str) -> Remark {
    let own = if ours { "systemd" } else { "cgroupfs" };
    if own == driver {
        return Remark::good(PART, format!("{kind}: {own}, as the kubelet"));
    }
    let what = format!(
        "{kind}: the kubelet's cgroup driver is {driver}, and the OCI runtime is told {own}: pods do not start"
    );
    Remark::problem(PART, what)
        .remedy(format!("SystemdCgroup = {} in /etc/mooring/config.toml", driver == "systemd"))
}

/// By the kubelet's command line, else its configuration; nothing where there is no kubelet or it says nothing.
fn kubelets_driver(setup: &Setup<'_>) -> Option<String> {
    let kubelet = setup.world.processes.values().find(|one| one.program() == "kubelet");
    let flag = |name: &str| {
        let arguments = &kubelet?.arguments;
        let at = arguments.iter().position(|one| {
            one == name || one.strip_prefix(name).is_some_and(|rest| rest.starts_with('='))
        })?;
        let argument = arguments.get(at)?;
        match argument.split_once('=') {
            Some((_, value)) => Some(value.to_owned()),
            None => arguments.get(at + 1).cloned(),
        }
    };
    let file = flag("--config").unwrap_or_else(|| KUBELET.to_owned());
    flag("--cgroup-driver").or_else(|| driver_in(&fs::read_to_string(file).ok()?))
}

/// The key is at the top level, where YAML has no indentation; JSON has it in quotes.
fn driver_in(text: &str) -> Option<String> {
    let value = text.lines().find_map(|line| {
        let line = line.trim_start().trim_start_matches('{').trim_start();
        let (key, value) = line.split_once(':')?;
        (key.trim_matches('"') == "cgroupDriver").then_some(value)
    })?;
    let value = value.split('#').next()?.trim().trim_end_matches(',').trim_matches(['"', '\'']);
    (!value.is_empty()).then(|| value.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::setup::Level;

    #[test]
    fn the_kubelets_driver_is_read_from_yaml_and_json() {
        for (text, driver) in [
            ("kind: KubeletConfiguration\ncgroupDriver: systemd\n", Some("systemd")),
            ("cgroupDriver: \"cgroupfs\" # why\n", Some("cgroupfs")),
            ("{\n  \"cgroupDriver\": \"systemd\",\n}", Some("systemd")),
            ("kind: KubeletConfiguration\n", None),
            ("cgroupDriver:\n", None),
        ] {
            assert_eq!(driver_in(text).as_deref(), driver, "{text}");
        }
    }

    #[test]
    fn a_mismatch_is_a_problem_with_its_remedy() {
        assert_eq!(agreement("x", true, "systemd").level, Level::Good);
        let wrong = agreement("x", false, "systemd");
        assert_eq!(wrong.level, Level::Problem);
        assert!(wrong.remedy.unwrap().starts_with("SystemdCgroup = true"));
    }
}
