//! Places where a test makes the process die, panic or pause. Without the feature `failpoints` nothing of it is compiled in.
//!
//! With it, the environment names a file as `MOORING_FAILPOINTS`. Its lines are `NAME=kill`, `NAME=panic`,
//! `NAME=pause:MS` or `record`; the first that matches is carried out once, and `NAME` is appended to `FILE.hit`. `record` appends every
//! name that is passed to `FILE.log`, so that a test can learn which points there are. A point that one process passes
//! several times while the file is there is `NAME#2` the second time, and so on.

/// Passes the point `name`.
#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub fn pass(_name: &str) {}

/// Passes the point `name`.
///
/// # Panics
/// Where the file says so.
#[cfg(feature = "failpoints")]
pub fn pass(name: &str) {
    let Some(file) = std::env::var_os("MOORING_FAILPOINTS") else { return };
    let Ok(text) = std::fs::read_to_string(&file) else { return };
    let name = &numbered(name);
    let beside = |ending: &str| {
        let mut path = file.clone();
        path.push(ending);
        path
    };
    for line in text.lines() {
        if line == "record" {
            append(beside(".log"), name);
        }
        let Some((point, action)) = line.split_once('=') else { continue };
        if point != name {
            continue;
        }
        append(beside(".hit"), name);
        // Once: whoever cleans up afterwards passes the same points.
        let _ = std::fs::remove_file(&file);
        if action == "kill" {
            let _ = nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL);
        } else if action == "panic" {
            panic!("failpoint {name}");
        } else if let Some(Ok(ms)) = action.strip_prefix("pause:").map(str::parse) {
            std::thread::sleep(std::time::Duration::from_millis(ms));
        }
        return;
    }
}

/// The name, with how often it has been passed where that is more than once.
#[cfg(feature = "failpoints")]
fn numbered(name: &str) -> String {
    use std::{collections::BTreeMap, sync::Mutex, sync::PoisonError};
    static PASSED: Mutex<BTreeMap<String, u32>> = Mutex::new(BTreeMap::new());
    let mut passed = PASSED.lock().unwrap_or_else(PoisonError::into_inner);
    let times = passed.entry(name.to_owned()).or_default();
    *times += 1;
    if *times == 1 { name.to_owned() } else { format!("{name}#{times}") }
}

#[cfg(feature = "failpoints")]
fn append(path: std::ffi::OsString, name: &str) {
    use std::io::Write;
    if let Ok(mut log) = std::fs::OpenOptions::new().append(true).create(true).open(path) {
        // Tests read it; nothing depends on it here.
        let _ = writeln!(log, "{name}");
    }
}
