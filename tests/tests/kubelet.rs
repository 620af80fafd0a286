//! A node as a kubelet drives it: many pods of many kinds at once, probes each second, crashes with backoff, init and
//! sidecar containers, hooks and grace periods, finished jobs; containerd restarted, and everything killed at random.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use k8s_cri::v1::{self as cri, NamespaceMode};
use mooring_e2e::audit::{Process, Snapshot, all_processes};
use mooring_e2e::cri::{ContainerSpec, PodSpec};
use mooring_e2e::faults::daemons;
use mooring_e2e::kubelet::{Kubelet, Manifest, Part, View};
use mooring_e2e::node::{DATA_IMAGE, Settings, version};
use mooring_e2e::random::Random;
use mooring_e2e::remains;
use mooring_e2e::suite;
use mooring_e2e::suite::{Case, Handler, remove_pod_parents};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Environment variable: for how many seconds, where the usual time is not meant.
const SECONDS: &str = "MOORING_KUBELET";
const USUAL: u64 = 5;
/// How long all pods of a test may take to become what they shall be, and to go.
const SETTLES: Duration = Duration::from_secs(40);

fn time() -> Duration {
    let given = std::env::var(SECONDS).ok().and_then(|text| text.parse().ok());
    Duration::from_secs(given.unwrap_or(USUAL))
}

/// A folder of the node that pods have as volumes, shared with what they mount in it.
struct Volumes(PathBuf);

impl Volumes {
    fn new(case: &Case) -> Result<Self> {
        let folder = case.node.folder().join(case.unique("volumes"));
        fs::create_dir(&folder)?;
        let none = None::<&str>;
        mount(Some(&folder), &folder, none, MsFlags::MS_BIND, none)?;
        mount(none, &folder, none, MsFlags::MS_SHARED, none)?;
        Ok(Self(folder))
    }

    fn of(&self, pod: &str) -> Result<String> {
        let folder = self.0.join(pod);
        fs::create_dir_all(&folder)?;
        Ok(folder.display().to_string())
    }
}

