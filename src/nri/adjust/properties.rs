//! What holds of adjustments whatever they are.

use std::collections::BTreeMap;

use proptest::prelude::*;
use protobuf::Message;

use super::*;
use crate::nri::api::KeyValue;

fn key() -> impl Strategy<Value = String> {
    "-?[A-C]"
}

fn variables() -> impl Strategy<Value = Vec<(String, String)>> {
    prop::collection::vec((key(), "[a-z=]{0,3}"), 0..6)
}

/// Environment, annotations and mounts of one adjustment.
fn adjustment() -> impl Strategy<Value = ContainerAdjustment> {
    let options = prop::collection::vec(prop::sample::select(vec!["ro", "rbind", "rslave"]), 0..3);
    let mounts = prop::collection::vec(("-?/[a-c](/[a-c])?", options), 0..5);
    let table = prop::collection::btree_map(key(), "[a-z]{0,2}", 0..4);
    (variables(), table, mounts).prop_map(|(env, annotations, mounts)| ContainerAdjustment {
        env: env
            .into_iter()
            .map(|(key, value)| KeyValue { key, value, ..KeyValue::default() })
            .collect(),
        annotations,
        mounts: mounts
            .into_iter()
            .map(|(destination, options)| Mount {
                destination,
                source: "/s".into(),
                options: options.into_iter().map(str::to_owned).collect(),
                ..Mount::default()
            })
            .collect(),
        ..ContainerAdjustment::default()
    })
}

fn spec() -> impl Strategy<Value = Value> {
    let env = prop::collection::vec("[A-D]=[a-z]?", 0..5);
    let mounts = prop::collection::btree_set("/[a-d](/[a-d])?", 0..5);
    let annotations = prop::collection::btree_map("[A-D]", "[a-z]", 0..4);
    (env, mounts, annotations).prop_map(|(env, mounts, annotations)| {
        let mounts: Vec<_> =
            mounts.into_iter().map(|path| json!({"destination": path, "source": "/o"})).collect();
        json!({"process": {"env": env}, "mounts": mounts, "annotations": annotations})
    })
}

fn adjusted(spec: &Value, adjust: &ContainerAdjustment) -> Value {
    let mut spec = spec.clone();
    apply(&mut spec, adjust, "10-x", &mut Claims::default()).unwrap();
    spec
}

fn environment(spec: &Value) -> Vec<(String, String)> {
    let all = spec.pointer("/process/env").and_then(Value::as_array);
    let pair = |one: &Value| {
        let (key, value) = one.as_str().unwrap().split_once('=').unwrap();
        (key.to_owned(), value.to_owned())
    };
    all.into_iter().flatten().map(pair).collect()
}

