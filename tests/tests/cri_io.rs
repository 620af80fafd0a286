//! Exec, attach, logs and port-forward over CRI.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use mooring_e2e::bench::{execs, processes::sum};
use mooring_e2e::cri::{ContainerSpec, PodSpec};
use mooring_e2e::faults::{shim_of, until};
use mooring_e2e::node::Settings;
use mooring_e2e::stream::Wish;
use mooring_e2e::suite;
use mooring_e2e::suite::{Case, Handler};
use tokio::time::timeout;

async fn exec_sync_returns_exit_code_and_both_streams(case: Case) -> Result<()> {
    let pod = PodSpec::new(&case).run().await?;
    let container = pod.start(&ContainerSpec::idle("main")).await?;
    let ran = container.exec(&["/bin/sh", "-c", "echo out; echo err >&2; exit 42"]).await?;
    assert_eq!((ran.code, ran.stdout.as_str(), ran.stderr.as_str()), (42, "out\n", "err\n"));
    let killed = container.exec(&["/bin/sh", "-c", "kill -9 $$"]).await?;
    assert_eq!(killed.code, 137);
    let missing = container.exec(&["/bin/no-such-program"]).await;
    let message = format!("{:#}", missing.expect_err("a missing program must not run"));
    assert!(message.contains("no such file"), "{message}");
    pod.end().await
}

async fn signals_are_as_the_kernel_has_them_in_init_and_exec(case: Case) -> Result<()> {
    // The peer passes on what its containerd ignores: here what posix_spawn left it, from whoever ran these tests.
    let look = match case.handler {
        Handler::Mooring | Handler::Builtin => "grep -E '^Sig(Blk|Ign)' /proc/self/status",
        Handler::Runc => "grep -E '^SigBlk' /proc/self/status",
    };
    let clean = |text: &str| {
        !text.is_empty() && text.lines().all(|line| line.ends_with(":\t0000000000000000"))
    };
    let pod = PodSpec::new(&case).run().await?;
    let script = format!("{look}; exec sleep 100000");
    let container = pod.start(&ContainerSpec::script("main", &script)).await?;
    container.logged("stdout", clean).await?;
    let exec = container.shell(look).await?;
    assert!(clean(&exec), "{exec}");
    pod.end().await
}

async fn what_an_exec_leaves_behind_does_not_keep_exec_sync(case: Case) -> Result<()> {
    let pod = PodSpec::new(&case).run().await?;
    let container = pod.start(&ContainerSpec::idle("main")).await?;
    let since = Instant::now();
    let left = container.exec(&["/bin/sh", "-c", "echo said; sleep 4322 &"]).await;
    let message = format!("{:#}", left.expect_err("its output is not complete"));
    assert!(message.contains("held by other processes"), "{message}");
    // Three seconds of CRI, ten of the shim.
    assert!(since.elapsed() < Duration::from_secs(30));
    let list = container.shell("ps -o args").await?;
    assert!(list.contains("sleep 4322"), "{list}");
    pod.end().await
}

async fn exec_sync_ends_at_its_timeout_and_kills_the_process(case: Case) -> Result<()> {
    let pod = PodSpec::new(&case).run().await?;
    let container = pod.start(&ContainerSpec::idle("main")).await?;
    let since = Instant::now();
    let error = container.exec_for(&["/bin/sleep", "4321"], 1).await;
    let message = format!("{:#}", error.expect_err("the command cannot be done"));
    assert!(message.contains("timeout"), "{message}");
    assert!(since.elapsed() < Duration::from_secs(5));
    let list = container.shell("ps -o args").await?;
    assert!(!list.contains("4321"), "{list}");
    pod.end().await
}

async fn exec_sync_brings_all_of_a_large_output(case: Case) -> Result<()> {
    let pod = PodSpec::new(&case).run().await?;
    let container = pod.start(&ContainerSpec::idle("main")).await?;
    let ran = container.exec(&["/bin/sh", "-c", "head -c 3000000 /dev/zero | tr '\\0' x"]).await?;
    assert_eq!((ran.code, ran.stdout.len()), (0, 3_000_000));
    pod.end().await
}

async fn twenty_execs_at_once_all_answer(case: Case) -> Result<()> {
    let pod = PodSpec::new(&case).run().await?;
    let container = std::sync::Arc::new(pod.start(&ContainerSpec::idle("main")).await?);
    let all: Vec<_> = (0..20)
        .map(|number: i32| {
            let container = container.clone();
            tokio::spawn(async move {
                let script = format!("echo {number}; exit {number}");
                container.exec(&["/bin/sh", "-c", &script]).await
            })
        })
        .collect();
    for (number, one) in (0..).zip(all) {
        let ran = one.await??;
        assert_eq!((ran.code, ran.stdout), (number, format!("{number}\n")));
    }
    pod.end().await
}

