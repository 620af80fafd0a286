//! Traces: what a receiver of OpenTelemetry gets of a pod's life, and that nothing depends on there being one.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mooring_e2e::faults::{kill_shim, logged_steps, nobody_works_for};
use mooring_e2e::life::{Kind, Life};
use mooring_e2e::node::Settings;
use mooring_e2e::otlp::{Mood, Receiver, Span, secret};
use mooring_e2e::suite;
use mooring_e2e::suite::Case;

const SANDBOX: &str = "containerd.runtime.sandbox.v1.Sandbox";

fn called<'a>(spans: &'a [Span], name: &str, key: &str, id: &str) -> Result<&'a Span> {
    let is = |span: &&Span| {
        span.ours && span.name == name && span.attributes.get(key).is_some_and(|one| one == id)
    };
    spans.iter().find(is).with_context(|| format!("no span {name} of {id}"))
}

/// The parts of a span, in the order in which they began.
fn parts<'a>(spans: &'a [Span], of: &Span) -> Vec<&'a Span> {
    let mut parts: Vec<_> =
        spans.iter().filter(|one| one.trace == of.trace && one.parent == of.id).collect();
    parts.sort_by_key(|one| one.begun);
    parts
}

fn part<'a>(spans: &'a [Span], of: &Span, name: &str) -> Result<&'a Span> {
    let part = parts(spans, of).into_iter().find(|one| one.name == name);
    part.with_context(|| format!("{} has no part {name}", of.name))
}

fn names<'a>(spans: &[&'a Span]) -> Vec<&'a str> {
    spans.iter().map(|one| one.name.as_str()).collect()
}

/// The values that the parts of this name have.
fn values<'a>(spans: &'a [Span], of: &Span, name: &str, key: &str) -> Vec<&'a str> {
    let parts = parts(spans, of).into_iter().filter(|one| one.name == name);
    parts.filter_map(|one| one.attributes.get(key)).map(String::as_str).collect()
}

/// Whether all is there that a shutdown sandbox has to leave, containerd's side too.
fn is_whole(spans: &[Span], id: &str) -> bool {
    let Ok(last) = called(spans, &format!("{SANDBOX}/ShutdownSandbox"), "sandbox.id", id) else {
        return false;
    };
    let above = |one: &&Span| one.ours && one.name.starts_with(SANDBOX);
    let mut calls = spans.iter().filter(above).chain([last]);
    calls.all(|call| spans.iter().any(|one| !one.ours && one.id == call.parent))
}

async fn whole_life(case: &Case, kind: Kind) -> Result<(Life, Vec<Span>)> {
    let receiver = Receiver::start(Mood::Takes).await?;
    let mut life = Life::new(case, kind);
    life.run().await?;
    life.container().await?;
    life.stop().await?;
    life.end().await?;
    let id = life.id().to_owned();
    let spans = receiver.until("whole life", |spans| is_whole(spans, &id)).await?;
    Ok((life, spans))
}

/// Every call of containerd is a span below its own, and what is done for it below that.
async fn a_pods_life_is_a_tree_below_containerds_spans(case: Case) -> Result<()> {
    let (life, spans) = whole_life(&case, Kind::OwnNetwork).await?;
    let id = life.id();
    let call = |method: &str| called(&spans, &format!("{SANDBOX}/{method}"), "sandbox.id", id);
    for method in ["CreateSandbox", "StartSandbox", "StopSandbox", "ShutdownSandbox"] {
        let span = call(method)?;
        let above = spans.iter().find(|one| !one.ours && one.id == span.parent);
        let above = above.with_context(|| format!("{method} is below no span of containerd"))?;
        ensure!(above.trace == span.trace, "{method} is in another trace");
        ensure!(above.begun <= span.begun && span.begun <= span.ended, "{above:?} {span:?}");
        ensure!(
            span.error.is_none() && span.attributes["rpc.ttrpc.status_code"] == "0",
            "{span:?}"
        );
        for (key, value) in [
            ("process.executable.name", "containerd-shim-mooring-v1"),
            ("containerd.namespace", life.namespace()),
            ("test", "traces"),
        ] {
            ensure!(span.resource.get(key).is_some_and(|one| one == value), "{key}: {span:?}");
        }
    }
    let adds = values(&spans, call("StartSandbox")?, "CNI ADD", "cni.plugin");
    ensure!(adds == ["bridge", "portmap"], "{adds:?}");

    // The stop, step by step, and what the reference tells of it.
    let teardown = part(&spans, call("StopSandbox")?, "teardown")?;
    ensure!(teardown.attributes["sandbox.id"] == id, "{teardown:?}");
    let steps = parts(&spans, teardown);
    let logged: Vec<_> = logged_steps(&case.node, id).into_iter().collect();
    let traced: Vec<_> = steps
        .iter()
        .map(|one| (one.name.clone(), one.attributes["mooring.outcome"].clone()))
        .collect();
    ensure!(traced == logged, "traced {traced:?}, logged {logged:?}");
    ensure!(names(&steps).starts_with(&["door", "containers", "keeper", "network", "netns"]));
    let told: Vec<_> = teardown.events.iter().map(|(name, _)| name.as_str()).collect();
    let reference = [
        "stopping containers in the sandbox",
        "sandbox container stopped",
        "start pod network teardown",
        "finished pod network teardown",
    ];
    ensure!(told == reference, "{told:?}");
    for (index, key) in [(1, "sandbox.stop.duration"), (3, "network.teardown.duration")] {
        let time = teardown.events[index].1.get(key);
        ensure!(time.is_some_and(|time| time.ends_with('s')), "{key}: {time:?}");
    }
    let dels = values(&spans, part(&spans, teardown, "network")?, "CNI DEL", "cni.plugin");
    ensure!(dels == ["portmap", "bridge"], "{dels:?}");

    // What containerd is asked for goes on in the same trace, back to the shim.
    let task = &life.task().context("no task")?.id;
    let containers = part(&spans, teardown, "containers")?;
    let stop = part(&spans, containers, "stop container")?;
    ensure!(stop.attributes["container.id"] == *task, "{stop:?}");
    let kill = called(&spans, "containerd.task.v3.Task/Kill", "container.id", task)?;
    ensure!(kill.trace == teardown.trace, "the kill is in another trace");
    let asked = parts(&spans, stop);
    ensure!(asked.iter().any(|one| !one.ours), "containerd was asked nothing: {asked:?}");
    let create = called(&spans, "containerd.task.v3.Task/Create", "container.id", task)?;
    let verbs = values(&spans, create, "OCI runtime", "mooring.runtime.verb");
    ensure!(verbs == ["create"], "{verbs:?}");

    // One line of log for the teardown, and no secret in any.
    let log = case.node.log();
    let start = format!("teardown sandbox={id} outcome=done ms=");
    let lines: Vec<_> = log.lines().filter(|line| line.contains(&start)).collect();
    let [summary] = lines[..] else { anyhow::bail!("{lines:?}") };
    let count = format!(" steps={} slowest=", logged.len());
    ensure!(summary.contains("level=info") && summary.contains(&count), "{summary}");
    ensure!(!log.contains(secret()), "a header's value is in the log");
    let unknown = "traces: not supported, and without effect: OTEL_BSP_SCHEDULE_DELAY";
    ensure!(log.contains(unknown), "an unknown variable is not named");
    Ok(())
}

