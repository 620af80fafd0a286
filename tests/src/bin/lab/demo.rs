//! One pod's life, told step by step: first as the kubelet lives it (CRI), then as any client of the Sandbox API does
//! (ctr), then on a node without runc. Fails when a step does, or when anything is left.

use std::fs;
use std::io::{IsTerminal, stdout};
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use k8s_cri::v1 as cri;
use mooring_e2e::audit::{Process, Snapshot, all_processes, leftovers};
use mooring_e2e::cri::{Container, ContainerSpec, Pod, PodSpec};
use mooring_e2e::faults::steps_in;
use mooring_e2e::hidden::Hidden;
use mooring_e2e::machine::{Storage, enter};
use mooring_e2e::node::{IMAGE, Node, Settings, shim, tail, version};
use mooring_e2e::services::Client;
use mooring_e2e::suite::{Case, Handler};
use serde_json::json;

use crate::up::short;

pub fn run(handler: Handler) -> Result<ExitCode> {
    let folder = enter(Storage::Memory)?;
    title(&format!("A private containerd in {}, in namespaces of its own", folder.display()));
    crate::block_on(async {
        let node = Node::boot(&folder, &Settings::default()).await?;
        let case = Case { node: Arc::new(node), handler };
        let told = tell(&case).await;
        if told.is_err() {
            let log = case.node.log();
            let lines = log.lines().filter(|line| !line.contains("level=debug"));
            let text = lines.collect::<Vec<_>>().join("\n");
            eprintln!("the end of containerd's log:\n{}", tail(&text, 15));
        }
        told
    })
}

async fn tell(case: &Case) -> Result<ExitCode> {
    let node = &case.node;
    say(&format!("{}, {}", program(node, "containerd", 2)?, program(node, "runc", 2)?));
    let before = Snapshot::take(node).await?;
    through_cri(case).await?;
    if case.handler.is_mooring() {
        without_kubernetes(case).await?;
        without_runc(case).await?;
    }
    title("What is left of them on this machine");
    let left = leftovers(node, &before).await?;
    let code = crate::audit::report(&left);
    ensure!(left.is_empty(), "something was left behind");
    say("nothing.");
    if case.handler.is_mooring() {
        title("What the operator's tool says of this machine");
        let config = node.folder().join("config.toml");
        let config = config.to_str().context("a path that is no text")?;
        mooring(&["doctor", "--containerd-config", config])?;
    }
    Ok(code)
}

async fn through_cri(case: &Case) -> Result<()> {
    let handler = case.handler.name();
    let mut spec = PodSpec::new(case);
    "demo-pod".clone_into(&mut spec.config.hostname);
    spec.config.dns_config = Some(cri::DnsConfig {
        servers: vec!["192.0.2.53".to_owned()],
        searches: vec!["demo.test".to_owned()],
        options: vec![],
    });
    title(&format!("RunPodSandbox, handler {handler}"));
    let old = all_processes();
    let (pod, ms) = timed(spec.run()).await?;
    let status = pod.status().await?;
    let address = status.network.as_ref().map(|one| one.ip.clone()).unwrap_or_default();
    let state = status.state().as_str_name();
    say(&format!("pod {}, address {address}, {state}, {ms} ms", short(&pod.id)));

    title("Two containers");
    let script = "echo hello from the server >/tmp/index.html; echo server is up; exec httpd -f -p 8080 -h /tmp";
    let server = start(&pod, "server", script).await?;
    let client = start(&pod, "client", "while sleep 1; do date +%s; done").await?;

    title("Exec: one network, one host name, one /etc/resolv.conf for both");
    let fetch = "until wget -q -O - http://127.0.0.1:8080; do sleep 0.1; done";
    exec(&client, &["/bin/sh", "-c", fetch]).await?;
    exec(&server, &["/bin/hostname"]).await?;
    exec(&client, &["/bin/cat", "/etc/resolv.conf"]).await?;

    title("Logs of the container \"server\", as the kubelet reads them");
    server.logged("stdout", |text| text.contains("server is up")).await?;
    indent(&fs::read_to_string(&server.log)?);

    let pause = if case.handler.is_mooring() { ": no pause container" } else { "" };
    title(&format!("What the pod is made of{pause}"));
    show_processes(&old);

    title("Stats");
    show_stats(&pod, &[&server, &client]).await?;

    title("StopPodSandbox, both containers still running");
    let ((), ms) = following(case, &pod.id, timed(pod.stop())).await?;
    say(&format!("stopped in {ms} ms"));
    let ((), ms) = timed(pod.stop()).await?;
    say(&format!("once more, since a kubelet may ask twice: success in {ms} ms"));
    if case.handler.is_mooring() {
        title("What the operator's tool says of the stopped pod");
        let id: String = pod.id.chars().take(13).collect();
        mooring(&["inspect", &id])?;
    }

    title("RemovePodSandbox");
    let ((), ms) = timed(pod.remove()).await?;
    say(&format!("removed in {ms} ms"));
    Ok(())
}

