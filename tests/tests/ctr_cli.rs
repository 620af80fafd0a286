//! `ctr`: plain tasks, sandboxes, and containers in sandboxes.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;

use anyhow::Result;
use mooring_e2e::node::{IMAGE, Settings};
use mooring_e2e::services::{Client, sandbox_spec};
use mooring_e2e::suite;
use mooring_e2e::suite::Case;

/// `ctr run` with the case's runtime.
async fn run(case: &Case, flags: &[&str], id: &str, command: &[&str]) -> Result<String> {
    let mut arguments = vec!["run", "--runtime", case.handler.runtime()];
    arguments.extend(flags);
    arguments.extend([IMAGE, id]);
    arguments.extend(command);
    case.node.ctr(&arguments).await
}

async fn a_task_without_sandbox_runs_prints_and_is_removed(case: Case) -> Result<()> {
    let id = case.unique("plain");
    let printed = run(&case, &["--rm"], &id, &["/bin/echo", "hello"]).await?;
    assert_eq!(printed, "hello\n");
    Ok(())
}

async fn the_exit_code_of_a_task_is_ctrs(case: Case) -> Result<()> {
    let id = case.unique("plain");
    let error = run(&case, &["--rm"], &id, &["/bin/sh", "-c", "exit 7"]).await;
    let message = format!("{:#}", error.expect_err("it failed"));
    assert!(message.contains("exit status: 7"), "{message}");
    Ok(())
}

async fn a_detached_task_is_listed_executed_in_paused_and_killed(case: Case) -> Result<()> {
    let id = case.unique("plain");
    let id = id.as_str();
    run(&case, &["--detach", "--null-io"], id, &["/bin/sleep", "1000"]).await?;
    let list = case.node.ctr(&["tasks", "ls"]).await?;
    assert!(list.contains(id) && list.contains("RUNNING"), "{list}");
    let printed =
        case.node.ctr(&["tasks", "exec", "--exec-id", "one", id, "/bin/hostname"]).await?;
    assert!(!printed.trim().is_empty());
    let processes = case.node.ctr(&["tasks", "ps", id]).await?;
    assert_eq!(processes.lines().count(), 2, "{processes}");
    case.node.ctr(&["tasks", "pause", id]).await?;
    let list = case.node.ctr(&["tasks", "ls"]).await?;
    assert!(list.contains("PAUSED"), "{list}");
    case.node.ctr(&["tasks", "resume", id]).await?;
    let metrics = case.node.ctr(&["tasks", "metrics", id]).await?;
    assert!(metrics.contains(id), "{metrics}");
    case.node.ctr(&["tasks", "kill", "-s", "KILL", id]).await?;
    case.node.ctr(&["tasks", "rm", "-f", id]).await?;
    case.node.ctr(&["containers", "rm", id]).await?;
    Ok(())
}

