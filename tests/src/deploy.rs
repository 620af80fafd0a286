//! What is applied to a cluster is what Kubernetes' own types have: a field that they do not know is refused, not
//! dropped without a word as an API server does.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use k8s_openapi::api::{apps, core, node};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn read(path: &Path) -> Value {
    let text = fs::read_to_string(path).unwrap();
    serde_yaml_ng::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Whether the type reads the object and has all of it.
fn is<T: DeserializeOwned + Serialize>(object: &Value) -> Result<(), String> {
    let typed: T = serde_json::from_value(object.clone()).map_err(|error| error.to_string())?;
    let again = serde_json::to_value(typed).unwrap();
    if again == *object { Ok(()) } else { Err(format!("{object}\nis taken for\n{again}")) }
}

/// Whether Kubernetes has such an object.
fn check(object: &Value) -> Result<(), String> {
    let named = |key: &str| object[key].as_str().unwrap_or_default();
    match (named("apiVersion"), named("kind")) {
        ("apps/v1", "DaemonSet") => is::<apps::v1::DaemonSet>(object),
        ("node.k8s.io/v1", "RuntimeClass") => is::<node::v1::RuntimeClass>(object),
        ("v1", "Namespace") => is::<core::v1::Namespace>(object),
        ("v1", "Pod") => is::<core::v1::Pod>(object),
        ("v1", "ServiceAccount") => is::<core::v1::ServiceAccount>(object),
        (version, kind) => Err(format!("this test does not know {kind} of {version}")),
    }
}

/// The YAML files of a folder.
fn files(folder: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(root().join(folder)).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.extension().is_some_and(|extension| extension == "yaml")).collect()
}

#[test]
fn every_object_is_as_kubernetes_types_have_it() {
    let mut seen = 0;
    for path in ["deploy/node", "examples"].into_iter().flat_map(files) {
        if path.ends_with("kustomization.yaml") {
            continue;
        }
        check(&read(&path)).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        seen += 1;
    }
    assert!(seen >= 5, "only {seen} objects were looked at");
}

#[test]
fn an_unknown_field_and_a_wrong_type_are_noticed() {
    let good = read(&root().join("deploy/node/daemonset.yaml"));
    check(&good).unwrap();
    let spec = "/spec/template/spec";
    for (at, wrong) in [
        (format!("{spec}/hostPid"), Value::Bool(true)),
        (format!("{spec}/initContainers/0/volumeMounts/0/path"), "/host".into()),
        (format!("{spec}/terminationGracePeriodSeconds"), "5".into()),
    ] {
        let mut bad = good.clone();
        let (parent, key) = at.rsplit_once('/').unwrap();
        bad.pointer_mut(parent).unwrap()[key] = wrong;
        assert!(check(&bad).is_err(), "{at} was not noticed");
    }
}

#[test]
fn the_kustomization_has_every_object_and_the_image_that_is_made() {
    let folder = root().join("deploy/node");
    let list = read(&folder.join("kustomization.yaml"));
    let names = list["resources"].as_array().unwrap().iter().map(|one| one.as_str().unwrap());
    let listed: BTreeSet<PathBuf> = names.map(|name| folder.join(name)).collect();
    let mut there: BTreeSet<PathBuf> = files("deploy/node").into_iter().collect();
    there.remove(&folder.join("kustomization.yaml"));
    assert_eq!(listed, there);
    let image = &list["images"][0];
    assert_eq!(image["newTag"], env!("CARGO_PKG_VERSION"));
    let set = read(&folder.join("daemonset.yaml"));
    assert_eq!(set["spec"]["template"]["spec"]["initContainers"][0]["image"], image["name"]);
}

#[test]
fn the_uninstallation_changes_the_same_container_of_the_same_set() {
    let set = read(&root().join("deploy/node/daemonset.yaml"));
    let patch = read(&root().join("deploy/uninstall/daemonset.yaml"));
    for at in ["/apiVersion", "/kind", "/metadata/name", "/metadata/namespace"] {
        assert_eq!(set.pointer(at), patch.pointer(at), "{at}");
    }
    let container = "/spec/template/spec/initContainers/0";
    let [set, patch] = [set, patch].map(|object| object.pointer(container).unwrap().clone());
    assert_eq!(set["name"], patch["name"]);
    let [installs, uninstalls] = [set, patch].map(|one| one["args"].as_array().unwrap().clone());
    assert_eq!((&installs[0], &uninstalls[0]), (&"install".into(), &"uninstall".into()));
    assert_eq!(installs[1..], uninstalls[1..]);
}

#[test]
fn what_the_kind_cluster_mounts_is_there_or_is_built() {
    let cluster = read(&root().join("deploy/kind.yaml"));
    let nodes = cluster["nodes"].as_array().unwrap();
    let mounts = nodes.iter().flat_map(|node| node["extraMounts"].as_array().unwrap());
    let paths: Vec<&str> = mounts.map(|mount| mount["hostPath"].as_str().unwrap()).collect();
    assert!(paths.contains(&"target/dist/containerd-shim-mooring-v1"), "{paths:?}");
    for path in paths.into_iter().filter(|path| !path.starts_with("target/")) {
        assert!(root().join(path).exists(), "{path} is not there");
    }
}