/// Probes of a pod's containers often run in the same moment.
async fn many_execs_at_once_leave_no_memory_behind(case: Case) -> Result<()> {
    let pod = PodSpec::new(&case).run().await?;
    let shim = shim_of(&pod.id)?.pid;
    let container = std::sync::Arc::new(pod.start(&ContainerSpec::idle("main")).await?);
    container.exec(&["/bin/true"]).await?;
    // A shim gives memory back a second after its last work.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let before = sum(&[shim])?.anonymous;
    for _ in 0..6 {
        execs(&container, 20).await?;
    }
    let little = || sum(&[shim]).is_ok_and(|now| now.anonymous < before + 160.0);
    until(Duration::from_secs(15), "the shim keeps the execs' memory", little).await?;
    pod.end().await
}

async fn exec_with_a_terminal_has_one_of_the_wanted_size(case: Case) -> Result<()> {
    let pod = PodSpec::new(&case).run().await?;
    let container = pod.start(&ContainerSpec::idle("main")).await?;
    let wish = Wish { tty: true, stdin: true };
    let mut session = container.open_exec(&["/bin/sh"], wish).await?;
    session.send(b"tty; echo ready\n").await?;
    session.expect("/dev/pts/").await?;
    session.resize(123, 45).await?;
    // The terminal hears of its size a moment later than of what is typed.
    session
        .send(b"while [ \"$(stty size)\" != '45 123' ]; do usleep 10000; done; echo si''zed\n")
        .await?;
    session.expect("sized").await?;
    session.send(b"exit 7\n").await?;
    session.to_end().await?;
    let status = session.status.unwrap_or_default();
    assert!(status.contains("\"7\""), "the status is {status}");
    pod.end().await
}

async fn exec_with_stdin_passes_it_on_and_keeps_streams_apart(case: Case) -> Result<()> {
    let pod = PodSpec::new(&case).run().await?;
    let container = pod.start(&ContainerSpec::idle("main")).await?;
    let wish = Wish { tty: false, stdin: true };
    let script = "read line; echo got $line; echo problem >&2; exit 3";
    let mut session = container.open_exec(&["/bin/sh", "-c", script], wish).await?;
    session.send(b"input\n").await?;
    let output = session.to_end().await?;
    assert_eq!(output, "got input\n");
    assert_eq!(String::from_utf8_lossy(&session.stderr), "problem\n");
    assert!(session.status.unwrap_or_default().contains("\"3\""));
    pod.end().await
}

async fn attach_reaches_stdin_and_stdout_of_the_container(case: Case) -> Result<()> {
    let pod = PodSpec::new(&case).run().await?;
    let mut spec =
        ContainerSpec::script("main", "while read line; do echo heard $line; done; echo over");
    spec.config.stdin = true;
    let container = pod.start(&spec).await?;
    for word in ["one", "two"] {
        let mut session = container.open_attach(Wish { tty: false, stdin: true }).await?;
        // containerd begins with the input before it passes on output: an answer in between is in the log alone.
        let heard = format!("heard {word}");
        let mut patience = 10;
        loop {
            session.send(format!("{word}\n").as_bytes()).await?;
            match timeout(Duration::from_secs(1), session.expect(&heard)).await {
                Ok(heard) => break heard?,
                Err(_) if patience > 0 => patience -= 1,
                Err(late) => return Err(late.into()),
            }
        }
        session.close().await;
    }
    container.logged("stdout", |lines| lines.contains("heard two")).await?;
    pod.end().await
}

async fn stdin_once_closes_with_the_first_attach(case: Case) -> Result<()> {
    let pod = PodSpec::new(&case).run().await?;
    let mut spec = ContainerSpec::script("main", "cat; exit 5");
    (spec.config.stdin, spec.config.stdin_once) = (true, true);
    let container = pod.start(&spec).await?;
    let mut session = container.open_attach(Wish { tty: false, stdin: true }).await?;
    session.send(b"last words\n").await?;
    session.expect("last words").await?;
    session.close().await;
    assert_eq!(container.exited().await?.exit_code, 5);
    pod.end().await
}

async fn attach_to_a_terminal_works_like_one(case: Case) -> Result<()> {
    let pod = PodSpec::new(&case).run().await?;
    let mut spec = ContainerSpec::new("main", &["/bin/sh"]);
    (spec.config.stdin, spec.config.tty) = (true, true);
    let container = pod.start(&spec).await?;
    let mut session = container.open_attach(Wish { tty: true, stdin: true }).await?;
    session.send(b"tty\n").await?;
    session.expect("/dev/").await?;
    session.send(b"exit 9\n").await?;
    assert_eq!(container.exited().await?.exit_code, 9);
    session.close().await;
    pod.end().await
}

