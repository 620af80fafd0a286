use proptest::prelude::*;

use super::*;

fn folder(files: &[(&str, &str)]) -> (tempfile::TempDir, Settings) {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    let settings =
        Settings { conf_dir: folder.path().to_owned(), max_conf_num: 0, ..Settings::default() };
    (folder, settings)
}

fn names(settings: &Settings) -> Vec<String> {
    load(settings).unwrap().iter().map(|list| list.name().to_owned()).collect()
}

fn list(document: Value) -> NetworkList {
    NetworkList::from_value(document).unwrap()
}

const LIST: &str = r#"{"cniVersion":"1.0.0","name":"list","plugins":[{"type":"a"},{"type":"b"}]}"#;
const SINGLE: &str = r#"{"cniVersion":"0.3.1","name":"single","type":"bridge","mtu":1400}"#;

#[test]
fn files_are_taken_in_lexical_order_and_no_more_than_wanted() {
    let (_folder, mut settings) = folder(&[
        ("20-b.conflist", LIST),
        ("10-a.conf", SINGLE),
        ("30-c.json", &SINGLE.replace("single", "third")),
        ("00-readme.txt", "no configuration"),
        ("05.conf/inside.conf", SINGLE),
    ]);
    assert_eq!(names(&settings), ["single", "list", "third"]);
    settings.max_conf_num = 1;
    assert_eq!(names(&settings), ["single"]);
    settings.max_conf_num = 2;
    assert_eq!(names(&settings), ["single", "list"]);
}

#[test]
fn a_single_configuration_becomes_a_list_of_one() {
    let (_folder, settings) = folder(&[("x.conf", SINGLE)]);
    let networks = load(&settings).unwrap();
    assert_eq!(networks[0].plugin_types().collect::<Vec<_>>(), ["bridge"]);
    assert_eq!(networks[0].cni_version(), "0.3.1");
    let input = networks[0].input(&networks[0].plugins()[0], None, &Map::new());
    assert_eq!(input["mtu"], 1400);
}

