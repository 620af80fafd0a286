//! containerd's bundles: one folder for each container, and for each sandbox that a shim has.

use std::{
    fs,
    path::{Path, PathBuf},
};

use mooring::sys::socket;
use serde_json::Value;

/// The plugins of containerd that make bundles.
const PLUGINS: [&str; 2] =
    ["io.containerd.runtime.v2.task", "io.containerd.sandbox.controller.v1.shim"];

#[derive(Debug)]
pub struct Bundle {
    pub namespace: String,
    pub id: String,
    pub path: PathBuf,
    /// Whether somebody serves the socket that it names.
    pub is_served: bool,
}

/// All below containerd's volatile folder.
pub fn all(state: &Path) -> Vec<Bundle> {
    let mut all = Vec::new();
    for plugin in PLUGINS {
        for namespace in folders(&state.join(plugin)) {
            for path in folders(&namespace) {
                let name = |path: &Path| Some(path.file_name()?.to_str()?.to_owned());
                let (Some(namespace), Some(id)) = (name(&namespace), name(&path)) else { continue };
                let is_served = address(&path).is_some_and(|path| socket::serves(&path));
                all.push(Bundle { namespace, id, path, is_served });
            }
        }
    }
    all
}

/// The folders in a folder, sorted; none where it is not there.
pub fn folders(at: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(at).into_iter().flatten().flatten();
    let folders = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    let mut all: Vec<PathBuf> = folders.map(|entry| entry.path()).collect();
    all.sort();
    all
}

/// The shim's socket, as containerd writes it down: `bootstrap.json`, or the older `address`.
fn address(bundle: &Path) -> Option<PathBuf> {
    let text = match fs::read(bundle.join("bootstrap.json")) {
        Ok(text) => {
            let value: Value = serde_json::from_slice(&text).ok()?;
            value.get("address")?.as_str()?.to_owned()
        }
        Err(_) => fs::read_to_string(bundle.join("address")).ok()?,
    };
    let text = text.trim();
    Some(PathBuf::from(text.strip_prefix("unix://").unwrap_or(text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_is_served_while_somebody_listens() {
        let state = tempfile::tempdir().unwrap();
        let bundle = state.path().join(PLUGINS[0]).join("ns/a");
        fs::create_dir_all(&bundle).unwrap();
        let path = state.path().join("s");
        let text = format!(r#"{{"version":3,"address":"unix://{}"}}"#, path.display());
        fs::write(bundle.join("bootstrap.json"), text).unwrap();
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let one = &all(state.path())[0];
        assert!(one.is_served && one.namespace == "ns" && one.id == "a", "{one:?}");
        drop(listener);
        assert!(!all(state.path())[0].is_served);
        fs::remove_file(bundle.join("bootstrap.json")).unwrap();
        assert!(!all(state.path())[0].is_served);
    }
}
