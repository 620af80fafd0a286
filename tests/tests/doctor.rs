//! `mooring doctor` on a node with leftovers of every kind, Mooring's and others', beside pods that live.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::net::UnixListener;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mooring_e2e::faults::{lives, nobody_works_for};
use mooring_e2e::life::{Kind, Life};
use mooring_e2e::node::{Configuration, IMAGE, Node, Settings, version};
use mooring_e2e::plugins::Plugins;
use mooring_e2e::strangers::{Foreign, make_netns, sh, write_result};
use mooring_e2e::suite;
use mooring_e2e::suite::{Case, Handler};
use mooring_e2e::systemd;
use mooring_e2e::tool::{abandon, run, text, tool};
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

const POD: &str = "00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff";

/// What it finds: the status, the findings, and the whole report.
fn examine(node: &Node, more: &[&str]) -> Result<(Option<i32>, Vec<Value>, Value)> {
    let config = node.folder().join("config.toml");
    let config = config.to_str().context("a path that is no text")?;
    let arguments = [&["doctor", "-o", "json", "--containerd-config", config], more].concat();
    let output = run(&arguments)?;
    let report: Value = serde_json::from_slice(&output.stdout).with_context(|| text(&output))?;
    let findings = report["findings"].as_array().context("no findings")?.clone();
    Ok((output.status.code(), findings, report))
}

fn is_clean(node: &Node) -> Result<()> {
    let (status, findings, said) = examine(node, &[])?;
    ensure!(status == Some(0) && findings.is_empty(), "{said}");
    Ok(())
}

fn kinds(findings: &[Value]) -> BTreeSet<&str> {
    findings.iter().filter_map(|one| one["kind"].as_str()).collect()
}

/// Runs what it says frees each thing, once.
fn obey(node: &Node, findings: &[Value]) -> Result<()> {
    let mut done = BTreeSet::new();
    let beside = tool()?.parent().context("no folder")?.display().to_string();
    for command in findings.iter().filter_map(|one| one["frees"].as_str()) {
        if done.insert(command) {
            let mut shell = Command::new("sh");
            shell.args(["-c", command]).env("PATH", format!("{beside}:{}", node.path()));
            // One may free what another would have.
            shell.output().with_context(|| command.to_owned())?;
        }
    }
    Ok(())
}

/// containerd forgets what it has not written down elsewhere: the bundles of an id.
fn remove_bundles(node: &Node, id: &str) -> Result<()> {
    for plugin in ["io.containerd.runtime.v2.task", "io.containerd.sandbox.controller.v1.shim"] {
        let all = node.folder().join("state").join(plugin).join("default");
        for bundle in fs::read_dir(all).into_iter().flatten().flatten() {
            if bundle.file_name().to_string_lossy().starts_with(id) {
                let _ = umount2(&bundle.path().join("rootfs"), MntFlags::MNT_DETACH);
                fs::remove_dir_all(bundle.path())?;
            }
        }
    }
    Ok(())
}

async fn everything_that_a_killed_shim_left_is_found_and_nothing_of_others(
    case: Case,
) -> Result<()> {
    let _plugins = Plugins::install(&case.node, "doctor", "")?;
    let foreign = Foreign::begin(&case).await?;
    let mut living = Life::new(&case, Kind::OwnNetwork);
    living.run().await?;
    living.container().await?;
    let mut left = Life::new(&case, Kind::ImageVolume);
    left.run().await?;
    left.container().await?;
    is_clean(&case.node).context("while all live")?;

    case.node.end(Signal::SIGKILL).await?;
    let (_, findings, said) = examine(&case.node, &[])?;
    ensure!(
        findings.is_empty() && said["not_looked_at"].to_string().contains("containerd: "),
        "without containerd: {said}"
    );
    abandon(&left).await?;
    let (status, findings, said) = examine(&case.node, &[])?;
    ensure!(status == Some(1), "{said}");
    let whose = |one: &Value| one["whose"].as_str().is_some_and(|whose| whose.contains(left.id()));
    ensure!(findings.iter().all(whose), "something of others: {said}");
    let wanted = [
        "bundle",
        "cgroup",
        "cni result",
        "container",
        "files",
        "image volume",
        "journal",
        "netns",
        "reservation",
        "shm",
        "socket",
        "veth",
    ];
    ensure!(kinds(&findings) == BTreeSet::from(wanted), "{:?}: {said}", kinds(&findings));
    let ours = findings.iter().filter(|one| one["kind"] != "bundle");
    for one in ours {
        ensure!(one["sure"] == "sure" && one["frees"] == "mooring gc --yes", "{one}");
    }
    let (_, quick, said) = examine(&case.node, &["--quick"])?;
    ensure!(kinds(&quick).contains("netns") && !kinds(&quick).contains("cgroup"), "{said}");

    // containerd comes back and knows of no shim, so that nobody cleans up but whoever is told to.
    remove_bundles(&case.node, left.id())?;
    case.node.start().await?;
    let (_, findings, said) = examine(&case.node, &[])?;
    ensure!(findings.iter().all(whose), "something of others: {said}");
    let kinds_now = kinds(&findings);
    ensure!(kinds_now.contains("lease") && kinds_now.contains("snapshot"), "{said}");
    ensure!(findings.iter().all(|one| one["frees"] == "mooring gc --yes"), "{said}");
    obey(&case.node, &findings)?;
    is_clean(&case.node).context("after gc")?;
    left.end().await?;
    living.stop().await?;
    living.end().await?;
    foreign.end().await?;
    is_clean(&case.node).context("at the end")
}

