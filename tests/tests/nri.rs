//! NRI plugins and the sandboxes of clients that are not CRI.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use mooring_e2e::audit::all_processes;
use mooring_e2e::cri::{ContainerSpec, PodSpec};
use mooring_e2e::faults::{Failpoints, steps_in, until};
use mooring_e2e::life::{Kind, Life};
use mooring_e2e::node::Settings;
use mooring_e2e::nri::NriPlugins;
use mooring_e2e::plugins::Plugins;
use mooring_e2e::services::{Client, Task, container_spec, sandbox_spec};
use mooring_e2e::suite;
use mooring_e2e::suite::Case;
use serde_json::{Value, json};

/// Plugins that have all the time that they need on a busy machine.
fn install(case: &Case, plugins: &[(&str, Value)]) -> Result<NriPlugins> {
    install_with(case, plugins, "30s")
}

fn install_with(case: &Case, plugins: &[(&str, Value)], timeout: &str) -> Result<NriPlugins> {
    let options = format!("NriTimeout = '{timeout}'");
    NriPlugins::install(&case.node, &case.unique("nri"), plugins, &options)
}

/// A sandbox with an annotation, on the node's network so that nothing of it needs CNI.
async fn created(case: &Case) -> Result<Client> {
    let client = Client::new(case);
    let mut spec = sandbox_spec("inside", true);
    spec["annotations"] = json!({"of": "the pod"});
    client.record(&spec).await.context("record")?;
    client.create(&spec, None, "").await.context("create")?;
    Ok(client)
}

async fn running(case: &Case) -> Result<(Client, u32)> {
    let client = created(case).await?;
    let pid = client.start().await.context("start")?.pid;
    Ok((client, pid))
}

async fn container(case: &Case, client: &Client, pid: u32) -> Result<(Task, String)> {
    let id = case.unique("container");
    let spec = container_spec(&id, &["/bin/sleep", "1000"], Some(pid));
    Ok((client.container(&id, &spec).await?, id))
}

async fn end(client: &Client) -> Result<()> {
    client.stop().await.context("stop")?;
    client.shutdown().await.context("shutdown")?;
    client.forget().await.context("forget")?;
    Ok(())
}

async fn plugins_hear_of_a_pods_life_in_order(case: Case) -> Result<()> {
    let plugins = install(&case, &[("20-later", json!({})), ("10-first", json!({}))])?;
    let (client, pid) = running(&case).await?;
    let (task, id) = container(&case, &client, pid).await?;
    let init = task.create().await.context("create")?;
    task.start().await.context("start")?;
    client.stop().await.context("stop")?;
    assert_eq!(task.wait().await?, 137);
    task.delete().await?;
    task.forget().await?;
    end(&client).await?;
    let words = plugins.words();
    let of = |index: &str| -> Vec<&str> {
        words.iter().filter_map(|one| one.strip_prefix(index)).map(str::trim_start).collect()
    };
    let about = |call: &str| format!("{call} {id}");
    let wanted = [
        "Configure".to_owned(),
        "Synchronize".to_owned(),
        "RunPodSandbox".to_owned(),
        about("CreateContainer"),
        about("ValidateContainerAdjustment"),
        about("PostCreateContainer"),
        about("StartContainer"),
        about("PostStartContainer"),
        about("StopContainer"),
        "StopPodSandbox".to_owned(),
        about("RemoveContainer"),
        "RemovePodSandbox".to_owned(),
    ];
    assert_eq!(of("10"), wanted);
    assert_eq!(of("20"), wanted);
    for call in ["RunPodSandbox", "StopPodSandbox"] {
        let at = |index: &str| words.iter().position(|one| *one == format!("{index} {call}"));
        assert!(at("10") < at("20"), "{words:?}");
    }
    let told = plugins.told();
    let find = |call: &str| told.iter().find(|one| one.call == call).context(call.to_owned());
    let pod = &find("RunPodSandbox")?.request["pod"];
    assert_eq!(pod["id"], json!(client.id));
    assert_eq!(pod["annotations"]["of"], "the pod");
    assert_eq!(pod["pid"], json!(pid));
    let shown = &find("CreateContainer")?.request["container"];
    assert_eq!(shown["args"], json!(["/bin/sleep", "1000"]));
    assert_eq!(find("PostStartContainer")?.request["container"]["pid"], json!(init));
    assert_eq!(find("StopContainer")?.request["container"]["exit_code"], json!(137));
    // In the order of the reference: what keeps the pod ends before the plugins hear of it.
    let steps: Vec<_> =
        steps_in(&case.node.log(), &client.id).into_iter().map(|logged| logged.step).collect();
    let at = |step: &str| steps.iter().position(|one| one == step);
    assert!(at("keeper").is_some() && at("keeper") < at("nri"), "{steps:?}");
    assert!(at("nri") < at("files"), "{steps:?}");
    Ok(())
}

