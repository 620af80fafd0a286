//! `mooring inspect` and `mooring stop`: what a shim says of its sandbox, and teardowns by hand.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mooring_e2e::audit::all_processes;
use mooring_e2e::faults::{kill_shim, lives, nobody_works_for, shim_of, until};
use mooring_e2e::life::{Kind, Life};
use mooring_e2e::node::Settings;
use mooring_e2e::plugins::Plugins;
use mooring_e2e::suite;
use mooring_e2e::suite::Case;
use mooring_e2e::tool::text;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// The steps that a pod with a network of its own goes through, up to that.
const STEPS: [&str; 4] = ["door", "containers", "keeper", "network"];

fn tool(arguments: &[&str]) -> Result<Command> {
    let mut tool = Command::new(mooring_e2e::tool::tool()?);
    tool.args(arguments);
    Ok(tool)
}

/// Runs the tool away from the async threads, which serve the client's own calls meanwhile.
async fn run(arguments: &[&str]) -> Result<Output> {
    let mut tool = tool(arguments)?;
    tokio::task::spawn_blocking(move || tool.output()).await?.context("run mooring")
}

async fn running(case: &Case) -> Result<Life> {
    let mut life = Life::new(case, Kind::OwnNetwork);
    life.run().await?;
    life.container().await?;
    Ok(life)
}

async fn inspected(id: &str) -> Result<Value> {
    let output = run(&["inspect", id, "-o", "json"]).await?;
    serde_json::from_slice(&output.stdout).with_context(|| text(&output))
}

/// Where its network namespace is, as the tool says.
fn netns(said: &Value) -> Result<PathBuf> {
    let path = said.pointer("/network/netns").and_then(Value::as_str);
    path.map(PathBuf::from).with_context(|| format!("no network namespace in {said}"))
}

/// The names of the steps that have ended.
fn steps(said: &Value) -> Vec<&str> {
    let steps = said.pointer("/teardown/steps").and_then(Value::as_array);
    steps.into_iter().flatten().filter_map(|step| step.get("step")?.as_str()).collect()
}

async fn inspect_tells_what_a_shim_knows(case: Case) -> Result<()> {
    let _plugins = Plugins::install(&case.node, "inspect", "")?;
    let life = running(&case).await?;
    let said = inspected(life.id()).await?;
    ensure!(said["told_by_shim"] == true && said["state"] == "ready", "{said}");
    ensure!(said["shim"]["pid"] == shim_of(life.id())?.pid, "{said}");
    ensure!(said["shim"]["pss_bytes"].as_u64().is_some_and(|bytes| bytes > 1 << 12), "{said}");
    ensure!(said["keeper"]["kind"] == "thread" && said["keeper"]["pid"] == life.pid(), "{said}");
    let network = &said["network"];
    ensure!(network["owner"] == "shim" && netns(&said)?.exists(), "{said}");
    let address = network["attachments"][0]["addresses"][0].as_str().unwrap_or_default();
    ensure!(address.contains('/') && network["attachments"][0]["outcome"] == "added", "{said}");
    ensure!(said["containers"][0]["state"] == "running", "{said}");
    let holds = |what: &str| said["holds"].to_string().contains(what);
    ensure!(holds("DEL of eth0") && holds("unmount and remove"), "{said}");
    let adds =
        |one: &Value| one["name"] == "cni_add" && one["subject"] == "ptp" && one["count"] == 1;
    ensure!(said["operations"].as_array().is_some_and(|all| all.iter().any(adds)), "{said}");

    // Its beginning is enough; what nobody has is one line.
    let (start, _) = life.id().split_at(life.id().len() - 1);
    let sheet = run(&["inspect", start]).await?;
    let shown = text(&sheet);
    ensure!(sheet.status.success() && shown.contains(address), "{shown}");
    ensure!(!shown.contains('\u{1b}'), "colours where there is no terminal: {shown:?}");
    for command in ["inspect", "stop"] {
        let unknown = run(&[command, "nobody-has-this"]).await?;
        let said = text(&unknown);
        ensure!(unknown.status.code() == Some(1) && said.lines().count() == 1, "{said}");
        ensure!(said.contains("no sandbox \"nobody-has-this\""), "{said}");
    }

    life.stop().await?;
    let said = inspected(life.id()).await?;
    ensure!(said["state"] == "stopped" && said["teardown"]["runs"] == 1, "{said}");
    ensure!(steps(&said).starts_with(&STEPS), "{said}");
    ensure!(said["holds"].as_array().is_some_and(Vec::is_empty), "{said}");
    let by = |one: &Value| one["name"] == "container_stop" && one["subject"] == "containerd";
    ensure!(said["operations"].as_array().is_some_and(|all| all.iter().any(by)), "{said}");
    life.end().await
}