impl Drop for Volumes {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn script(name: &str, script: &str) -> Part {
    Part::of(ContainerSpec::script(name, script))
}

fn idle() -> Part {
    Part::of(ContainerSpec::idle("main")).probed("true")
}

/// A script that counts how often it was run, in a volume.
fn counting(then: &str) -> String {
    format!("n=$(cat /volume/n 2>/dev/null || echo 0); echo $((n + 1)) > /volume/n; {then}")
}

/// A pod of one container.
fn one(kind: &'static str, sandbox: PodSpec, part: Part) -> Manifest {
    Manifest { kind, sandbox, init: vec![], main: vec![part], grace: 5 }
}

const KINDS: u64 = 20;

/// A pod of one of the kinds.
fn manifest(case: &Case, volumes: &Volumes, number: u64) -> Result<Manifest> {
    let pod = PodSpec::new(case);
    let name = pod.config.hostname.clone();
    let volume = volumes.of(&name)?;
    let in_volume = |mut part: Part| {
        part.spec = part.spec.mount(&volume, "/volume", false);
        part
    };
    Ok(match number % KINDS {
        0 => one("plain", pod, idle()),
        1 => Manifest {
            main: vec![idle(), script("helper", "while :; do sleep 1; done").probed("hostname")],
            ..one("two containers", pod, idle())
        },
        2 => Manifest {
            init: vec![
                in_volume(script("sidecar", "touch /volume/sidecar; sleep 100000")),
                in_volume(script("first", "until [ -e /volume/sidecar ]; do usleep 9999; done"))
                    .until_done(),
                in_volume(script("second", "echo ready > /volume/ready")).until_done(),
            ],
            ..one(
                "init containers and a sidecar",
                pod,
                in_volume(idle().probed("cat /volume/ready")),
            )
        },
        3 => one("a job", pod, script("main", "echo done").until_done()),
        4 => {
            let failing = in_volume(script("main", &counting("[ $n -ge 2 ]")));
            one("a job that fails twice", pod, failing.until_done())
        }
        5 => {
            let crashing = counting("[ $n -ge 3 ] && sleep 100000; exit 7");
            let part = in_volume(script("main", &crashing)).probed("[ $(cat /volume/n) -ge 4 ]");
            one("three crashes", pod, part)
        }
        6 => Manifest {
            grace: 1,
            ..one(
                "deaf to SIGTERM",
                pod,
                script("main", "trap '' TERM; sleep 100000").probed("true"),
            )
        },
        7 => {
            let part = script("main", "trap 'exit 0' TERM; while :; do usleep 50000; done");
            one("graceful", pod, part.probed("true"))
        }
        8 => {
            let part = in_volume(idle()).before_stop("echo told > /volume/told");
            Manifest { grace: 1, ..one("a hook before its stop", pod, part) }
        }
        kind => special(case, pod, in_volume, kind, number)?,
    })
}

/// A pod with namespaces, rights, limits or mounts that are not the usual ones.
fn special(
    case: &Case,
    pod: PodSpec,
    in_volume: impl Fn(Part) -> Part,
    kind: u64,
    number: u64,
) -> Result<Manifest> {
    let offset = u32::try_from(number)?;
    Ok(match kind {
        9 => one("shared PIDs", pod.pid(NamespaceMode::Pod), idle()),
        10 => one("the node's PIDs", pod.pid(NamespaceMode::Node), idle()),
        11 => {
            let mut pod = pod;
            pod.namespaces().ipc = NamespaceMode::Node as i32;
            one("the node's IPC", pod, idle())
        }
        12 if case.handler == Handler::Runc || version()? >= (2, 2) => {
            one("the node's network", pod.host_network(), idle())
        }
        12 | 13 => {
            let mut pod = pod;
            pod.security().privileged = true;
            let mut part = idle().probed("test -w /proc/sys/net/ipv4/ip_forward");
            part.spec.security().privileged = true;
            one("privileged", pod, part)
        }
        14 => one("user namespace", pod.users_from(100_000 * (offset + 1)), idle()),
        15 => one("a port of the node", pod.port(80, 20_000 + i32::try_from(number)?), idle()),
        16 => {
            let probe = "[ $(cat /proc/sys/net/core/somaxconn) = 777 ]";
            one("a sysctl", pod.sysctl("net.core.somaxconn", "777"), idle().probed(probe))
        }
        17 => {
            let mut part = idle();
            part.spec.resources().memory_limit_in_bytes = 32 << 20;
            part.spec.resources().cpu_shares = 128;
            one("limits", pod, part)
        }
        18 => {
            let mut part = idle().probed("cat /image/data/sub/deep.txt && ! touch /file");
            part.spec = part.spec.image_volume(DATA_IMAGE, "/image");
            part.spec.security().readonly_rootfs = true;
            one("an image as a volume, its root read-only", pod, part)
        }
        _ => {
            let mut pod = pod;
            pod.security().privileged = true;
            let mount = "mount -t tmpfs inner /volume/sub";
            let begin =
                format!("mkdir -p /volume/sub; {mount}; echo up > /volume/sub/up; sleep 100000");
            let mut part = in_volume(script("main", &begin)).probed("cat /volume/sub/up");
            part.spec.security().privileged = true;
            part.spec.config.mounts[0].propagation =
                cri::MountPropagation::PropagationBidirectional as i32;
            // What it has mounted on the node is the driver's to unmount, not the runtime's.
            let part = part.before_stop("umount /volume/sub");
            Manifest { grace: 0, ..one("mounts that come to the node", pod, part) }
        }
    })
}

fn table(kubelet: &Kubelet) -> String {
    let mut lines: Vec<String> = kubelet
        .views()
        .into_iter()
        .map(|(kind, view)| {
            let View { sandboxes, started, probes, exits, .. } = view;
            format!("{kind}: {sandboxes} sandboxes, {started} started, probes {probes:?}, exits {exits:?}")
        })
        .collect();
    lines.sort();
    lines.dedup();
    lines.join("\n")
}

/// What holds of every pod that nobody has harmed.
fn unharmed(kubelet: &Kubelet) -> Result<()> {
    for (kind, view) in kubelet.views() {
        let exits: &[i32] = match kind {
            "a job" => &[0],
            "a job that fails twice" => &[1, 1, 0],
            "three crashes" => &[7, 7, 7],
            _ => &[],
        };
        ensure!(view.exits.get("main").map_or(&[][..], Vec::as_slice) == exits, "{kind}: {view:?}");
        ensure!(view.sandboxes == 1, "{kind}: {view:?}");
    }
    Ok(())
}

/// What holds of every pod that has gone.
fn gone(kubelet: &Kubelet, volumes: &Volumes) -> Result<()> {
    for (kind, view) in kubelet.views() {
        let last = view.exits.get("main").and_then(|all| all.last().copied());
        let expected = match kind {
            "graceful" | "a job" | "a job that fails twice" => 0,
            // Not the first process of its namespace: SIGTERM ends it.
            "shared PIDs" | "the node's PIDs" => 143,
            _ => 137,
        };
        ensure!(last == Some(expected), "{kind}: {view:?}");
    }
    let told = fs::read_dir(&volumes.0)?.flatten().filter(|pod| pod.path().join("told").exists());
    let hooks =
        kubelet.views().iter().filter(|(kind, _)| *kind == "a hook before its stop").count();
    ensure!(told.count() == hooks, "a hook was not run");
    Ok(())
}

/// containerd makes the network namespace of a pod with user namespaces from a process of its own, which on a busy machine
/// may have ended before; until its commit 04ce9f884 the empty file stayed that the namespace was to be mounted on.
fn lost_namespace(error: &str) -> Option<&Path> {
    let (_, rest) = error.split_once("failed to mount netns from pid")?;
    let at = rest.split_once(" at ")?.1.split(": ").next()?;
    let name = Path::new(at).file_name()?.to_str()?;
    name.starts_with("cni-").then_some(Path::new(at))
}

fn remove_lost_namespaces(kubelet: &Kubelet) {
    for (_, view) in kubelet.views() {
        for at in view.errors.iter().filter_map(|error| lost_namespace(error)) {
            let _ = fs::remove_file(at);
        }
    }
}

/// Statistics of all pods that run.
async fn statistics(case: &Case, pods: usize) -> Result<()> {
    let request = cri::ListPodSandboxStatsRequest { filter: None };
    let all =
        case.node.cri().list_pod_sandbox_stats(request).await.context("ListPodSandboxStats")?;
    let all = all.into_inner().stats;
    ensure!(all.len() == pods, "{} of {pods} pods have statistics", all.len());
    let memory =
        |one: &cri::PodSandboxStats| Some(one.linux.as_ref()?.memory.as_ref()?.timestamp > 0);
    ensure!(all.iter().all(|one| memory(one) == Some(true)), "{all:?}");
    let request = cri::ListContainerStatsRequest { filter: None };
    case.node.cri().list_container_stats(request).await.context("ListContainerStats")?;
    Ok(())
}

/// So many pods, all as they shall be.
async fn kept(case: &Case, volumes: &Volumes, pods: u64) -> Result<Kubelet> {
    let mut kubelet = Kubelet::new(&case.node);
    for number in 0..pods {
        kubelet.add(manifest(case, volumes, number)?);
    }
    kubelet.settled(SETTLES).await?;
    Ok(kubelet)
}

async fn thirty_pods_are_kept_as_a_kubelet_keeps_them(case: Case) -> Result<()> {
    let volumes = Volumes::new(&case)?;
    let mut kubelet = kept(&case, &volumes, 30).await?;
    let end = Instant::now() + time();
    while Instant::now() < end {
        statistics(&case, 30).await?;
        tokio::time::sleep(Duration::from_secs(2).min(end - Instant::now())).await;
    }
    let total = kubelet.total();
    let mut harmed = kubelet.views();
    // A probe may meet a container that ends just then.
    let own = |error: &String| lost_namespace(error).is_some();
    harmed.retain(|(kind, view)| {
        *kind != "three crashes" && (view.probes.1 > 0 || !view.errors.iter().all(own))
    });
    ensure!(harmed.is_empty(), "{total}: {harmed:?}");
    unharmed(&kubelet)?;
    kubelet.end(SETTLES).await?;
    remove_lost_namespaces(&kubelet);
    gone(&kubelet, &volumes)?;
    eprintln!("{}: {}\n{}", case.handler.name(), kubelet.total(), table(&kubelet));
    Ok(())
}

async fn restarts_of_containerd_disturb_no_pod(case: Case) -> Result<()> {
    let volumes = Volumes::new(&case)?;
    let mut kubelet = kept(&case, &volumes, KINDS).await?;
    let end = Instant::now() + time();
    let mut restarts = 0;
    while Instant::now() < end {
        if restarts % 2 == 0 {
            case.node.restart().await?;
        } else {
            case.node.crash().await?;
        }
        restarts += 1;
        kubelet.settled(SETTLES).await?;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    unharmed(&kubelet)?;
    kubelet.end(SETTLES).await?;
    remove_lost_namespaces(&kubelet);
    gone(&kubelet, &volumes)?;
    eprintln!("{}: {restarts} restarts, {}", case.handler.name(), kubelet.total());
    Ok(())
}

/// Kills something that belongs to a pod, or containerd.
async fn strike(case: &Case, random: &mut Random) -> Result<Option<&'static str>> {
    let named = |name: &str| -> Vec<Process> {
        all_processes().into_iter().filter(|one| one.name == name).collect()
    };
    let (what, victims) = match random.below(8) {
        0..=3 => ("shim", daemons()),
        4 => ("holder", named("mooring-pod")),
        5 => ("container", named("sleep")),
        6 => ("runc", named("runc")),
        _ => {
            case.node.crash().await?;
            return Ok(Some("containerd"));
        }
    };
    let chosen = victims.get(usize::try_from(random.below(victims.len().max(1) as u64))?);
    let struck = chosen.is_some_and(|one| kill(Pid::from_raw(one.pid), Signal::SIGKILL).is_ok());
    Ok(struck.then_some(what))
}

async fn a_kubelet_is_done_whatever_is_killed(case: Case) -> Result<()> {
    let mut random = Random::from_environment();
    let before = Snapshot::take(&case.node).await?;
    let volumes = Volumes::new(&case)?;
    let mut kubelet = kept(&case, &volumes, KINDS).await?;
    let end = Instant::now() + time();
    let mut struck = std::collections::BTreeMap::<_, u32>::new();
    while Instant::now() < end {
        if let Some(what) = strike(&case, &mut random).await? {
            *struck.entry(what).or_default() += 1;
        }
        tokio::time::sleep(Duration::from_millis(300 + random.below(500))).await;
    }
    let crashed = struck.contains_key("containerd");
    let context = || format!("seed {}, struck {struck:?}", random.seed());
    kubelet.settled(SETTLES).await.with_context(context)?;
    kubelet.end(SETTLES).await.with_context(context)?;
    remove_lost_namespaces(&kubelet);
    // Its mount on the node is that of a container that was killed before its hook could be run.
    for pod in fs::read_dir(&volumes.0)?.flatten() {
        unmount_all(&pod.path().join("sub"));
    }
    drop(volumes);
    remove_pod_parents();
    let left = remains::others(&case.node, &before, crashed).await?;
    ensure!(left.is_empty(), "{}: left on the machine: {left:#?}", context());
    eprintln!("{}: {struck:?}; {}", case.handler.name(), kubelet.total());
    Ok(())
}

fn unmount_all(at: &Path) {
    while umount2(at, MntFlags::MNT_DETACH).is_ok() {}
}

suite!(Settings::default();
    both: thirty_pods_are_kept_as_a_kubelet_keeps_them,
    restarts_of_containerd_disturb_no_pod;
    mooring: a_kubelet_is_done_whatever_is_killed);
