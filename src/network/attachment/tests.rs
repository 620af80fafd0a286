use std::fs;

use serde_json::json;

use super::*;
use crate::{
    error::{Code, Coded},
    network::{
        AttachRequest, NetworkList,
        fake::{FakePlugins, Fault},
        plan,
    },
};

/// A node with configurations of its own, and the pod that is attached there.
struct Node {
    folder: tempfile::TempDir,
    plugins: FakePlugins,
    record: AttachmentRecord,
}

impl Node {
    fn new(lists: &[Value]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let conf_dir = folder.path().join("net.d");
        fs::create_dir(&conf_dir).unwrap();
        for (index, list) in lists.iter().enumerate() {
            fs::write(conf_dir.join(format!("{index}.conflist")), list.to_string()).unwrap();
        }
        let settings = Settings {
            conf_dir,
            max_conf_num: 0,
            loopback: false,
            cache_dir: folder.path().join("cni"),
            ..Settings::default()
        };
        let request = AttachRequest {
            container_id: "pod1".to_owned(),
            netns: "/run/netns/x".into(),
            args: super::super::kubernetes_args("ns", "name", "uid", "pod1"),
            capabilities: json!({"portMappings": [{"hostPort": 80}], "dns": {}})
                .as_object()
                .unwrap()
                .clone(),
        };
        let record = plan(&settings, request).unwrap();
        Self { folder, plugins: FakePlugins::default(), record }
    }

    /// One network with three plugins.
    fn with_one() -> Self {
        Self::new(&[list("node", "1.0.0", &["bridge", "portmap", "tuning"])])
    }

    /// Three networks with one plugin each.
    fn with_three() -> Self {
        Self::new(&["one", "two", "three"].map(|name| list(name, "1.0.0", &[name])))
    }

    async fn attach(&mut self) -> Result<AddResult, Error> {
        attach(&self.plugins, &mut self.record, None).await
    }

    async fn detach(&self) -> Result<Released, Error> {
        detach(&self.plugins, &self.record, true, None).await
    }

