use proptest::prelude::*;
use serde_json::json;

use super::*;

fn attachment() -> CachedAttachment {
    let list = json!({"cniVersion": "1.0.0", "name": "node", "plugins": [{"type": "bridge"}]});
    CachedAttachment {
        container_id: "pod1".to_owned(),
        ifname: "eth0".to_owned(),
        netns: "/run/netns/x".into(),
        args: vec![("IgnoreUnknown".to_owned(), "1".to_owned())],
        capabilities: json!({"portMappings": []}).as_object().unwrap().clone(),
        list: NetworkList::from_value(list).unwrap(),
        result: Some(json!({"cniVersion": "1.0.0", "ips": []})),
    }
}

fn slot(dir: &Path) -> Slot {
    Slot::new(dir, "node", "pod1", "eth0").unwrap()
}

#[test]
fn the_file_is_as_libcni_writes_it() {
    let dir = tempfile::tempdir().unwrap();
    slot(dir.path()).store(&attachment()).unwrap();
    let bytes = fs::read(dir.path().join("results/node-pod1-eth0")).unwrap();
    let file: Value = serde_json::from_slice(&bytes).unwrap();
    let config = STANDARD.decode(file["config"].as_str().unwrap()).unwrap();
    let config: Value = serde_json::from_slice(&config).unwrap();
    assert_eq!(config["plugins"][0]["type"], "bridge");
    let mut rest = file;
    rest.as_object_mut().unwrap().remove("config");
    assert_eq!(
        rest,
        json!({
            "kind": "cniCacheV1", "containerId": "pod1", "ifName": "eth0", "networkName": "node",
            "netns": "/run/netns/x", "cniArgs": [["IgnoreUnknown", "1"]],
            "capabilityArgs": {"portMappings": []}, "result": {"cniVersion": "1.0.0", "ips": []},
        })
    );
}

#[test]
fn what_is_stored_is_loaded_and_removed_once() {
    let dir = tempfile::tempdir().unwrap();
    let slot = slot(dir.path());
    assert_eq!(slot.load().unwrap(), None);
    slot.store(&attachment()).unwrap();
    slot.store(&attachment()).unwrap();
    assert_eq!(slot.load().unwrap(), Some(attachment()));
    let files = fs::read_dir(dir.path().join("results")).unwrap().count();
    assert_eq!(files, 1, "no draft is left");
    assert_eq!(slot.remove().unwrap(), Released::Done);
    assert_eq!(slot.remove().unwrap(), Released::AlreadyGone);
}

#[test]
fn where_no_file_can_be_there_is_no_result_to_load_or_to_remove() {
    let dir = tempfile::tempdir().unwrap();
    let slot = Slot::new(dir.path(), &"n".repeat(250), "pod1", "eth0").unwrap();
    fs::create_dir(dir.path().join("results")).unwrap();
    assert!(!slot.fits());
    assert_eq!(slot.load().unwrap(), None);
    assert_eq!(slot.remove().unwrap(), Released::AlreadyGone);
}

#[test]
fn a_file_about_another_attachment_is_not_taken() {
    let dir = tempfile::tempdir().unwrap();
    // Both are called "node-a-b-eth0".
    let list = json!({"cniVersion": "1.0.0", "name": "node-a", "plugins": [{"type": "bridge"}]});
    let other = CachedAttachment {
        container_id: "b".to_owned(),
        list: NetworkList::from_value(list).unwrap(),
        ..attachment()
    };
    Slot::new(dir.path(), "node-a", "b", "eth0").unwrap().store(&other).unwrap();
    let error = Slot::new(dir.path(), "node", "a-b", "eth0").unwrap().load().unwrap_err();
    assert!(matches!(error, Error::Cache { source: CacheProblem::Foreign { .. }, .. }), "{error}");
}

#[test]
fn torn_and_foreign_files_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let slot = slot(dir.path());
    slot.store(&attachment()).unwrap();
    let whole = fs::read(&slot.path).unwrap();
    for length in [0, 1, whole.len() / 2, whole.len() - 1] {
        fs::write(&slot.path, &whole[..length]).unwrap();
        let error = slot.load().unwrap_err();
        assert!(error.to_string().contains("node-pod1-eth0"), "{error}");
    }
    for text in [
        r#"{"kind":"other"}"#,
        r#"{"kind":"cniCacheV1","config":"!"}"#,
        r#"{"kind":"cniCacheV1","config":"e30="}"#,
        r#"{"cniVersion":"0.3.1","ips":[]}"#,
    ] {
        fs::write(&slot.path, text).unwrap();
        assert!(slot.load().is_err(), "{text}");
    }
}

#[test]
fn names_cannot_leave_the_folder() {
    let dir = Path::new("/nonexistent");
    assert!(Slot::new(dir, "../n", "c", "eth0").is_err());
    assert!(Slot::new(dir, "n", "c/d", "eth0").is_err());
    assert!(Slot::new(dir, "n", "c", "eth0/x").is_err());
    assert!(Slot::new(dir, "n", "", "eth0").is_err());
}

#[test]
fn the_list_has_every_attachment_and_every_problem() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(cached_attachments(dir.path()), (found, problems)
        if found.is_empty() && problems.is_empty()));
    slot(dir.path()).store(&attachment()).unwrap();
    fs::write(dir.path().join("results/torn"), "{").unwrap();
    fs::write(dir.path().join("results/.draft"), "{").unwrap();
    let (found, problems) = cached_attachments(dir.path());
    assert_eq!(found, [attachment()]);
    assert_eq!(problems.len(), 1);
    assert!(problems[0].to_string().contains("torn"), "{}", problems[0]);
}

proptest! {
    #[test]
    fn no_bytes_are_too_strange_to_be_reported(bytes: Vec<u8>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        fs::write(&path, bytes).unwrap();
        prop_assert!(read(&path).is_err());
    }
}
