//! `mooring metrics`: one scrape, and a server.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mooring_e2e::faults::{kill_shim, shim_of, until};
use mooring_e2e::life::{Kind, Life};
use mooring_e2e::node::{Settings, shim};
use mooring_e2e::plugins::Plugins;
use mooring_e2e::suite;
use mooring_e2e::suite::Case;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

const TOTALS: &str = "/run/mooring/totals.json";

fn tool(arguments: &[&str]) -> Result<Command> {
    let mut tool = Command::new(shim()?.with_file_name("mooring"));
    tool.arg("metrics").args(arguments);
    Ok(tool)
}

async fn run(arguments: &[&str]) -> Result<Output> {
    let mut tool = tool(arguments)?;
    tokio::task::spawn_blocking(move || tool.output()).await?.context("run mooring")
}

/// The values of a scrape by name and labels.
struct Scrape(BTreeMap<String, f64>);

impl Scrape {
    fn of(text: &str) -> Result<Self> {
        ensure!(text.ends_with("# EOF\n"), "{text}");
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let values = lines.map(|line| {
            let (name, value) = line.rsplit_once(' ').context("a line without a value")?;
            Ok((name.to_owned(), value.parse()?))
        });
        Ok(Self(values.collect::<Result<_>>()?))
    }

    async fn once(arguments: &[&str]) -> Result<Self> {
        let output = run(arguments).await?;
        ensure!(output.status.success(), "{output:?}");
        Self::of(&String::from_utf8(output.stdout)?)
    }

    /// The sum of the values whose name begins with `name` and whose labels have all `parts`.
    fn sum(&self, name: &str, parts: &[&str]) -> f64 {
        let named = |key: &&str| key.split('{').next() == Some(name);
        let found = self
            .0
            .iter()
            .filter(|(key, _)| named(&key.as_str()) && parts.iter().all(|part| key.contains(part)));
        found.map(|(_, value)| value).sum()
    }

    fn must(&self, name: &str, parts: &[&str], wanted: f64) -> Result<()> {
        let found = self.sum(name, parts);
        ensure!(
            (found - wanted).abs() < 1e-9,
            "{name} {parts:?}: {found}, not {wanted}: {:?}",
            self.0
        );
        Ok(())
    }
}

async fn running(case: &Case) -> Result<Life> {
    let mut life = Life::new(case, Kind::OwnNetwork);
    life.run().await?;
    life.container().await?;
    Ok(life)
}

const STOPS: &str = "mooring_sandbox_runtime_stop_seconds_count";

async fn a_scrape_tells_what_the_node_does(case: Case) -> Result<()> {
    let plugins = Plugins::install(&case.node, "metrics", "KeepTotals = true")?;
    let (life, hung) = (running(&case).await?, running(&case).await?);
    let scrape = Scrape::once(&["--pods"]).await?;
    scrape.must("mooring_sandboxes", &["ready", "io.containerd.mooring.v1"], 2.0)?;
    scrape.must("mooring_containers", &["running"], 2.0)?;
    scrape.must("mooring_shims", &["true"], 2.0)?;
    let add = ["set_up_pod", "ptp"];
    scrape.must("mooring_network_plugin_operations_total", &add, 2.0)?;
    scrape.must("mooring_network_plugin_operations_duration_seconds_count", &add, 2.0)?;
    scrape.must("mooring_sandbox_create_network_seconds_count", &[], 2.0)?;
    let own = format!("sandbox_id=\"{}\"", life.id());
    ensure!(scrape.sum("mooring_shim_memory_bytes", &[&own]) > 4096.0, "{:?}", scrape.0);
    // The kernel itself sends when an interface comes up.
    let sent = format!("container_network_transmit_packets_total{{{own},pod=\"\"");
    ensure!(scrape.0.keys().any(|key| key.starts_with(&sent)), "{:?}", scrape.0);

    // A stop that hangs, a shim that does not answer, one that is killed, and what was counted of pods that are gone.
    plugins.fault_of(hung.id(), "ptp", "DEL", "hang")?;
    let stop = tokio::time::timeout(Duration::from_secs(2), hung.stop());
    ensure!(stop.await.map_or(true, |stopped| stopped.is_err()), "the stop succeeds");
    life.stop().await?;
    life.end().await?;
    let scrape = Scrape::once(&[]).await?;
    scrape.must(STOPS, &[], 1.0)?;
    scrape.must("mooring_sandbox_remove_seconds_count", &[], 1.0)?;
    scrape.must("mooring_teardown_step_seconds_count", &["network"], 1.0)?;
    scrape.must("mooring_containers_stopped_total", &["containerd"], 2.0)?;
    ensure!(
        scrape.sum("mooring_teardown_step_under_way_seconds", &["network"]) > 0.1,
        "{:?}",
        scrape.0
    );
    let pid = Pid::from_raw(shim_of(hung.id())?.pid);
    kill(pid, Signal::SIGSTOP)?;
    let silent = run(&[]).await?;
    kill(pid, Signal::SIGCONT)?;
    ensure!(silent.status.code() == Some(1), "{silent:?}");
    let scrape = Scrape::of(&String::from_utf8(silent.stdout)?)?;
    scrape.must("mooring_shims", &["false"], 1.0)?;
    scrape.must(STOPS, &[], 1.0)?;
    plugins.mend("ptp", &format!("DEL.{}", hung.id()));
    kill_shim(hung.id())?;
    let completed = || !hung.is_remembered();
    until(Duration::from_mins(1), "its teardown is not completed", completed).await?;
    let scrape = Scrape::once(&[]).await?;
    scrape.must("mooring_teardowns_resumed_total", &[], 1.0)?;
    hung.end().await?;
    forget_totals()
}