    fn cached(&self) -> Vec<String> {
        let Ok(files) = fs::read_dir(self.folder.path().join("cni/results")) else {
            return Vec::new();
        };
        let mut names: Vec<_> =
            files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn outcomes(&self) -> Vec<Outcome> {
        self.record.networks.iter().map(|network| network.outcome).collect()
    }

    fn cache_file(&self) -> PathBuf {
        self.folder.path().join("cni/results/node-pod1-eth0")
    }
}

fn list(name: &str, version: &str, plugins: &[&str]) -> Value {
    let plugins: Vec<_> = plugins
        .iter()
        .map(|kind| json!({"type": kind, "capabilities": {"portMappings": *kind == "portmap"}}))
        .collect();
    json!({"name": name, "cniVersion": version, "plugins": plugins})
}

fn interfaces(result: &Value) -> Vec<&str> {
    let all = result["interfaces"].as_array().unwrap();
    all.iter().map(|interface| interface["name"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn add_goes_in_order_and_hands_each_result_on() {
    let mut node = Node::with_one();
    let added = node.attach().await.unwrap();
    let calls = node.plugins.calls();
    let previous: Vec<_> = calls.iter().map(|call| call.config.get("prevResult")).collect();
    assert_eq!(previous[0], None);
    assert_eq!(interfaces(previous[1].unwrap()), ["bridge"]);
    assert_eq!(interfaces(previous[2].unwrap()), ["bridge", "portmap"]);
    assert_eq!(interfaces(&added.networks[0].result), ["bridge", "portmap", "tuning"]);
    assert_eq!(added.ips(), ["192.0.2.7".parse::<std::net::IpAddr>().unwrap()]);
    assert_eq!(node.plugins.take_log(), ["ADD bridge", "ADD portmap", "ADD tuning"]);
    assert_eq!(node.outcomes(), [Outcome::Added]);
    assert_eq!(node.cached(), ["node-pod1-eth0"]);
}

#[tokio::test]
async fn del_goes_in_reverse_with_the_result_of_the_add() {
    let mut node = Node::with_one();
    node.attach().await.unwrap();
    node.plugins.take_log();
    assert_eq!(node.detach().await.unwrap(), Released::Done);
    for call in node.plugins.calls() {
        assert_eq!(interfaces(&call.config["prevResult"]), ["bridge", "portmap", "tuning"]);
        let target = call.target.unwrap();
        assert_eq!(target.netns, PathBuf::from("/run/netns/x"));
        assert_eq!(target.ifname, "eth0");
        assert!(target.args.contains(&("K8S_POD_NAME".to_owned(), "name".to_owned())));
    }
    assert_eq!(node.plugins.take_log(), ["DEL tuning", "DEL portmap", "DEL bridge"]);
    assert!(node.cached().is_empty());
}

#[tokio::test]
async fn only_the_plugin_that_declares_a_capability_is_told() {
    let mut node = Node::with_one();
    node.attach().await.unwrap();
    node.detach().await.unwrap();
    for call in node.plugins.calls() {
        let told = call.config.get("runtimeConfig");
        if call.plugin == "portmap" {
            assert_eq!(told, Some(&json!({"portMappings": [{"hostPort": 80}]})));
        } else {
            assert_eq!(told, None, "{}", call.plugin);
        }
    }
}

#[tokio::test]
async fn old_plugins_get_no_result_at_del() {
    let mut node = Node::new(&[list("node", "0.3.1", &["bridge"])]);
    node.attach().await.unwrap();
    node.detach().await.unwrap();
    assert_eq!(node.plugins.calls()[1].config.get("prevResult"), None);
}

#[tokio::test]
async fn a_second_del_is_success() {
    let mut node = Node::with_one();
    node.attach().await.unwrap();
    node.detach().await.unwrap();
    node.plugins.take_log();
    node.detach().await.unwrap();
    // The record's own copy of the result serves where the cached one is gone.
    for call in node.plugins.calls() {
        assert_eq!(interfaces(&call.config["prevResult"]).len(), 3);
    }
    assert_eq!(node.plugins.take_log().len(), 3);
}

#[tokio::test]
async fn a_closed_namespace_is_an_empty_path() {
    let mut node = Node::with_one();
    node.attach().await.unwrap();
    node.plugins.take_log();
    detach(&node.plugins, &node.record, false, None).await.unwrap();
    for call in node.plugins.calls() {
        assert_eq!(call.target.unwrap().netns, PathBuf::new());
    }
}

#[tokio::test]
async fn a_plugin_that_misses_a_closed_namespace_is_forgiven() {
    let mut node = Node::with_one();
    node.attach().await.unwrap();
    let fault = [Fault::Reported(100, "open netns: no such file or directory")];
    node.plugins.fail(Operation::Del, "portmap", &fault);
    detach(&node.plugins, &node.record, false, None).await.unwrap();
    node.plugins.fail(Operation::Del, "portmap", &fault);
    assert!(node.detach().await.is_err(), "not while the namespace is there");
}

#[tokio::test]
async fn del_does_not_need_the_configuration() {
    let mut node = Node::with_one();
    node.attach().await.unwrap();
    node.plugins.take_log();
    fs::remove_dir_all(node.folder.path().join("net.d")).unwrap();
    node.detach().await.unwrap();
    assert_eq!(node.plugins.take_log(), ["DEL tuning", "DEL portmap", "DEL bridge"]);
}

#[tokio::test]
async fn the_cached_configuration_goes_before_the_records() {
    let mut node = Node::with_one();
    node.attach().await.unwrap();
    node.plugins.take_log();
    node.record.networks[0].config = list("node", "1.0.0", &["changed"]);
    node.detach().await.unwrap();
    assert_eq!(node.plugins.take_log(), ["DEL tuning", "DEL portmap", "DEL bridge"]);
}

#[tokio::test]
async fn a_torn_cached_result_gives_way_to_the_record() {
    let mut node = Node::with_one();
    node.attach().await.unwrap();
    node.plugins.take_log();
    fs::write(node.cache_file(), "{\"kind\":\"cniCa").unwrap();
    node.detach().await.unwrap();
    for call in node.plugins.calls() {
        assert_eq!(interfaces(&call.config["prevResult"]).len(), 3);
    }
    assert!(node.cached().is_empty());
}

#[tokio::test]
async fn a_failed_del_that_is_owed_is_an_error_and_can_be_repeated() {
    let mut node = Node::with_one();
    node.attach().await.unwrap();
    node.plugins.take_log();
    let faults = [Fault::Reported(11, "try again"), Fault::Missing];
    node.plugins.fail(Operation::Del, "portmap", &faults);
    let error = node.detach().await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "CNI DEL of plugin \"portmap\" in network \"node\": try again (CNI code 11)"
    );
    assert_eq!(node.plugins.take_log(), ["DEL tuning", "DEL portmap"]);
    assert_eq!(node.cached().len(), 1, "the next attempt needs the result");
    let error = node.detach().await.unwrap_err();
    assert!(error.to_string().contains("no such plugin"), "{error}");
    // Either would tell containerd that the sandbox is stopped.
    assert!(!matches!(error.code(), Code::NotFound | Code::Unavailable));
    assert_eq!(node.detach().await.unwrap(), Released::Done);
    assert!(node.cached().is_empty());
}

#[tokio::test]
async fn a_failed_add_is_taken_back_with_all_networks_before_it() {
    let mut node = Node::with_three();
    node.plugins.fail(Operation::Add, "two", &[Fault::Reported(7, "bad")]);
    let error = node.attach().await.unwrap_err();
    let Error::Plugin { network, source, .. } = &error else { panic!("{error}") };
    assert_eq!(network, "two");
    assert!(matches!(**source, PluginError::Reported { code: 7, .. }));
    assert_eq!(node.plugins.take_log(), ["ADD one", "ADD two", "DEL two", "DEL one"]);
    assert_eq!(node.outcomes(), [Outcome::Removed, Outcome::Failed, Outcome::Removed]);
    assert!(node.cached().is_empty());
}

#[tokio::test]
async fn what_could_not_be_taken_back_is_owed_still() {
    let mut node = Node::with_three();
    node.plugins.fail(Operation::Add, "two", &[Fault::Reported(7, "bad")]);
    node.plugins.fail(Operation::Del, "one", &[Fault::Reported(1, "no")]);
    node.attach().await.unwrap_err();
    assert_eq!(node.outcomes(), [Outcome::Added, Outcome::Failed, Outcome::Removed]);
    node.plugins.take_log();
    node.detach().await.unwrap();
    assert_eq!(node.plugins.take_log(), ["DEL two", "DEL one"]);
    assert!(node.cached().is_empty());
}

#[tokio::test]
async fn add_alone_leaves_the_rest_to_detach() {
    let mut node = Node::with_three();
    node.plugins.fail(Operation::Add, "three", &[Fault::Missing]);
    add(&node.plugins, &mut node.record, None).await.unwrap_err();
    assert_eq!(node.outcomes(), [Outcome::Added, Outcome::Added, Outcome::Failed]);
    node.plugins.take_log();
    node.detach().await.unwrap();
    assert_eq!(node.plugins.take_log(), ["DEL three", "DEL two", "DEL one"]);
}

#[tokio::test]
async fn each_network_has_an_interface_of_its_own() {
    let mut node = Node::with_three();
    node.attach().await.unwrap();
    let names: Vec<_> =
        node.plugins.calls().into_iter().map(|call| call.target.unwrap().ifname).collect();
    assert_eq!(names, ["eth0", "eth1", "eth2"]);
    assert_eq!(node.cached(), ["one-pod1-eth0", "three-pod1-eth2", "two-pod1-eth1"]);
    node.attach().await.unwrap();
    assert_eq!(node.plugins.calls().len(), 3, "what is attached is not attached again");
}

#[tokio::test]
async fn after_a_crash_in_mid_add_del_is_an_attempt() {
    let node = Node::with_one();
    let faults = [Fault::Reported(999, "never heard of it")];
    node.plugins.fail(Operation::Del, "portmap", &faults);
    node.plugins.fail(Operation::Del, "tuning", &[Fault::Missing]);
    assert_eq!(node.detach().await.unwrap(), Released::Done);
    assert_eq!(node.plugins.take_log(), ["DEL tuning", "DEL portmap", "DEL bridge"]);
}

#[tokio::test]
async fn after_a_crash_in_mid_add_a_del_that_was_put_off_is_owed() {
    let node = Node::with_one();
    node.plugins.fail(Operation::Del, "portmap", &[Fault::Reported(11, "busy"), Fault::Hangs]);
    tokio::time::pause();
    for message in ["busy", "deadline"] {
        let error = node.detach().await.unwrap_err().to_string();
        assert!(error.contains("\"portmap\"") && error.contains(message), "{error}");
    }
    assert_eq!(node.detach().await.unwrap(), Released::Done);
}

#[tokio::test]
async fn after_a_crash_behind_the_add_del_is_owed() {
    let mut node = Node::with_one();
    let stored = node.record.clone();
    node.attach().await.unwrap();
    node.record = stored;
    node.plugins.fail(Operation::Del, "tuning", &[Fault::Missing]);
    node.detach().await.unwrap_err();
    node.detach().await.unwrap();
    let last = node.plugins.calls().pop().unwrap();
    assert_eq!(interfaces(&last.config["prevResult"]).len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_plugin_that_hangs_ends_at_its_own_or_the_callers_deadline() {
    let mut node = Node::with_one();
    node.plugins.fail(Operation::Add, "portmap", &[Fault::Hangs]);
    let started = Instant::now();
    let error = node.attach().await.unwrap_err();
    assert_eq!(error.code(), Code::DeadlineExceeded);
    assert!(error.to_string().contains("\"portmap\""), "{error}");
    assert_eq!(started.elapsed().as_secs(), 60);

    let mut node = Node::with_one();
    node.attach().await.unwrap();
    node.plugins.fail(Operation::Del, "tuning", &[Fault::Hangs]);
    let started = Instant::now();
    let deadline = Some(started + Duration::from_secs(3));
    let error = detach(&node.plugins, &node.record, true, deadline).await.unwrap_err();
    assert_eq!(error.code(), Code::DeadlineExceeded);
    assert_eq!(started.elapsed().as_secs(), 3);
    node.plugins.take_log();
    detach(&node.plugins, &node.record, true, deadline).await.unwrap_err();
    assert!(node.plugins.take_log().is_empty(), "nothing is started after the deadline");
}

#[tokio::test(start_paused = true)]
async fn an_add_that_is_dropped_in_the_middle_is_in_the_record() {
    let mut node = Node::with_three();
    node.plugins.fail(Operation::Add, "two", &[Fault::Hangs]);
    let cut = tokio::time::timeout(Duration::from_secs(1), node.attach()).await;
    assert!(cut.is_err());
    assert_eq!(node.outcomes(), [Outcome::Added, Outcome::Intended, Outcome::Removed]);
    node.plugins.take_log();
    node.detach().await.unwrap();
    assert_eq!(node.plugins.take_log(), ["DEL two", "DEL one"]);
}

#[tokio::test]
async fn status_is_asked_before_the_first_add_where_it_exists() {
    let mut node = Node::new(&[list("old", "1.0.0", &["a"]), list("new", "1.1.0", &["b", "c"])]);
    node.attach().await.unwrap();
    assert_eq!(node.plugins.take_log(), ["STATUS b", "STATUS c", "ADD a", "ADD b", "ADD c"]);
}

#[tokio::test]
async fn a_network_that_is_not_ready_owes_nothing() {
    let mut node = Node::new(&[list("new", "1.1.0", &["b"])]);
    node.plugins.fail(Operation::Status, "b", &[Fault::Reported(50, "not yet")]);
    let error = node.attach().await.unwrap_err();
    assert!(error.to_string().starts_with("CNI STATUS of plugin \"b\""), "{error}");
    assert_eq!(node.outcomes(), [Outcome::Removed]);
    assert!(!node.record.owes_del());
    node.plugins.take_log();
    assert_eq!(node.detach().await.unwrap(), Released::AlreadyGone);
    assert!(node.plugins.take_log().is_empty());
}

#[tokio::test]
async fn without_a_namespace_lo_is_the_error() {
    let mut node = Node::with_one();
    node.record.settings.loopback = true;
    node.record.netns = "/nonexistent".into();
    let error = node.attach().await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    assert!(node.plugins.take_log().is_empty());
}

#[tokio::test]
async fn an_add_whose_result_cannot_be_kept_is_taken_back() {
    let mut node = Node::with_one();
    fs::write(node.folder.path().join("cni"), "in the way").unwrap();
    let error = node.attach().await.unwrap_err();
    assert!(matches!(error, Error::Cache { .. }), "{error}");
    let log = node.plugins.take_log();
    assert_eq!(log[3..], ["DEL tuning", "DEL portmap", "DEL bridge"]);
}

#[tokio::test]
async fn the_record_survives_the_journal() {
    let mut node = Node::with_one();
    node.attach().await.unwrap();
    let text = serde_json::to_string(&node.record).unwrap();
    let back: AttachmentRecord = serde_json::from_str(&text).unwrap();
    assert_eq!(back, node.record);
    let old = json!({"container_id": "c", "netns": "/n", "networks": []});
    assert!(serde_json::from_value::<AttachmentRecord>(old).is_ok());
}

#[tokio::test]
async fn a_damaged_record_is_an_error_that_names_the_network() {
    let mut node = Node::with_one();
    node.attach().await.unwrap();
    fs::remove_file(node.cache_file()).unwrap();
    node.record.networks[0].config = json!({"name": "node"});
    let error = node.detach().await.unwrap_err();
    assert!(error.to_string().contains("\"node\""), "{error}");
    assert!(NetworkList::from_value(json!(null)).is_err());
}