#[test]
fn files_that_are_not_valid_are_skipped() {
    let (_folder, settings) = folder(&[
        ("01.conflist", "{\"name\":"),
        ("02.conflist", r#"{"cniVersion":"1.0.0","plugins":[{"type":"a"}]}"#),
        ("03.conflist", r#"{"cniVersion":"1.0.0","name":"x","plugins":[]}"#),
        ("04.conflist", r#"{"cniVersion":"1.0.0","name":"x","plugins":[{"mtu":1}]}"#),
        ("05.conflist", r#"{"cniVersion":"2.0.0","name":"x","plugins":[{"type":"a"}]}"#),
        ("06.conflist", r#"{"cniVersion":"1.0.0","name":"../x","plugins":[{"type":"a"}]}"#),
        ("07.conf", LIST),
        ("08.conf", "[]"),
        ("09.conflist", SINGLE),
        ("10.conflist", r#"{"cniVersion":7,"name":"x","plugins":[{"type":"a"}]}"#),
        ("90.conflist", LIST),
    ]);
    assert_eq!(names(&settings), ["list"]);
}

#[test]
fn no_valid_file_is_an_error_that_says_why() {
    let (folder, settings) = folder(&[("01.conflist", "nonsense")]);
    let error = load(&settings).unwrap_err();
    assert!(matches!(&error, Error::NoNetworks { skipped, .. } if skipped.len() == 1));
    assert!(error.to_string().contains("01.conflist"), "{error}");
    drop(folder);
    let error = load(&settings).unwrap_err();
    assert!(matches!(&error, Error::NoNetworks { skipped, .. } if skipped.is_empty()), "{error}");
}

#[test]
fn a_pipe_in_the_folder_is_not_waited_for() {
    let (folder, settings) = folder(&[("90.conflist", LIST)]);
    let mode = nix::sys::stat::Mode::S_IRWXU;
    nix::unistd::mkfifo(&folder.path().join("10.conf"), mode).unwrap();
    assert_eq!(names(&settings), ["list"]);
}

#[test]
fn plugins_in_the_networks_own_folder_join_the_list() {
    let more = r#"{"type":"extra"}"#;
    let (_folder, settings) = folder(&[("l.conflist", LIST), ("list/1.conf", more)]);
    let networks = load(&settings).unwrap();
    assert_eq!(networks[0].plugin_types().collect::<Vec<_>>(), ["a", "b", "extra"]);
    let again = NetworkList::from_value(networks[0].document().clone()).unwrap();
    assert_eq!(again, networks[0]);

    let inlined = LIST.replacen('{', "{\"loadOnlyInlinedPlugins\":true,", 1);
    let (_folder, settings) = folder(&[("l.conflist", &inlined), ("list/1.conf", more)]);
    assert_eq!(load(&settings).unwrap()[0].plugin_types().count(), 2);
}

#[test]
fn the_newest_known_version_is_chosen() {
    let with = |version: Value, versions: Value| {
        let mut document = json!({"name": "n", "plugins": [{"type": "a"}]});
        for (key, value) in [("cniVersion", version), ("cniVersions", versions)] {
            if !value.is_null() {
                document[key] = value;
            }
        }
        NetworkList::from_value(document).map(|list| list.cni_version().to_owned())
    };
    let several = json!(["0.4.0", "1.1.0", "1.0.0", "9.0.0"]);
    assert_eq!(with(json!("1.0.0"), Value::Null).unwrap(), "1.0.0");
    assert_eq!(with(Value::Null, several.clone()).unwrap(), "1.1.0");
    assert_eq!(with(json!("1.0.0"), several).unwrap(), "1.1.0");
    assert_eq!(with(json!("9.0.0"), json!(["0.3.1"])).unwrap(), "0.3.1");
    for version in ["0.2.0", "1.2.0", "", "one", "1.0.0.0"] {
        assert!(with(json!(version), Value::Null).is_err(), "{version:?}");
    }
    assert!(with(Value::Null, Value::Null).is_err());
}

#[test]
fn gc_can_be_switched_off() {
    let base = json!({"cniVersion": "1.1.0", "name": "n", "plugins": [{"type": "a"}]});
    assert!(list(base.clone()).collects_garbage());
    let mut off = base.clone();
    off["disableGC"] = json!("True");
    assert!(!list(off.clone()).collects_garbage());
    off["disableGC"] = json!("perhaps");
    assert!(matches!(NetworkList::from_value(off), Err(ConfProblem::Member("disableGC"))));
    let mut old = base;
    old["cniVersion"] = json!("0.3.1");
    assert!(!list(old).collects_garbage());
}

#[test]
fn a_plugin_is_told_only_the_capabilities_that_it_declares() {
    let list = list(json!({"cniVersion": "1.0.0", "name": "n", "plugins": [
        {"type": "a", "capabilities": {"portMappings": true, "bandwidth": false, "mac": true}},
        {"type": "b"},
    ]}));
    let capabilities = json!({"portMappings": [1], "bandwidth": {}, "dns": {}});
    let capabilities = capabilities.as_object().unwrap();
    let previous = json!({"ips": []});
    let input = list.input(&list.plugins()[0], Some(&previous), capabilities);
    assert_eq!(input["runtimeConfig"], json!({"portMappings": [1]}));
    assert_eq!(input["prevResult"], previous);
    assert_eq!((&input["name"], &input["cniVersion"]), (&json!("n"), &json!("1.0.0")));
    let input = list.input(&list.plugins()[1], None, capabilities);
    assert!(!input.contains_key("runtimeConfig") && !input.contains_key("prevResult"));
}

proptest! {
    #[test]
    fn a_name_that_is_allowed_is_a_plain_file_name(text in ".*") {
        if is_name(&text) {
            let parts: Vec<_> = Path::new(&text).components().collect();
            prop_assert!(matches!(parts[..], [std::path::Component::Normal(_)]));
        }
    }

    #[test]
    fn no_bytes_are_too_strange_to_be_refused(bytes: Vec<u8>, version in ".*") {
        let _ = NetworkList::from_slice(&bytes);
        let _ = parse_version(&version);
    }
}

#[test]
fn interface_names_follow_the_kernel() {
    for good in ["eth0", "a", "fifteen-letters"] {
        assert!(is_ifname(good), "{good}");
    }
    for bad in ["", ".", "..", "a/b", "a:b", "a b", "sixteen-letters-", "a\0"] {
        assert!(!is_ifname(bad), "{bad:?}");
    }
}
