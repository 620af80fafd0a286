use std::fs;

use serde_json::json;
use tokio::time::Duration;

use super::*;
use crate::error::{Code, Coded};

/// A plugin written in shell, and a call of it.
struct Script {
    folder: tempfile::TempDir,
    call: Call,
}

impl Script {
    fn new(operation: Operation, body: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("plugin");
        fs::write(&path, format!("#!/bin/sh\nfolder={}\n{body}\n", folder.path().display()))
            .unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        let call = Call {
            operation,
            network: "node".to_owned(),
            plugin: "plugin".to_owned(),
            config: json!({"name": "node", "type": "plugin"}),
            target: Some(Target {
                container_id: "pod1".to_owned(),
                netns: "/run/netns/x".into(),
                ifname: "eth0".to_owned(),
                args: vec![("A".to_owned(), "1".to_owned()), ("B".to_owned(), "2".to_owned())],
            }),
            bin_dirs: vec!["/nonexistent".into(), folder.path().to_owned()],
        };
        Self { folder, call }
    }

    async fn run(&self) -> Result<Option<Value>, PluginError> {
        self.run_until(Duration::from_secs(20)).await
    }

    async fn run_until(&self, time: Duration) -> Result<Option<Value>, PluginError> {
        let plugins = ExecPlugins::new(Reaper::start().unwrap());
        loop {
            // A child that another test is just starting may still hold the new script open for writing.
            match plugins.run(&self.call, Some(Instant::now() + time)).await {
                Err(PluginError::Run(Failure::Start { source, .. }))
                    if source.kind() == std::io::ErrorKind::ExecutableFileBusy =>
                {
                    tokio::task::yield_now().await;
                }
                answer => return answer,
            }
        }
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.folder.path().join(name)).unwrap()
    }
}

#[tokio::test]
async fn a_plugin_reads_its_configuration_and_answers_with_a_result() {
    let script = Script::new(Operation::Add, "cat > $folder/input; echo '{\"ips\":[]}'");
    assert_eq!(script.run().await.unwrap(), Some(json!({"ips": []})));
    let input: Value = serde_json::from_str(&script.read("input")).unwrap();
    assert_eq!(input, script.call.config);
}

#[tokio::test]
async fn a_plugin_sees_the_call_and_nothing_else_of_the_environment() {
    let script = Script::new(Operation::Del, "cat > /dev/null; env > $folder/env");
    script.run().await.unwrap();
    let mut seen: Vec<_> = script
        .read("env")
        .lines()
        // What the shell itself adds.
        .filter(|line| !["PWD=", "SHLVL=", "_=", "OLDPWD="].iter().any(|own| line.starts_with(own)))
        .filter(|line| !line.starts_with("PATH="))
        .map(str::to_owned)
        .collect();
    seen.sort();
    let path = format!("CNI_PATH=/nonexistent:{}", script.folder.path().display());
    assert_eq!(
        seen,
        [
            "CNI_ARGS=A=1;B=2",
            "CNI_COMMAND=DEL",
            "CNI_CONTAINERID=pod1",
            "CNI_IFNAME=eth0",
            "CNI_NETNS=/run/netns/x",
            &path,
        ]
    );
}

#[tokio::test]
async fn a_plugin_runs_in_the_nodes_network_namespace() {
    let script =
        Script::new(Operation::Del, "cat > /dev/null; readlink /proc/self/ns/net > $folder/ns");
    script.run().await.unwrap();
    let own = fs::read_link("/proc/self/ns/net").unwrap();
    assert_eq!(script.read("ns").trim(), own.to_string_lossy());
}

#[tokio::test]
async fn an_error_object_keeps_code_message_and_details() {
    let body = r#"echo '{"cniVersion":"1.0.0","code":11,"msg":"later","details":"why"}'; exit 1"#;
    let error = Script::new(Operation::Add, body).run().await.unwrap_err();
    let PluginError::Reported { code, msg, details } = &error else { panic!("{error}") };
    assert_eq!((*code, msg.as_str(), details.as_str()), (11, "later", "why"));
    assert_eq!(error.to_string(), "later (CNI code 11): why");
}

