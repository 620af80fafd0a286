//! Pods of others beside Mooring's, and what others leave: the work of plugins and runtimes that know no shim.

use std::fs;
use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::faults::until;
use crate::life::{Kind, Life};
use crate::suite::{Case, Handler};

/// Two pods of others, with all that they have: containerd's own, and a runtime's that knows no containerd.
pub struct Foreign {
    /// containerd's own.
    pub pod: Life,
    stranger: Child,
}

impl Foreign {
    /// Runs them.
    pub async fn begin(case: &Case) -> Result<Self> {
        let mut pod = Life::new(&Case { handler: Handler::Runc, ..case.clone() }, Kind::Cri);
        pod.run().await?;
        pod.container().await?;
        make_netns("stranger")?;
        sh("ip link add vethab01cd23 type veth peer name eth0 netns stranger")?;
        let mut command = Command::new("ip");
        command.args(["netns", "exec", "stranger", "sleep", "1000"]);
        let stranger = command.spawn().context("run the stranger's process")?;
        let inside = || {
            let own = fs::read_link("/proc/self/ns/net").ok();
            let other = fs::read_link(format!("/proc/{}/ns/net", stranger.id())).ok();
            other.is_some() && own != other
        };
        until(Duration::from_secs(10), "the stranger does not enter", inside).await?;
        fs::create_dir_all("/var/lib/cni/networks/others")?;
        fs::write("/var/lib/cni/networks/others/10.77.0.2", "stranger\r\neth0")?;
        fs::create_dir_all("/var/lib/cni/results")?;
        let list = r#"{"cniVersion":"1.0.0","name":"others","plugins":[{"type":"x"}]}"#;
        write_result("others-stranger-eth0", "others", "stranger", "/run/netns/stranger", list)?;
        Ok(Self { pod, stranger })
    }

    /// They must still be there, and are removed.
    pub async fn end(mut self) -> Result<()> {
        ensure!(self.pod.pod().context("no pod")?.is_ready().await?, "the peer's pod is not ready");
        ensure!(self.stranger.try_wait()?.is_none(), "the stranger has ended");
        self.stranger.kill()?;
        self.stranger.wait()?;
        sh("ip netns delete stranger")?;
        fs::remove_file("/var/lib/cni/networks/others/10.77.0.2")?;
        fs::remove_dir("/var/lib/cni/networks/others")?;
        fs::remove_file("/var/lib/cni/results/others-stranger-eth0")?;
        self.pod.end().await
    }
}

/// A command of the shell that must succeed.
pub fn sh(command: &str) -> Result<()> {
    let output = Command::new("sh").args(["-c", command]).output()?;
    ensure!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// As `ip netns add` does, which would mount the folder on itself, too.
pub fn make_netns(name: &str) -> Result<()> {
    let file = format!("/run/netns/{name}");
    sh(&format!("mkdir -p /run/netns && touch {file} && unshare --net={file} true"))
}

/// A result as libcni keeps it.
pub fn write_result(file: &str, network: &str, id: &str, netns: &str, list: &str) -> Result<()> {
    let output =
        Command::new("sh").args(["-c", &format!("printf %s '{list}' | base64 -w0")]).output()?;
    let config = String::from_utf8(output.stdout)?;
    let text = serde_json::json!({
        "kind": "cniCacheV1", "containerId": id, "config": config, "ifName": "eth0",
        "networkName": network, "netns": netns,
    });
    fs::write(Path::new("/var/lib/cni/results").join(file), text.to_string())?;
    Ok(())
}
