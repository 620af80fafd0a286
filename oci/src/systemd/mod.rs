//! A container's control group as a scope of systemd: its properties are the limits, and the group is the container's
//! (`Delegate=yes`). cgroup v2 alone; systemd's last release that knows v1 is of 2025.

mod bus;
mod message;
mod properties;
mod wire;

use mooring::cgroup::{Cgroup, Hierarchies, Mode, from_systemd};

use self::{
    bus::{Bus, Failed},
    wire::{Body, Property, Value},
};
use crate::{
    error::{Error, Result},
    spec::{Resources, Spec},
};

/// The unit and where it lies.
#[derive(Clone, Debug)]
pub struct Scope {
    slice: String,
    unit: String,
}

fn failed(deed: String) -> impl FnOnce(Failed) -> Error {
    move |why| Error::Systemd { deed, why: why.to_string() }
}

/// The scope that a specification names as `slice:prefix:name`, and its group.
pub fn planned(spec: &Spec, id: &str) -> Result<(Scope, Cgroup)> {
    let hierarchies = Hierarchies::read()?;
    if hierarchies.mode() != Mode::Unified {
        return Err(Error::unsupported("control groups made by systemd on cgroup v1"));
    }
    if let Some(key) = spec.annotations.keys().find(|key| key.starts_with("org.systemd.property."))
    {
        return Err(Error::unsupported(format!("annotation {key:?}")));
    }
    let given = &spec.linux.cgroups_path;
    let path = if given.is_empty() { format!(":mooring:{id}") } else { given.clone() };
    let group = hierarchies.group(&from_systemd(&path)?)?;
    Ok((Scope::named(&path)?, group))
}

impl Scope {
    fn named(path: &str) -> Result<Self> {
        let mut parts = path.splitn(3, ':').map(str::to_owned);
        let mut part = || parts.next().unwrap_or_default();
        let (slice, prefix, name) = (part(), part(), part());
        if name.strip_suffix(".slice").is_some() {
            return Err(Error::unsupported(format!("a container in the slice {name}")));
        }
        let slice = if slice.is_empty() { "system.slice".into() } else { slice };
        let unit = if prefix.is_empty() {
            format!("{name}.scope")
        } else {
            format!("{prefix}-{name}.scope")
        };
        Ok(Self { slice, unit })
    }

    pub fn unit(&self) -> &str {
        &self.unit
    }

    /// Has systemd make it around process `pid`.
    pub fn start(&self, id: &str, pid: i32, resources: Option<&Resources>) -> Result<()> {
        let mut all = vec![
            Property::new("Description", Value::Text(format!("Mooring container {id}"))),
            Property::new("Slice", Value::Text(self.slice.clone())),
            Property::new("Delegate", Value::Flag(true)),
            Property::new("PIDs", Value::Numbers(vec![pid.unsigned_abs()])),
            Property::new("DefaultDependencies", Value::Flag(false)),
            // Nothing of it is to stay, however it ends.
            Property::new("CollectMode", Value::Text("inactive-or-failed".into())),
        ];
        for name in ["CPUAccounting", "IOAccounting", "MemoryAccounting", "TasksAccounting"] {
            all.push(Property::new(name, Value::Flag(true)));
        }
        if let Some(resources) = resources {
            all.extend(properties::of(resources)?);
        }
        let body = || Body::default().text(&self.unit).text("replace").properties(&all).no_units();
        let started = Bus::connect().and_then(|mut bus| {
            let started = bus.job("StartTransientUnit", "ssa(sv)a(sa(sv))", &body());
            match started {
                // One that has failed is kept, unless it is said not to be.
                Err(failed) if failed.is("UnitExists") => {
                    bus.manager("ResetFailedUnit", "s", &Body::default().text(&self.unit))?;
                    bus.job("StartTransientUnit", "ssa(sv)a(sa(sv))", &body())
                }
                other => other,
            }
        });
        started.map_err(failed(format!("start {}", self.unit)))
    }
}

/// Changes the limits of a container's scope.
pub fn update(unit: &str, resources: &Resources) -> Result<()> {
    let all = properties::of(resources)?;
    if all.is_empty() {
        return Ok(());
    }
    // At runtime alone: nothing is written for the next boot.
    let body = Body::default().text(unit).flag(true).properties(&all);
    let set = Bus::connect().and_then(|mut bus| bus.manager("SetUnitProperties", "sba(sv)", &body));
    set.map(drop).map_err(failed(format!("set the limits of {unit}")))
}

/// Has systemd end a scope, and forget it. One that it does not know any more has ended.
pub fn stop(unit: &str) -> Result<()> {
    let stopped = Bus::connect().and_then(|mut bus| {
        match bus.job("StopUnit", "ss", &Body::default().text(unit).text("replace")) {
            Err(failed) if !failed.is("NoSuchUnit") => return Err(failed),
            _ => {}
        }
        match bus.manager("ResetFailedUnit", "s", &Body::default().text(unit)) {
            Err(failed) if !failed.is("NoSuchUnit") => Err(failed),
            _ => Ok(()),
        }
    });
    stopped.map_err(failed(format!("stop {unit}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scope_is_called_as_the_path_of_its_group() {
        for (path, slice, unit) in [
            (
                "kubepods-pod1.slice:cri-containerd:abc",
                "kubepods-pod1.slice",
                "cri-containerd-abc.scope",
            ),
            (":mooring:abc", "system.slice", "mooring-abc.scope"),
            ("-.slice::abc", "-.slice", "abc.scope"),
        ] {
            let scope = Scope::named(path).unwrap();
            assert_eq!((scope.slice.as_str(), scope.unit()), (slice, unit));
            assert!(from_systemd(path).unwrap().ends_with(&format!("/{unit}")));
        }
    }

    #[test]
    fn what_is_not_done_is_refused_by_name() {
        let unified = Hierarchies::read().unwrap().mode() == Mode::Unified;
        for (annotations, said) in [
            (serde_json::json!({}), "control groups made by systemd on cgroup v1"),
            (
                serde_json::json!({"org.systemd.property.CollectMode": "'inactive'"}),
                "annotation \"org.systemd.property.CollectMode\"",
            ),
        ] {
            let spec = serde_json::json!({"ociVersion": "1.2.0", "root": {"path": "x"}, "annotations": annotations, "linux": {}});
            let spec = crate::load::parse(spec.to_string().as_bytes()).unwrap();
            match planned(&spec, "x") {
                Ok((scope, group)) => {
                    assert!(unified && spec.annotations.is_empty());
                    assert!(group.v2.unwrap().ends_with("system.slice/mooring-x.scope"));
                    assert_eq!(scope.unit(), "mooring-x.scope");
                }
                Err(error) if unified => assert!(error.to_string().contains(said), "{error}"),
                Err(error) => assert!(error.to_string().contains("cgroup v1"), "{error}"),
            }
        }
        let error = Scope::named("a.slice:b:c.slice").unwrap_err().to_string();
        assert!(error.contains("slice c.slice"), "{error}");
    }
}