/// The file is the node's, which keeps it on purpose.
fn forget_totals() -> Result<()> {
    for file in [TOTALS, "/run/mooring/totals.lock"] {
        std::fs::remove_file(file).context(file)?;
    }
    Ok(())
}

struct Server {
    child: Child,
    address: String,
}

impl Server {
    fn start(arguments: &[&str]) -> Result<Self> {
        let mut child = tool(&["--listen", "127.0.0.1:0"])?
            .args(arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("serve metrics")?;
        let mut said = String::new();
        let stderr = child.stderr.take().context("no standard error")?;
        BufReader::new(stderr).read_line(&mut said)?;
        let address = said.split("http://").nth(1).and_then(|rest| rest.split('/').next());
        let address = address.with_context(|| said.clone())?.to_owned();
        Ok(Self { child, address })
    }

    /// The head and body of an answer.
    fn get(&self, path: &str, accept: &str) -> Result<(String, String)> {
        let mut stream = TcpStream::connect(&self.address)?;
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: x\r\nAccept: {accept}\r\nConnection: close\r\n\r\n"
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no head")?;
        Ok((head.to_owned(), body.to_owned()))
    }

    fn end(mut self) -> Result<()> {
        kill(Pid::from_raw(i32::try_from(self.child.id())?), Signal::SIGTERM)?;
        let status = self.child.wait()?;
        ensure!(status.success(), "{status}");
        Ok(())
    }
}

/// Without totals: what a shim said last is remembered.
async fn a_server_counts_pods_that_are_gone(case: Case) -> Result<()> {
    let _plugins = Plugins::install(&case.node, "served", "")?;
    let server = Server::start(&[])?;
    let scrape = || -> Result<Scrape> {
        let (head, body) =
            server.get("/metrics", "application/openmetrics-text;version=1.0.0,*/*")?;
        ensure!(head.starts_with("HTTP/1.1 200") && head.contains("openmetrics-text"), "{head}");
        Scrape::of(&body)
    };
    for count in [1.0, 2.0] {
        let life = running(&case).await?;
        life.stop().await?;
        scrape()?.must(STOPS, &[], count)?;
        life.end().await?;
        scrape()?.must(STOPS, &[], count)?;
    }
    ensure!(server.get("/other", "*/*")?.0.starts_with("HTTP/1.1 404"), "another path is answered");
    ensure!(!Path::new(TOTALS).exists(), "something was written down");
    server.end()
}

/// Runs promtool, with `input` on its standard input.
fn promtool(case: &Case, arguments: &[&str], input: &str) -> Result<()> {
    let mut child = Command::new(case.node.deps().join("bin/promtool"))
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("run promtool")?;
    child.stdin.take().context("no standard input")?.write_all(input.as_bytes())?;
    let output = child.wait_with_output()?;
    let said = [&output.stdout[..], &output.stderr[..]].concat();
    ensure!(output.status.success(), "promtool {arguments:?}: {}", String::from_utf8_lossy(&said));
    Ok(())
}

/// The text of a scrape, the alerts, and each query of the dashboard.
async fn promtool_understands_all_of_it(case: Case) -> Result<()> {
    let _plugins = Plugins::install(&case.node, "promtool", "")?;
    let life = running(&case).await?;
    let server = Server::start(&["--pods"])?;
    let (head, scrape) = server.get("/metrics", "text/plain")?;
    server.end()?;
    life.stop().await?;
    life.end().await?;
    ensure!(head.contains("text/plain; version=0.0.4"), "{head}");
    promtool(&case, &["check", "metrics"], &scrape)?;
    let check = |name: &str, rules: &str| {
        let file = case.node.folder().join(name);
        std::fs::write(&file, rules)?;
        promtool(&case, &["check", "rules", file.to_str().context("a path that is no text")?], "")
    };
    check("alerts.yaml", include_str!("../../deploy/alerts.yaml"))?;

    let dashboard: Value = serde_json::from_str(include_str!("../../deploy/grafana.json"))?;
    let panels = dashboard["panels"].as_array().context("no panels")?.iter();
    let queries = panels.filter_map(|panel| panel["targets"].as_array()).flatten();
    let rules = queries.enumerate().map(|(number, target)| {
        let query = target["expr"].as_str().unwrap_or_default();
        // What Grafana puts in their place.
        let query = query.replace("$__rate_interval", "5m").replace("$node", ".+");
        json!({ "record": format!("query:{number}"), "expr": query })
    });
    let rules = json!({ "groups": [{ "name": "dashboard", "rules": rules.collect::<Vec<_>>() }] });
    check("dashboard.yaml", &rules.to_string())
}

suite!(Settings::default();
    both: ;
    mooring: a_scrape_tells_what_the_node_does, a_server_counts_pods_that_are_gone,
        promtool_understands_all_of_it);