async fn start(pod: &Pod, name: &str, script: &str) -> Result<Container> {
    let (container, ms) = timed(pod.create(&ContainerSpec::script(name, script))).await?;
    say(&format!("CreateContainer {name}: {}, {ms} ms", short(&container.id)));
    let ((), ms) = timed(container.start()).await?;
    say(&format!("StartContainer  {name}: {ms} ms"));
    Ok(container)
}

async fn exec(container: &Container, command: &[&str]) -> Result<()> {
    say(&format!("$ {}", command.join(" ")));
    let ran = container.exec(command).await?;
    ensure!(ran.code == 0, "{command:?} failed: {ran:?}");
    indent(&ran.stdout);
    Ok(())
}

async fn show_stats(pod: &Pod, containers: &[&Container]) -> Result<()> {
    let all = pod.stats().await?.linux.context("no Linux statistics")?;
    let (cpu, memory) = usage(all.cpu.as_ref(), all.memory.as_ref());
    let processes = all.process.and_then(|one| one.process_count).map_or(0, |one| one.value);
    say(&format!("pod: {cpu} ms of CPU, {memory} KiB working set, {processes} processes"));
    for one in containers {
        let stats = one.stats().await?;
        let (cpu, memory) = usage(stats.cpu.as_ref(), stats.memory.as_ref());
        say(&format!("container {}: {cpu} ms of CPU, {memory} KiB working set", short(&one.id)));
    }
    Ok(())
}

/// Milliseconds and KiB.
fn usage(cpu: Option<&cri::CpuUsage>, memory: Option<&cri::MemoryUsage>) -> (u64, u64) {
    let cpu = cpu.and_then(|one| one.usage_core_nano_seconds).map_or(0, |one| one.value);
    let memory = memory.and_then(|one| one.working_set_bytes).map_or(0, |one| one.value);
    (cpu / 1_000_000, memory / 1024)
}

/// `ctr sandboxes run` of containerd 2.1 names no controller, so none starts its sandbox: there its three calls are
/// made one by one.
async fn without_kubernetes(case: &Case) -> Result<()> {
    let (node, runtime) = (&case.node, case.handler.runtime());
    let client = Client::new(case);
    let id = client.id.clone();
    // What a pod file leaves out, Mooring decides.
    let pod = json!({
        "ociVersion": "1.1.0",
        "hostname": "ctr-pod",
        "root": { "path": "rootfs" },
        "linux": {
            "cgroupsPath": format!("/e2e/{id}"),
            "namespaces": [{ "type": "network" }, { "type": "ipc" }, { "type": "uts" }],
        },
    });
    title("The same without Kubernetes: ctr sandboxes");
    if version()? >= (2, 2) {
        let file = node.folder().join("pod.json");
        fs::write(&file, pod.to_string())?;
        let file = file.to_str().context("a path that is no text")?;
        ctr(node, &["sandboxes", "run", "--runtime", runtime, file, &id]).await?;
    } else {
        say("(this ctr cannot run sandboxes; through containerd's sandbox services instead)");
        client.record(&pod).await.context("record the sandbox")?;
        let ((), ms) = timed(async { Ok(client.create(&pod, None, "").await?) }).await?;
        say(&format!("CreateSandbox: {ms} ms"));
        let (_, ms) = timed(async { Ok(client.start().await?) }).await?;
        say(&format!("StartSandbox:  {ms} ms, with CNI"));
    }
    ctr(node, &["sandboxes", "ls"]).await?;
    let task = format!("{id}-task");
    let words = ["run", "--rm", "--runtime", runtime, "--sandbox", &id, IMAGE, &task];
    let answer =
        ctr(node, &[&words[..], &["/bin/ip", "-4", "-o", "addr", "show"]].concat()).await?;
    ensure!(answer.contains("eth0"), "the container is not in the sandbox's network");
    following(case, &id, ctr(node, &["sandboxes", "rm", &id])).await?;
    Ok(())
}

