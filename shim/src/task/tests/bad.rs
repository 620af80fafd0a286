use std::{fs, os::unix::fs::PermissionsExt, time::Duration};

use mooring::{
    error::{Code, Coded},
    mounts::Mount,
};

use super::stage::Stage;
use crate::task::{CreateRequest, Error, Streams};

async fn refused(stage: &Stage, request: CreateRequest) -> Error {
    let error = stage.tasks.create(request).await.unwrap_err();
    assert!(stage.events.all().is_empty());
    stage.assert_clean();
    error
}

#[tokio::test]
async fn a_specification_that_is_none_is_refused() {
    let stage = Stage::new("true");
    for text in ["", "{", "[]", "\u{0}"] {
        fs::write(stage.bundle().join("config.json"), text).unwrap();
        let error = refused(&stage, stage.request()).await;
        assert_eq!(error.code(), Code::InvalidArgument, "{error}");
    }
    fs::remove_file(stage.bundle().join("config.json")).unwrap();
    let error = refused(&stage, stage.request()).await;
    assert_eq!(error.code(), Code::InvalidArgument, "{error}");
    assert!(error.to_string().contains("config.json"), "{error}");
}

#[tokio::test]
async fn a_runtime_that_is_not_there_is_named_and_nothing_stays_mounted() {
    let stage = Stage::new("true");
    let mut request = stage.request();
    request.runtime.binary = "/no/such/runc".into();
    let source = stage.bundle().join("rootfs");
    let options = vec!["rbind".into(), "rw".into()];
    request.rootfs = vec![Mount {
        kind: "bind".into(),
        source: source.to_str().unwrap().into(),
        target: None,
        options,
    }];
    let error = refused(&stage, request).await;
    assert_eq!(error.code(), Code::InvalidArgument);
    assert!(
        error.to_string().starts_with("OCI runtime create failed")
            && error.to_string().contains("/no/such/runc"),
        "{error}"
    );
    let mut request = stage.request();
    request.runtime.binary = "no-such-runc".into();
    assert!(refused(&stage, request).await.to_string().contains("PATH"));
}

#[tokio::test]
async fn a_runtime_that_writes_no_process_id_is_told_apart() {
    let stage = Stage::new("true");
    let mut request = stage.request();
    request.runtime.binary = "/bin/true".into();
    let error = refused(&stage, request).await;
    assert!(error.to_string().contains("no process id"), "{error}");
}

#[tokio::test]
async fn a_runtime_that_hangs_is_given_up_and_nothing_of_the_task_is_left() {
    let stage = Stage::new("true");
    let mut request = stage.request();
    let program = stage.folder.path().join("hanging");
    fs::write(&program, "#!/bin/sh\nsleep 1000 & wait\n").unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    request.runtime.binary = program;
    request.runtime.timeout = Duration::from_millis(200);
    let error = refused(&stage, request).await;
    assert_eq!(error.code(), Code::DeadlineExceeded);
    let named = format!("OCI runtime create of container \"{}\"", stage.id);
    assert!(error.to_string().starts_with(&named), "{error}");
}

#[tokio::test]
async fn the_runtimes_own_words_reach_the_client() {
    let stage = Stage::new("true");
    let mut spec = stage.spec("true");
    spec["process"]["args"] = serde_json::json!(["/no/such/program"]);
    stage.write(&spec);
    let error = refused(&stage, stage.request()).await.to_string();
    assert!(
        error.starts_with("OCI runtime create failed: ") && error.contains("/no/such/program"),
        "{error}"
    );
}

#[tokio::test]
async fn a_terminal_that_the_specification_does_not_ask_for_is_refused() {
    let stage = Stage::new("true");
    let streams = Streams { terminal: true, ..Streams::default() };
    let error = refused(&stage, CreateRequest { streams, ..stage.request() }).await;
    assert!(error.to_string().starts_with("OCI runtime create failed"), "{error}");
}

