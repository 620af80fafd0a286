//! What a plugin asks to be different about a container that is being created, done to its specification.

use serde_json::{Map, Value, json};
use thiserror::Error;

use super::api::{
    ContainerAdjustment, Hook, Hooks, LinuxDevice, LinuxResources, Mount, POSIXRlimit,
};
use super::{
    claims::{Claims, Field, Taken},
    resources::{device_rule, limits},
};

/// An adjustment that is not made.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Refused {
    #[error("it asks for {0}, which Mooring does not adjust")]
    NotDone(String),
    #[error(transparent)]
    Taken(#[from] Taken),
    #[error("it asks for {what} without {part}")]
    Incomplete { what: &'static str, part: &'static str },
}

/// Adjusts `spec` as `plugin` asks. What was set by another plugin before, by `claims`, is an error; so is everything that
/// is not done. After an error the specification is good for nothing.
pub(super) fn apply(
    spec: &mut Value,
    adjust: &ContainerAdjustment,
    plugin: &str,
    claims: &mut Claims,
) -> Result<(), Refused> {
    supported(adjust)?;
    let mut by = By { plugin, claims };
    by.table(spec, Field::Annotation, &["annotations"], &adjust.annotations)?;
    by.environment(spec, adjust)?;
    by.arguments(spec, &adjust.args)?;
    by.mounts(spec, &adjust.mounts)?;
    if let Some(hooks) = adjust.hooks.as_ref() {
        by.hooks(spec, hooks)?;
    }
    by.rlimits(spec, &adjust.rlimits)?;
    let Some(linux) = adjust.linux.as_ref() else { return Ok(()) };
    by.devices(spec, &linux.devices)?;
    if let Some(resources) = linux.resources.as_ref() {
        by.resources(spec, resources)?;
    }
    if !linux.cgroups_path.is_empty() {
        let path = json!(linux.cgroups_path);
        by.value(spec, Field::CgroupsPath, &["linux", "cgroupsPath"], path)?;
    }
    if let Some(score) = linux.oom_score_adj.as_ref() {
        let place = ["process", "oomScoreAdj"];
        by.value(spec, Field::OomScoreAdj, &place, json!(score.value))?;
    }
    by.table(spec, Field::Sysctl, &["linux", "sysctl"], &linux.sysctl)
}

/// Names the first thing asked for that is not done. It would be ignored by an OCI runtime that is older than it, or needs
/// what Mooring has not: CDI's and classes' configuration.
fn supported(adjust: &ContainerAdjustment) -> Result<(), Refused> {
    let mut wanted = vec![("CDI_devices", !adjust.cdi_devices.is_empty())];
    let mut unknown = adjust
        .special_fields
        .unknown_fields()
        .iter()
        .next()
        .map(|(number, _)| format!("field {number} of ContainerAdjustment"));
    if let Some(linux) = adjust.linux.as_ref() {
        wanted.extend([
            ("linux.io_priority", linux.io_priority.is_some()),
            ("linux.seccomp_policy", linux.seccomp_policy.is_some()),
            ("linux.namespaces", !linux.namespaces.is_empty()),
            ("linux.net_devices", !linux.net_devices.is_empty()),
            ("linux.scheduler", linux.scheduler.is_some()),
            ("linux.rdt", linux.rdt.is_some()),
            ("linux.memory_policy", linux.memory_policy.is_some()),
        ]);
        if let Some((number, _)) = linux.special_fields.unknown_fields().iter().next() {
            unknown.get_or_insert(format!("field {number} of LinuxContainerAdjustment"));
        }
        if let Some(resources) = linux.resources.as_ref() {
            wanted.extend([
                ("linux.resources.blockio_class", resources.blockio_class.is_some()),
                ("linux.resources.rdt_class", resources.rdt_class.is_some()),
            ]);
            if let Some((number, _)) = resources.special_fields.unknown_fields().iter().next() {
                unknown.get_or_insert(format!("field {number} of LinuxResources"));
            }
        }
    }
    let named = wanted.into_iter().find(|(_, is_wanted)| *is_wanted);
    match named.map(|(name, _)| name.to_owned()).or(unknown) {
        Some(name) => Err(Refused::NotDone(name)),
        None => Ok(()),
    }
}

