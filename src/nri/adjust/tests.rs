use super::*;
use crate::nri::api::{
    HugepageLimit, KeyValue, LinuxCPU, LinuxContainerAdjustment, LinuxDeviceCgroup, LinuxMemory,
    OptionalInt64, OptionalUInt64,
};

fn spec() -> Value {
    json!({
        "ociVersion": "1.2.0",
        "annotations": {"kept": "1", "gone": "2"},
        "process": {"args": ["/bin/sh"], "env": ["PATH=/bin", "A=1", "B=2"], "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 9, "soft": 9}]},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/data/inner", "type": "bind", "source": "/inner", "options": ["rbind"]},
            {"destination": "/old/", "type": "bind", "source": "/old"},
        ],
        "linux": {"devices": [{"path": "/dev/old", "type": "c", "major": 1, "minor": 1}],
            "resources": {"memory": {"limit": 5, "swap": 6}, "devices": [{"allow": false, "access": "rwm"}]}},
    })
}

fn done(adjust: &ContainerAdjustment) -> Value {
    let mut spec = spec();
    apply(&mut spec, adjust, "10-x", &mut Claims::default()).unwrap();
    spec
}

fn refused(adjust: &ContainerAdjustment) -> String {
    apply(&mut spec(), adjust, "10-x", &mut Claims::default()).unwrap_err().to_string()
}

fn pairs(all: &[(&str, &str)]) -> Vec<KeyValue> {
    let pair = |(key, value): &(&str, &str)| KeyValue {
        key: (*key).into(),
        value: (*value).into(),
        ..KeyValue::default()
    };
    all.iter().map(pair).collect()
}

fn linux(linux: LinuxContainerAdjustment) -> ContainerAdjustment {
    ContainerAdjustment { linux: Some(linux).into(), ..ContainerAdjustment::default() }
}

fn mount(destination: &str, options: &[&str]) -> Mount {
    Mount {
        destination: destination.into(),
        type_: "bind".into(),
        source: "/source".into(),
        options: options.iter().map(|&option| option.into()).collect(),
        ..Mount::default()
    }
}

#[test]
fn an_empty_adjustment_changes_nothing() {
    assert_eq!(done(&ContainerAdjustment::default()), spec());
}

#[test]
fn variables_are_set_where_they_were_added_at_the_end_and_removed() {
    let env = pairs(&[("A", "new"), ("-B", ""), ("C", "3"), ("C", "4")]);
    let adjusted = done(&ContainerAdjustment { env, ..ContainerAdjustment::default() });
    assert_eq!(adjusted["process"]["env"], json!(["PATH=/bin", "A=new", "C=4"]));
}

#[test]
fn annotations_and_kernel_parameters_are_set_and_removed() {
    let table = |all: &[(&str, &str)]| {
        all.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    };
    let mut adjust = linux(LinuxContainerAdjustment {
        sysctl: table(&[("net.core.somaxconn", "9")]),
        ..LinuxContainerAdjustment::default()
    });
    adjust.annotations = table(&[("-gone", ""), ("new", "3"), ("-kept", ""), ("kept", "4")]);
    let adjusted = done(&adjust);
    assert_eq!(adjusted["annotations"], json!({"kept": "4", "new": "3"}));
    assert_eq!(adjusted["linux"]["sysctl"], json!({"net.core.somaxconn": "9"}));
}

#[test]
fn mounts_are_replaced_removed_and_none_hides_another() {
    let mounts = vec![mount("/data", &["rbind", "ro"]), mount("-/old", &[]), mount("/proc", &[])];
    let adjusted = done(&ContainerAdjustment { mounts, ..ContainerAdjustment::default() });
    let all = adjusted["mounts"].as_array().unwrap();
    let seen: Vec<_> =
        all.iter().map(|one| (text(one, "destination"), text(one, "source"))).collect();
    assert_eq!(seen, [("/data", "/source"), ("/proc", "/source"), ("/data/inner", "/inner")]);
    assert_eq!(all[0]["options"], json!(["rbind", "ro"]));
    assert!(adjusted["linux"].get("rootfsPropagation").is_none());
}

#[test]
fn a_mount_that_propagates_has_a_root_that_does() {
    for (options, wanted) in [(["rbind", "rshared"], "rshared"), (["rbind", "rslave"], "rslave")] {
        let mounts = vec![mount("/data", &options)];
        let adjusted = done(&ContainerAdjustment { mounts, ..ContainerAdjustment::default() });
        assert_eq!(adjusted["linux"]["rootfsPropagation"], wanted);
    }
}