/// A pod whose containers are run by the shim's own program. Nothing of the node could do it.
async fn without_runc(case: &Case) -> Result<()> {
    let (node, others) = (&case.node, ["runc", "crun"]);
    let case = Case { handler: Handler::Builtin, ..case.clone() };
    title(
        "A node without runc: handler builtin, a profile of Mooring's with BinaryName = 'builtin'",
    );
    let path = node.path();
    let hidden = Hidden::programs(&others, &path, node.folder())?;
    for name in others {
        hidden.lacks(name, &path)?;
        say(&format!("$ {name} --version: not found"));
    }
    let (pod, ms) = timed(PodSpec::new(&case).run()).await?;
    say(&format!("pod {}, address {}, {ms} ms", short(&pod.id), pod.address().await?));
    let container = start(&pod, "main", "exec sleep 100000").await?;
    exec(&container, &["/bin/grep", "-E", "^(Cap(Eff|Bnd)|NoNewPrivs)", "/proc/self/status"])
        .await?;
    let ((), ms) = timed(pod.stop()).await?;
    say(&format!("stopped in {ms} ms"));
    let ((), ms) = timed(pod.remove()).await?;
    say(&format!("removed in {ms} ms"));
    Ok(())
}

/// The operator's tool, which lies beside the shim.
fn mooring(words: &[&str]) -> Result<()> {
    say(&format!("$ mooring {}", words.join(" ")));
    let output = Command::new(shim()?.with_file_name("mooring")).args(words).output();
    let output = output.context("run mooring")?;
    ensure!(output.status.success(), "mooring {words:?}: {output:?}");
    indent(&String::from_utf8_lossy(&output.stdout));
    Ok(())
}

async fn ctr(node: &Node, words: &[&str]) -> Result<String> {
    say(&format!("$ ctr {}", words.join(" ")));
    let answer = node.ctr(words).await?;
    indent(&answer);
    Ok(answer)
}

/// Waits for a teardown and prints its steps as they are logged.
async fn following<T>(case: &Case, id: &str, call: impl Future<Output = Result<T>>) -> Result<T> {
    let mut shown = 0;
    let mut show = || {
        let steps = steps_in(&case.node.log(), id);
        for one in steps.iter().skip(shown) {
            println!("  {:<22} {:<14} {} ms", one.step, one.outcome, one.ms);
        }
        shown = steps.len();
        shown
    };
    let mut call = std::pin::pin!(call);
    let answer = loop {
        let tick = tokio::time::sleep(Duration::from_millis(20));
        tokio::select! {
            answer = &mut call => break answer?,
            () = tick => { show(); }
        }
    };
    // The log comes through containerd, which may be a moment behind.
    let until = Instant::now() + Duration::from_secs(10);
    let mut settled = false;
    while case.handler.is_mooring() && !settled {
        ensure!(Instant::now() < until, "the log does not tell of the teardown");
        let before = show();
        tokio::time::sleep(Duration::from_millis(300)).await;
        settled = before > 0 && show() == before;
    }
    Ok(answer)
}

fn show_processes(old: &[Process]) {
    println!("  {:<8} {:<8} {:<10} command", "pid", "threads", "PSS");
    for one in all_processes() {
        if old.iter().any(|other| other.pid == one.pid) || one.command.is_empty() {
            continue;
        }
        let at = format!("/proc/{}", one.pid);
        let threads = field(&format!("{at}/status"), "Threads:");
        let pss = field(&format!("{at}/smaps_rollup"), "Pss:");
        let (program, rest) = one.command.split_once(' ').unwrap_or((&one.command, ""));
        let program = program.rsplit('/').next().unwrap_or(program);
        let command: String = format!("{program} {rest}").chars().take(80).collect();
        println!("  {:<8} {threads:<8} {:<10} {command}", one.pid, format!("{pss} KiB"));
    }
}

/// The number in a line of one of /proc's files.
fn field(file: &str, name: &str) -> String {
    let text = fs::read_to_string(file).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|rest| rest.split_whitespace().next()).unwrap_or("?").to_owned()
}

/// What a program says of its version, in short.
fn program(node: &Node, name: &str, words: usize) -> Result<String> {
    let output = Command::new(name).arg("--version").env("PATH", node.path()).output();
    let output = output.with_context(|| format!("run {name}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let Some(line) = text.lines().next() else { bail!("{name} --version says nothing") };
    let parts: Vec<&str> = line.split_whitespace().collect();
    Ok(format!("{name} {}", parts.get(words).unwrap_or(&"?")))
}

/// A call's result and its milliseconds.
async fn timed<T>(call: impl Future<Output = Result<T>>) -> Result<(T, u128)> {
    let begun = Instant::now();
    let answer = call.await?;
    Ok((answer, begun.elapsed().as_millis()))
}

fn title(text: &str) {
    if stdout().is_terminal() {
        println!("\n\x1b[1m{text}\x1b[0m");
    } else {
        println!("\n{text}");
    }
}

fn say(text: &str) {
    println!("  {text}");
}

fn indent(text: &str) {
    for line in text.lines() {
        println!("  {line}");
    }
}
