//! Where things lie on this node. Everything that a look reads is below one of these, `/proc` and `/sys/fs/cgroup`.

use std::path::{Path, PathBuf};

use mooring::{
    network::netns,
    options::{self, Options},
    sys::socket,
};

use crate::{
    args::{ContainerdArgs, RootArgs},
    containerd_config::ContainerdConfig,
    node,
};

#[derive(Debug, Default)]
pub struct Places {
    /// Where journals lie, where it was said; else the node's configuration is asked.
    pub state_roots: Vec<PathBuf>,
    pub run_roots: Vec<PathBuf>,
    /// Where network namespaces are pinned.
    pub netns: PathBuf,
    /// The folders that hold CNI's `results/`.
    pub cni_caches: Vec<PathBuf>,
    pub cni_confs: Vec<PathBuf>,
    /// Where host-local keeps its reservations, network by network.
    pub ipam: Vec<PathBuf>,
    /// Where OCI runtimes keep state, without containerd's namespace.
    pub runtime_roots: Vec<PathBuf>,
    /// Where clients such as ctr make fifos.
    pub fifos: PathBuf,
    /// Where shims have their sockets.
    pub sockets: PathBuf,
    pub containerd: Containerd,
    /// Why there may be more places.
    pub complaints: Vec<String>,
}

#[derive(Debug, Default)]
pub struct Containerd {
    pub address: PathBuf,
    pub state: PathBuf,
    pub root: PathBuf,
}

impl Places {
    pub fn find(roots: &RootArgs, containerd: &ContainerdArgs, config: &ContainerdConfig) -> Self {
        let mut all = options::of_node().unwrap_or_default();
        all.push(Options::default());
        let of = |place: fn(&Options) -> &PathBuf| distinct(all.iter().map(place).cloned());
        let text = |path: &[&str], usual: &str| {
            PathBuf::from(config.text(path).unwrap_or_else(|| usual.to_owned()))
        };
        let state = text(&["state"], "/run/containerd");
        let cri = ["io.containerd.cri.v1.runtime", "io.containerd.grpc.v1.cri"];
        let confs = cri.iter().filter_map(|cri| config.text(&["plugins", cri, "cni", "conf_dir"]));
        let mut cni_confs = of(|options| &options.network.conf_dir);
        cni_confs.extend(confs.map(PathBuf::from));
        let complaints = Vec::from_iter(config.complaint().map(str::to_owned));
        Self {
            state_roots: roots.state_root.clone(),
            run_roots: of(|options| &options.run_root),
            netns: netns::DEFAULT_DIR.into(),
            cni_caches: of(|options| &options.network.cache_dir),
            cni_confs: distinct(cni_confs),
            ipam: vec!["/var/lib/cni/networks".into()],
            runtime_roots: of(|options| &options.runtime.root),
            fifos: "/run/containerd/fifo".into(),
            sockets: socket::FOLDER.into(),
            containerd: Containerd {
                address: containerd
                    .address
                    .clone()
                    .unwrap_or_else(|| text(&["grpc", "address"], node::CONTAINERD)),
                root: text(&["root"], "/var/lib/containerd"),
                state,
            },
            complaints,
        }
    }

    /// The command with which `ctr` speaks to this containerd.
    pub fn ctr(&self, namespace: &str) -> String {
        let address = &self.containerd.address;
        let other = address != Path::new(node::CONTAINERD);
        let address = other.then(|| format!(" -a {}", super::finding::word(address)));
        format!("ctr{} -n {namespace}", address.unwrap_or_default())
    }
}

fn distinct(all: impl IntoIterator<Item = PathBuf>) -> Vec<PathBuf> {
    let mut seen = Vec::new();
    for one in all {
        if !seen.contains(&one) {
            seen.push(one);
        }
    }
    seen
}
