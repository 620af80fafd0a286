use std::time::SystemTime;

use mooring::error::{Code, Coded};

use super::stage::{Stage, dependency};
use crate::task::{Status, Streams};

#[tokio::test]
async fn a_container_runs_to_its_exit_code_and_leaves_nothing() {
    for runc in ["runc", "runc-1.1"] {
        let before = SystemTime::now();
        let mut stage = Stage::new("exit 7");
        stage.settings.binary = dependency(runc);
        stage.tasks.create(stage.request()).await.unwrap();
        let created = stage.tasks.state(stage.id.as_str(), "").unwrap();
        assert_eq!(created.status, Status::Created);
        stage.tasks.start(stage.id.as_str(), "").await.unwrap();
        let ended = stage.wait("").await;
        assert_eq!((ended.pid, ended.status), (created.pid, 7));
        assert!(before < ended.at && ended.at < SystemTime::now());
        assert_eq!(stage.tasks.state(stage.id.as_str(), "").unwrap().status, Status::Stopped);
        assert_eq!(stage.delete().await, ended);
        assert_eq!(stage.events.all(), ["create", "start", "exit init 7", "delete"]);
        stage.assert_clean();
        let again = stage.tasks.delete(stage.id.as_str(), "").await.unwrap_err();
        assert_eq!(again.code(), Code::NotFound);
    }
}

#[tokio::test]
async fn a_started_container_is_running_for_the_runtime_too() {
    for runc in ["runc", "runc-1.1"] {
        let mut stage = Stage::new("sleep 1000");
        stage.settings.binary = dependency(runc);
        stage.run(Streams::default()).await;
        let mut command = std::process::Command::new(dependency(runc));
        command.arg("--root").arg(&stage.settings.root).args(["state", stage.id.as_str()]);
        let reaper = mooring::process::Reaper::start().unwrap();
        let output = mooring::process::run(&reaper, &mut command, b"", None).await.unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains("\"status\": \"running\""), "{text}");
        stage.kill(9).await;
        assert_eq!(stage.wait("").await.status, 137);
        stage.delete().await;
        stage.assert_clean();
    }
}

/// Whoever freezes or checkpoints it then finds the program.
#[tokio::test]
async fn a_start_answers_when_the_program_runs() {
    for runc in ["runc", "runc-1.1"].repeat(5) {
        let mut stage = Stage::new("sleep 1000");
        stage.settings.binary = dependency(runc);
        let init = stage.run(Streams::default()).await;
        let name = std::fs::read_to_string(format!("/proc/{init}/comm")).unwrap();
        assert!(!name.starts_with("runc"), "it is {name}");
        stage.kill(9).await;
        stage.wait("").await;
        stage.delete().await;
        stage.assert_clean();
    }
}