#[test]
fn arguments_hooks_limits_and_scores_are_set() {
    let hook = Hook {
        path: "/hook".into(),
        args: vec!["hook".into(), "1".into()],
        timeout: Some(OptionalInt64 { value: 5, ..OptionalInt64::default() }).into(),
        ..Hook::default()
    };
    let mut adjust = linux(LinuxContainerAdjustment {
        cgroups_path: "/x/y".into(),
        oom_score_adj: Some(OptionalInt64 { value: -7, ..OptionalInt64::default() }).into(),
        ..LinuxContainerAdjustment::default()
    });
    adjust.args = vec!["/bin/true".into()];
    adjust.hooks = Some(Hooks { create_runtime: vec![hook], ..Hooks::default() }).into();
    let limit =
        POSIXRlimit { type_: "RLIMIT_NOFILE".into(), hard: 4, soft: 3, ..POSIXRlimit::default() };
    adjust.rlimits = vec![limit];
    let adjusted = done(&adjust);
    assert_eq!(adjusted["process"]["args"], json!(["/bin/true"]));
    assert_eq!(
        adjusted["hooks"],
        json!({"createRuntime": [{"path": "/hook", "args": ["hook", "1"], "env": [], "timeout": 5}]})
    );
    assert_eq!(
        adjusted["process"]["rlimits"],
        json!([{"type": "RLIMIT_NOFILE", "hard": 4, "soft": 3}])
    );
    assert_eq!(adjusted["linux"]["cgroupsPath"], "/x/y");
    assert_eq!(adjusted["process"]["oomScoreAdj"], -7);
}

#[test]
fn a_device_comes_with_the_right_to_use_it() {
    let mode = |value| Some(OptionalUInt64 { value, ..OptionalUInt64::default() }).into();
    let device = |path: &str, kind: &str, file_mode| LinuxDevice {
        path: path.into(),
        type_: kind.into(),
        major: 1,
        minor: 3,
        file_mode,
        ..LinuxDevice::default()
    };
    let devices = vec![
        device("/dev/one", "c", mode(0o444)),
        device("/dev/two", "b", None.into()),
        device("-/dev/old", "", None.into()),
    ];
    let adjusted =
        done(&linux(LinuxContainerAdjustment { devices, ..LinuxContainerAdjustment::default() }));
    assert_eq!(
        adjusted["linux"]["devices"],
        json!([
            {"path": "/dev/one", "type": "c", "major": 1, "minor": 3, "fileMode": 0o444},
            {"path": "/dev/two", "type": "b", "major": 1, "minor": 3},
        ])
    );
    assert_eq!(
        adjusted["linux"]["resources"]["devices"],
        json!([
            {"allow": false, "access": "rwm"},
            {"allow": true, "type": "c", "major": 1, "minor": 3, "access": "r"},
            {"allow": true, "type": "b", "major": 1, "minor": 3, "access": "rwm"},
        ])
    );
}

#[test]
fn limits_are_set_and_the_others_stay() {
    let number = |value| Some(OptionalUInt64 { value, ..OptionalUInt64::default() }).into();
    let signed = |value| Some(OptionalInt64 { value, ..OptionalInt64::default() }).into();
    let resources = LinuxResources {
        memory: Some(LinuxMemory { reservation: signed(4), ..LinuxMemory::default() }).into(),
        cpu: Some(LinuxCPU { shares: number(512), cpus: "0".into(), ..LinuxCPU::default() }).into(),
        hugepage_limits: vec![HugepageLimit {
            page_size: "2MB".into(),
            limit: 8,
            ..HugepageLimit::default()
        }],
        unified: [("memory.high".to_owned(), "7".to_owned())].into(),
        devices: vec![LinuxDeviceCgroup {
            allow: true,
            access: "r".into(),
            type_: "c".into(),
            ..LinuxDeviceCgroup::default()
        }],
        ..LinuxResources::default()
    };
    let adjusted = done(&linux(LinuxContainerAdjustment {
        resources: Some(resources).into(),
        ..LinuxContainerAdjustment::default()
    }));
    let all = &adjusted["linux"]["resources"];
    assert_eq!(all["memory"], json!({"limit": 5, "swap": 6, "reservation": 4}));
    assert_eq!(all["cpu"], json!({"shares": 512, "cpus": "0"}));
    assert_eq!(all["hugepageLimits"], json!([{"pageSize": "2MB", "limit": 8}]));
    assert_eq!(all["unified"], json!({"memory.high": "7"}));
    assert_eq!(all["devices"].as_array().unwrap().len(), 2);
}