/// The client that made the sandbox finds it stopped.
async fn a_stop_by_hand_shows_each_step(case: Case) -> Result<()> {
    let plugins = Plugins::install(&case.node, "stop", "")?;
    let (life, beside) = (running(&case).await?, running(&case).await?);
    let process = life.task().context("no task")?.pids().await?.first().copied();
    let process = process.context("no process")?;
    let stopped = run(&["stop", life.id()]).await?;
    let said = text(&stopped);
    ensure!(stopped.status.success(), "{said}");
    let places: Vec<_> = STEPS.iter().map(|step| said.find(&format!(": {step} "))).collect();
    ensure!(places.iter().all(Option::is_some) && places.is_sorted(), "{places:?} in {said}");
    ensure!(said.trim_end().ends_with("stopped"), "{said}");
    ensure!(plugins.reservations().len() == 1, "{:?}", plugins.reservations());
    ensure!(!lives(process), "its container runs");
    life.stop().await.context("the client's own stop")?;
    let again = run(&["stop", life.id()]).await?;
    ensure!(again.status.success(), "{}", text(&again));
    ensure!(inspected(beside.id()).await?["state"] == "ready", "the other one was touched");
    life.end().await?;
    beside.stop().await?;
    beside.end().await
}

/// The question that the tool is for: which step hangs?
async fn the_step_that_hangs_is_named_and_a_stop_joins(case: Case) -> Result<()> {
    let plugins = Plugins::install(&case.node, "hangs", "CniTimeout = '2m'")?;
    let life = running(&case).await?;
    plugins.fault("ptp", "DEL", "hang")?;
    let joined = run(&["stop", life.id(), "--timeout", "1s"]).await?;
    let said = text(&joined);
    ensure!(joined.status.code() == Some(1) && said.contains("still at step network"), "{said}");
    let said = inspected(life.id()).await?;
    ensure!(said["state"] == "stopping", "{said}");
    ensure!(said["teardown"]["current"]["step"] == "network", "{said}");
    ensure!(steps(&said) == ["door", "containers", "keeper"], "{said}");

    // Whoever follows hears the steps that have been, the one under way, and the end.
    let mut following = tool(&["inspect", "--watch", "-o", "json", life.id()])?
        .stdout(Stdio::piped())
        .spawn()
        .context("follow")?;
    let stdout = following.stdout.take().context("no output")?;
    let (heard, mut lines) = tokio::sync::mpsc::unbounded_channel::<Value>();
    let reader = tokio::task::spawn_blocking(move || -> Result<()> {
        for line in BufReader::new(stdout).lines() {
            heard.send(serde_json::from_str(&line?)?)?;
        }
        Ok(())
    });
    let mut steps = Vec::new();
    while let Some(line) = lines.recv().await {
        steps.push(line["step"]["step"].as_str().unwrap_or_default().to_owned());
        if line["step"]["step"] == "network" && line["step"]["outcome"] == "under_way" {
            break;
        }
    }
    ensure!(steps == STEPS, "{steps:?}");
    plugins.mend("ptp", "DEL");
    let hanging = hanging_plugins();
    ensure!(!hanging.is_empty(), "no plugin hangs");
    for pid in hanging {
        kill(pid, Signal::SIGKILL)?;
    }
    // Whose plugin was killed has failed; the next stop goes on there.
    while let Some(line) = lines.recv().await {
        if line["step"]["outcome"] == "failed" {
            break;
        }
    }
    let again = run(&["stop", life.id()]).await?;
    let said = text(&again);
    // Who comes while it does is shown what it has done so far, and no step twice.
    let seen = usize::from(said.contains("exit status 137"));
    ensure!(again.status.success() && said.matches(": keeper").count() == seen, "{said}");
    let mut last = Value::Null;
    while let Some(line) = lines.recv().await {
        last = line;
    }
    ensure!(last["state"] == "stopped", "{last}");
    reader.await??;
    let ended = tokio::task::spawn_blocking(move || following.wait()).await??;
    ensure!(ended.success(), "{ended}");
    ensure!(plugins.reservations().is_empty(), "{:?}", plugins.reservations());
    life.end().await
}

