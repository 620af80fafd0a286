use proptest::prelude::*;
use serde_json::{Value, json};

use super::{pod_files::*, *};

fn files() -> PodFiles {
    PodFiles {
        hosts: Some("/pod/hosts".into()),
        hostname: Some("/pod/hostname".into()),
        resolv_conf: Some("/pod/resolv.conf".into()),
        shm: Some("/pod/shm".into()),
    }
}

fn joined() -> Value {
    json!({"namespaces": [{"type": "ipc", "path": "/proc/7/ns/ipc"}]})
}

fn own() -> Value {
    json!({"namespaces": [{"type": "pid"}, {"type": "ipc"}]})
}

fn mounts(spec: &Value) -> &[Value] {
    spec["mounts"].as_array().unwrap()
}

fn at<'a>(spec: &'a Value, destination: &str) -> Vec<&'a Value> {
    mounts(spec).iter().filter(|mount| mount["destination"] == destination).collect()
}

#[test]
fn a_specification_without_mounts_gets_all_four() {
    for empty in [json!({"linux": joined()}), json!({"linux": joined(), "mounts": null})] {
        let mut spec = empty;
        assert_eq!(add_pod_files(&mut spec, &files()).unwrap().len(), 4);
        assert_eq!(
            at(&spec, "/etc/hosts"),
            [&json!({
                "destination": "/etc/hosts",
                "type": "bind",
                "source": "/pod/hosts",
                "options": ["rbind", "rprivate", "rw"],
            })]
        );
        assert_eq!(mounts(&spec).len(), 4);
    }
}

#[test]
fn the_clients_own_mount_stays_however_its_destination_is_written() {
    for written in ["/etc/hosts", "/etc//hosts/", "etc/hosts", "/etc/x/../hosts", "/../etc/./hosts"]
    {
        let mount = json!({"destination": written, "type": "bind", "source": "/kubelet/hosts"});
        let mut spec = json!({"linux": joined(), "mounts": [mount]});
        let added = add_pod_files(&mut spec, &files()).unwrap();
        assert!(!added.contains(&"/pod/hosts".into()), "{written}");
        assert_eq!(mounts(&spec)[0], mount);
        assert_eq!(mounts(&spec).len(), 4);
    }
}

#[test]
fn files_are_read_only_where_the_root_is_and_shm_never() {
    let mut spec = json!({"linux": joined(), "root": {"path": "rootfs", "readonly": true}});
    add_pod_files(&mut spec, &files()).unwrap();
    let access = |destination| at(&spec, destination)[0]["options"][2].clone();
    assert_eq!(access("/etc/hosts"), "ro");
    assert_eq!(access("/etc/hostname"), "ro");
    assert_eq!(access("/etc/resolv.conf"), "ro");
    assert_eq!(access("/dev/shm"), "rw");
}

