use mooring::{
    id::Id,
    inspect::GetResponse,
    sandbox::{
        daemon_record::DaemonRecord,
        survey::{Found, Hands},
    },
    telemetry::totals::Total,
};
use proptest::prelude::*;

use super::*;

const NAME: &str = "sandbox_stop";

/// A shim that has stopped `count` times.
fn shim(pid: i32, count: u64, keeps_totals: bool) -> One {
    let found = Found {
        namespace: Id::new("ns").unwrap(),
        id: Id::new(format!("s{pid}")).unwrap(),
        folder: format!("/state/ns/s{pid}").into(),
        shim: Some(DaemonRecord { pid, start_time: 1, socket: None, boot: None }),
        journal: None,
        containers: Vec::new(),
        written: None,
        hands: Hands::Shim,
    };
    let stops = inspect::Series { name: NAME.into(), count, ..inspect::Series::default() };
    let operations = vec![stops];
    let said = GetResponse { operations, keeps_totals, ..GetResponse::default() };
    One { found, said: Some(said), interfaces: Vec::new() }
}

fn seen(sandboxes: Vec<One>, totals: u64) -> Seen {
    let series = Series { count: totals, ..Series::default() };
    let (runtime, name, subject) = (String::new(), NAME.to_owned(), String::new());
    let totals = if totals > 0 { vec![Total { runtime, name, subject, series }] } else { vec![] };
    Seen { sandboxes, totals, complaints: Vec::new() }
}

fn count(sums: &Sums) -> u64 {
    sums.named(NAME, |_| ()).values().map(|series| series.count).sum()
}

#[test]
fn what_shims_said_that_are_gone_is_kept() {
    let mut kept = Kept::default();
    assert_eq!(count(&kept.after(&seen(vec![shim(1, 2, false), shim(2, 3, false)], 0))), 5);
    assert_eq!(count(&kept.after(&seen(vec![shim(2, 4, false)], 0))), 6);
    assert_eq!(count(&kept.after(&seen(vec![], 0))), 6);
    assert_eq!(count(&kept.after(&seen(vec![shim(3, 1, false)], 0))), 7);
}

#[test]
fn what_they_add_to_the_nodes_totals_is_counted_once() {
    let mut kept = Kept::default();
    assert_eq!(count(&kept.after(&seen(vec![shim(1, 2, true)], 5))), 7);
    assert_eq!(count(&kept.after(&seen(vec![], 5))), 7, "it has not added yet");
    assert_eq!(count(&kept.after(&seen(vec![], 7))), 7);
    assert_eq!(count(&kept.after(&seen(vec![shim(2, 1, true)], 7))), 8);
}

#[test]
fn a_shim_that_does_not_answer_once_is_counted_as_before() {
    let mut kept = Kept::default();
    kept.after(&seen(vec![shim(1, 2, false)], 0));
    let silent = One { said: None, ..shim(1, 0, false) };
    assert_eq!(count(&kept.after(&seen(vec![silent], 0))), 2);
    assert_eq!(count(&kept.after(&seen(vec![shim(1, 3, false)], 0))), 3);
}

#[test]
fn a_teardown_begun_three_times_was_begun_again_twice() {
    let mut one = shim(1, 0, false);
    one.said.as_mut().unwrap().teardowns = 3;
    let sums = Sums::now(&seen(vec![one], 0));
    assert_eq!(sums.named(RETRIES, |_| ()).values().map(|it| it.count).sum::<u64>(), 2);
}

proptest! {
    #[test]
    fn no_counter_ever_falls(scrapes in prop::collection::vec(
        (prop::collection::btree_map(1..6_i32, (0..4_u64, any::<bool>()), 0..6), 0..9_u64), 1..12,
    )) {
        let mut kept = Kept::default();
        let mut last = 0;
        for (shims, totals) in scrapes {
            let shims = shims.into_iter().map(|(pid, (n, keeps))| shim(pid, n, keeps)).collect();
            let now = count(&kept.after(&seen(shims, totals)));
            prop_assert!(now >= last, "{now} after {last}");
            last = now;
        }
    }
}
