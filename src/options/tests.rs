use prost::Message;

use super::{
    decode::{GenericOptions, RuncOptions},
    *,
};

pub(super) fn generic(body: &str) -> AnyValue {
    let options = GenericOptions { config_body: body.into(), ..GenericOptions::default() };
    AnyValue { type_url: "runtimeoptions.v1.Options".into(), value: options.encode_to_vec() }
}

fn load(handler: &AnyValue) -> Result<(Options, Vec<String>), Error> {
    Options::load_from(Path::new("/nonexistent/config.toml"), None, Some(handler))
}

#[test]
fn nothing_given_is_the_defaults() {
    let nothing = Options::load_from(Path::new("/nonexistent"), None, None).unwrap();
    assert_eq!(nothing, (Options::default(), vec![]));
    assert_eq!(load(&AnyValue::default()).unwrap().0, Options::default());
    assert_eq!(load(&generic("")).unwrap().0, Options::default());
}

#[test]
fn the_table_of_a_handler_is_read() {
    let table = r#"
        TypeUrl = ""
        BinaryName = "/usr/sbin/runc"
        SystemdCgroup = true
        IoUid = 1000
        NetworkOwner = "shim"
        Keeper = "pinned"
        CniBinDirs = ["/a", "/b"]
        CniTimeout = "1m30s"
        RuntimeTimeout = 5
        Surprise = 1
        [Other]
        Key = 2
    "#;
    let (options, warnings) = load(&generic(table)).unwrap();
    assert_eq!(options.runtime.binary, PathBuf::from("/usr/sbin/runc"));
    assert!(options.runtime.systemd_cgroup);
    assert_eq!(options.runtime.io_uid, 1000);
    assert_eq!(options.network_owner, NetworkOwner::Shim);
    assert_eq!(options.keeper, keeper::Preference::Pinned);
    assert_eq!(options.network.bin_dirs, [PathBuf::from("/a"), PathBuf::from("/b")]);
    assert_eq!(options.network.timeout, Duration::from_secs(90));
    assert_eq!(options.runtime.timeout, Duration::from_secs(5));
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert!(warnings[0].contains("\"Other\"") && warnings[1].contains("\"Surprise\""));
}

#[test]
fn options_of_runc_are_read() {
    let options = RuncOptions {
        binary_name: "crun".into(),
        no_pivot_root: true,
        io_gid: 7,
        ..RuncOptions::default()
    };
    let any = AnyValue {
        type_url: "type.googleapis.com/containerd.runc.v1.Options".into(),
        value: options.encode_to_vec(),
    };
    let (options, warnings) = load(&any).unwrap();
    assert_eq!(options.runtime.binary, PathBuf::from("crun"));
    assert!(options.runtime.no_pivot_root);
    assert_eq!(options.runtime.io_gid, 7);
    assert_eq!(options.runtime.root, RuntimeSettings::default().root);
    assert!(warnings.is_empty());
}

#[test]
fn the_handler_overrides_the_node_and_the_node_the_defaults() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.toml");
    std::fs::write(&file, "BinaryName = 'node'\nStateRoot = '/srv/mooring'\n").unwrap();
    let (options, _) =
        Options::load_from(&file, None, Some(&generic("BinaryName = 'pod'"))).unwrap();
    assert_eq!(options.runtime.binary, PathBuf::from("pod"));
    assert_eq!(options.state_root, PathBuf::from("/srv/mooring"));
    assert_eq!(options.run_root, PathBuf::from("/run/mooring"));
}

#[test]
fn a_configuration_may_lie_in_a_file_that_the_handler_names() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("handler.toml");
    std::fs::write(&file, "NoNewKeyring = true\nOdd = 1").unwrap();
    let options =
        GenericOptions { config_path: file.display().to_string(), ..GenericOptions::default() };
    let any =
        AnyValue { type_url: "runtimeoptions.v1.Options".into(), value: options.encode_to_vec() };
    let (options, warnings) = load(&any).unwrap();
    assert!(options.runtime.no_new_keyring);
    assert!(warnings[0].contains("handler.toml"), "{warnings:?}");
}