/// What CRI's client asked for, what containerd makes of it and what the shim does are one trace.
async fn a_stop_over_cri_is_one_trace_down_to_its_steps(case: Case) -> Result<()> {
    let (life, spans) = whole_life(&case, Kind::Cri).await?;
    let name = format!("{SANDBOX}/StopSandbox");
    let stop = called(&spans, &name, "sandbox.id", life.id())?;
    let root = spans.iter().find(|one| one.trace == stop.trace && one.parent.is_empty());
    let root = root.context("the trace has no root")?;
    ensure!(!root.ours && root.name.contains("StopPodSandbox"), "{root:?}");
    let teardown = part(&spans, stop, "teardown")?;
    let told: Vec<_> = teardown.events.iter().map(|(name, _)| name.as_str()).collect();
    // The network is CRI's.
    ensure!(
        told == ["stopping containers in the sandbox", "sandbox container stopped"],
        "{told:?}"
    );
    Ok(())
}

async fn what_finishes_for_a_killed_shim_has_a_trace_of_its_own(case: Case) -> Result<()> {
    let receiver = Receiver::start(Mood::Takes).await?;
    let mut life = Life::new(&case, Kind::OwnNetwork);
    life.run().await?;
    life.container().await?;
    kill_shim(life.id())?;
    life.end().await?;
    let id = life.id();
    let is_there = |spans: &[Span]| called(spans, "delete", "sandbox.id", id).is_ok();
    let spans = receiver.until("span of delete", is_there).await?;
    let delete = called(&spans, "delete", "sandbox.id", id)?;
    ensure!(delete.parent.is_empty() && delete.error.is_none(), "{delete:?}");
    let teardown = part(&spans, delete, "teardown")?;
    let steps = names(&parts(&spans, teardown));
    ensure!(steps.starts_with(&["containers", "keeper", "network", "netns"]), "{steps:?}");
    let dels = values(&spans, part(&spans, teardown, "network")?, "CNI DEL", "cni.plugin");
    ensure!(dels == ["portmap", "bridge"], "{dels:?}");
    Ok(())
}

/// Pods come and go as ever, and each shim complains at most once.
async fn undisturbed(case: &Case) -> Result<()> {
    let before = case.node.log().len();
    for kind in [Kind::OwnNetwork, Kind::Cri] {
        let mut life = Life::new(case, kind);
        life.run().await?;
        life.container().await?;
        life.stop().await?;
        life.end().await?;
        nobody_works_for(life.id(), Duration::from_secs(10)).await?;
        let log = case.node.log();
        let of_pod = |line: &&str| line.contains("are lost") && line.contains(life.id());
        let complaints = log.get(before..).unwrap_or_default().lines().filter(of_pod).count();
        ensure!(complaints <= 1, "{complaints} complaints");
    }
    Ok(())
}

async fn a_receiver_that_is_away_disturbs_no_pod(case: Case) -> Result<()> {
    undisturbed(&case).await
}

async fn a_receiver_that_hangs_disturbs_no_pod(case: Case) -> Result<()> {
    let _receiver = Receiver::start(Mood::Hangs).await?;
    undisturbed(&case).await
}

async fn a_receiver_that_answers_garbage_disturbs_no_pod(case: Case) -> Result<()> {
    let _receiver = Receiver::start(Mood::Garbage).await?;
    undisturbed(&case).await
}

suite!(Settings { traces: true, ..Settings::default() };
    both: ;
    mooring: a_pods_life_is_a_tree_below_containerds_spans,
        a_stop_over_cri_is_one_trace_down_to_its_steps,
        what_finishes_for_a_killed_shim_has_a_trace_of_its_own,
        a_receiver_that_is_away_disturbs_no_pod,
        a_receiver_that_hangs_disturbs_no_pod,
        a_receiver_that_answers_garbage_disturbs_no_pod);
