use std::{
    fs,
    io::{Read, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::unix::pipe::OpenOptions,
    time::timeout,
};

use super::stage::{Stage, dependency};
use crate::task::{Streams, Tasks};

async fn read_rest(reader: &mut tokio::net::unix::pipe::Receiver) -> String {
    let mut text = Vec::new();
    timeout(Duration::from_secs(10), reader.read_to_end(&mut text))
        .await
        .expect("the output ends")
        .unwrap();
    String::from_utf8(text).unwrap()
}

#[tokio::test]
async fn fifos_carry_both_ways_and_end_with_the_container() {
    let stage = Stage::new("cat; echo err >&2");
    let streams = Streams {
        stdin: stage.fifo("in"),
        stdout: stage.fifo("out"),
        stderr: stage.fifo("err"),
        terminal: false,
    };
    // As clients do: opened before the container is created.
    let open = |path: &str| OpenOptions::new().open_receiver(path).unwrap();
    let (mut out, mut err) = (open(&streams.stdout), open(&streams.stderr));
    stage.run(streams.clone()).await;
    let mut input = OpenOptions::new().open_sender(&streams.stdin).unwrap();
    input.write_all(b"first\n").await.unwrap();
    drop(input);
    // Another client comes after the first has gone.
    let mut input = OpenOptions::new().open_sender(&streams.stdin).unwrap();
    input.write_all(b"second\n").await.unwrap();
    drop(input);
    stage.tasks.close_io(stage.id.as_str(), "").unwrap();
    assert_eq!(stage.wait("").await.status, 0);
    assert_eq!(read_rest(&mut out).await, "first\nsecond\n");
    assert_eq!(read_rest(&mut err).await, "err\n");
    stage.delete().await;
    stage.assert_clean();
}

#[tokio::test]
async fn what_was_written_before_the_client_came_back_is_still_there() {
    let stage = Stage::new("echo one; read x; echo two; read x; exit 4");
    let streams =
        Streams { stdin: stage.fifo("in"), stdout: stage.fifo("out"), ..Streams::default() };
    let client = OpenOptions::new().open_receiver(&streams.stdout).unwrap();
    stage.run(streams.clone()).await;
    client.readable().await.unwrap();
    // The client goes away; the container writes on and is not ended by it.
    drop(client);
    let mut input = OpenOptions::new().open_sender(&streams.stdin).unwrap();
    input.write_all(b"\n").await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let mut client = OpenOptions::new().open_receiver(&streams.stdout).unwrap();
    input.write_all(b"\n").await.unwrap();
    assert_eq!(read_rest(&mut client).await, "one\ntwo\n");
    assert_eq!(stage.wait("").await.status, 4);
    stage.delete().await;
    stage.assert_clean();
}

#[tokio::test]
async fn files_are_appended_to() {
    let stage = Stage::new("echo line; echo wrong >&2");
    let log = stage.folder.path().join("logs/deep/log");
    let uri = format!("file://{}", log.display());
    let streams = Streams { stdout: uri.clone(), stderr: uri, ..Streams::default() };
    stage.run(streams).await;
    stage.wait("").await;
    // What is on its way is brought by the deletion. Each stream has a pipe of its own.
    stage.delete().await;
    let text = fs::read_to_string(&log).unwrap();
    assert!(text == "line\nwrong\n" || text == "wrong\nline\n", "{text:?}");
    assert_eq!(fs::metadata(&log).unwrap().permissions().mode() & 0o777, 0o644);
    stage.assert_clean();
}

#[tokio::test]
async fn a_container_cannot_forge_its_log() {
    let stage = Stage::new("echo first; sleep 0.2; : >/proc/self/fd/1; echo second");
    let log = stage.folder.path().join("log");
    let streams = Streams { stdout: format!("file://{}", log.display()), ..Streams::default() };
    stage.run(streams).await;
    stage.wait("").await;
    stage.delete().await;
    assert_eq!(fs::read_to_string(&log).unwrap(), "first\nsecond\n");
    stage.assert_clean();
}

#[tokio::test]
async fn what_an_exec_leaves_behind_does_not_hold_the_clients_output() {
    let stage = Stage::new("exec sleep 1000");
    stage.run(Streams::default()).await;
    let streams = Streams { stdout: stage.fifo("out"), ..Streams::default() };
    let mut out = OpenOptions::new().open_receiver(&streams.stdout).unwrap();
    stage.exec("orphaned", "echo said; sleep 1000 &", streams).await.unwrap();
    assert_eq!(stage.wait("orphaned").await.status, 0);
    let since = std::time::Instant::now();
    stage.tasks.delete(stage.id.as_str(), "orphaned").await.unwrap();
    let took = since.elapsed();
    assert!(took > Duration::from_secs(9) && took < Duration::from_secs(20), "{took:?}");
    assert_eq!(read_rest(&mut out).await, "said\n");
    stage.kill(9).await;
    stage.wait("").await;
    stage.delete().await;
    stage.assert_clean();
}

/// As Go opens it: for reading, which waits for a writer.
async fn opened_late(path: String) -> String {
    let read = tokio::task::spawn_blocking(move || fs::read_to_string(path));
    timeout(Duration::from_secs(10), read).await.expect("it never opens").unwrap().unwrap()
}

#[tokio::test]
async fn a_client_that_opens_its_fifos_after_the_containers_end_reads_all_and_the_end() {
    let stage = Stage::new("echo said");
    let streams = Streams { stdout: stage.fifo("out"), ..Streams::default() };
    stage.run(streams.clone()).await;
    stage.wait("").await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(opened_late(streams.stdout).await, "said\n");
    stage.delete().await;
    stage.assert_clean();
}

/// containerd opens the fifos beside the call, and an exec may be quicker.
#[tokio::test]
async fn a_client_that_opens_its_fifos_after_an_execs_end_reads_all_and_the_end() {
    let stage = Stage::new("sleep 1000");
    stage.run(Streams::default()).await;
    for terminal in [false, true] {
        let streams = Streams {
            stdout: stage.fifo(&format!("out-{terminal}")),
            stderr: stage.fifo(&format!("err-{terminal}")),
            terminal,
            ..Streams::default()
        };
        let exec = format!("quick-{terminal}");
        stage.exec(&exec, "echo said", streams.clone()).await.unwrap();
        stage.wait(&exec).await;
        // The copy has ended as well, and another exec closes what is over of earlier ones.
        tokio::time::sleep(Duration::from_millis(200)).await;
        let other = format!("other-{terminal}");
        stage.exec(&other, "true", Streams::default()).await.unwrap();
        stage.wait(&other).await;
        assert_eq!(opened_late(streams.stdout).await.trim_end(), "said");
        // Deleted, nothing waits for the client of its errors, who never comes.
        timeout(Duration::from_secs(5), stage.tasks.delete(stage.id.as_str(), &exec))
            .await
            .expect("the deletion waits for a client")
            .unwrap();
    }
    stage.kill(9).await;
    stage.wait("").await;
    stage.delete().await;
    stage.assert_clean();
}

/// A client that dies deletes nothing: containerd, in each of its restarts.
#[tokio::test]
async fn execs_that_nobody_deletes_keep_no_descriptors() {
    let stage = Stage::new("sleep 1000");
    stage.run(Streams::default()).await;
    let streams = |number: usize| Streams {
        stdin: stage.fifo(&format!("in-{number}")),
        stdout: stage.fifo(&format!("out-{number}")),
        stderr: stage.fifo(&format!("err-{number}")),
        terminal: number == 2,
    };
    let open = || {
        let all = fs::read_dir("/proc/self/fd").unwrap().flatten();
        let all = all.filter_map(|one| fs::read_link(one.path()).ok());
        all.filter(|one| one.starts_with(stage.folder.path())).count()
    };
    for number in 0..4 {
        let streams = streams(number);
        let mut client = OpenOptions::new().open_receiver(&streams.stdout).unwrap();
        let errors = OpenOptions::new().open_receiver(&streams.stderr).unwrap();
        let exec = format!("exec-{number}");
        stage.exec(&exec, "echo said; exit 3", streams).await.unwrap();
        assert_eq!(stage.wait(&exec).await.status, 3);
        let mut said = [0; 4];
        timeout(Duration::from_secs(10), client.read_exact(&mut said)).await.unwrap().unwrap();
        assert_eq!(&said, b"said");
        drop((client, errors));
        // The copy's own end comes a moment later.
        let closed = async {
            while !(1..=3).contains(&open()) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let closed = timeout(Duration::from_secs(10), closed).await;
        assert!(closed.is_ok(), "after {exec}: {}", open());
    }
    assert_eq!(stage.wait("exec-0").await.status, 3, "its exit is forgotten");
    stage.kill(9).await;
    stage.wait("").await;
    stage.delete().await;
    stage.assert_clean();
}

fn logger(stage: &Stage, script: &str) -> String {
    let path = stage.folder.path().join("logger");
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o755)
        .open(&path)
        .unwrap();
    let folder = stage.folder.path().display();
    write!(
        file,
        "#!{} sh\nPATH=/usr/bin:/bin\ncd {folder}\n{script}\n",
        dependency("busybox").canonicalize().unwrap().display()
    )
    .unwrap();
    path.to_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_log_program_gets_both_outputs_its_arguments_and_its_environment() {
    let stage = Stage::new("echo out; echo err >&2");
    let program = logger(
        &stage,
        "echo \"$*\" $CONTAINER_ID $CONTAINER_NAMESPACE >about; exec 5>&-; cat <&3 >out; cat <&4 >err",
    );
    let streams = Streams { stdout: format!("binary://{program}?a=1&b=2"), ..Streams::default() };
    stage.run(streams).await;
    stage.wait("").await;
    stage.delete().await;
    let read = |name: &str| fs::read_to_string(stage.folder.path().join(name)).unwrap();
    assert_eq!(read("about"), format!("a 1 b 2 {} test\n", stage.id));
    assert_eq!((read("out").as_str(), read("err").as_str()), ("out\n", "err\n"));
    stage.assert_clean();
}

#[tokio::test]
async fn a_log_program_of_the_second_kind_must_speak() {
    let stage = Stage::new("echo out");
    let program = logger(&stage, "exec 5>&-; cat <&3 >out");
    let streams = Streams { stdout: format!("binary-v2://{program}"), ..Streams::default() };
    let request = crate::task::CreateRequest { streams, ..stage.request() };
    let error = stage.tasks.create(request).await.unwrap_err();
    assert!(error.to_string().contains("ready"), "{error}");
    stage.assert_clean();
}

#[tokio::test]
async fn a_terminal_is_resized_and_carries_both_ways() {
    let stage = Stage::new("");
    let mut spec = stage.spec("read x; stty size; echo got $x; exit 9");
    spec["process"]["terminal"] = true.into();
    stage.write(&spec);
    let streams = Streams {
        stdin: stage.fifo("in"),
        stdout: stage.fifo("out"),
        terminal: true,
        ..Streams::default()
    };
    let mut out = OpenOptions::new().open_receiver(&streams.stdout).unwrap();
    stage.run(streams.clone()).await;
    stage.tasks.resize_pty(stage.id.as_str(), "", 132, 50).unwrap();
    let mut input = OpenOptions::new().open_sender(&streams.stdin).unwrap();
    input.write_all(b"typed\n").await.unwrap();
    assert_eq!(stage.wait("").await.status, 9);
    let text = read_rest(&mut out).await;
    assert!(text.contains("50 132\r\n") && text.contains("got typed\r\n"), "{text:?}");
    stage.delete().await;
    stage.assert_clean();
}

#[tokio::test]
async fn an_exec_can_have_a_terminal_or_fifos() {
    let stage = Stage::new("sleep 1000");
    stage.run(Streams::default()).await;
    let streams = Streams { stdout: stage.fifo("tty"), terminal: true, ..Streams::default() };
    let mut out = OpenOptions::new().open_receiver(&streams.stdout).unwrap();
    stage.exec("tty", "stty >/dev/null && echo terminal", streams).await.unwrap();
    assert_eq!(stage.wait("tty").await.status, 0);
    assert_eq!(read_rest(&mut out).await, "terminal\r\n");
    let streams = Streams { stdout: stage.fifo("out"), ..Streams::default() };
    let mut out = OpenOptions::new().open_receiver(&streams.stdout).unwrap();
    // More than a pipe holds, so that the client must read while it runs.
    stage.exec("much", "head -c 300000 /proc/self/exe; echo", streams).await.unwrap();
    let mut count = 0;
    let mut buffer = vec![0; 65536];
    while let Ok(read @ 1..) =
        timeout(Duration::from_secs(10), out.read(&mut buffer)).await.unwrap()
    {
        count += read;
    }
    assert_eq!(count, 300_001);
    assert_eq!(stage.wait("much").await.status, 0);
    for exec in ["tty", "much"] {
        stage.tasks.delete(stage.id.as_str(), exec).await.unwrap();
    }
    stage.kill(9).await;
    stage.wait("").await;
    stage.delete().await;
    stage.assert_clean();
}

/// Relaying is what confined processes get; here it is asked for by itself.
#[tokio::test]
async fn a_relay_carries_everything_and_ends() {
    use crate::task::stdio::{Mode, Owner, open};
    let stage = Stage::new("");
    let streams =
        Streams { stdin: stage.fifo("in"), stdout: stage.fifo("out"), ..Streams::default() };
    let owner = Owner { namespace: "n", container: "c", ids: None };
    let reaper = mooring::process::Reaper::start().unwrap();
    let mut out = OpenOptions::new().open_receiver(&streams.stdout).unwrap();
    let (stdio, io) = open(&streams, Mode::Relay, &owner, &reaper).await.unwrap();
    let (mut to, mut from) =
        (fs::File::from(stdio.stdout.unwrap()), fs::File::from(stdio.stdin.unwrap()));
    let writer = std::thread::spawn(move || to.write_all(&vec![b'x'; 200_000]).unwrap());
    assert_eq!(read_rest(&mut out).await.len(), 200_000);
    writer.join().unwrap();
    let mut input = OpenOptions::new().open_sender(&streams.stdin).unwrap();
    input.write_all(b"in").await.unwrap();
    drop(input);
    io.close_stdin();
    let reading = tokio::task::spawn_blocking(move || {
        let mut text = String::new();
        from.read_to_string(&mut text).unwrap();
        text
    });
    assert_eq!(timeout(Duration::from_secs(10), reading).await.unwrap().unwrap(), "in");
    timeout(Duration::from_secs(5), io.drain()).await.unwrap();
}

#[test]
fn the_engine_may_be_called_from_any_thread() {
    fn shared<T: Send + Sync>() {}
    shared::<Tasks>();
}
