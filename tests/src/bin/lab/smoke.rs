//! One pod with one container through CRI.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Result, ensure};
use mooring_e2e::audit::{Snapshot, leftovers};
use mooring_e2e::cri::{ContainerSpec, PodSpec};
use mooring_e2e::machine::{Outer, Storage, enter, join};
use mooring_e2e::node::{Node, Settings};
use mooring_e2e::suite::{Case, Handler};

use crate::up;

pub fn run(dir: &Path, handler: Handler) -> Result<ExitCode> {
    let folder = if Outer::at(dir).is_some() { join(dir) } else { enter(Storage::Memory) }?;
    crate::block_on(async {
        // Inside a machine that somebody joined there is a containerd already.
        let node = if folder.join("c.sock").exists() {
            Node::attach(&folder)?
        } else {
            Node::boot(&folder, &Settings::default()).await?
        };
        let case = Case { node: Arc::new(node), handler };
        let before = Snapshot::take(&case.node).await?;
        pod(&case).await?;
        let left = leftovers(&case.node, &before).await?;
        ensure!(left.is_empty(), "left on the machine: {}", left.join(", "));
        println!("a pod ran with handler {}, and nothing is left of it", handler.name());
        Ok(ExitCode::SUCCESS)
    })
}

async fn pod(case: &Case) -> Result<()> {
    let spec = PodSpec::new(case).port(80, 20080);
    let name = spec.config.hostname.clone();
    let pod = spec.run().await?;
    println!("pod {} has the address {}", up::short(&pod.id), pod.address().await?);
    let container = pod.start(&ContainerSpec::idle("main")).await?;
    println!("container {} runs", up::short(&container.id));
    let answer = container.shell("hostname; ip -4 -o addr show eth0").await?;
    ensure!(answer.contains(&name), "the container's host name is not the pod's: {answer}");
    ensure!(answer.contains(" inet 10."), "the container has no address: {answer}");
    println!("exec answers");
    pod.end().await?;
    ensure!(!pod.is_listed().await?, "the pod is still listed");
    Ok(())
}
