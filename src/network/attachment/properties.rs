//! Whatever fails, and wherever the process dies: what was added is taken away, in the reverse order.

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::network::{
    AttachRequest,
    fake::{FakePlugins, Fault},
    plan,
};

const KINDS: [[&str; 2]; 2] = [["a", "b"], ["c", "d"]];

fn fault() -> impl Strategy<Value = Fault> {
    prop_oneof![Just(Fault::Reported(11, "later")), Just(Fault::Missing)]
}

fn kind() -> impl Strategy<Value = &'static str> {
    proptest::sample::select(KINDS.concat())
}

fn faults() -> impl Strategy<Value = Vec<(bool, &'static str, Vec<Fault>)>> {
    let one = (any::<bool>(), kind(), proptest::collection::vec(fault(), 0..3));
    proptest::collection::vec(one, 0..6)
}

fn record(folder: &Path) -> AttachmentRecord {
    for (index, kinds) in KINDS.iter().enumerate() {
        let plugins = kinds.map(|kind| json!({"type": kind}));
        let list = json!({"name": format!("n{index}"), "cniVersion": "1.0.0", "plugins": plugins});
        std::fs::write(folder.join(format!("{index}.conflist")), list.to_string()).unwrap();
    }
    let settings = Settings {
        conf_dir: folder.to_owned(),
        max_conf_num: 0,
        loopback: false,
        cache_dir: folder.join("cni"),
        ..Settings::default()
    };
    let request = AttachRequest { container_id: "pod".to_owned(), ..AttachRequest::default() };
    plan(&settings, request).unwrap()
}

/// Detaches until it succeeds; every fault fails one call only, so it must end.
async fn detach_at_last(plugins: &FakePlugins, record: &AttachmentRecord) {
    for _ in 0..30 {
        if detach(plugins, record, true, None).await.is_ok() {
            return;
        }
    }
    panic!("detach never ended");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_add_is_followed_by_a_del_whatever_fails(
        faults in faults(),
        takes_back: bool,
        journal_lost: bool,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let plugins = FakePlugins::default();
        for (is_add, kind, faults) in &faults {
            let operation = if *is_add { Operation::Add } else { Operation::Del };
            plugins.fail(operation, kind, faults);
        }
        let mut record = record(folder.path());
        let stored = record.clone();
        runtime.block_on(async {
            let _ = if takes_back {
                attach(&plugins, &mut record, None).await
            } else {
                add(&plugins, &mut record, None).await
            };
            // The process died before the outcome was written down: the journal knows the intent only.
            let record = if journal_lost { &stored } else { &record };
            detach_at_last(&plugins, record).await;
        });
        let log = plugins.take_log();
        for kind in KINDS.concat() {
            let last = |operation| log.iter().rposition(|e| *e == format!("{operation} {kind}"));
            if let Some(added) = last("ADD") {
                prop_assert!(last("DEL").is_some_and(|gone| gone > added), "{kind}: {log:?}");
            }
        }
        let left = std::fs::read_dir(folder.path().join("cni/results")).map_or(0, Iterator::count);
        prop_assert_eq!(left, 0);
    }
}