/// The processes that stand for a hanging plugin.
fn hanging_plugins() -> Vec<Pid> {
    let all = all_processes().into_iter();
    let hanging = all.filter(|process| process.command == "sleep 1000");
    hanging.map(|process| Pid::from_raw(process.pid)).collect()
}

async fn a_shim_that_hangs_is_named_and_force_completes(case: Case) -> Result<()> {
    let plugins = Plugins::install(&case.node, "force", "")?;
    let life = running(&case).await?;
    let pid = Pid::from_raw(shim_of(life.id())?.pid);
    kill(pid, Signal::SIGSTOP)?;
    let looked = run(&["inspect", life.id(), "-o", "json"]).await?;
    let said: Value = serde_json::from_slice(&looked.stdout).with_context(|| text(&looked))?;
    ensure!(looked.status.code() == Some(1) && said["told_by_shim"] == false, "{said}");
    ensure!(said["complaint"].as_str().is_some_and(|it| it.contains("does not answer")), "{said}");
    ensure!(said["holds"].to_string().contains("DEL of eth0"), "{said}");
    let refused = run(&["stop", life.id()]).await?;
    ensure!(refused.status.code() == Some(1), "{}", text(&refused));
    ensure!(text(&refused).contains("does not answer"), "{}", text(&refused));
    let forced = run(&["stop", "--force", life.id()]).await?;
    ensure!(forced.status.success(), "{}", text(&forced));
    nobody_works_for(life.id(), Duration::from_secs(30)).await?;
    ensure!(plugins.reservations().is_empty(), "{:?}", plugins.reservations());
    ensure!(!life.is_remembered(), "its journal is there");
    life.end().await
}

/// It answers, and does not get ahead.
async fn a_shim_that_does_not_finish_in_time_is_killed_with_force(case: Case) -> Result<()> {
    let plugins = Plugins::install(&case.node, "late", "CniTimeout = '2m'")?;
    let life = running(&case).await?;
    let pid = shim_of(life.id())?.pid;
    plugins.fault("ptp", "DEL", "hang")?;
    let joined = run(&["stop", life.id(), "--timeout", "1s"]).await?;
    ensure!(text(&joined).contains("still at step network"), "{}", text(&joined));
    until(Duration::from_secs(20), "no plugin hangs", || !hanging_plugins().is_empty()).await?;
    plugins.mend("ptp", "DEL");
    let forced = run(&["stop", life.id(), "--timeout", "2s", "--force"]).await?;
    ensure!(forced.status.success(), "{}", text(&forced));
    ensure!(text(&forced).contains("killing its shim"), "{}", text(&forced));
    ensure!(!lives(u32::try_from(pid)?), "its shim lives");
    nobody_works_for(life.id(), Duration::from_secs(30)).await?;
    ensure!(hanging_plugins().is_empty(), "{:?}", hanging_plugins());
    ensure!(plugins.reservations().is_empty(), "{:?}", plugins.reservations());
    ensure!(!life.is_remembered(), "its journal is there");
    life.end().await
}

/// One whose shim lives, and one whose shim is gone and for which nobody works, since containerd is down.
async fn living_and_left(case: &Case) -> Result<(Life, Life)> {
    let (living, left) = (running(case).await?, running(case).await?);
    case.node.end(Signal::SIGKILL).await?;
    kill_shim(left.id())?;
    let gone = || shim_of(left.id()).is_err();
    until(Duration::from_secs(10), "the shim does not end", gone).await?;
    Ok((living, left))
}

/// The tool on a terminal of its own.
struct OnTerminal {
    child: Child,
    shown: std::sync::Arc<std::sync::Mutex<String>>,
    reader: tokio::task::JoinHandle<()>,
}

