use mooring::{
    id::Id,
    inspect::{self, GetResponse},
    sandbox::{
        daemon_record::DaemonRecord,
        survey::{Found, Hands},
    },
};

use super::*;

fn found() -> Found {
    Found {
        namespace: Id::new("k8s.io").unwrap(),
        id: Id::new("web").unwrap(),
        folder: "/nowhere".into(),
        shim: Some(DaemonRecord { pid: 4711, start_time: 1, socket: None, boot: None }),
        journal: None,
        containers: Vec::new(),
        written: None,
        hands: Hands::Shim,
    }
}

fn step(name: &str, outcome: inspect::Outcome, ms: i64) -> inspect::Step {
    inspect::Step {
        name: name.into(),
        outcome: outcome.into(),
        took: ms * 1_000_000,
        ..inspect::Step::default()
    }
}

/// A pod whose network's step hangs, and a kind of resource that only its shim knows.
fn said() -> GetResponse {
    let entry = |kind: &str, step: &str, stage: &str, record: &str| inspect::Entry {
        kind: kind.into(),
        step: step.into(),
        stage: stage.into(),
        record: record.into(),
        ..inspect::Entry::default()
    };
    let waits_for = vec!["process 7 (cat) in state D".to_owned()];
    let current = step("network", inspect::Outcome::UNDER_WAY, 12_000);
    GetResponse {
        version: "0.1.0".into(),
        state: inspect::State::STOPPING.into(),
        pod: Some(inspect::Pod {
            name: "web-0".into(),
            namespace: "shop".into(),
            uid: "u1".into(),
            ..inspect::Pod::default()
        })
        .into(),
        created_at: 1_790_000_000_123_000_000,
        runtime: "runc".into(),
        network: Some(inspect::Network {
            owner: inspect::Owner::SHIM.into(),
            netns: "/run/netns/x".into(),
            attachments: vec![inspect::Attachment {
                name: "node".into(),
                interface: "eth0".into(),
                outcome: "added".into(),
                result: r#"{"ips":[{"address":"10.0.0.4/16"}]}"#.into(),
                ..inspect::Attachment::default()
            }],
            ..inspect::Network::default()
        })
        .into(),
        steps: vec![step("containers", inspect::Outcome::DONE, 4)],
        current: Some(inspect::Step { waits_for, ..current }).into(),
        entries: vec![
            entry("shm", "shm", "released", "{}"),
            entry("portal", "portals", "held", r#"{"portal":{"to":"x"}}"#),
        ],
        containers: vec![inspect::Container {
            id: "app".into(),
            state: "stopped".into(),
            exit_status: 137,
            exited_at: 1_790_000_001_000_000_000,
            ..inspect::Container::default()
        }],
        operations: vec![inspect::Series {
            name: "cni_add".into(),
            subject: "bridge".into(),
            count: 2,
            errors: 1,
            total: 60_000_000,
            longest: 40_000_000,
            ..inspect::Series::default()
        }],
        teardowns: 2,
        ..GetResponse::default()
    }
}

#[test]
fn the_sheet_is_as_it_was() {
    let lines = [
        "sandbox     k8s.io/web",
        "pod         shop/web-0, uid u1",
        "state       stopping",
        "told by     its shim",
        "shim        4711, which is gone",
        "created     2026-09-21T14:13:20.123Z",
        "network     shim's, /run/netns/x",
        "            eth0 in \"node\": added 10.0.0.4/16",
        "",
        "containers",
        "ID   STATE    PID  EXIT",
        "app  stopped  -    137",
        "",
        "teardown (2 times begun)",
        "containers     done  4.0 ms",
        "network        under way  12.0 s  waits for: process 7 (cat) in state D",
        "",
        "holds",
        "STEP     WHAT ITS RELEASE DOES",
        "portals  portal: {\"portal\":{\"to\":\"x\"}}",
        "",
        "measured",
        "OPERATION  OF      COUNT  ERRORS  MEAN     LONGEST",
        "cni_add    bridge  2      1       30.0 ms  40.0 ms",
        "",
    ];
    assert_eq!(of(&Account::from_shim(&found(), said())), lines.join("\n"));
}

#[test]
fn what_a_later_release_says_is_shown_as_far_as_it_is_known() {
    let mut later = said();
    later.steps[0].outcome = protobuf::EnumOrUnknown::from_i32(99);
    later.state = protobuf::EnumOrUnknown::from_i32(99);
    let account = Account::from_shim(&found(), later);
    assert_eq!(account.teardown.steps[0].outcome, "unknown");
    assert!(of(&account).contains("portals"));
}

#[test]
fn without_its_shim_the_sheet_says_whose_word_it_is_and_why() {
    let doubts = vec!["journal x has version 99".to_owned()];
    let unsure = Found { hands: Hands::Unsure(doubts), ..found() };
    let sheet = of(&Account::from_disk(&unsure, Some("the shim does not answer".into())));
    for part in ["journal and records", "the shim does not answer", "has version 99", "unsure"] {
        assert!(sheet.contains(part), "{part} is not in {sheet}");
    }
}
