use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    time::{Duration, Instant},
};

use serde_json::json;

use super::*;
use crate::process::Reaper;

/// A runtime that never ends, nor does the child that it starts.
fn hanging(folder: &Path) -> PathBuf {
    let (program, child) = (folder.join("runtime"), folder.join("child"));
    let text = format!("#!/bin/sh\nsleep 1000 &\necho $$ $! > {}\nwait\n", child.display());
    fs::write(&program, text).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    program
}

fn settings(folder: &Path) -> RuntimeSettings {
    RuntimeSettings {
        binary: hanging(folder),
        root: folder.join("root"),
        timeout: Duration::from_millis(300),
        ..RuntimeSettings::default()
    }
}

/// What the hanging runtime said of its processes must be gone. Answers whether it came to say something: on a busy
/// machine it may be killed before.
async fn nothing_lives(folder: &Path) -> bool {
    let text = fs::read_to_string(folder.join("child")).unwrap_or_default();
    let pids: Vec<i32> = text.split_whitespace().map(|pid| pid.parse().unwrap()).collect();
    if pids.is_empty() {
        return false;
    }
    assert_eq!(pids.len(), 2, "{text:?}");
    // The child is init's to reap: it is killed with its parent, and not gone in the same moment.
    let gone = async {
        for pid in pids {
            while fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|s| !s.contains(") Z "))
            {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(5), gone).await.expect("they were killed");
    fs::remove_file(folder.join("child")).unwrap();
    true
}

#[tokio::test]
async fn every_call_of_a_runtime_that_hangs_ends_in_time_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (bundle, root) = (folder.path().join("bundle"), folder.path());
    fs::create_dir(&bundle).unwrap();
    let runc = Runc::new(settings(root), Reaper::start().unwrap());
    let (id, exec_id) = (Id::new("c1").unwrap(), Id::new("e1").unwrap());
    for verb in ["create", "start", "kill", "delete", "exec", "pause", "resume", "update"] {
        let until = Instant::now() + Duration::from_secs(30);
        loop {
            let answer = match verb {
                "create" => runc.create(&id, &bundle, Stdio::default().into()).await.map(drop),
                "start" => runc.start(&id, &bundle).await,
                "kill" => runc.kill(&id, &bundle, 9, true).await,
                "delete" => runc.delete(&id, &bundle).await,
                "exec" => {
                    let (process, stdio) = (json!({}), Stdio::default());
                    let exec = Exec { process, stdio, console: None };
                    runc.exec(&id, &exec_id, &bundle, exec).await.map(drop)
                }
                "pause" => runc.pause(&id, &bundle).await,
                "resume" => runc.resume(&id, &bundle).await,
                _ => runc.update(&id, &bundle, b"{}").await,
            };
            let error = answer.unwrap_err();
            assert_eq!(error.code(), Code::DeadlineExceeded, "{error}");
            let expected = format!(
                "OCI runtime {verb} of container \"c1\" did not end within 300ms and was killed"
            );
            assert_eq!(error.to_string(), expected);
            if nothing_lives(root).await {
                break;
            }
            assert!(Instant::now() < until, "the runtime never came to run");
        }
    }
    assert_eq!(fs::read_dir(&bundle).unwrap().count(), 0, "files of the calls are left");
}

#[tokio::test]
async fn the_runtime_runs_in_the_bundle() {
    let folder = tempfile::tempdir().unwrap();
    let (bundle, places) = (folder.path().join("bundle"), folder.path().join("places"));
    fs::create_dir(&bundle).unwrap();
    let runc = Runc::new(settings(folder.path()), Reaper::start().unwrap());
    let text = format!("#!/bin/sh\npwd >> {}\nexit 1\n", places.display());
    fs::write(folder.path().join("runtime"), text).unwrap();
    let id = Id::new("c1").unwrap();
    let stdio = || Stdio::default();
    runc.create(&id, &bundle, stdio().into()).await.unwrap_err();
    runc.start(&id, &bundle).await.unwrap_err();
    let exec = Exec { process: json!({}), stdio: stdio(), console: None };
    runc.exec(&id, &Id::new("e1").unwrap(), &bundle, exec).await.unwrap_err();
    runc.delete(&id, &bundle).await.unwrap_err();
    fs::remove_dir(&bundle).unwrap();
    // `delete` may come when the bundle is gone.
    runc.delete(&id, &bundle).await.unwrap_err();
    let bundle = bundle.display();
    let expected = format!("{bundle}\n{bundle}\n{bundle}\n{bundle}\n/\n");
    assert_eq!(fs::read_to_string(places).unwrap(), expected);
}

#[tokio::test]
async fn a_limit_that_no_clock_can_reach_is_none() {
    // As a shim from before limits were bounded may have written it down.
    let folder = tempfile::tempdir().unwrap();
    let settings = RuntimeSettings {
        binary: "/bin/true".into(),
        timeout: Duration::from_secs(i64::MAX.unsigned_abs()),
        ..settings(folder.path())
    };
    let runtime = Runc::new(settings, Reaper::start().unwrap());
    runtime.pause(&Id::new("a").unwrap(), folder.path()).await.unwrap();
    let exec = Exec { process: serde_json::json!({}), stdio: Stdio::default(), console: None };
    let id = Id::new("b").unwrap();
    let error = runtime.exec(&Id::new("a").unwrap(), &id, folder.path(), exec).await.unwrap_err();
    assert!(matches!(error, Error::Garbage { .. } | Error::File { .. }), "{error}");
}

#[test]
fn records_from_before_the_limit_get_the_usual_one() {
    let old = r#"{"binary": "crun", "root": "/r"}"#;
    let settings: RuntimeSettings = serde_json::from_str(old).unwrap();
    assert_eq!(settings.binary, PathBuf::from("crun"));
    assert_eq!(settings.timeout, Duration::from_mins(2));
}