impl OnTerminal {
    fn start(arguments: &[&str]) -> Result<Self> {
        let size = nix::pty::Winsize { ws_row: 40, ws_col: 200, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = nix::pty::openpty(Some(&size), None)?;
        let mut tool = tool(arguments)?;
        tool.stdout(pty.slave.try_clone()?).stderr(pty.slave).env("TERM", "xterm");
        let child = tool.spawn().context("start mooring")?;
        // Its own copy of the terminal is let go, so that the end of the other one's is the end.
        drop(tool);
        let shown = std::sync::Arc::new(std::sync::Mutex::new(String::new()));
        let into = std::sync::Arc::clone(&shown);
        let reader = tokio::task::spawn_blocking(move || {
            let (mut terminal, mut part) = (File::from(pty.master), [0; 4096]);
            while let Ok(length @ 1..) = terminal.read(&mut part) {
                let text = String::from_utf8_lossy(part.get(..length).unwrap_or_default());
                if let Ok(mut into) = into.lock() {
                    into.push_str(&text);
                }
            }
        });
        Ok(Self { child, shown, reader })
    }

    fn shown(&self) -> String {
        self.shown.lock().map(|text| text.clone()).unwrap_or_default()
    }

    /// As by a Ctrl-C; answers its exit status.
    async fn interrupt(mut self) -> Result<(Option<i32>, String)> {
        kill(Pid::from_raw(i32::try_from(self.child.id())?), Signal::SIGINT)?;
        let status = tokio::task::spawn_blocking(move || self.child.wait()).await??;
        self.reader.await?;
        let shown = self.shown.lock().map(|text| text.clone()).unwrap_or_default();
        Ok((status.code(), shown))
    }
}

/// One that its shim stops, and one whose journal the tool completes: both are where a plugin hangs.
async fn an_interrupted_stop_can_be_gone_on_with(case: Case) -> Result<()> {
    let plugins = Plugins::install(&case.node, "interrupt", "CniTimeout = '2m'")?;
    let (living, left) = Box::pin(living_and_left(&case)).await?;
    plugins.fault("ptp", "DEL", "hang")?;
    let stopping = OnTerminal::start(&["stop", "--all"])?;
    let both = until(Duration::from_secs(20), "not both hang", || hanging_plugins().len() >= 2);
    both.await.with_context(|| format!("{:?}: {}", hanging_plugins(), stopping.shown()))?;
    let moves = || stopping.shown().contains("0 of 2 ended");
    until(Duration::from_secs(20), "there is no bar", moves).await?;
    let step = || stopping.shown().contains(": network ");
    until(Duration::from_secs(20), "the step under way is not shown", step).await?;
    let (code, shown) = stopping.interrupt().await?;
    ensure!(code == Some(1), "{code:?}: {shown}");
    ensure!(shown.contains("\u{1b}["), "no colours on a terminal: {shown:?}");
    ensure!(left.is_remembered() && living.is_remembered(), "a journal is lost");
    plugins.mend("ptp", "DEL");
    for pid in hanging_plugins() {
        kill(pid, Signal::SIGKILL)?;
    }
    // The shim goes on by itself until its plugin has failed.
    let again = run(&["stop", "--all"]).await?;
    let again = if again.status.success() { again } else { run(&["stop", "--all"]).await? };
    let said = text(&again);
    ensure!(again.status.success() && !said.contains(": keeper"), "{said}");
    ensure!(plugins.reservations().is_empty(), "{:?}", plugins.reservations());
    ensure!(!left.is_remembered(), "its journal is there");
    case.node.start().await?;
    living.stop().await?;
    living.end().await?;
    left.end().await
}

async fn all_are_stopped_at_once_whoever_has_them(case: Case) -> Result<()> {
    let plugins = Plugins::install(&case.node, "all", "")?;
    let (living, left) = Box::pin(living_and_left(&case)).await?;
    let other = run(&["stop", "--namespace", "nobodys"]).await?;
    ensure!(other.status.success() && text(&other) == "nothing to stop\n", "{}", text(&other));
    let stopped = run(&["stop", "--all"]).await?;
    let said = text(&stopped);
    ensure!(stopped.status.success() && said.trim_end().ends_with("2 stopped"), "{said}");
    ensure!(plugins.reservations().is_empty(), "{:?}", plugins.reservations());
    ensure!(!left.is_remembered(), "its journal is there");
    case.node.start().await?;
    living.stop().await?;
    living.end().await?;
    left.end().await
}

suite!(Settings::default();
    both: ;
    mooring: inspect_tells_what_a_shim_knows, a_stop_by_hand_shows_each_step,
        the_step_that_hangs_is_named_and_a_stop_joins,
        a_shim_that_hangs_is_named_and_force_completes,
        a_shim_that_does_not_finish_in_time_is_killed_with_force,
        an_interrupted_stop_can_be_gone_on_with, all_are_stopped_at_once_whoever_has_them);
