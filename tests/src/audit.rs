//! What there is on the machine, and what a test left on it.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use containerd_client::services::v1 as api;

use crate::node::Node;
use crate::patience;
use crate::services::in_namespace;
use crate::systemd;

/// How long after a test a thing may still be on its way out: containerd collects garbage with a delay.
const PATIENCE: Duration = Duration::from_secs(10);

/// Everything that a sandbox or a container could leave behind, one line each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot(BTreeSet<String>);

impl Snapshot {
    /// Looks at the whole machine.
    pub async fn take(node: &Node) -> Result<Self> {
        let mut seen = BTreeSet::new();
        processes(node, &mut seen);
        mounts(&mut seen);
        links(node, &mut seen);
        firewall(&mut seen).await?;
        cgroups(Path::new("/sys/fs/cgroup"), &mut seen);
        files(node, &mut seen);
        if systemd::is_first() {
            systemd::units(&mut seen)?;
        }
        records(node, &mut seen).await?;
        Ok(Self(seen))
    }

    /// As text, one line each.
    pub fn to_text(&self) -> String {
        self.0.iter().flat_map(|line| [line, "\n"]).collect()
    }

    /// A snapshot from its text.
    pub fn from_text(text: &str) -> Self {
        Self(text.lines().map(str::to_owned).collect())
    }

    /// Its lines.
    pub fn lines(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }

    /// What is here and was not there before.
    pub fn since(&self, before: &Self) -> Vec<String> {
        self.0.difference(&before.0).cloned().collect()
    }
}

/// Waits until nothing is on the machine that was not there before; returns what does not go away.
pub async fn leftovers(node: &Node, before: &Snapshot) -> Result<Vec<String>> {
    let until = Instant::now() + patience(PATIENCE);
    loop {
        let left = Snapshot::take(node).await?.since(before);
        if left.is_empty() || Instant::now() >= until {
            return Ok(left);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Every kind of thing that is looked for, as the lines of a [`Snapshot`] begin.
pub const KINDS: [&str; 10] = [
    "process",
    "mount",
    "link",
    "iptables",
    "cgroup",
    "file",
    "container record",
    "sandbox record",
    "lease",
    "snapshot",
];

/// A process, by its place in /proc.
#[derive(Clone, Debug)]
pub struct Process {
    /// Its id in the machine.
    pub pid: i32,
    /// Clock ticks since boot at its start: with it the pid cannot mean another process.
    pub started: String,
    /// The short name, and for a zombie the word.
    pub name: String,
    /// The arguments, joined by blanks.
    pub command: String,
}

/// All processes of the machine but its first one and the tests'; where systemd is, those that may be of a pod.
pub fn all_processes() -> Vec<Process> {
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    let mut all = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        let (Some(open), Some(close)) = (stat.find('('), stat.rfind(')')) else { continue };
        let fields: Vec<&str> = stat[close + 1..].split_whitespace().collect();
        if pid == 1 || pid == own || systemd::is_first() && !may_be_of_a_pod(&entry.path()) {
            continue;
        }
        let zombie = if fields.first() == Some(&"Z") { " (zombie)" } else { "" };
        let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        all.push(Process {
            pid,
            started: fields.get(19).unwrap_or(&"").to_string(),
            name: format!("{}{zombie}", &stat[open + 1..close]),
            command: String::from_utf8_lossy(&command).replace('\0', " ").trim().to_owned(),
        });
    }
    all
}

fn may_be_of_a_pod(process: &Path) -> bool {
    let cgroup = fs::read_to_string(process.join("cgroup")).unwrap_or_default();
    cgroup.trim().split_once("::").is_some_and(|(_, path)| systemd::may_be_of_a_pod(path))
}

fn processes(node: &Node, seen: &mut BTreeSet<String>) {
    for one in all_processes() {
        if Some(one.pid) != node.pid() {
            seen.insert(format!(
                "process {} started at {}: {} {}",
                one.pid, one.started, one.name, one.command
            ));
        }
    }
}

fn mounts(seen: &mut BTreeSet<String>) {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    for line in table.lines() {
        let mut words = line.split(' ');
        let at = words.nth(4).unwrap_or_default();
        let kind = words.skip_while(|word| *word != "-").nth(1).unwrap_or_default();
        seen.insert(format!("mount {at} of type {kind}"));
    }
}

fn links(node: &Node, seen: &mut BTreeSet<String>) {
    let table = fs::read_to_string("/proc/self/net/dev").unwrap_or_default();
    for line in table.lines().skip(2) {
        let name = line.split(':').next().unwrap_or_default().trim();
        // The bridge plugin never removes its bridge.
        if name != node.bridge() {
            seen.insert(format!("link {name}"));
        }
    }
}

async fn firewall(seen: &mut BTreeSet<String>) -> Result<()> {
    let output = tokio::process::Command::new("iptables-save").args(["-t", "nat"]).output().await?;
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        // portmap never removes its top chains.
        let top = line.starts_with(':') && line.contains("CNI-HOSTPORT")
            || line.contains("-j CNI-HOSTPORT-MASQ") && line.contains("-A POSTROUTING")
            || line.contains("-j CNI-HOSTPORT-DNAT")
            || line.starts_with("-A CNI-HOSTPORT-SETMARK")
            || line.starts_with("-A CNI-HOSTPORT-MASQ");
        let counted = line.starts_with(":PREROUTING")
            || line.starts_with(":INPUT")
            || line.starts_with(":OUTPUT")
            || line.starts_with(":POSTROUTING");
        if !top && !counted && !line.starts_with('#') {
            seen.insert(format!("iptables {line}"));
        }
    }
    Ok(())
}

/// Folders that stay by design: the namespaces' parents, and the pods' parents that belong to the kubelet.
fn stays(cgroup: &Path) -> bool {
    let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
    let parent = cgroup.parent().and_then(name);
    if systemd::is_first() && cgroup.extension().is_some_and(|kind| kind == "slice") {
        return true;
    }
    matches!(name(cgroup).as_deref(), Some("k8s.io" | "default" | "e2e" | "mooring" | "shims"))
        || parent.as_deref() == Some("e2e")
}

fn cgroups(at: &Path, seen: &mut BTreeSet<String>) {
    for entry in fs::read_dir(at).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            let path = entry.path();
            let below = path.strip_prefix("/sys/fs/cgroup").unwrap_or(&path).to_string_lossy();
            if systemd::is_first() && below != "system.slice" && !systemd::may_be_of_a_pod(&below) {
                continue;
            }
            if !stays(&path) {
                seen.insert(format!("cgroup {}", path.display()));
            }
            cgroups(&path, seen);
        }
    }
}