#[test]
fn a_private_shm_gives_way_to_the_pods_in_its_place() {
    let mut spec = json!({"linux": joined(), "mounts": [
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
        {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["size=65536k"]},
        {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue"},
    ]});
    add_pod_files(&mut spec, &files()).unwrap();
    assert_eq!(mounts(&spec)[1]["source"], "/pod/shm");
    assert_eq!(mounts(&spec)[1]["type"], "bind");
    assert_eq!(at(&spec, "/dev/shm").len(), 1);
}

#[test]
fn a_shm_that_the_client_binds_stays() {
    let mount = json!({"destination": "/dev/shm", "type": "bind", "source": "/emptydir"});
    let mut spec = json!({"linux": joined(), "mounts": [mount]});
    let added = add_pod_files(&mut spec, &files()).unwrap();
    assert_eq!(at(&spec, "/dev/shm"), [&mount]);
    assert!(!added.contains(&"/pod/shm".into()));
}

#[test]
fn a_container_with_its_own_ipc_namespace_keeps_its_private_shm() {
    let mount = json!({"destination": "/dev/shm", "type": "tmpfs", "source": "shm"});
    let mut spec = json!({"linux": own(), "mounts": [mount]});
    add_pod_files(&mut spec, &files()).unwrap();
    assert_eq!(at(&spec, "/dev/shm"), [&mount]);
    let mut spec = json!({"linux": own()});
    add_pod_files(&mut spec, &files()).unwrap();
    assert!(at(&spec, "/dev/shm").is_empty());
}

#[test]
fn in_the_nodes_ipc_namespace_the_shm_is_the_nodes() {
    let record = files::FilesRecord::in_dir(std::path::Path::new("/pod"));
    let mut spec = json!({"linux": {"namespaces": [{"type": "pid"}]}, "mounts": [
        {"destination": "/dev/shm", "type": "tmpfs", "source": "shm"},
    ]});
    add_pod_files(&mut spec, &PodFiles::of(&record, None)).unwrap();
    assert_eq!(at(&spec, "/dev/shm")[0]["source"], "/dev/shm");
}

#[test]
fn what_is_mounted_in_shm_is_not_covered() {
    let mut spec = json!({"linux": joined(), "mounts": [
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
        {"destination": "/dev/shm/cache", "type": "bind", "source": "/volume"},
    ]});
    add_pod_files(&mut spec, &files()).unwrap();
    let order: Vec<_> = mounts(&spec).iter().map(|mount| &mount["destination"]).collect();
    assert_eq!(order[..3], ["/dev", "/dev/shm", "/dev/shm/cache"]);
}

#[test]
fn the_pods_files_are_not_mapped_whatever_other_mounts_are() {
    let uids = json!([{"containerID": 0, "hostID": 70_000, "size": 65_536}]);
    let mapped = json!({"destination": "/data", "type": "bind", "source": "/data", "options": ["rbind"],
        "uidMappings": uids, "gidMappings": uids});
    let mut spec = json!({"mounts": [mapped], "linux": {"uidMappings": uids, "gidMappings": uids}});
    add_pod_files(&mut spec, &files()).unwrap();
    let all = mounts(&spec);
    assert!(all.len() > 1);
    for mount in all {
        assert_eq!(mount.get("uidMappings").is_some(), mount["destination"] == "/data", "{mount}");
    }
}

#[test]
fn what_is_no_specification_is_refused() {
    for mut wrong in [json!(null), json!([]), json!("x"), json!({"mounts": "all"})] {
        assert!(matches!(add_pod_files(&mut wrong, &files()), Err(Error::Invalid { .. })));
    }
}

fn mount() -> impl Strategy<Value = Value> {
    let destination = prop::sample::select(vec![
        "/etc/hosts",
        "/etc/hostname",
        "/etc/./resolv.conf",
        "/dev/shm",
        "/dev//shm",
        "/dev/shm/x",
        "/dev",
        "/etc",
        "/data",
        "relative",
        "",
    ]);
    let kind = prop::sample::select(vec!["bind", "tmpfs", "image", ""]);
    (destination, kind, any::<bool>(), any::<u8>()).prop_map(
        |(destination, kind, mapped, other)| {
            let mut mount = json!({"destination": destination, "type": kind, "x-unknown": other});
            if mapped {
                mount["uidMappings"] = json!([{"containerID": 0, "hostID": 1, "size": 1}]);
            }
            mount
        },
    )
}

fn anything() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        "[a-z/]{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        let keys = prop::sample::select(vec![
            "mounts",
            "linux",
            "namespaces",
            "root",
            "readonly",
            "type",
            "path",
            "destination",
        ]);
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::hash_map(keys.prop_map(str::to_owned), inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn each_destination_has_one_mount_a_second_time_changes_nothing_and_the_rest_survives(
        list in prop::collection::vec(mount(), 0..8),
        linux in prop::sample::select(vec![joined(), own(), json!({})]),
        read_only: bool,
        unknown in anything(),
    ) {
        let before = json!({
            "linux": linux, "mounts": list, "root": {"readonly": read_only}, "x-unknown": unknown,
        });
        let mut spec = before.clone();
        add_pod_files(&mut spec, &files()).unwrap();
        let count = |spec: &Value, place: &str| {
            let here = |mount: &&Value| {
                clean(mount["destination"].as_str().unwrap()) == clean(place)
            };
            mounts(spec).iter().filter(here).count()
        };
        for place in ["/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/dev/shm"] {
            // Two of the client's own in one place are the client's affair.
            prop_assert!(count(&spec, place) <= count(&before, place).max(1));
        }
        let mut again = spec.clone();
        add_pod_files(&mut again, &files()).unwrap();
        prop_assert_eq!(&again, &spec);
        // All but a private shm is still there, in its order.
        let mut left = mounts(&spec).iter();
        for mount in &list {
            let replaced = mount["type"] == "tmpfs"
                && clean(mount["destination"].as_str().unwrap()) == clean("/dev/shm");
            prop_assert!(replaced || left.any(|other| other == mount), "{mount} is lost");
        }
        for key in ["linux", "root", "x-unknown"] {
            prop_assert_eq!(&spec[key], &before[key]);
        }
    }

    #[test]
    fn no_json_makes_it_panic(mut spec in anything()) {
        let _ = add_pod_files(&mut spec, &files());
    }
}