/// containerd's own suite counts them too.
async fn a_terminal_is_one_descriptor_of_its_shim(case: Case) -> Result<()> {
    let pod = PodSpec::new(&case).run().await?;
    let shim = shim_of(&pod.id)?.pid;
    let terminals = || -> Result<usize> {
        let all = std::fs::read_dir(format!("/proc/{shim}/fd"))?.flatten();
        let all = all.filter_map(|one| std::fs::read_link(one.path()).ok());
        Ok(all.filter(|one| one.ends_with("ptmx")).count())
    };
    let mut spec = ContainerSpec::new("main", &["/bin/sh"]);
    (spec.config.stdin, spec.config.tty) = (true, true);
    let container = pod.start(&spec).await?;
    ensure!(terminals()? == 1, "the container's are {}", terminals()?);
    let wish = Wish { tty: true, stdin: true };
    let mut session = container.open_exec(&["/bin/sh"], wish).await?;
    session.send(b"echo rea''dy\n").await?;
    session.expect("ready").await?;
    ensure!(terminals()? == 2, "with the exec's they are {}", terminals()?);
    session.send(b"exit\n").await?;
    session.to_end().await?;
    // The client has its answer before the exec is deleted.
    let closed = || terminals().is_ok_and(|count| count == 1);
    until(Duration::from_secs(10), "the exec's terminal stays open", closed).await?;
    pod.end().await
}

async fn logs_have_both_streams_to_the_last_line(case: Case) -> Result<()> {
    let pod = PodSpec::new(&case).run().await?;
    let script = "echo problem >&2; for i in $(seq 5000); do echo line $i; done; printf end";
    let container = pod.start(&ContainerSpec::script("main", script)).await?;
    container.exited().await?;
    let lines = container.logged("stdout", |lines| lines.ends_with("end")).await?;
    assert_eq!(lines.lines().count(), 5001);
    assert_eq!(container.logged("stderr", |lines| !lines.is_empty()).await?, "problem");
    pod.end().await
}

async fn logs_go_on_in_a_new_file_after_reopening(case: Case) -> Result<()> {
    let pod = PodSpec::new(&case).run().await?;
    let script =
        "echo before; while [ ! -e /tmp/go ]; do usleep 20000; done; echo after; sleep 1000";
    let container = pod.start(&ContainerSpec::script("main", script)).await?;
    container.logged("stdout", |lines| lines == "before").await?;
    tokio::fs::rename(&container.log, container.log.with_extension("old")).await?;
    let request = k8s_cri::v1::ReopenContainerLogRequest { container_id: container.id.clone() };
    case.node.cri().reopen_container_log(request).await?;
    container.shell("touch /tmp/go").await?;
    container.logged("stdout", |lines| lines == "after").await?;
    pod.end().await
}

async fn port_forward_reaches_a_server_in_the_pod(case: Case) -> Result<()> {
    let pod = PodSpec::new(&case).run().await?;
    let server = "while true; do echo pong | nc -l -p 7000; done";
    let container = pod.start(&ContainerSpec::script("main", server)).await?;
    listening(&container, "7000").await?;
    let mut session = pod.open_port(7000).await?;
    session.expect("pong").await?;
    session.close().await;
    pod.end().await
}

async fn a_host_port_leads_into_the_pod(case: Case) -> Result<()> {
    use tokio::io::AsyncReadExt;
    let pod = PodSpec::new(&case).port(7001, 17001).run().await?;
    let server = "while true; do echo pong | nc -l -p 7001; done";
    let container = pod.start(&ContainerSpec::script("main", server)).await?;
    listening(&container, "7001").await?;
    let mut stream = tokio::net::TcpStream::connect("10.88.0.1:17001").await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    assert_eq!(answer, "pong\n");
    pod.end().await
}

async fn listening(container: &mooring_e2e::cri::Container, port: &str) -> Result<()> {
    let script = format!("until netstat -ltn | grep -q :{port}; do usleep 20000; done");
    container.shell(&script).await.map(drop)
}

suite!(Settings::default();
    too: builtin;
    both: exec_sync_returns_exit_code_and_both_streams,
        signals_are_as_the_kernel_has_them_in_init_and_exec,
        what_an_exec_leaves_behind_does_not_keep_exec_sync,
        exec_sync_ends_at_its_timeout_and_kills_the_process,
        exec_sync_brings_all_of_a_large_output,
        twenty_execs_at_once_all_answer,
        exec_with_a_terminal_has_one_of_the_wanted_size,
        exec_with_stdin_passes_it_on_and_keeps_streams_apart,
        attach_reaches_stdin_and_stdout_of_the_container,
        stdin_once_closes_with_the_first_attach,
        attach_to_a_terminal_works_like_one,
        logs_have_both_streams_to_the_last_line,
        logs_go_on_in_a_new_file_after_reopening,
        port_forward_reaches_a_server_in_the_pod,
        a_host_port_leads_into_the_pod;
    mooring: a_terminal_is_one_descriptor_of_its_shim, many_execs_at_once_leave_no_memory_behind);
