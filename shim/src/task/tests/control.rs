use std::{fs, os::unix::fs::PermissionsExt, path::Path, sync::Arc, time::Duration};

use containerd_shim_protos::{cgroups::metrics::Metrics, protobuf::Message};
use mooring::error::{Code, Coded};
use tokio::time::{Instant, timeout};

use super::stage::{Stage, dependency};
use crate::task::{Status, Streams};

#[tokio::test]
async fn a_signal_is_128_and_its_number() {
    let stage = Stage::new("trap 'exit 3' USR1; kill -USR2 $$; while true; do sleep 0.1; done");
    let spec = fs::read_to_string(stage.bundle().join("config.json")).unwrap();
    // Without a PID namespace of its own, the init dies of the signals that it does not handle.
    stage.write(&serde_json::from_str(&spec.replace(r#"{"type":"pid"},"#, "")).unwrap());
    stage.run(Streams::default()).await;
    assert_eq!(stage.wait("").await.status, 128 + 12);
    stage.delete().await;
    stage.assert_clean();
}

#[tokio::test]
async fn what_an_init_leaves_without_a_pid_namespace_dies_before_its_exit_is_told() {
    let stage = Stage::new("sleep 1000 & until [ -e /end ]; do sleep 0.05; done");
    let spec = fs::read_to_string(stage.bundle().join("config.json")).unwrap();
    stage.write(&serde_json::from_str(&spec.replace(r#"{"type":"pid"},"#, "")).unwrap());
    stage.run(Streams::default()).await;
    stage.exec("other", "exec sleep 1000", Streams::default()).await.unwrap();
    fs::write(stage.bundle().join("rootfs/end"), "").unwrap();
    assert_eq!(stage.wait("").await.status, 0);
    let events = stage.events.all();
    let at = |event: &str| events.iter().position(|known| known == event).unwrap();
    assert!(at("exit other 137") < at("exit init 0"), "{events:?}");
    stage.delete().await;
    stage.assert_clean();
}

#[tokio::test]
async fn a_kill_between_create_and_start_ends_it() {
    let stage = Stage::new("exit 0");
    stage.tasks.create(stage.request()).await.unwrap();
    stage.kill(9).await;
    assert_eq!(stage.wait("").await.status, 137);
    let late = stage.tasks.start(stage.id.as_str(), "").await.unwrap_err();
    assert_eq!(late.code(), Code::FailedPrecondition);
    let finished = stage.tasks.kill(stage.id.as_str(), "", 9, false).await.unwrap_err();
    assert_eq!(
        (finished.code(), finished.to_string().as_str()),
        (Code::NotFound, "process already finished")
    );
    stage.delete().await;
    assert_eq!(stage.events.all(), ["create", "exit init 137", "delete"]);
    stage.assert_clean();
}

#[tokio::test]
async fn a_created_container_can_be_deleted_without_a_start() {
    let stage = Stage::new("exit 0");
    stage.tasks.create(stage.request()).await.unwrap();
    assert_eq!(stage.delete().await.status, 137);
    stage.assert_clean();
}

#[tokio::test]
async fn of_two_deletes_at_once_one_deletes() {
    let stage = Stage::new("exit 0");
    stage.run(Streams::default()).await;
    stage.wait("").await;
    let id = stage.id.as_str();
    let (one, other) = tokio::join!(stage.tasks.delete(id, ""), stage.tasks.delete(id, ""));
    let failed = one.err().or(other.err()).expect("only one of them deletes");
    assert_eq!(failed.code(), Code::NotFound, "{failed}");
    let events = stage.events.all();
    let told = events.iter().filter(|event| event.starts_with("delete")).count();
    assert_eq!(told, 1, "{events:?}");
    stage.assert_clean();
}

#[tokio::test]
async fn a_paused_container_dies_of_a_kill() {
    let stage = Stage::new("sleep 1000");
    stage.run(Streams::default()).await;
    let id = stage.id.as_str();
    let status = || stage.tasks.state(id, "").unwrap().status;
    stage.tasks.pause(id).await.unwrap();
    assert_eq!(status(), Status::Paused);
    stage.tasks.resume(id).await.unwrap();
    assert_eq!(status(), Status::Running);
    stage.tasks.pause(id).await.unwrap();
    stage.tasks.kill(id, "", 9, true).await.unwrap();
    assert_eq!(stage.wait("").await.status, 137);
    stage.delete().await;
    let events = stage.events.all();
    assert_eq!(
        events,
        ["create", "start", "paused", "resumed", "paused", "exit init 137", "delete"]
    );
    stage.assert_clean();
}

#[tokio::test]
async fn execs_have_their_own_life() {
    let stage = Stage::new("sleep 1000");
    stage.run(Streams::default()).await;
    let id = stage.id.as_str();
    let pid = stage.exec("one", "exit 5", Streams::default()).await.unwrap();
    let ended = stage.wait("one").await;
    assert_eq!((ended.pid, ended.status), (pid, 5));
    let twice = stage.exec("one", "exit 5", Streams::default()).await.unwrap_err();
    assert_eq!(twice.code(), Code::AlreadyExists);
    assert_eq!(stage.tasks.delete(id, "one").await.unwrap(), ended);
    let gone = stage.tasks.state(id, "one").unwrap_err();
    assert_eq!(gone.code(), Code::NotFound);
    let pid = stage.exec("two", "sleep 1000", Streams::default()).await.unwrap();
    let members = stage.tasks.pids(id).unwrap();
    assert!(
        members.iter().any(
            |one| one.pid == pid && one.exec_id.as_ref().is_some_and(|id| id.as_str() == "two")
        )
    );
    let running = stage.tasks.delete(id, "two").await.unwrap_err();
    assert_eq!(running.code(), Code::FailedPrecondition);
    stage.kill(9).await;
    assert_eq!(stage.wait("").await.status, 137);
    assert_eq!(stage.wait("two").await.status, 137);
    let late = stage.exec("three", "true", Streams::default()).await.unwrap_err();
    assert_eq!(late.code(), Code::FailedPrecondition);
    stage.delete().await;
    let events = stage.events.all();
    let expected = [
        "create",
        "start",
        "exec-added",
        "exec-started one",
        "exit one 5",
        "exec-added",
        "exec-started two",
        "exit two 137",
        "exit init 137",
        "delete",
    ];
    assert_eq!(events, expected);
    stage.assert_clean();
}

/// The end of the init waits for an exec that is being started. Until it is told the task runs, for Exec too.
#[tokio::test]
async fn an_exec_may_be_added_until_the_end_is_told() {
    let mut stage = Stage::new("sleep 1000");
    let at = |name: &str| stage.folder.path().join(name);
    let (slow, begun, on) = (at("slow"), at("begun"), at("on"));
    let script = format!(
        "#!/bin/sh\nfor one; do\n  [ \"$one\" = exec ] || continue\n  : >{}\n  until [ -e {} ]; do sleep 0.05; done\n\
         done\nexec {} \"$@\"\n",
        begun.display(),
        on.display(),
        dependency("runc").canonicalize().unwrap().display()
    );
    fs::write(&slow, script).unwrap();
    fs::set_permissions(&slow, fs::Permissions::from_mode(0o755)).unwrap();
    stage.settings.binary = slow;
    let init = stage.run(Streams::default()).await;
    let stage = Arc::new(stage);
    let first = Arc::clone(&stage);
    let first = tokio::spawn(async move { first.exec("first", "true", Streams::default()).await });
    until(|| begun.exists()).await;
    stage.kill(9).await;
    until(|| !Path::new(&format!("/proc/{init}")).exists()).await;
    tokio::time::sleep(Duration::from_millis(50)).await;

    let id = stage.id.as_str();
    assert_eq!(stage.tasks.state(id, "").unwrap().status, Status::Running);
    let late = stage.exec("second", "true", Streams::default()).await.unwrap_err();
    assert!(late.to_string().contains("not running"), "{late}");
    fs::write(&on, "").unwrap();
    first.await.unwrap().unwrap_err();
    assert_eq!(stage.wait("").await.status, 137);
    assert_eq!(stage.tasks.state(id, "second").unwrap().status, Status::Created);
    stage.delete().await;
    assert_eq!(
        stage.events.all(),
        ["create", "start", "exec-added", "exec-added", "exit init 137", "delete"]
    );
    stage.assert_clean();
}

async fn until(so: impl Fn() -> bool) {
    while !so() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn an_exec_of_a_program_that_is_not_there_says_so() {
    let stage = Stage::new("sleep 1000");
    stage.run(Streams::default()).await;
    let id = stage.id.as_str();
    let mut process = Stage::process("");
    process["args"] = serde_json::json!(["/no/such"]);
    let request = crate::task::ExecRequest {
        id: stage.id.clone(),
        exec_id: mooring::id::Id::new("x").unwrap(),
        streams: Streams::default(),
        process: process.to_string().into_bytes(),
    };
    stage.tasks.exec(request).unwrap();
    let error = stage.tasks.start(id, "x").await.unwrap_err().to_string();
    assert!(error.contains("OCI runtime exec failed") && error.contains("/no/such"), "{error}");
    timeout(Duration::from_secs(5), stage.tasks.wait(id, "x")).await.unwrap().unwrap();
    stage.tasks.delete(id, "x").await.unwrap();
    stage.kill(9).await;
    stage.wait("").await;
    stage.delete().await;
    stage.assert_clean();
}

#[tokio::test]
async fn an_exit_is_never_told_before_its_start() {
    for _ in 0..10 {
        let stage = Stage::new("true");
        stage.run(Streams::default()).await;
        stage.wait("").await;
        assert_eq!(stage.events.all(), ["create", "start", "exit init 0"]);
        stage.delete().await;
    }
}

#[tokio::test]
async fn updates_and_statistics_meet() {
    let stage = Stage::new("sleep 1000");
    stage.run(Streams::default()).await;
    let id = stage.id.as_str();
    let resources = br#"{"memory":{"limit":67108864},"pids":{"limit":50}}"#;
    stage.tasks.update(id, resources.to_vec()).await.unwrap();
    let bad = stage.tasks.update(id, b"no".to_vec()).await.unwrap_err();
    assert_eq!(bad.code(), Code::InvalidArgument);
    let stats = stage.tasks.stats(id).unwrap();
    // The machines that build Mooring have v1 controllers; those with v2 are tested in a virtual machine.
    if stats.type_url.ends_with("v1.Metrics") {
        let metrics = Metrics::parse_from_bytes(&stats.value).unwrap();
        assert_eq!((metrics.memory.usage.limit, metrics.pids.limit), (67_108_864, 50));
        assert!(metrics.cpu.usage.total > 0 && metrics.pids.current > 0);
    }
    stage.kill(9).await;
    stage.wait("").await;
    stage.delete().await;
    stage.assert_clean();
}

#[tokio::test]
async fn want_of_memory_is_told() {
    let stage = Stage::new("");
    let mut spec = stage.spec("x=$(head -c 100000000 /dev/zero | busybox tr '\\0' 'x'); echo $x");
    spec["linux"]["resources"] = serde_json::json!({"memory": {"limit": 20_000_000}});
    stage.write(&spec);
    stage.run(Streams::default()).await;
    stage.wait("").await;
    for _ in 0..100 {
        if stage.events.all().iter().any(|event| event == "oom") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let events = stage.events.all();
    assert!(events.iter().any(|event| event == "oom"), "{events:?}");
    stage.delete().await;
    stage.assert_clean();
}

#[tokio::test]
async fn the_end_of_the_sandbox_clears_everything() {
    let stage = Stage::new("sleep 1000");
    stage.run(Streams::default()).await;
    stage.exec("one", "sleep 1000", Streams::default()).await.unwrap();
    assert_eq!(stage.tasks.ids(), std::slice::from_ref(&stage.id));
    stage.tasks.clear(Instant::now() + Duration::from_secs(10)).await.unwrap();
    let events = stage.events.all();
    assert_eq!(events[4..], ["exit one 137", "exit init 137", "delete"]);
    stage.assert_clean();
}

#[tokio::test]
async fn a_record_is_enough_to_release_a_container() {
    let stage = Stage::new("sleep 1000");
    stage.run(Streams::default()).await;
    let records = mooring::container::load_all(&stage.folder.path().join("tasks")).unwrap();
    let record = records.into_iter().next().unwrap().unwrap();
    let reaper = mooring::process::Reaper::start().unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    let released = mooring::container::release(&record, &reaper, deadline).await.unwrap();
    assert_eq!(released, mooring::released::Released::Done);
    let again = mooring::container::release(&record, &reaper, deadline).await.unwrap();
    assert_eq!(again, mooring::released::Released::AlreadyGone);
    assert_eq!(stage.wait("").await.status, 137);
    stage.delete().await;
    stage.assert_clean();
}

#[tokio::test]
async fn nobody_waits_for_a_runtime_that_takes_its_time() {
    let mut stage = Stage::new("sleep 1000");
    let (slow, runc) =
        (stage.folder.path().join("slow"), dependency("runc").canonicalize().unwrap());
    let script = format!(
        "#!/bin/sh\ncase \"$*\" in *pause*) sleep 3;; esac\nexec {} \"$@\"\n",
        runc.display()
    );
    fs::write(&slow, script).unwrap();
    fs::set_permissions(&slow, fs::Permissions::from_mode(0o755)).unwrap();
    stage.settings.binary = slow;
    stage.run(Streams::default()).await;
    let (tasks, id) = (stage.tasks.clone(), stage.id.to_string());
    let pausing = tokio::spawn(async move { tasks.pause(&id).await });
    let id = stage.id.as_str();
    while stage.tasks.state(id, "").unwrap().status != Status::Pausing {
        tokio::task::yield_now().await;
    }
    assert!(!stage.tasks.pids(id).unwrap().is_empty());
    stage.kill(9).await;
    let ended = timeout(Duration::from_secs(1), stage.tasks.wait(id, "")).await;
    assert_eq!(ended.expect("the wait ends before the pause").unwrap().status, 137);
    pausing.await.unwrap().unwrap_err();
    stage.delete().await;
    stage.assert_clean();
}

#[tokio::test]
async fn a_client_that_goes_away_leaves_nothing_half_done() {
    let stage = Stage::new("true");
    let create = stage.tasks.create(stage.request());
    assert!(timeout(Duration::from_millis(1), create).await.is_err());
    let created = async {
        while stage.tasks.state(stage.id.as_str(), "").is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(10), created).await.expect("the creation went on");
    assert_eq!(stage.delete().await.status, 137);
    stage.assert_clean();
}