async fn what_plugins_ask_for_is_in_the_container(case: Case) -> Result<()> {
    let shared = case.node.folder().join("nri-shared");
    fs::create_dir_all(&shared)?;
    fs::write(shared.join("file"), "")?;
    let hook = shared.join("hook");
    let script = format!("#!/bin/sh\ncat >/dev/null; : > {}/hooked\n", shared.display());
    fs::write(&hook, script)?;
    fs::set_permissions(&hook, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let first = json!({"answers": {"CreateContainer": {"adjust": {
        "env": [{"key": "ADDED", "value": "by a plugin"}],
        "annotations": {"added": "too"},
        "mounts": [{"destination": "/shared", "type": "bind", "source": shared, "options": ["rbind", "ro"]}],
        "hooks": {"create_runtime": [{"path": hook, "args": ["hook"]}]},
    }}}});
    let second = json!({"answers": {"CreateContainer": {"adjust": {
        "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 77, "soft": 77}],
        "linux": {
            "devices": [{"path": "/dev/added", "type": "c", "major": 1, "minor": 3, "file_mode": {"value": 438}}],
            "resources": {"pids": {"limit": 31}},
            "oom_score_adj": {"value": 321},
        },
    }}}});
    let plugins = install(&case, &[("10-first", first), ("20-second", second)])?;
    let (client, pid) = running(&case).await?;
    let id = case.unique("container");
    let own = "[ \"$ADDED\" = 'by a plugin' ] || exit 2; exec sleep 1000";
    let spec = container_spec(&id, &["/bin/sh", "-c", own], Some(pid));
    let task = client.container(&id, &spec).await?;
    let init = task.create().await.context("create")?;
    task.start().await.context("start")?;
    let script = "[ -e /shared/file ] || exit 3; (: > /shared/no) 2>/dev/null && exit 4; [ -c /dev/added ] || exit 5; : > /dev/added || exit 6; exit 9";
    assert_eq!(task.exec("look", &["/bin/sh", "-c", script]).await?, 9);
    assert!(shared.join("hooked").exists(), "the hook did not run");
    let limits = fs::read_to_string(format!("/proc/{init}/limits"))?;
    let files = limits.lines().find(|line| line.starts_with("Max open files")).unwrap_or_default();
    assert!(files.contains("77"), "{files}");
    assert_eq!(fs::read_to_string(format!("/proc/{init}/oom_score_adj"))?.trim(), "321");
    let groups = fs::read_to_string(format!("/proc/{init}/cgroup"))?;
    let limit = ["pids", ""].iter().find_map(|controller| {
        let line = groups.lines().find(|line| line.split(':').nth(1) == Some(controller))?;
        let path = line.rsplit(':').next()?;
        fs::read_to_string(format!("/sys/fs/cgroup/{controller}{path}/pids.max")).ok()
    });
    assert_eq!(limit.as_deref().map(str::trim), Some("31"));
    // The second plugin was asked about what the first had made of it.
    let told = plugins.told();
    let second = told.iter().find(|one| one.plugin == "20-second" && one.call == "CreateContainer");
    let second = &second.context("not asked")?.request["container"];
    assert_eq!(second["annotations"]["added"], "too");
    client.stop().await?;
    task.delete().await?;
    task.forget().await?;
    end(&client).await?;
    Ok(fs::remove_dir_all(shared)?)
}

/// What the creation of a container says, where the first plugin does this.
async fn creation_with(case: &Case, script: Value, timeout: &str) -> Result<Option<String>> {
    let plugins = [("10-asks", script), ("20-later", json!({}))];
    let _plugins = install_with(case, &plugins, timeout)?;
    let (client, pid) = running(case).await?;
    let (task, _) = container(case, &client, pid).await?;
    let said = task.create().await.err().map(|status| status.message().to_owned());
    if said.is_none() {
        task.start().await.context("start")?;
        client.stop().await?;
        task.delete().await?;
    }
    task.forget().await?;
    end(&client).await?;
    Ok(said)
}

async fn what_mooring_does_not_do_is_refused_by_name(case: Case) -> Result<()> {
    for (answer, wanted) in [
        (
            json!({"adjust": {"linux": {"seccomp_policy": ""}}}),
            "it asks for linux.seccomp_policy, which Mooring does not adjust",
        ),
        (
            json!({"adjust": {"cdi_devices": [""]}}),
            "it asks for CDI_devices, which Mooring does not adjust",
        ),
        (
            json!({"update": [{"container_id": "other"}]}),
            "it asks for an update of container \"other\", which Mooring does not do",
        ),
    ] {
        let said =
            creation_with(&case, json!({"answers": {"CreateContainer": answer}}), "30s").await?;
        let said = said.context("the container was created")?;
        assert!(
            said.contains(&format!("NRI plugin \"10-asks\": CreateContainer: {wanted}")),
            "{said}"
        );
    }
    Ok(())
}

async fn a_plugin_may_refuse_a_pod_and_a_container(case: Case) -> Result<()> {
    let script = json!({"fails": {"CreateContainer": "not on this node"}});
    let said = creation_with(&case, script, "30s").await?.unwrap_or_default();
    assert!(said.contains("NRI plugin \"10-asks\": CreateContainer: not on this node"), "{said}");
    let _plugins =
        install(&case, &[("10-asks", json!({"fails": {"RunPodSandbox": "no more pods"}}))])?;
    let client = created(&case).await?;
    let said = client.start().await.err().map(|status| status.message().to_owned());
    let said = said.context("the pod was started")?;
    assert!(said.contains("NRI plugin \"10-asks\": RunPodSandbox: no more pods"), "{said}");
    // containerd has taken it down itself, where it takes a failed start for an end.
    let _ = client.shutdown().await;
    client.forget().await.context("forget")
}

async fn a_plugin_that_hangs_is_cut_off_and_stops_nothing(case: Case) -> Result<()> {
    for hangs in ["Synchronize", "CreateContainer", "StopContainer", "StopPodSandbox"] {
        // It does not even end with its connection.
        let script = json!({"hangs": hangs, "stubborn": true});
        let said = creation_with(&case, script, "700ms").await?;
        assert_eq!(said, None, "{hangs}");
        let log = case.node.log();
        let wanted = format!("{hangs}: it did not answer within 0.7 s");
        assert!(log.contains(&wanted), "the log does not say {wanted:?}");
    }
    // One that never registers.
    let mute = [("10-mute", json!({"silent": true}))];
    let _plugins = install_with(&case, &mute, "700ms")?;
    let (client, _) = running(&case).await?;
    assert!(case.node.log().contains("register: it did not answer within 1.8 s"));
    end(&client).await
}

async fn a_stop_waits_for_a_synchronization_and_then_nothing_more_is_told(
    case: Case,
) -> Result<()> {
    let script = json!({"hangs": "Synchronize"});
    let plugins = install_with(&case, &[("10-hangs", script), ("20-later", json!({}))], "2s")?;
    let client = created(&case).await?;
    let starting = client.with_id(&client.id);
    let start = tokio::spawn(async move { starting.start().await.map(drop) });
    let is_told = || plugins.words().iter().any(|one| one == "10 Synchronize");
    until(Duration::from_secs(10), "nobody was synchronized", is_told).await?;
    client.stop().await.context("stop")?;
    let started = start.await?;
    let words = plugins.words();
    let told_of_the_pod = words.iter().any(|one| one.contains("RunPodSandbox"));
    // The start had not got further, so that nobody has to hear of its end.
    assert!(started.is_err() && !told_of_the_pod, "{started:?}, {words:?}");
    assert!(!words.iter().any(|one| one.contains("StopPodSandbox")), "{words:?}");
    let _ = client.shutdown().await;
    client.forget().await.context("forget")
}

async fn a_killed_shim_leaves_nothing_of_its_plugins(case: Case) -> Result<()> {
    let _network = Plugins::install(&case.node, "nri", "")?;
    let failpoints = Failpoints::of(&case.node);
    for point in ["acquire:nri:intended", "acquire:nri:held", "stop:nri:begin"] {
        let script = json!({"stubborn": true});
        let plugins = install(&case, &[("10-stays", script)])?;
        let mut life = Life::new(&case, Kind::OwnNetwork);
        let ends = point.starts_with("stop:");
        if ends {
            life.run().await?;
            life.container().await?;
        }
        failpoints.arm(point, "kill")?;
        let _ = if ends { life.stop().await } else { life.run().await };
        if !failpoints.was_hit() {
            bail!("{point} is not reached");
        }
        life.end().await.with_context(|| format!("killed at {point}"))?;
        // Whoever finished has told another process of the plugin of the pod's end.
        let words = plugins.words();
        let last: Vec<&str> = words.iter().rev().take(4).rev().map(String::as_str).collect();
        let wanted = ["10 Configure", "10 Synchronize", "10 StopPodSandbox", "10 RemovePodSandbox"];
        assert_eq!(last, wanted, "killed at {point}");
        let left = all_processes().into_iter().find(|one| one.command.contains("10-stays"));
        assert!(left.is_none(), "{left:?} after a kill at {point}");
    }
    Ok(())
}

async fn plugins_that_listen_are_connected_and_lost(case: Case) -> Result<()> {
    let plugins = [("10-listens", json!({"socket": true})), ("20-later", json!({}))];
    let mut plugins = install(&case, &plugins)?;
    let (one, pid) = running(&case).await?;
    let (task, id) = container(&case, &one, pid).await?;
    task.create().await.context("create")?;
    // The same process serves the next pod too.
    let (other, _) = running(&case).await?;
    end(&other).await?;
    let count = |words: &[String], what: &str| words.iter().filter(|one| *one == what).count();
    let words = plugins.words();
    for index in ["10", "20"] {
        assert_eq!(count(&words, &format!("{index} RunPodSandbox")), 2, "{words:?}");
        assert_eq!(count(&words, &format!("{index} CreateContainer {id}")), 1, "{words:?}");
        assert_eq!(count(&words, &format!("{index} RemovePodSandbox")), 1, "{words:?}");
    }
    // It ends while a pod lives: the pod and the other plugin go on.
    plugins.end_listening();
    task.start().await.context("start")?;
    one.stop().await.context("stop")?;
    task.wait().await?;
    task.delete().await?;
    task.forget().await?;
    end(&one).await?;
    let words = plugins.words();
    assert_eq!(count(&words, "20 RemovePodSandbox"), 2, "{words:?}");
    assert_eq!(count(&words, "10 RemovePodSandbox"), 1, "{words:?}");
    // Nobody listens there any more: the next pod runs without it, and the log says so.
    let before = case.node.log().len();
    let (next, _) = running(&case).await?;
    end(&next).await?;
    let log = case.node.log();
    let said = log.get(before..).unwrap_or_default();
    assert!(said.contains("10-listens.sock"), "{said}");
    Ok(())
}

async fn pods_of_cri_are_not_announced_by_the_shim(case: Case) -> Result<()> {
    let plugins = install(&case, &[("10-listens", json!({}))])?;
    let pod = PodSpec::new(&case).run().await?;
    pod.start(&ContainerSpec::idle("one")).await?;
    pod.end().await?;
    assert_eq!(plugins.words(), Vec::<String>::new());
    let running = all_processes().into_iter().any(|one| one.command.contains("10-listens"));
    assert!(!running, "it was started for nothing");
    Ok(())
}

suite!(Settings::default();
    both: ;
    mooring:
        plugins_hear_of_a_pods_life_in_order,
        what_plugins_ask_for_is_in_the_container,
        what_mooring_does_not_do_is_refused_by_name,
        a_plugin_may_refuse_a_pod_and_a_container,
        a_plugin_that_hangs_is_cut_off_and_stops_nothing,
        a_stop_waits_for_a_synchronization_and_then_nothing_more_is_told,
        a_killed_shim_leaves_nothing_of_its_plugins,
        pods_of_cri_are_not_announced_by_the_shim,
        plugins_that_listen_are_connected_and_lost,
);
