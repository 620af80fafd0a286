//! What containerd itself leaves when it is killed at the wrong moment: nobody but containerd could remove it, and it
//! does not. It is removed here, so that what a shim leaves can be told from it, and counted.
//!
//! - the network namespace that CRI has made for a pod and not written down yet (`/run/netns/cni-…`), and the empty file
//!   of one that was not mounted yet or is not any more;
//! - firewall rules of CRI's network: a DEL without the result of an ADD that was cut does not find them, and containerd
//!   then goes on without it. The network that shims use in a soak has no such rules;
//! - a bundle that was renamed to a hidden name before its removal; at its next start containerd skips hidden names;
//! - the lease of a call that was cut, which its client names at random and which runs out after a day;
//! - the lease that CRI makes before anything else of a pod, named as the pod, and never looks for again.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};
use containerd_client::services::v1 as api;
use nix::mount::{MntFlags, umount2};

use crate::audit::{Snapshot, leftovers};
use crate::node::Node;
use crate::services::in_namespace;

/// Removes what is containerd's own of these lines of an audit, and tells of each; the others are returned. To be called
/// only where containerd was killed.
pub async fn remove(node: &Node, left: Vec<String>, removed: impl Fn(String)) -> Vec<String> {
    let mut own: Vec<Own> = left.iter().filter_map(|line| Own::of(node.folder(), line)).collect();
    // What refers to another goes first.
    own.sort();
    for one in &own {
        match one.remove(node).await {
            Ok(()) => removed(format!("{one:?}")),
            Err(error) => eprintln!("{one:?} stays: {error:#}"),
        }
    }
    // Whatever could not be removed is seen again by the next look.
    left.into_iter().filter(|line| Own::of(node.folder(), line).is_none()).collect()
}

/// What is left, but for what was containerd's own where that was killed: see [`leftovers`].
pub async fn others(node: &Node, before: &Snapshot, killed: bool) -> Result<Vec<String>> {
    let left = leftovers(node, before).await?;
    if !killed || left.is_empty() {
        return Ok(left);
    }
    remove(node, left, |what| eprintln!("containerd left: {what}")).await;
    // What the lease of a call that was cut has held goes with it.
    leftovers(node, before).await
}

/// In the order of removal.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Own {
    Mount(PathBuf),
    Namespace(PathBuf),
    Jump(String),
    Rule(String),
    Chain(String),
    Bundle(PathBuf),
    Lease(String),
}

impl Own {
    fn of(node: &Path, line: &str) -> Option<Self> {
        if let Some(rest) = line.strip_prefix("mount ") {
            let at = rest.strip_suffix(" of type nsfs")?;
            return at.starts_with("/run/netns/cni-").then(|| Self::Mount(at.into()));
        }
        if let Some(rule) = line.strip_prefix("iptables ") {
            if let Some(chain) = rule.strip_prefix(":CNI-") {
                return Some(Self::Chain(format!("CNI-{}", chain.split(' ').next()?)));
            }
            let rule = rule.strip_prefix("-A ")?.to_owned();
            return Some(if rule.contains("-j CNI-") {
                Self::Jump(rule)
            } else {
                Self::Rule(rule)
            });
        }
        if let Some(id) = line.strip_prefix("lease k8s.io/") {
            let pods = id.len() == 64 && id.bytes().all(|digit| digit.is_ascii_hexdigit());
            let calls = id
                .split_once('-')
                .is_some_and(|(number, rest)| number.parse::<u64>().is_ok() && rest.len() == 4);
            return (pods || calls).then(|| Self::Lease(id.to_owned()));
        }
        let at = line.strip_prefix("file ")?;
        if at.starts_with("/run/netns/cni-") {
            return Some(Self::Namespace(at.into()));
        }
        let (top, below) = ["state", "root"].iter().find_map(|top| {
            Some((node.join(top), Path::new(at).strip_prefix(node.join(top)).ok()?))
        })?;
        // PLUGIN/NAMESPACE/.ID and what is in it.
        let parts: Vec<_> = below.components().take(3).collect();
        let hidden = parts.get(2)?.as_os_str().to_str()?.starts_with('.');
        hidden.then(|| Self::Bundle(top.join(parts.iter().collect::<PathBuf>())))
    }

    async fn remove(&self, node: &Node) -> Result<()> {
        match self {
            Self::Mount(at) => umount2(at, MntFlags::MNT_DETACH)?,
            Self::Namespace(at) => fs::remove_file(at)?,
            Self::Jump(rule) | Self::Rule(rule) => iptables(&format!("-D {rule}"))?,
            Self::Chain(chain) => iptables(&format!("-X {chain}"))?,
            Self::Bundle(at) if at.exists() => fs::remove_dir_all(at)?,
            Self::Bundle(_) => {}
            Self::Lease(id) => {
                let mut leases = api::leases_client::LeasesClient::new(node.channel());
                let request = api::DeleteRequest { id: id.clone(), sync: false };
                leases.delete(in_namespace("k8s.io", request)).await?;
            }
        }
        Ok(())
    }
}

/// iptables-save quotes as a shell does.
fn iptables(arguments: &str) -> Result<()> {
    let output =
        Command::new("sh").args(["-c", &format!("iptables -t nat {arguments}")]).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_no_shim_makes_is_containerds_own() {
        let own = |line: &str| Own::of(Path::new("/node"), line);
        let plugin = "io.containerd.sandbox.controller.v1.shim/default";
        assert_eq!(
            own("mount /run/netns/cni-1-2 of type nsfs"),
            Some(Own::Mount("/run/netns/cni-1-2".into()))
        );
        assert_eq!(
            own("file /run/netns/cni-1-2"),
            Some(Own::Namespace("/run/netns/cni-1-2".into()))
        );
        assert_eq!(
            own(&format!("file /node/state/{plugin}/.sandbox-8/rootfs")),
            Some(Own::Bundle(format!("/node/state/{plugin}/.sandbox-8").into()))
        );
        assert_eq!(own("lease k8s.io/926820596-0byj"), Some(Own::Lease("926820596-0byj".into())));
        let pod = "267c1114cce59763a1d052e17126d0341a063bf136e380c1fdb3739e2e677fd3";
        assert_eq!(own(&format!("lease k8s.io/{pod}")), Some(Own::Lease(pod.into())));
        assert_eq!(own("iptables :CNI-00aa - [0:0]"), Some(Own::Chain("CNI-00aa".into())));
        for line in [
            "lease k8s.io/mooring-1".to_owned(),
            "lease default/926820596-0byj".to_owned(),
            format!("lease default/{pod}"),
            "file /run/netns/mooring-1".to_owned(),
            "mount /run/netns/mooring-1 of type nsfs".to_owned(),
            "mount /run/netns/cni-1/x of type tmpfs".to_owned(),
            format!("file /node/state/{plugin}/sandbox-8"),
            format!("file /other/state/{plugin}/.sandbox-8"),
            "process 17 started at 3: sleep".to_owned(),
        ] {
            assert_eq!(own(&line), None, "{line}");
        }
    }
}
