//! An OCI specification: of a sandbox, and of a container that is to come into one.

use std::{fs, os::unix::fs::symlink, path::Path};

use mooring::{
    error::{Code, Coded},
    id::Id,
    mounts::{files::FilesRecord, label, pod_files},
    sandbox::{
        config::{PodConfig, Scope},
        namespaces,
    },
    volumes::{
        image_mount,
        volume::{self, ImageVolumeRecord},
    },
};
use serde_json::Value;

use crate::{pod, scratch};

pub fn oci_spec(input: &[u8]) {
    let folder = scratch::folder();
    let bundle = folder.join("bundle");
    scratch::write(&bundle.join("config.json"), input);
    let config = match PodConfig::read(None, &bundle) {
        Ok(config) => {
            pod::is_safe(&config);
            Some(config)
        }
        Err(error) => {
            assert_eq!(error.code(), Code::InvalidArgument, "{error}");
            None
        }
    };
    let Ok(document) = serde_json::from_slice::<Value>(input) else { return };
    let path = document.pointer("/linux/cgroupsPath").and_then(Value::as_str);
    pod::cgroup_stays_inside(path.unwrap_or_default());
    let _ = label::mount_label(&document);
    if let Some(config) = &config {
        no_way_to_the_node(&document, config);
    }
    files_are_added_once(document.clone());
    images_stay_inside(document);
}

/// What is let pass leads to no namespace of the node's that the pod was not created with.
fn no_way_to_the_node(document: &Value, config: &PodConfig) {
    if namespaces::check(document, config).is_err() {
        return;
    }
    let all = document.pointer("/linux/namespaces").and_then(Value::as_array);
    for namespace in all.into_iter().flatten() {
        let text = |key: &str| namespace.get(key).and_then(Value::as_str).unwrap_or_default();
        let (file, may) = match text("type") {
            "network" => ("net", config.host_network),
            "uts" => ("uts", !config.own_uts),
            "ipc" => ("ipc", config.ipc == Scope::Node),
            "pid" => ("pid", config.pid == Scope::Node),
            "user" => ("user", config.user.is_none()),
            "mount" => ("mnt", false),
            "cgroup" => ("cgroup", false),
            "time" => ("time", false),
            other => panic!("{other:?} is no kind of namespace"),
        };
        if text("path").is_empty() || may {
            continue;
        }
        let nodes = fs::canonicalize(format!("/proc/self/ns/{file}")).ok();
        let given = fs::canonicalize(text("path")).ok();
        assert!(given.is_some() && given != nodes, "{namespace} is the node's");
    }
}

/// Whatever mounts there are, the pod's files are added at most once, and nothing is lost.
fn files_are_added_once(mut document: Value) {
    let files = FilesRecord::in_dir("/run/mooring/ns/pod".as_ref());
    let files = pod_files::PodFiles::of(&files, None);
    let before = document.clone();
    if pod_files::add_pod_files(&mut document, &files).is_err() {
        assert!(
            before.get("mounts").is_some_and(|mounts| !mounts.is_array()) || !before.is_object()
        );
        return;
    }
    let once = document.clone();
    let added = pod_files::add_pod_files(&mut document, &files).expect("it was possible before");
    assert!(added.is_empty() && document == once, "added a second time: {added:?}");
}

/// No image volume leads out of its image, and none is left to the OCI runtime.
fn images_stay_inside(mut document: Value) {
    let Ok(found) = image_mount::find(&document) else { return };
    let (folder, pod) = (scratch::folder(), Id::new("pod").expect("an id"));
    for image in found {
        let record = ImageVolumeRecord::plan(&folder, &pod, &image.reference, None, None);
        assert!(record.target.starts_with(folder.join("images")));
        scratch::write(&record.target.join("a/file"), b"");
        for (link, to) in [("out", "/etc"), ("up", "../../.."), ("in", "a")] {
            // There already where two volumes are of one image.
            let _ = symlink(to, record.target.join(link));
        }
        if let Ok(path) = volume::resolve(&record, image.sub_path.as_deref()) {
            let real = fs::canonicalize(&path).expect("it was found");
            let root = fs::canonicalize(&record.target).expect("it was made");
            assert!(real.starts_with(root), "{} leads to {}", path.display(), real.display());
        }
    }
    let replaced = image_mount::replace(&mut document, |_| Ok(Path::new("/volume").to_owned()));
    if replaced.is_ok() {
        assert!(image_mount::find(&document).is_ok_and(|left| left.is_empty()));
    }
}