/// A task that its shim does not serve any more, and what of it is still there.
async fn orphan(case: &Case) -> Result<u32> {
    let (node, id) = (&case.node, "orphan");
    let runtime = Handler::Runc.runtime();
    node.ctr(&["run", "-d", "--null-io", "--runtime", runtime, IMAGE, id, "/bin/sleep", "1000"])
        .await?;
    let pids = node.ctr(&["tasks", "ps", id]).await?;
    let pid: u32 = pids
        .lines()
        .nth(1)
        .and_then(|line| line.split_whitespace().next())
        .context("no pid")?
        .parse()?;
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let shim = status.lines().find_map(|line| line.strip_prefix("PPid:")).context("no parent")?;
    node.end(Signal::SIGKILL).await?;
    kill(Pid::from_raw(shim.trim().parse()?), Signal::SIGKILL)?;
    remove_bundles(node, id)?;
    node.start().await?;
    Ok(pid)
}

/// What others leave, each as it is left: by a plugin, a client or a containerd that was killed, or a lost journal.
async fn plant(node: &Node) -> Result<()> {
    make_netns("cni-1234")?;
    sh("ip link add mooring-e2e0 type bridge 2>/dev/null; \
        ip link add veth01020304 master mooring-e2e0 type veth peer name eth0 netns cni-1234")?;
    fs::write("/run/netns/cni-empty", "")?;
    let list = r#"{"cniVersion":"1.0.0","name":"gone","plugins":[{"type":"ptp","ipam":{"type":"host-local","ranges":[[{"subnet":"10.66.0.0/24"}]]}}]}"#;
    write_result("gone-gone-eth0", "gone", "gone", "/run/netns/cni-no-more", list)?;
    fs::create_dir_all("/var/lib/cni/networks/gone")?;
    fs::write("/var/lib/cni/networks/gone/10.66.0.2", "gone\r\neth0")?;
    sh("mkdir -p /run/mooring/default/gone/shm /run/mooring/default/gone/images/x && \
        mount -t tmpfs shm /run/mooring/default/gone/shm && \
        mount -t tmpfs volume /run/mooring/default/gone/images/x")?;
    let state = node.folder().join("state");
    fs::create_dir_all(state.join("io.containerd.grpc.v1.cri/sandboxes").join(POD))?;
    fs::create_dir_all(state.join("io.containerd.runtime.v2.task/default/.gone/rootfs"))?;
    for hierarchy in hierarchies() {
        fs::create_dir_all(hierarchy.join("default/gone"))?;
    }
    sh("mkdir -p /run/containerd/fifo/77 && mkfifo /run/containerd/fifo/77/gone-stdout")?;
    drop(UnixListener::bind("/run/containerd/s/dead")?);
    node.ctr(&["-n", "k8s.io", "leases", "create", "--id", POD, "--expires", "0"]).await?;
    node.ctr(&["snapshots", "prepare", "mooring-gone-0123"]).await?;
    Ok(())
}

fn hierarchies() -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mounts = table.lines().filter(|line| line.contains(" - cgroup"));
    mounts.filter_map(|line| Some(line.split(' ').nth(4)?.into())).collect()
}

/// A process that calls itself a holder, and whose parent is no shim.
fn holder() -> Result<Child> {
    let mut command = Command::new("cat");
    command.arg0("mooring-pod").stdin(Stdio::piped()).spawn().context("run a holder")
}