proptest! {
    #[test]
    fn a_variable_is_as_asked_for_and_the_others_as_they_were(spec in spec(), adjust in adjustment()) {
        let after = environment(&adjusted(&spec, &adjust));
        let mut wanted: BTreeMap<&str, Option<&str>> = BTreeMap::new();
        for one in &adjust.env {
            match unmarked(&one.key) {
                (name, true) => { wanted.entry(name).or_insert(None); }
                (name, false) => { wanted.insert(name, Some(&one.value)); }
            }
        }
        for (name, value) in &wanted {
            let found: Vec<&str> = after.iter().filter(|(key, _)| key == name).map(|(_, v)| v.as_str()).collect();
            prop_assert_eq!(found, value.iter().copied().collect::<Vec<_>>());
        }
        let untouched = |all: Vec<(String, String)>| -> Vec<(String, String)> {
            all.into_iter().filter(|(key, _)| !wanted.contains_key(key.as_str())).collect()
        };
        prop_assert_eq!(untouched(after), untouched(environment(&spec)));
    }

    #[test]
    fn what_is_asked_for_twice_is_done_once(spec in spec(), adjust in adjustment()) {
        let mut claims = Claims::default();
        let mut twice = spec.clone();
        apply(&mut twice, &adjust, "10-x", &mut claims).unwrap();
        let once = twice.clone();
        apply(&mut twice, &adjust, "10-x", &mut claims).unwrap();
        // The order of what is of the same depth is nobody's concern.
        let sorted = |mut spec: Value| {
            if let Some(all) = spec.get_mut("mounts").and_then(Value::as_array_mut) {
                all.sort_by_key(ToString::to_string);
            }
            spec
        };
        prop_assert_eq!(sorted(twice), sorted(once));
    }

    #[test]
    fn a_mount_is_there_once_and_after_what_it_lies_in(spec in spec(), adjust in adjustment()) {
        let after = adjusted(&spec, &adjust);
        let all: Vec<&str> = after["mounts"].as_array().unwrap().iter().map(|one| text(one, "destination")).collect();
        for (index, one) in all.iter().enumerate() {
            prop_assert!(!all[..index].contains(one), "{one} twice in {all:?}");
            if !adjust.mounts.is_empty() {
                let below = format!("{one}/");
                prop_assert!(!all[..index].iter().any(|earlier| earlier.starts_with(&below)), "{all:?}");
            }
        }
        for mount in &adjust.mounts {
            if let (path, false) = unmarked(&mount.destination) {
                prop_assert!(all.contains(&path));
            }
        }
    }

    #[test]
    fn plugins_that_ask_for_different_things_may_be_asked_in_any_order(spec in spec(), adjust in adjustment()) {
        let (mut first, mut second) = (adjust.clone(), adjust);
        first.env.retain(|one| unmarked(&one.key).0 == "A");
        second.env.retain(|one| unmarked(&one.key).0 != "A");
        first.mounts.clear();
        second.annotations.clear();
        let in_order = |one: &ContainerAdjustment, other: &ContainerAdjustment| {
            let (mut spec, mut claims) = (spec.clone(), Claims::default());
            apply(&mut spec, one, "10-x", &mut claims).unwrap();
            apply(&mut spec, other, "20-y", &mut claims).unwrap();
            let mut all = environment(&spec);
            all.sort();
            (all, spec["annotations"].clone(), spec["mounts"].clone())
        };
        prop_assert_eq!(in_order(&first, &second), in_order(&second, &first));
    }

    #[test]
    fn the_same_of_two_plugins_is_refused(spec in spec(), adjust in adjustment()) {
        let (mut spec, mut claims) = (spec, Claims::default());
        apply(&mut spec, &adjust, "10-x", &mut claims).unwrap();
        let removed: Vec<&str> = adjust.env.iter().filter_map(|one| one.key.strip_prefix('-')).collect();
        let mut again = ContainerAdjustment { env: adjust.env.clone(), ..ContainerAdjustment::default() };
        again.env.retain(|one| !unmarked(&one.key).1);
        let refused = apply(&mut spec, &again, "20-y", &mut claims).is_err();
        prop_assert_eq!(refused, !again.env.is_empty(), "{:?}", removed);
    }

    #[test]
    fn no_bytes_and_no_document_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), which in 0..4usize) {
        let documents = [json!(null), json!([1]), json!({"process": 3, "mounts": {"a": 1}, "linux": "x", "annotations": []}), json!({"mounts": [1, null], "process": {"env": [1, "x"]}})];
        if let Ok(adjust) = ContainerAdjustment::parse_from_bytes(&bytes) {
            let _ = apply(&mut documents[which].clone(), &adjust, "10-x", &mut Claims::default());
        }
    }

    #[test]
    fn any_adjustment_is_done_to_any_document(adjust in adjustment(), which in 0..4usize) {
        let documents = [json!(null), json!([1]), json!({"process": 3, "mounts": {"a": 1}, "linux": "x", "annotations": []}), json!({"mounts": [1, null], "process": {"env": [1, "x"]}})];
        apply(&mut documents[which].clone(), &adjust, "10-x", &mut Claims::default()).unwrap();
    }
}
