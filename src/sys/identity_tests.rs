use std::process::Command;

use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};

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
    let start = start_time(pid).unwrap().unwrap();
    assert!(is_alive(pid, start).unwrap());
    assert!(Pinned::new(pid, Some(start + 1)).unwrap().is_none());
    assert!(Pinned::new(pid, Some(start)).unwrap().unwrap().signal(Signal::KILL).unwrap());
    assert_eq!(child.status(), 128 + 9);
    assert!(!is_alive(pid, start).unwrap());
    assert!(Pinned::new(i32::MAX, Some(1)).unwrap().is_none());
    assert!(Pinned::new(0, None).unwrap().is_none() && Pinned::new(-1, None).unwrap().is_none());
}

/// In a process of its own: the limit is the whole process's.
#[test]
fn without_a_free_descriptor_nothing_is_taken_for_gone() {
    const CHILD: &str = "MOORING_TEST_NO_DESCRIPTORS";
    if std::env::var_os(CHILD).is_none() {
        let name = "sys::identity_tests::without_a_free_descriptor_nothing_is_taken_for_gone";
        let mut command = Command::new(std::env::current_exe().unwrap());
        let mut child = TestChild::start(command.args([name, "--exact"]).env(CHILD, "1"));
        assert_eq!(child.status(), 0);
        return;
    }
    let own = i32::try_from(std::process::id()).unwrap();
    let start = start_time(own).unwrap().unwrap();
    let before = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(0), ..before }).unwrap();
    let (alive, held, started) =
        (is_alive(own, start), Pinned::new(own, Some(start)), start_time(own));
    setrlimit(Resource::Nofile, before).unwrap();
    let code = |error: std::io::Error| error.raw_os_error().unwrap();
    let no_room = rustix::io::Errno::MFILE.raw_os_error();
    assert_eq!(alive.map_err(code), Err(no_room));
    assert_eq!(held.map(|held| held.is_some()).map_err(code), Err(no_room));
    assert_eq!(started.map_err(code), Err(no_room));
}