/// The name in a key, and whether it is marked to be removed.
fn unmarked(key: &str) -> (&str, bool) {
    key.strip_prefix('-').map_or((key, false), |name| (name, true))
}

/// The place in a document, made where there is none.
fn at<'a>(document: &'a mut Value, place: &[&str]) -> &'a mut Value {
    let mut value = document;
    for key in place {
        if !value.is_object() {
            *value = Value::Object(Map::new());
        }
        value = &mut value[*key];
    }
    value
}

fn edit_list(spec: &mut Value, place: &[&str], edit: impl FnOnce(&mut Vec<Value>)) {
    let value = at(spec, place);
    let mut list = match value.take() {
        Value::Array(list) => list,
        _ => Vec::new(),
    };
    edit(&mut list);
    *value = Value::Array(list);
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// One plugin's adjustments.
struct By<'a> {
    plugin: &'a str,
    claims: &'a mut Claims,
}

impl By<'_> {
    fn value(
        &mut self,
        spec: &mut Value,
        field: Field,
        place: &[&str],
        value: Value,
    ) -> Result<(), Refused> {
        self.claims.claim(field, "", self.plugin)?;
        *at(spec, place) = value;
        Ok(())
    }

    /// Removes what is marked, then sets the rest: what is both is replaced.
    fn table<'a>(
        &mut self,
        spec: &mut Value,
        field: Field,
        place: &[&str],
        entries: impl IntoIterator<Item = (&'a String, &'a String)>,
    ) -> Result<(), Refused> {
        let (removed, set): (Vec<_>, Vec<_>) =
            entries.into_iter().partition(|(key, _)| unmarked(key).1);
        if removed.is_empty() && set.is_empty() {
            return Ok(());
        }
        let value = at(spec, place);
        let mut table = match value.take() {
            Value::Object(table) => table,
            _ => Map::new(),
        };
        for (key, _) in removed {
            let key = unmarked(key).0;
            self.claims.clear(field, key);
            table.remove(key);
        }
        for (key, value) in set {
            self.claims.claim(field, key, self.plugin)?;
            table.insert(key.clone(), json!(value));
        }
        *value = Value::Object(table);
        Ok(())
    }

    fn environment(
        &mut self,
        spec: &mut Value,
        adjust: &ContainerAdjustment,
    ) -> Result<(), Refused> {
        if adjust.env.is_empty() {
            return Ok(());
        }
        for key in adjust.env.iter().filter_map(|one| one.key.strip_prefix('-')) {
            self.claims.clear(Field::Env, key);
        }
        // The last value of a variable counts.
        let mut set: Vec<(&str, &str)> = Vec::new();
        for one in adjust.env.iter().filter(|one| !unmarked(&one.key).1) {
            self.claims.claim(Field::Env, &one.key, self.plugin)?;
            set.retain(|(key, _)| *key != one.key);
            set.push((&one.key, &one.value));
        }
        let is_named = |key: &str| adjust.env.iter().any(|one| unmarked(&one.key).0 == key);
        let written = |(key, value): (&str, &str)| json!(format!("{key}={value}"));
        edit_list(spec, &["process", "env"], |all| {
            // A variable that is set anew stays where it was.
            all.retain_mut(|variable| {
                let text = variable.as_str().unwrap_or_default();
                let key = text.split_once('=').map_or(text, |(key, _)| key);
                if !is_named(key) {
                    return true;
                }
                let Some(index) = set.iter().position(|(one, _)| *one == key) else { return false };
                *variable = written(set.remove(index));
                true
            });
            all.extend(set.into_iter().map(written));
        });
        Ok(())
    }

    fn arguments(&mut self, spec: &mut Value, args: &[String]) -> Result<(), Refused> {
        let args = match args {
            [] => return Ok(()),
            // Others' may be replaced.
            [first, rest @ ..] if first.is_empty() => {
                self.claims.clear(Field::Args, "");
                rest
            }
            args => args,
        };
        self.value(spec, Field::Args, &["process", "args"], json!(args))
    }

    fn mounts(&mut self, spec: &mut Value, mounts: &[Mount]) -> Result<(), Refused> {
        if mounts.is_empty() {
            return Ok(());
        }
        let same =
            |one: &str, other: &str| one.trim_end_matches('/') == other.trim_end_matches('/');
        for mount in mounts {
            let (destination, is_removed) = unmarked(&mount.destination);
            if is_removed {
                self.claims.clear(Field::Mount, destination.trim_end_matches('/'));
            }
        }
        let mut propagation = "";
        for mount in mounts.iter().filter(|one| !unmarked(&one.destination).1) {
            if mount.destination.is_empty() {
                return Err(Refused::Incomplete { what: "a mount", part: "destination" });
            }
            let key = mount.destination.trim_end_matches('/');
            self.claims.claim(Field::Mount, key, self.plugin)?;
            for option in &mount.options {
                match option.as_str() {
                    "rshared" | "shared" => propagation = "rshared",
                    "rslave" | "slave" if propagation.is_empty() => propagation = "rslave",
                    _ => {}
                }
            }
        }
        edit_list(spec, &["mounts"], |all| {
            let is_named =
                |path: &str| mounts.iter().any(|one| same(unmarked(&one.destination).0, path));
            all.retain(|one| !is_named(text(one, "destination")));
            let mut set: Vec<&Mount> = Vec::new();
            for mount in mounts.iter().filter(|one| !unmarked(&one.destination).1) {
                // The last one of a destination counts.
                set.retain(|one| !same(&one.destination, &mount.destination));
                set.push(mount);
            }
            all.extend(set.into_iter().map(oci_mount));
            // What lies below another mount is mounted after it.
            all.sort_by_key(|one| {
                text(one, "destination").split('/').filter(|part| !part.is_empty()).count()
            });
        });
        let now = spec.pointer("/linux/rootfsPropagation").and_then(Value::as_str);
        let is_enough = matches!(
            (now, propagation),
            (Some("rshared" | "shared"), _) | (Some("rslave" | "slave"), "rslave")
        );
        // A mount propagates only where the root that it is in lets it.
        if !propagation.is_empty() && !is_enough {
            *at(spec, &["linux", "rootfsPropagation"]) = json!(propagation);
        }
        Ok(())
    }

    fn hooks(&mut self, spec: &mut Value, hooks: &Hooks) -> Result<(), Refused> {
        let moments = [
            ("prestart", &hooks.prestart),
            ("createRuntime", &hooks.create_runtime),
            ("createContainer", &hooks.create_container),
            ("startContainer", &hooks.start_container),
            ("poststart", &hooks.poststart),
            ("poststop", &hooks.poststop),
        ];
        for (moment, hooks) in moments.into_iter().filter(|(_, hooks)| !hooks.is_empty()) {
            if hooks.iter().any(|hook| hook.path.is_empty()) {
                return Err(Refused::Incomplete { what: "a hook", part: "path" });
            }
            self.claims.note(Field::Hooks, self.plugin);
            edit_list(spec, &["hooks", moment], |all| all.extend(hooks.iter().map(oci_hook)));
        }
        Ok(())
    }

    fn rlimits(&mut self, spec: &mut Value, rlimits: &[POSIXRlimit]) -> Result<(), Refused> {
        for limit in rlimits {
            self.claims.claim(Field::Rlimit, &limit.type_, self.plugin)?;
            edit_list(spec, &["process", "rlimits"], |all| {
                all.retain(|one| text(one, "type") != limit.type_);
                all.push(json!({"type": limit.type_, "hard": limit.hard, "soft": limit.soft}));
            });
        }
        Ok(())
    }

    fn devices(&mut self, spec: &mut Value, devices: &[LinuxDevice]) -> Result<(), Refused> {
        for path in devices.iter().filter_map(|device| device.path.strip_prefix('-')) {
            self.claims.clear(Field::Device, path);
            remove_device(spec, path);
        }
        for device in devices.iter().filter(|device| !unmarked(&device.path).1) {
            if device.path.is_empty() {
                return Err(Refused::Incomplete { what: "a device", part: "path" });
            }
            self.claims.claim(Field::Device, &device.path, self.plugin)?;
            remove_device(spec, &device.path);
            edit_list(spec, &["linux", "devices"], |all| all.push(oci_device(device)));
            let rule = json!({
                "allow": true, "type": device.type_, "major": device.major, "minor": device.minor,
                "access": access(device),
            });
            edit_list(spec, &["linux", "resources", "devices"], |all| add_once(all, rule));
        }
        Ok(())
    }

    fn resources(&mut self, spec: &mut Value, wanted: &LinuxResources) -> Result<(), Refused> {
        for limit in limits(wanted) {
            let [part, key] = limit.place;
            self.value(spec, limit.field, &["linux", "resources", part, key], limit.value)?;
        }
        for page in &wanted.hugepage_limits {
            self.claims.claim(Field::HugepageLimit, &page.page_size, self.plugin)?;
            edit_list(spec, &["linux", "resources", "hugepageLimits"], |all| {
                all.retain(|one| text(one, "pageSize") != page.page_size);
                all.push(json!({"pageSize": page.page_size, "limit": page.limit}));
            });
        }
        for rule in &wanted.devices {
            let place = ["linux", "resources", "devices"];
            edit_list(spec, &place, |all| add_once(all, device_rule(rule)));
        }
        let place = ["linux", "resources", "unified"];
        self.table(spec, Field::Unified, &place, &wanted.unified)
    }
}