#[test]
fn what_is_not_done_is_refused_by_name() {
    let one = |linux: LinuxContainerAdjustment| ContainerAdjustment {
        linux: Some(linux).into(),
        ..ContainerAdjustment::default()
    };
    let empty = LinuxContainerAdjustment::default;
    let some = || Some(vec![]);
    let class =
        |resources| one(LinuxContainerAdjustment { resources: Some(resources).into(), ..empty() });
    for (adjust, name) in [
        (
            ContainerAdjustment { cdi_devices: vec![vec![]], ..ContainerAdjustment::default() },
            "CDI_devices",
        ),
        (one(LinuxContainerAdjustment { io_priority: some(), ..empty() }), "linux.io_priority"),
        (
            one(LinuxContainerAdjustment { seccomp_policy: some(), ..empty() }),
            "linux.seccomp_policy",
        ),
        (one(LinuxContainerAdjustment { namespaces: vec![vec![]], ..empty() }), "linux.namespaces"),
        (
            one(LinuxContainerAdjustment { net_devices: vec![vec![]], ..empty() }),
            "linux.net_devices",
        ),
        (one(LinuxContainerAdjustment { scheduler: some(), ..empty() }), "linux.scheduler"),
        (one(LinuxContainerAdjustment { rdt: some(), ..empty() }), "linux.rdt"),
        (one(LinuxContainerAdjustment { memory_policy: some(), ..empty() }), "linux.memory_policy"),
        (
            class(LinuxResources { blockio_class: some(), ..LinuxResources::default() }),
            "linux.resources.blockio_class",
        ),
        (
            class(LinuxResources { rdt_class: some(), ..LinuxResources::default() }),
            "linux.resources.rdt_class",
        ),
    ] {
        assert_eq!(refused(&adjust), format!("it asks for {name}, which Mooring does not adjust"));
    }
    // Of a later NRI: a field that nobody knows here.
    let later =
        <ContainerAdjustment as protobuf::Message>::parse_from_bytes(b"\xa2\x01\x01x").unwrap();
    assert!(refused(&later).contains("field 20 of ContainerAdjustment"));
}

#[test]
fn what_cannot_be_made_is_refused() {
    let adjust =
        ContainerAdjustment { mounts: vec![mount("", &[])], ..ContainerAdjustment::default() };
    assert_eq!(refused(&adjust), "it asks for a mount without destination");
    let hooks = Some(Hooks { poststop: vec![Hook::default()], ..Hooks::default() }).into();
    assert_eq!(
        refused(&ContainerAdjustment { hooks, ..ContainerAdjustment::default() }),
        "it asks for a hook without path"
    );
}

#[test]
fn two_plugins_may_not_set_the_same() {
    let (mut spec, mut claims) = (spec(), Claims::default());
    let set = ContainerAdjustment { env: pairs(&[("A", "x")]), ..ContainerAdjustment::default() };
    apply(&mut spec, &set, "10-x", &mut claims).unwrap();
    let error = apply(&mut spec, &set, "20-y", &mut claims).unwrap_err();
    assert_eq!(error.to_string(), "Env \"A\" is set by NRI plugin \"10-x\" already");
    let anew = ContainerAdjustment {
        env: pairs(&[("-A", ""), ("A", "y")]),
        ..ContainerAdjustment::default()
    };
    apply(&mut spec, &anew, "20-y", &mut claims).unwrap();
    assert_eq!(spec["process"]["env"], json!(["PATH=/bin", "A=y", "B=2"]));
    let args = |args: &[&str]| ContainerAdjustment {
        args: args.iter().map(|&one| one.into()).collect(),
        ..ContainerAdjustment::default()
    };
    apply(&mut spec, &args(&["/bin/one"]), "10-x", &mut claims).unwrap();
    assert!(apply(&mut spec, &args(&["/bin/two"]), "20-y", &mut claims).is_err());
    apply(&mut spec, &args(&["", "/bin/two"]), "20-y", &mut claims).unwrap();
    assert_eq!(spec["process"]["args"], json!(["/bin/two"]));
}