#[test]
fn what_cannot_be_used_is_named() {
    let message = |any: &AnyValue| {
        let error = load(any).unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument);
        error.to_string()
    };
    let other = AnyValue { type_url: "some.Type".into(), value: vec![1] };
    assert!(message(&other).contains("\"some.Type\""));
    let torn = AnyValue { type_url: "containerd.runc.v1.Options".into(), value: vec![0x32] };
    assert!(message(&torn).contains("containerd.runc.v1.Options"));
    assert!(message(&generic("IoUid = 'me'")).contains("IoUid"));
    assert!(message(&generic("= 3")).contains("configuration in"));
    assert!(message(&generic("StateRoot = 'var'")).contains("StateRoot"));
    assert!(message(&generic("NetworkOwner = 'me'")).contains("NetworkOwner"));
    assert!(message(&generic("CniTimeout = '3 days'")).contains("CniTimeout"));
    assert!(message(&generic("CniIfName = 'a/b'")).contains("CniIfName"));
    assert!(message(&generic("RuntimeTimeout = 0")).contains("above 0"));
    assert_eq!(
        message(&generic("IoGid = -1")),
        "option IoGid in the handler's options: it is a number from 0 to 4294967295, not -1"
    );
}

#[test]
fn no_length_of_time_is_longer_than_a_day() {
    let keys = ["RuntimeTimeout", "CniTimeout", "ContainerdTimeout"];
    for key in keys {
        for length in ["9223372036854775807", "1e18", "'2562047788015215h'", "86401", "'24h1ms'"] {
            let error = load(&generic(&format!("{key} = {length}"))).unwrap_err().to_string();
            assert!(error.contains(key) && error.contains("at most 24h"), "{error}");
        }
        let (options, _) = load(&generic(&format!("{key} = '24h'"))).unwrap();
        let times = [options.runtime.timeout, options.network.timeout, options.containerd_timeout];
        assert!(times.contains(&Duration::from_hours(24)), "{key}");
    }
}

proptest::proptest! {
    #[test]
    fn no_input_makes_decoding_panic(
        url in "(containerd.runc.v1.Options|runtimeoptions.v1.Options|.*)",
        value in proptest::collection::vec(proptest::num::u8::ANY, 0..64),
    ) {
        let _ = load(&AnyValue { type_url: url, value });
    }

    #[test]
    fn no_configuration_makes_parsing_panic(text in ".*") {
        let _ = load(&generic(&text));
    }
}

#[test]
fn a_profile_is_over_the_node_and_under_the_handler() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.toml");
    let text = "BinaryName = 'node'\nRoot = '/node'\nStateRoot = '/node'\n\
                [profile.crun]\nBinaryName = 'crun'\nRoot = '/crun'\nColour = 1\n[profile.other]\nRoot = 7\n";
    std::fs::write(&file, text).unwrap();
    let profile = |name: &str| {
        Profile::of_program(format!("containerd-shim-mooring-{name}-v1").as_ref()).unwrap()
    };
    let crun = profile("crun");
    let (options, warnings) =
        Options::load_from(&file, Some(&crun), Some(&generic("BinaryName = 'pod'"))).unwrap();
    assert_eq!(options.runtime.binary, Path::new("pod"));
    assert_eq!((options.runtime.root, options.state_root), ("/crun".into(), "/node".into()));
    assert_eq!(warnings.len(), 1);
    assert!(warnings[0].contains("\"Colour\" in [profile.crun] of /"), "{warnings:?}");

    let (options, warnings) = Options::load_from(&file, None, None).unwrap();
    assert_eq!((options.runtime.binary, warnings), ("node".into(), vec![]));
    let error = |profile| Options::load_from(&file, Some(&profile), None).unwrap_err().to_string();
    assert!(error(profile("other")).contains("Root in [profile.other]"));
    assert!(error(profile("none")).contains("there is no [profile.none]"));
    std::fs::write(&file, "profile = 1").unwrap();
    assert!(Options::load_from(&file, None, None).unwrap_err().to_string().contains("a table"));
}

#[test]
fn every_profile_may_have_a_state_root_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.toml");
    let roots =
        || each_of_the_node(&file, |options| options.state_root).map_err(|error| error.to_string());
    assert_eq!(roots().unwrap(), [PathBuf::from("/var/lib/mooring")]);
    let text =
        "StateRoot = '/a'\n[profile.x]\nStateRoot = '/b'\n[profile.y]\nBinaryName = 'crun'\n";
    std::fs::write(&file, text).unwrap();
    assert_eq!(roots().unwrap(), [PathBuf::from("/a"), PathBuf::from("/b")]);
    std::fs::write(&file, "a = 1\nStateRoot = ").unwrap();
    let error = roots().unwrap_err();
    assert!(error.contains("config.toml") && error.contains("line 2"), "{error}");
}
