//! CNI's configuration lists and single configurations, as an administrator or an installer left them.

use std::path::{Component, Path};

use mooring::network::{
    AttachRequest, AttachmentRecord, Error, NetworkList, Operation, Settings, attach, detach, plan,
};
use serde_json::Value;

use crate::{plugins::Plugins, scratch, wait::wait};

/// A plugin that a list whose network is called "node" gets from its folder.
const MORE: &[u8] = br#"{"type": "more"}"#;

pub fn cni_config(input: &[u8]) {
    if let Ok(list) = NetworkList::from_slice(input) {
        let again = NetworkList::from_value(list.document().clone()).expect("it was one before");
        assert_eq!(again, list);
        let parts: Vec<_> = Path::new(list.name()).components().collect();
        assert!(matches!(parts[..], [Component::Normal(_)]), "{:?}", list.name());
        assert!(list.plugin_types().all(|kind| !kind.is_empty()));
    }
    for file in ["10-node.conf", "10-node.conflist"] {
        in_file(file, input);
    }
}

fn in_file(file: &str, input: &[u8]) {
    let folder = scratch::folder();
    let settings = Settings {
        conf_dir: folder.join("net.d"),
        cache_dir: folder.join("cni"),
        // It would be brought up in a namespace, and there is none.
        loopback: false,
        ..Settings::default()
    };
    scratch::write(&settings.conf_dir.join(file), input);
    scratch::write(&settings.conf_dir.join("node/50-more.conf"), MORE);
    let before = scratch::files(&folder);
    let request = AttachRequest {
        container_id: "pod".into(),
        netns: "/nonexistent/netns".into(),
        ..AttachRequest::default()
    };
    let record = match plan(&settings, request) {
        Ok(record) => record,
        Err(error) => {
            let named = matches!(error, Error::Invalid { what: "network name", .. });
            return assert!(named || error.to_string().contains(file), "{error}");
        }
    };
    let text = serde_json::to_vec(&record).expect("a record can be written");
    let again: AttachmentRecord = serde_json::from_slice(&text).expect("and read");
    assert_eq!(again, record);
    comes_and_goes(record);
    assert_eq!(scratch::files(&folder), before, "something is left, or was taken");
}

/// What is attached, or half attached, can be detached: plugins in reverse, and nothing is kept.
fn comes_and_goes(mut record: AttachmentRecord) {
    let plugins = Plugins::succeeding();
    let attached = wait(attach(&plugins, &mut record, None));
    let calls = plugins.take();
    for call in &calls {
        let text = |key: &str| call.config.get(key).and_then(Value::as_str);
        assert_eq!(text("name"), Some(&*call.network));
        assert!(text("cniVersion").is_some());
        assert_eq!(text("type"), Some(&*call.plugin));
    }
    let added = |operation| calls.iter().filter(move |call| call.operation == operation);
    let detached = wait(detach(&plugins, &record, false, None));
    detached.unwrap_or_else(|error| panic!("a pod that cannot go: {error}"));
    let removed = plugins.take();
    if let Err(error) = attached {
        // Every plugin succeeds: what fails is Mooring's own, and it has been taken back.
        assert_eq!(removed.len() % added(Operation::Add).count().max(1), 0, "{error}");
        return;
    }
    let ends: Vec<_> = removed.iter().rev().map(|call| &call.plugin).collect();
    assert_eq!(ends, added(Operation::Add).map(|call| &call.plugin).collect::<Vec<_>>());
    assert!(removed.iter().all(|call| call.operation == Operation::Del));
}