async fn a_task_logs_into_a_file(case: Case) -> Result<()> {
    let id = case.unique("plain");
    let log = case.node.folder().join(format!("logs/{id}.log"));
    let uri = format!("file://{}", log.display());
    run(&case, &["--detach", "--log-uri", &uri], &id, &["/bin/echo", "into the file"]).await?;
    for _ in 0..500 {
        if fs::read_to_string(&log).is_ok_and(|text| text == "into the file\n") {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    assert_eq!(fs::read_to_string(&log)?, "into the file\n");
    case.node.ctr(&["tasks", "rm", "-f", &id]).await?;
    case.node.ctr(&["containers", "rm", &id]).await?;
    Ok(())
}

async fn a_task_does_not_hold_its_log_file(case: Case) -> Result<()> {
    let id = case.unique("plain");
    let log = case.node.folder().join(format!("logs/{id}.log"));
    let uri = format!("file://{}", log.display());
    let script = "echo first; sleep 0.2; : >/proc/self/fd/1; echo second; readlink /proc/self/fd/1";
    let command = ["/bin/sh", "-c", script];
    run(&case, &["--detach", "--log-uri", &uri], &id, &command).await?;
    for _ in 0..500 {
        if fs::read_to_string(&log).is_ok_and(|text| text.contains("pipe:[")) {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    let text = fs::read_to_string(&log)?;
    assert!(text.starts_with("first\nsecond\npipe:["), "{text}");
    case.node.ctr(&["tasks", "rm", "-f", &id]).await?;
    case.node.ctr(&["containers", "rm", &id]).await?;
    Ok(())
}

/// The peer waits in the opening of the fifo until somebody reads.
async fn a_fifo_as_log_file_is_refused_at_once(case: Case) -> Result<()> {
    let id = case.unique("plain");
    let fifo = case.node.folder().join(format!("logs/{id}.fifo"));
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU)?;
    let uri = format!("file://{}", fifo.display());
    let begun = std::time::Instant::now();
    let error = run(&case, &["--detach", "--log-uri", &uri], &id, &["/bin/true"]).await;
    let message = format!("{:#}", error.expect_err("a fifo is no log file"));
    assert!(message.contains("appended"), "{message}");
    assert!(begun.elapsed() < std::time::Duration::from_secs(10));
    fs::remove_file(&fifo)?;
    let _ = case.node.ctr(&["containers", "rm", &id]).await;
    Ok(())
}

async fn a_missing_program_is_named_and_leaves_nothing(case: Case) -> Result<()> {
    let id = case.unique("plain");
    let error = run(&case, &["--rm"], &id, &["/no/such/program"]).await;
    let message = format!("{:#}", error.expect_err("there is no such program"));
    assert!(message.contains("/no/such/program"), "{message}");
    // ctr leaves the record when the task was never made.
    let _ = case.node.ctr(&["containers", "rm", &id]).await;
    Ok(())
}

async fn a_sandbox_runs_takes_containers_and_is_removed(case: Case) -> Result<()> {
    sandbox(&case, true).await
}

async fn a_sandbox_with_a_network_runs_and_is_removed(case: Case) -> Result<()> {
    sandbox(&case, false).await
}

async fn sandbox(case: &Case, host_network: bool) -> Result<()> {
    assert!(case.handler.is_mooring());
    let id = case.unique("pod");
    let id = id.as_str();
    let file = case.node.folder().join(format!("{id}.json"));
    fs::write(&file, sandbox_spec("from-ctr", host_network).to_string())?;
    let file = file.display().to_string();
    let run_sandbox = ["sandboxes", "run", "--runtime", case.handler.runtime(), &file, id];
    match case.node.ctr(&run_sandbox).await {
        Ok(printed) => assert_eq!(printed.trim(), id),
        Err(error) => {
            // ctr 2.1 names no controller, which its own containerd refuses: do what it wanted to do.
            let message = format!("{error:#}");
            assert!(message.contains("sandbox controller name can not be empty"), "{message}");
            let client = Client::new(case).with_id(id);
            let spec = sandbox_spec("from-ctr", host_network);
            // It gets as far as the record.
            let _ = client.forget().await;
            client.record(&spec).await?;
            client.create(&spec, None, "").await?;
            client.start().await?;
        }
    }
    let list = case.node.ctr(&["sandboxes", "ls"]).await?;
    assert!(list.contains(id), "{list}");
    let inside = case.unique("inside");
    let printed =
        run(case, &["--rm", "--sandbox", id], &inside, &["/bin/echo", "in the sandbox"]).await?;
    assert_eq!(printed, "in the sandbox\n");
    let stays = case.unique("inside");
    run(case, &["--detach", "--null-io", "--sandbox", id], &stays, &["/bin/sleep", "1000"]).await?;
    case.node.ctr(&["tasks", "kill", "-s", "KILL", &stays]).await?;
    case.node.ctr(&["tasks", "rm", "-f", &stays]).await?;
    case.node.ctr(&["containers", "rm", &stays]).await?;
    case.node.ctr(&["sandboxes", "rm", id]).await?;
    let list = case.node.ctr(&["sandboxes", "ls"]).await?;
    assert!(!list.contains(id), "{list}");
    Ok(())
}

suite!(Settings::default();
    too: builtin;
    both: a_task_without_sandbox_runs_prints_and_is_removed,
        the_exit_code_of_a_task_is_ctrs,
        a_detached_task_is_listed_executed_in_paused_and_killed,
        a_task_logs_into_a_file,
        a_task_does_not_hold_its_log_file,
        a_missing_program_is_named_and_leaves_nothing;
    mooring: a_fifo_as_log_file_is_refused_at_once,
        a_sandbox_runs_takes_containers_and_is_removed,
        a_sandbox_with_a_network_runs_and_is_removed);