async fn what_others_left_is_found_and_freed_by_the_commands_that_are_told(
    case: Case,
) -> Result<()> {
    let node = &case.node;
    let foreign = Foreign::begin(&case).await?;
    let pid = orphan(&case).await?;
    plant(node).await?;
    let mut holder = holder()?;
    // A shim that containerd has forgotten.
    let mut forgotten = Life::new(&case, Kind::OwnNetwork);
    forgotten.run().await?;
    forgotten.client().forget().await?;

    let (status, findings, said) = examine(node, &[])?;
    ensure!(status == Some(1), "{said}");
    let wanted = [
        "bundle",
        "cgroup",
        "cni result",
        "container",
        "fifo",
        "files",
        "holder",
        "image volume",
        "lease",
        "netns",
        "reservation",
        "shim",
        "shm",
        "snapshot",
        "socket",
        "veth",
    ];
    ensure!(kinds(&findings) == BTreeSet::from(wanted), "{:?}: {said}", kinds(&findings));
    let pod = foreign.pod.id();
    for (others, word) in
        [("the peer's", pod), ("the stranger's", "stranger"), ("a port", "vethab01cd23")]
    {
        ensure!(!said["findings"].to_string().contains(word), "{others} is there: {said}");
    }
    let runs_on = findings.iter().find(|one| one["kind"] == "container").context("no container")?;
    ensure!(runs_on["sure"] == "sure" && runs_on["whose"] == "default/orphan", "{runs_on}");
    ensure!(findings.iter().all(|one| one["frees"].is_string()), "{said}");
    ensure!(lives(pid) && Path::new("/run/netns/cni-1234").exists(), "it only looks");

    obey(node, &findings)?;
    nobody_works_for(forgotten.id(), Duration::from_secs(20)).await?;
    let (_, again, said) = examine(node, &[])?;
    obey(node, &again)?;
    is_clean(node).with_context(|| format!("before: {said}"))?;
    ensure!(!lives(pid), "the container runs on");
    ensure!(holder.wait()?.signal() == Some(9), "the holder was not killed");
    node.ctr(&["containers", "rm", "orphan"]).await?;
    forgotten.end().await?;
    foreign.end().await?;
    is_clean(node)
}

/// What it says of a part of the set-up: levels and words.
fn setup(report: &Value, part: &str) -> Result<Vec<(String, String)>> {
    let all = report["setup"].as_array().context("no set-up")?;
    let word = |one: &Value, key: &str| one[key].as_str().unwrap_or_default().to_owned();
    let of_part = all.iter().filter(|one| one["part"] == part);
    Ok(of_part.map(|one| (word(one, "level"), word(one, "what"))).collect())
}

async fn a_node_that_is_set_up_wrongly_is_told_what_to_change(case: Case) -> Result<()> {
    let node = &case.node;
    let (status, _, said) = examine(node, &[])?;
    ensure!(status == Some(0), "{said}");
    for part in ["containerd", "handler", "oci runtime", "cni", "kernel"] {
        let all = setup(&said, part)?;
        ensure!(all.iter().any(|(level, _)| level == "good"), "{part}: {said}");
    }
    let (major, minor) = version()?;
    let own = format!("{major}.{minor}.");
    let words = setup(&said, "containerd")?;
    ensure!(words.iter().any(|(level, what)| level == "good" && what.contains(&own)), "{said}");
    let limit = |(level, what): &(String, String)| level == "note" && what.starts_with("limit of");
    ensure!(words.iter().any(limit), "{said}");

    let _changed = Configuration::change(|text| {
        let lines = text.lines().filter(|line| !line.starts_with("BinaryName"));
        let rest: Vec<&str> = lines.collect();
        format!("BinaryName = '/no/such/runc'\n{}\n", rest.join("\n"))
    })?;
    let driver = if systemd::is_first() { "cgroupfs" } else { "systemd" };
    fs::create_dir_all("/var/lib/kubelet")?;
    let kubelets = format!("kind: KubeletConfiguration\ncgroupDriver: {driver}\n");
    fs::write("/var/lib/kubelet/config.yaml", kubelets)?;
    let examined = examine(node, &["--quick"]);
    fs::remove_file("/var/lib/kubelet/config.yaml")?;
    let (status, findings, said) = examined?;
    ensure!(status == Some(1) && findings.is_empty(), "{said}");
    for (part, word) in [("oci runtime", "/no/such/runc"), ("cgroups", driver)] {
        let all = setup(&said, part)?;
        let found = all.iter().any(|(level, what)| level == "problem" && what.contains(word));
        ensure!(found, "{part}: {said}");
    }
    let config = node.folder().join("broken.toml");
    fs::write(&config, "version = 3\nstate =\n")?;
    let path = config.to_str().context("a path that is no text")?;
    let broken = run(&["doctor", "--quick", "--containerd-config", path])?;
    fs::remove_file(&config)?;
    ensure!(broken.status.code() == Some(2), "{}", text(&broken));
    ensure!(text(&broken).contains("broken.toml, line 2"), "{}", text(&broken));
    Ok(())
}