fn files(node: &Node, seen: &mut BTreeSet<String>) {
    tree(Path::new("/run/netns"), 1, seen);
    tree(Path::new("/run/containerd/s"), 1, seen);
    tree(Path::new("/run/containerd/runc"), 2, seen);
    tree(Path::new("/run/containerd/fifo"), 1, seen);
    tree(Path::new("/run/mooring"), 4, seen);
    tree(Path::new("/var/lib/mooring"), 4, seen);
    tree(Path::new("/var/lib/cni"), 3, seen);
    tree(&node.folder().join("cni/ipam"), 2, seen);
    tree(Path::new("/tmp"), 1, seen);
    for top in ["root", "state"] {
        for plugin in [
            "io.containerd.runtime.v2.task",
            "io.containerd.sandbox.controller.v1.shim",
            "io.containerd.grpc.v1.cri/sandboxes",
            "io.containerd.grpc.v1.cri/containers",
            "io.containerd.grpc.v1.cri/image-volumes",
        ] {
            tree(&node.folder().join(top).join(plugin), 2, seen);
        }
    }
}

/// Everything below a folder, except the folders that hold one entry per namespace, network or client.
fn tree(at: &Path, depth: usize, seen: &mut BTreeSet<String>) {
    for entry in fs::read_dir(at).into_iter().flatten().flatten() {
        let path = entry.path();
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        let general = matches!(
            &*name,
            "k8s.io"
                | "default"
                | ".empty-directory"
                | "results"
                | "networks"
                | "lock"
                | "last_reserved_ip.0"
        ) || folder && depth > 1 && path.starts_with("/var/lib/cni")
            // containerd removes some of them, and not those of a checkpoint that CRI was asked for.
            || name.starts_with("ctrd-checkpoint");
        let network = folder && path.parent().is_some_and(|parent| parent.ends_with("cni/ipam"));
        if !general && !network {
            seen.insert(format!("file {}", path.display()));
        }
        if folder && depth > 1 {
            tree(&path, depth - 1, seen);
        }
    }
}

/// What containerd's own records say, in the two namespaces that tests use.
async fn records(node: &Node, seen: &mut BTreeSet<String>) -> Result<()> {
    for namespace in ["k8s.io", "default"] {
        let mut containers = api::containers_client::ContainersClient::new(node.channel());
        let list = containers
            .list(in_namespace(namespace, api::ListContainersRequest { filters: vec![] }))
            .await?;
        for one in list.into_inner().containers {
            seen.insert(format!("container record {namespace}/{}", one.id));
        }
        let mut leases = api::leases_client::LeasesClient::new(node.channel());
        let list =
            leases.list(in_namespace(namespace, api::ListRequest { filters: vec![] })).await?;
        for one in list.into_inner().leases {
            seen.insert(format!("lease {namespace}/{}", one.id));
        }
        let mut store = api::sandbox::store_client::StoreClient::new(node.channel());
        let request = api::sandbox::StoreListRequest { filters: vec![] };
        for one in store.list(in_namespace(namespace, request)).await?.into_inner().list {
            seen.insert(format!("sandbox record {namespace}/{}", one.sandbox_id));
        }
        let mut snapshots = api::snapshots::snapshots_client::SnapshotsClient::new(node.channel());
        let request = api::snapshots::ListSnapshotsRequest {
            snapshotter: "overlayfs".to_owned(),
            filters: vec![],
        };
        let mut stream = snapshots.list(in_namespace(namespace, request)).await?.into_inner();
        while let Some(page) = stream.message().await? {
            for one in page.info {
                // Unpacked layers of images stay.
                if one.kind != api::snapshots::Kind::Committed as i32 {
                    seen.insert(format!("snapshot {namespace}/{}", one.name));
                }
            }
        }
    }
    Ok(())
}
