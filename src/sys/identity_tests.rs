use std::process::Command;

use rustix::process::Signal;

use super::identity::{Pinned, is_alive, parse, start_time};
use crate::process::testing::TestChild;

#[test]
fn a_name_may_hold_anything() {
    let stat = format!("12 (a) b (c) S 1 {} 777 0", ["0"; 17].join(" "));
    assert_eq!(parse(&stat), Some(('S', 777)));
    assert_eq!(parse("12 (a"), None);
}

#[test]
fn another_process_of_the_same_number_is_not_taken() {
    let mut child = TestChild::start(Command::new("sleep").arg("60"));
    let pid = child.pid;
    let start = start_time(pid).unwrap();
    assert!(is_alive(pid, start));
    assert!(Pinned::new(pid, Some(start + 1)).is_none());
    assert!(Pinned::new(pid, Some(start)).unwrap().signal(Signal::KILL).unwrap());
    assert_eq!(child.status(), 128 + 9);
    assert!(!is_alive(pid, start));
}