#[tokio::test]
async fn relative_checkpoints_and_bundles_are_refused() {
    let stage = Stage::new("true");
    let checkpoint = "x".to_owned();
    let error = refused(&stage, CreateRequest { checkpoint, ..stage.request() }).await;
    assert_eq!(error.code(), Code::InvalidArgument);
    let error = refused(&stage, CreateRequest { bundle: "bundle".into(), ..stage.request() }).await;
    assert_eq!(error.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn streams_that_cannot_be_opened_are_named() {
    let stage = Stage::new("true");
    for stdout in ["/no/folder/\u{0}", "http://x", "binary:///no/such/logger"] {
        let streams = Streams { stdout: stdout.into(), ..Streams::default() };
        refused(&stage, CreateRequest { streams, ..stage.request() }).await;
    }
}

#[tokio::test]
async fn streams_that_nobody_could_write_to_or_read_from_are_refused_at_once() {
    let stage = Stage::new("true");
    let missing = stage.folder.path().join("missing");
    let folder = stage.folder.path().display().to_string();
    let begun = std::time::Instant::now();
    let [missing, fifo] = [missing.display().to_string(), stage.fifo("fifo")];
    for stdout in
        [missing.clone(), format!("file://{fifo}"), folder.clone(), format!("file://{folder}")]
    {
        for terminal in [false, true] {
            let streams = Streams { stdout: stdout.clone(), terminal, ..Streams::default() };
            if terminal {
                let mut spec = stage.spec("true");
                spec["process"]["terminal"] = true.into();
                stage.write(&spec);
            } else {
                stage.write(&stage.spec("true"));
            }
            let error = refused(&stage, CreateRequest { streams, ..stage.request() }).await;
            assert_eq!(error.code(), Code::InvalidArgument, "{stdout}: {error}");
        }
    }
    stage.write(&stage.spec("true"));
    for input in [missing.clone(), folder] {
        let streams = Streams { stdin: input.clone(), ..Streams::default() };
        let error = refused(&stage, CreateRequest { streams, ..stage.request() }).await;
        assert_eq!(error.code(), Code::InvalidArgument, "{input}: {error}");
    }
    assert!(begun.elapsed() < Duration::from_secs(20));
    assert!(!std::path::Path::new(&missing).exists());
}

#[tokio::test]
async fn an_exec_whose_start_failed_is_still_created() {
    let stage = Stage::new("exec sleep 1000");
    stage.run(Streams::default()).await;
    let id = stage.id.as_str();
    stage
        .tasks
        .exec(crate::task::ExecRequest {
            id: stage.id.clone(),
            exec_id: mooring::id::Id::new("bad").unwrap(),
            streams: Streams::default(),
            process: br#"{"args":["/no/such/program"],"cwd":"/","user":{"uid":0,"gid":0}}"#
                .to_vec(),
        })
        .unwrap();
    for _ in 0..2 {
        stage.tasks.start(id, "bad").await.unwrap_err();
        let known = stage.tasks.state(id, "bad").unwrap();
        assert_eq!((known.status, known.pid), (crate::task::Status::Created, 0));
        // Who waits is not left waiting.
        assert_eq!(stage.wait("bad").await.status, 255);
    }
    stage.tasks.delete(id, "bad").await.unwrap();
    stage.kill(9).await;
    stage.wait("").await;
    stage.delete().await;
    stage.assert_clean();
}

#[tokio::test]
async fn what_a_killed_shim_left_of_a_terminal_goes_with_the_container() {
    let stage = Stage::new("exec sleep 1000");
    stage.run(Streams::default()).await;
    let records = mooring::container::load_all(&stage.folder.path().join("tasks")).unwrap();
    let record = records.into_iter().next().unwrap().unwrap();
    let consoles = record.consoles.clone().unwrap();
    assert!(consoles.starts_with(stage.folder.path().join("run")));
    let process = r#"{"terminal":true,"args":["/bin/true"],"cwd":"/","user":{"uid":0,"gid":0}}"#;
    stage
        .tasks
        .exec(crate::task::ExecRequest {
            id: stage.id.clone(),
            exec_id: mooring::id::Id::new("tty").unwrap(),
            streams: Streams { terminal: true, ..Streams::default() },
            process: process.as_bytes().to_vec(),
        })
        .unwrap();
    stage.tasks.start(stage.id.as_str(), "tty").await.unwrap();
    stage.wait("tty").await;
    assert!(!consoles.exists(), "the folder goes with its last socket");
    // As a shim leaves it that is killed while it waits for the terminal.
    std::fs::create_dir_all(&consoles).unwrap();
    drop(std::os::unix::net::UnixListener::bind(consoles.join("7")).unwrap());
    stage.kill(9).await;
    stage.wait("").await;
    stage.delete().await;
    assert!(!consoles.exists());
    stage.assert_clean();
}

#[tokio::test]
async fn a_name_is_taken_once_and_another_containers_state_is_left_alone() {
    let stage = Stage::new("sleep 1000");
    stage.run(Streams::default()).await;
    let error = stage.tasks.create(stage.request()).await.unwrap_err();
    assert_eq!(error.code(), Code::AlreadyExists);
    let other = Stage::new("true");
    let request =
        CreateRequest { id: stage.id.clone(), runtime: stage.settings.clone(), ..other.request() };
    let error = other.tasks.create(request).await.unwrap_err();
    assert_eq!(error.code(), Code::AlreadyExists);
    assert!(stage.tasks.state(stage.id.as_str(), "").unwrap().ended.is_none());
    stage.kill(9).await;
    stage.wait("").await;
    stage.delete().await;
    stage.assert_clean();
}

#[tokio::test]
async fn unknown_names_and_signals_are_told_apart() {
    let stage = Stage::new("sleep 1000");
    assert_eq!(stage.tasks.state("nobody", "").unwrap_err().code(), Code::NotFound);
    assert_eq!(stage.tasks.kill("nobody", "", 9, false).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(stage.tasks.wait("nobody", "").await.unwrap_err().code(), Code::NotFound);
    stage.run(Streams::default()).await;
    let id = stage.id.as_str();
    assert_eq!(
        stage.tasks.kill(id, "", 999, false).await.unwrap_err().code(),
        Code::InvalidArgument
    );
    assert_eq!(stage.tasks.kill(id, "x", 9, false).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(stage.tasks.start(id, "").await.unwrap_err().code(), Code::FailedPrecondition);
    assert_eq!(stage.tasks.delete(id, "").await.unwrap_err().code(), Code::FailedPrecondition);
    stage.kill(9).await;
    stage.wait("").await;
    stage.delete().await;
    stage.assert_clean();
}
