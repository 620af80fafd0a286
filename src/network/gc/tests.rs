use std::fs;

use serde_json::Value;

use super::*;
use crate::network::{
    AttachRequest, attach,
    fake::{FakePlugins, Fault},
    plan,
};

async fn node(version: &str, pods: &[&str]) -> (tempfile::TempDir, Settings, FakePlugins) {
    let folder = tempfile::tempdir().unwrap();
    let list =
        json!({"name": "node", "cniVersion": version, "plugins": [{"type": "a"}, {"type": "b"}]});
    fs::write(folder.path().join("1.conflist"), list.to_string()).unwrap();
    let settings = Settings {
        conf_dir: folder.path().to_owned(),
        loopback: false,
        cache_dir: folder.path().join("cni"),
        ..Settings::default()
    };
    let plugins = FakePlugins::default();
    for pod in pods {
        let request = AttachRequest { container_id: (*pod).to_owned(), ..AttachRequest::default() };
        let mut record = plan(&settings, request).unwrap();
        attach(&plugins, &mut record, None).await.unwrap();
    }
    plugins.take_log();
    (folder, settings, plugins)
}

fn valid(call: &crate::network::Call) -> Value {
    call.config["cni.dev/valid-attachments"].clone()
}

#[tokio::test]
async fn gone_pods_are_detached_and_plugins_learn_who_is_left() {
    let (_folder, settings, plugins) = node("1.1.0", &["gone", "kept"]).await;
    let report = gc(&plugins, &settings, Collection::of(&|a| a.container_id == "kept"), None).await;
    assert!(report.errors.is_empty(), "{:?}", report.errors);
    assert_eq!(report.released, [("node".to_owned(), "gone".to_owned(), "eth0".to_owned())]);
    let calls = plugins.calls();
    assert_eq!(plugins.take_log(), ["DEL b", "DEL a", "GC a", "GC b"]);
    for call in &calls[..2] {
        assert_eq!(call.target.as_ref().unwrap().container_id, "gone");
        assert!(call.config.get("prevResult").is_some());
    }
    for call in &calls[2..] {
        assert_eq!(valid(call), json!([{"containerID": "kept", "ifname": "eth0"}]));
        assert!(call.target.is_none());
    }
}

#[tokio::test]
async fn older_networks_know_no_gc() {
    let (_folder, settings, plugins) = node("1.0.0", &["gone"]).await;
    gc(&plugins, &settings, Collection::of(&|_| false), None).await;
    assert_eq!(plugins.take_log(), ["DEL b", "DEL a"]);
}

#[tokio::test]
async fn what_could_not_be_detached_stays_valid() {
    let (_folder, settings, plugins) = node("1.1.0", &["gone"]).await;
    plugins.fail(Operation::Del, "b", &[Fault::Missing]);
    let report = gc(&plugins, &settings, Collection::of(&|_| false), None).await;
    assert!(report.released.is_empty());
    assert_eq!(report.errors.len(), 1);
    let call = plugins.calls().pop().unwrap();
    assert_eq!(valid(&call), json!([{"containerID": "gone", "ifname": "eth0"}]));
    let report = gc(&plugins, &settings, Collection::of(&|_| false), None).await;
    assert_eq!(report.released.len(), 1);
}

#[tokio::test]
async fn an_unreadable_result_keeps_plugins_from_collecting() {
    let (folder, settings, plugins) = node("1.1.0", &["kept"]).await;
    fs::write(folder.path().join("cni/results/node-torn-eth0"), "{").unwrap();
    let report = gc(&plugins, &settings, Collection::of(&|_| true), None).await;
    assert_eq!(report.errors.len(), 1);
    assert!(plugins.take_log().is_empty());
}

#[tokio::test]
async fn without_configuration_gone_pods_are_detached_all_the_same() {
    let (folder, settings, plugins) = node("1.1.0", &["gone"]).await;
    fs::remove_file(folder.path().join("1.conflist")).unwrap();
    let report = gc(&plugins, &settings, Collection::of(&|_| false), None).await;
    assert_eq!(report.released.len(), 1);
    assert_eq!(plugins.take_log(), ["DEL b", "DEL a"]);
}

#[tokio::test]
async fn what_a_journal_alone_knows_is_valid_and_other_networks_are_not_told() {
    let (_folder, settings, plugins) = node("1.1.0", &["kept"]).await;
    let journaled = ["kept", "journaled"].map(|id| ("node".into(), id.into(), "eth0".into()));
    let all = Collection { valid: &journaled, ..Collection::of(&|_| true) };
    gc(&plugins, &settings, all, None).await;
    let both = ["journaled", "kept"].map(|id| json!({"containerID": id, "ifname": "eth0"}));
    assert_eq!(valid(&plugins.calls()[0]), json!(both));
    assert_eq!(plugins.take_log(), ["GC a", "GC b"]);
    let none = Collection { is_told: &|name| name != "node", ..all };
    gc(&plugins, &settings, none, None).await;
    assert!(plugins.take_log().is_empty());
}