fn add_once(all: &mut Vec<Value>, value: Value) {
    if !all.contains(&value) {
        all.push(value);
    }
}

fn remove_device(spec: &mut Value, path: &str) {
    if let Some(devices) = spec.pointer_mut("/linux/devices").and_then(Value::as_array_mut) {
        devices.retain(|one| text(one, "path") != path);
    }
}

fn oci_mount(mount: &Mount) -> Value {
    let mut value =
        json!({"destination": mount.destination, "source": mount.source, "options": mount.options});
    if !mount.type_.is_empty() {
        value["type"] = json!(mount.type_);
    }
    value
}

fn oci_hook(hook: &Hook) -> Value {
    let mut value = json!({"path": hook.path, "args": hook.args, "env": hook.env});
    if let Some(timeout) = hook.timeout.as_ref() {
        value["timeout"] = json!(timeout.value);
    }
    value
}

fn oci_device(device: &LinuxDevice) -> Value {
    let mut value = json!({
        "path": device.path, "type": device.type_, "major": device.major, "minor": device.minor,
    });
    let given = [("fileMode", &device.file_mode), ("uid", &device.uid), ("gid", &device.gid)];
    for (key, number) in given {
        if let Some(number) = number.as_ref() {
            value[key] = json!(number.value);
        }
    }
    value
}

/// What the container may do with a device that it is given: read and write, where its mode lets anybody, and make nodes of
/// block devices.
fn access(device: &LinuxDevice) -> String {
    let mode = device.file_mode.as_ref().map_or(0o666, |mode| mode.value);
    let letters = [("r", mode & 0o444 != 0), ("w", mode & 0o222 != 0), ("m", device.type_ == "b")];
    letters.into_iter().filter(|(_, may)| *may).map(|(letter, _)| letter).collect()
}

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
