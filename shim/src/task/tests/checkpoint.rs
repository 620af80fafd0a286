//! A real checkpoint and what is told of it.

use std::time::Duration;

use mooring::{
    error::{Code, Coded},
    runtime::RuntimeSettings,
};
use serde_json::json;

use super::stage::{Stage, dependency};
use crate::task::{CheckpointRequest, CreateRequest, Status};

fn stage() -> Stage {
    let stage = Stage::new("while :; do sleep 0.05; done");
    let mut spec = stage.spec("while :; do sleep 0.05; done");
    spec["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "network"}));
    stage.write(&spec);
    stage
}

fn with_criu(stage: &Stage, criu: std::path::PathBuf) -> CreateRequest {
    let runtime = RuntimeSettings { criu, ..stage.settings.clone() };
    CreateRequest { runtime, ..stage.request() }
}

#[tokio::test]
async fn a_checkpoint_and_its_restore_are_told_in_order() {
    let stage = stage();
    let id = stage.id.as_str();
    let images = stage.folder.path().join("images").display().to_string();
    let request = with_criu(&stage, dependency("criu"));
    stage.tasks.create(request.clone()).await.unwrap();
    stage.tasks.start(id, "").await.unwrap();
    let checkpoint =
        CheckpointRequest { images: images.clone(), exit: true, ..CheckpointRequest::default() };
    stage.tasks.checkpoint(id, checkpoint.clone()).await.unwrap();
    assert_eq!(stage.wait("").await.status, 137);
    assert!(!stage.bundle().join("criu-work").exists(), "criu's own folder goes with it");
    let error = stage.tasks.checkpoint(id, checkpoint).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    stage.delete().await;
    stage.assert_clean();

    let restored = CreateRequest { checkpoint: images, ..request };
    assert_eq!(stage.tasks.create(restored).await.unwrap(), 0);
    let shown = stage.tasks.state(id, "").unwrap();
    assert_eq!((shown.pid, shown.status), (0, Status::Created));
    assert_eq!(stage.tasks.pids(id).unwrap_err().code(), Code::FailedPrecondition);
    let tasks = stage.tasks.clone();
    let name = id.to_owned();
    let waiting = tokio::spawn(async move { tasks.wait(&name, "").await });
    let pid = stage.tasks.start(id, "").await.unwrap();
    assert!(pid > 0 && stage.tasks.pid(id).unwrap() == pid);
    stage.kill(9).await;
    let ended = tokio::time::timeout(Duration::from_secs(20), waiting).await.unwrap();
    assert_eq!(ended.unwrap().unwrap().status, 137, "who waited before the start is told");
    stage.delete().await;
    stage.assert_clean();
    let told = stage.events.all();
    let (before, after) = told.split_at(told.iter().rposition(|one| one == "create").unwrap());
    // criu ends the container before it answers.
    let mut before = before.to_vec();
    before.sort();
    assert_eq!(before, ["checkpointed", "create", "delete", "exit init 137", "start"]);
    assert_eq!(after, ["create", "start", "exit init 137", "delete"]);
}

#[tokio::test]
async fn without_criu_nothing_is_checkpointed_or_restored() {
    let stage = stage();
    let id = stage.id.as_str();
    let request = with_criu(&stage, "/nonexistent/criu".into());
    let images = stage.folder.path().join("images");
    stage.tasks.create(request.clone()).await.unwrap();
    stage.tasks.start(id, "").await.unwrap();
    let checkpoint =
        CheckpointRequest { images: images.display().to_string(), ..CheckpointRequest::default() };
    let error = stage.tasks.checkpoint(id, checkpoint).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    assert!(!images.exists());
    stage.kill(9).await;
    stage.wait("").await;
    stage.delete().await;
    std::fs::create_dir(&images).unwrap();
    std::fs::write(images.join("inventory.img"), "").unwrap();
    let checkpoint = images.display().to_string();
    let error = stage.tasks.create(CreateRequest { checkpoint, ..request }).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    stage.assert_clean();
}