/// What `gc` says as data, and its status.
fn gc(node: &Node, more: &[&str]) -> Result<(Option<i32>, Value)> {
    let config = node.folder().join("config.toml");
    let config = config.to_str().context("a path that is no text")?;
    let output = run(&[&["gc", "-o", "json", "--containerd-config", config], more].concat())?;
    let report = serde_json::from_slice(&output.stdout).with_context(|| text(&output))?;
    Ok((output.status.code(), report))
}

async fn the_plugins_are_told_what_is_valid_unless_another_runtime_shares_the_network(
    case: Case,
) -> Result<()> {
    let node = &case.node;
    let plugins = Plugins::install(node, "gc-cni", "")?;
    let list = fs::read_to_string(plugins.configuration())?;
    let (status, report) = gc(node, &["--cni"])?;
    let network = &report["networks"][0];
    ensure!(status == Some(0) && network["outcome"] == "not_supported", "{report}");
    // From 1.1 on there is GC.
    fs::write(plugins.configuration(), list.replace("1.0.0", "1.1.0"))?;
    let mut living = Life::new(&case, Kind::OwnNetwork);
    living.run().await?;
    // The network's last plugin writes down what it is told; containernetworking's know the call and do nothing.
    let heard = node.folder().join("gc.json");
    let (program, real) = (plugins.program("tuning"), node.deps().join("cni/bin/tuning"));
    let (to, real) = (heard.display(), real.display());
    let script = format!("#!/bin/sh\n[ $CNI_COMMAND = GC ] && exec cat >'{to}'\nexec '{real}'\n");
    fs::write(program, script)?;
    let told = || plugins.calls("").into_iter().filter(|call| call.command == "GC").count();
    let stray = node.folder().join("cni/ipam/faults/10.90.0.77");
    fs::write(&stray, "gone\r\neth0")?;
    let (status, report) = gc(node, &["--cni"])?;
    let network = &report["networks"][0];
    ensure!(status == Some(0) && network["outcome"] == "to_be_told", "{report}");
    ensure!(network["valid"] == 1 && told() == 0 && !heard.exists(), "{report}");
    let (status, report) = gc(node, &["--cni", "--yes"])?;
    ensure!(status == Some(0) && report["networks"][0]["outcome"] == "told", "{report}");
    let config: Value = serde_json::from_slice(&fs::read(&heard)?)?;
    let valid = serde_json::json!([{ "containerID": living.id(), "ifname": "eth0" }]);
    ensure!(told() == 1 && config["cni.dev/valid-attachments"] == valid, "{config}");

    let foreign = Foreign::begin(&case).await?;
    let simple = r#"{"cniVersion":"1.0.0","name":"faults","plugins":[{"type":"tuning"}]}"#;
    write_result("faults-stranger-eth0", "faults", "stranger", "/run/netns/stranger", simple)?;
    let (status, report) = gc(node, &["--cni", "--yes"])?;
    let network = &report["networks"][0];
    ensure!(status == Some(1) && network["outcome"] == "refused", "{report}");
    ensure!(network["why"].as_str().is_some_and(|why| why.contains("stranger")), "{report}");
    ensure!(told() == 1, "{report}");

    // Only what is named, and only where nobody has it.
    write_result("faults-dead-eth0", "faults", "dead", "/run/netns/none", simple)?;
    let result = |name: &str| Path::new("/var/lib/cni/results").join(format!("faults-{name}-eth0"));
    let (_, report) = gc(node, &["--attachment", "dead"])?;
    ensure!(report["attachments"][0]["outcome"] == "to_be_freed", "{report}");
    ensure!(result("dead").exists(), "it was only asked");
    let both =
        ["--yes", "--attachment", "dead", "--attachment", "stranger", "--attachment", living.id()];
    let (status, report) = gc(node, &both)?;
    ensure!(status == Some(1), "two cannot be freed: {report}");
    let outcomes: Vec<&Value> = report["attachments"]
        .as_array()
        .context("none")?
        .iter()
        .map(|one| &one["outcome"])
        .collect();
    ensure!(outcomes == ["freed", "in_use", "in_use", "in_use"], "{report}");
    ensure!(!result("dead").exists() && result("stranger").exists(), "{report}");
    fs::remove_file(result("stranger"))?;
    fs::remove_file(&stray)?;
    fs::remove_file(&heard)?;
    foreign.end().await?;
    living.stop().await?;
    living.end().await
}

suite!(Settings::default();
    both: ;
    mooring: everything_that_a_killed_shim_left_is_found_and_nothing_of_others,
        what_others_left_is_found_and_freed_by_the_commands_that_are_told,
        a_node_that_is_set_up_wrongly_is_told_what_to_change,
        the_plugins_are_told_what_is_valid_unless_another_runtime_shares_the_network);