#[test]
fn an_error_is_no_longer_than_an_answer_can_hold() {
    let text = "é".repeat(1 << 20);
    let output = Output {
        exit: process::Exit { pid: 1, status: 1, at: std::time::SystemTime::now() },
        stdout: json!({"code": 7, "msg": text, "details": text}).to_string().into_bytes(),
        stderr: Vec::new(),
    };
    let error = understand(Operation::Del, &output).unwrap_err().to_string();
    assert!(error.starts_with('é') && error.len() < 9000, "{} bytes", error.len());
}

#[tokio::test]
async fn a_failure_without_error_object_tells_its_status_and_complaint() {
    let error = Script::new(Operation::Del, "echo oh no >&2; exit 3").run().await.unwrap_err();
    assert!(
        matches!(&error, PluginError::Died { status: 3, stderr } if stderr == "oh no"),
        "{error}"
    );
    let error = Script::new(Operation::Del, "echo garbage; exit 1").run().await.unwrap_err();
    assert!(matches!(&error, PluginError::Died { stderr, .. } if stderr == "garbage"), "{error}");
}

#[tokio::test]
async fn garbage_from_an_add_is_no_result() {
    for output in ["garbage", "[]", "", "'{\"ips\":'"] {
        let script = Script::new(Operation::Add, &format!("cat >/dev/null; echo {output}"));
        let error = script.run().await.unwrap_err();
        assert!(matches!(error, PluginError::Garbage { .. }), "{output}: {error}");
    }
}

#[tokio::test]
async fn what_a_del_prints_does_not_matter() {
    let script = Script::new(Operation::Del, "cat >/dev/null; echo all done");
    assert_eq!(script.run().await.unwrap(), None);
}

#[tokio::test]
async fn a_plugin_that_hangs_is_killed_with_its_children() {
    let script = Script::new(Operation::Del, "sleep 100 & echo $! > $folder/pid; wait");
    // On a busy machine it may be killed before it has begun.
    for tenths in [5, 50, 500] {
        let error = script.run_until(Duration::from_millis(tenths * 100)).await.unwrap_err();
        assert!(matches!(error, PluginError::Deadline), "{error}");
        assert_eq!(error.code(), Code::DeadlineExceeded);
        if fs::read_to_string(script.folder.path().join("pid")).is_ok_and(|pid| !pid.is_empty()) {
            break;
        }
    }
    let stat = format!("/proc/{}/stat", script.read("pid").trim());
    let gone = async {
        while fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z ")) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), gone).await.expect("the child was killed");
}

#[tokio::test]
async fn a_missing_plugin_is_told_from_a_broken_one() {
    let mut script = Script::new(Operation::Add, "exit 0");
    script.call.plugin = "absent".to_owned();
    let error = script.run().await.unwrap_err();
    assert!(matches!(error, PluginError::Missing { .. }), "{error}");
    fs::write(script.folder.path().join("absent"), "not executable").unwrap();
    let error = script.run().await.unwrap_err();
    assert!(matches!(error, PluginError::Missing { .. }), "{error}");
    fs::create_dir(script.folder.path().join("dir")).unwrap();
    script.call.plugin = "dir".to_owned();
    let error = script.run().await.unwrap_err();
    assert!(matches!(error, PluginError::Missing { .. }), "{error}");
}

#[tokio::test]
async fn a_type_that_is_a_path_is_refused() {
    let mut script = Script::new(Operation::Add, "exit 0");
    for plugin in ["../plugin", "/bin/true", "a/b", "plugin/", ".", "..", "", "./plugin", "a\0b"] {
        plugin.clone_into(&mut script.call.plugin);
        let error = script.run().await.unwrap_err();
        assert!(matches!(error, PluginError::InvalidType), "{plugin:?}: {error}");
    }
}

#[tokio::test]
async fn calls_without_container_say_nothing_of_one() {
    let mut script = Script::new(Operation::Status, "cat > /dev/null; env > $folder/env");
    script.call.target = None;
    script.run().await.unwrap();
    let env = script.read("env");
    assert!(env.contains("CNI_COMMAND=STATUS") && !env.contains("CNI_CONTAINERID"), "{env}");
}
