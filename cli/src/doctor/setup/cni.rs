//! CNI's configurations and the plugins that they name.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use mooring::{
    network::{self, NetworkList, Settings},
    options::NetworkOwner,
};
use serde_json::Value;
use toml_edit::Item;

use super::{Remark, Setup, is_program};

const PART: &str = "cni";

pub fn remarks(setup: &Setup<'_>) -> Vec<Remark> {
    let mut all = Vec::new();
    let mut seen = Vec::new();
    let of_shims = setup.options.iter().filter(|one| one.network_owner != NetworkOwner::Client);
    let of_shims = of_shims.map(|one| ("pods that shims network", one.network.clone()));
    for (whose, settings) in of_cri(setup).into_iter().chain(of_shims) {
        let known = (settings.conf_dir.clone(), settings.bin_dirs.clone());
        if !seen.contains(&known) {
            all.extend(judge(whose, &settings));
            seen.push(known);
        }
    }
    all
}

/// CRI's own, where its configuration has them.
fn of_cri(setup: &Setup<'_>) -> Vec<(&'static str, Settings)> {
    let plugins = ["io.containerd.cri.v1.runtime", "io.containerd.grpc.v1.cri"];
    let all = plugins.iter().filter_map(|plugin| {
        let item = |key| setup.config.item(&["plugins", plugin, "cni", key]);
        let conf_dir = item("conf_dir").and_then(Item::as_str).map(PathBuf::from);
        let bin_dirs: Vec<PathBuf> = match item("bin_dirs").and_then(Item::as_array) {
            Some(list) => list.iter().filter_map(|one| Some(one.as_str()?.into())).collect(),
            None => item("bin_dir").and_then(Item::as_str).map(PathBuf::from).into_iter().collect(),
        };
        if conf_dir.is_none() && bin_dirs.is_empty() {
            return None;
        }
        let usual = Settings::default();
        let bin_dirs = if bin_dirs.is_empty() { vec!["/opt/cni/bin".into()] } else { bin_dirs };
        let conf_dir = conf_dir.unwrap_or_else(|| usual.conf_dir.clone());
        Some(("pods of CRI", Settings { conf_dir, bin_dirs, ..usual }))
    });
    all.collect()
}

fn judge(whose: &str, settings: &Settings) -> Vec<Remark> {
    let place = settings.conf_dir.display();
    match network::load(settings) {
        Err(error) => vec![
            Remark::problem(PART, format!("{whose}: {error}"))
                .remedy(format!("have a network configured in {place}")),
        ],
        Ok(lists) => lists.iter().map(|list| of_list(whose, list, settings)).collect(),
    }
}

fn of_list(whose: &str, list: &NetworkList, settings: &Settings) -> Remark {
    let name = list.name();
    let missing: Vec<String> = plugins(list)
        .into_iter()
        .filter(|kind| {
            !settings.bin_dirs.iter().any(|folder| is_program(&folder.join(Path::new(kind))))
        })
        .collect();
    if missing.is_empty() {
        return Remark::good(PART, format!("{whose}: network {name:?}, its plugins are there"));
    }
    let folders: Vec<String> =
        settings.bin_dirs.iter().map(|one| one.display().to_string()).collect();
    let what = format!("{whose}: network {name:?}: no plugin {}", missing.join(", "));
    Remark::problem(PART, what).remedy(format!("put it into {}", folders.join(" or ")))
}

/// The programs that a network needs, its IPAM plugins' among them.
fn plugins(list: &NetworkList) -> BTreeSet<String> {
    let mut all: BTreeSet<String> = list.plugin_types().map(str::to_owned).collect();
    let document = list.document().get("plugins").and_then(Value::as_array);
    let ipam = document.into_iter().flatten().filter_map(|plugin| plugin.pointer("/ipam/type"));
    all.extend(ipam.filter_map(|kind| Some(kind.as_str()?.to_owned())));
    all
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::doctor::setup::Level;

    #[test]
    fn a_plugin_that_is_not_there_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let settings = Settings {
            conf_dir: folder.path().to_owned(),
            bin_dirs: vec![folder.path().to_owned()],
            ..Settings::default()
        };
        assert_eq!(judge("pods", &settings)[0].level, Level::Problem, "no configuration");
        let list = r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"a","ipam":{"type":"b"}},{"type":"c"}]}"#;
        fs::write(folder.path().join("1.conflist"), list).unwrap();
        for name in ["a", "c"] {
            fs::write(folder.path().join(name), "").unwrap();
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
            fs::set_permissions(folder.path().join(name), mode).unwrap();
        }
        let said = judge("pods", &settings);
        assert!(
            said[0].level == Level::Problem && said[0].what.ends_with("no plugin b"),
            "{said:?}"
        );
        fs::copy(folder.path().join("a"), folder.path().join("b")).unwrap();
        assert_eq!(judge("pods", &settings)[0].level, Level::Good);
    }
}
