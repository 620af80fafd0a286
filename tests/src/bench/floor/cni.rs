//! The pods' CNI plugins, run with nothing around them.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context, Result, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use serde_json::{Value, json};

use crate::node::Node;

const VERSION: &str = "1.0.0";

/// A network's plugins.
#[derive(Clone)]
pub struct Cni {
    bin: PathBuf,
    name: String,
    plugins: Vec<Value>,
}

/// What the plugins have set up for one pod.
pub struct Attached {
    id: String,
    netns: PathBuf,
    result: Value,
}

impl Cni {
    /// The network that the node's pods have.
    pub fn of(node: &Node) -> Result<Self> {
        let text = fs::read_to_string(node.folder().join("cni/net.d/10-e2e.conflist"))?;
        let mut list: Value = serde_json::from_str(&text)?;
        let plugins = list.get_mut("plugins").and_then(Value::as_array_mut).map(std::mem::take);
        Ok(Self {
            bin: node.deps().join("cni/bin"),
            name: list.get("name").and_then(Value::as_str).context("no name")?.to_owned(),
            plugins: plugins.context("no plugins")?,
        })
    }

    fn call(
        &self,
        command: &str,
        plugin: &Value,
        name: &str,
        link: &str,
        of: (&str, &Path),
        previous: Option<&Value>,
    ) -> Result<Vec<u8>> {
        let kind = plugin.get("type").and_then(Value::as_str).context("a plugin without type")?;
        let mut config = plugin.clone();
        config["cniVersion"] = json!(VERSION);
        config["name"] = json!(name);
        if let Some(previous) = previous {
            config["prevResult"] = previous.clone();
        }
        let (id, netns) = of;
        let mut child = Command::new(self.bin.join(kind))
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", id)
            .env("CNI_NETNS", netns)
            .env("CNI_IFNAME", link)
            .env("CNI_PATH", &self.bin)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("run {kind}"))?;
        child.stdin.take().context("no pipe")?.write_all(config.to_string().as_bytes())?;
        let output = child.wait_with_output()?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            bail!("{command} of plugin {kind}: {}: {said}", output.status);
        }
        Ok(output.stdout)
    }

    fn loopback(&self, command: &str, of: (&str, &Path)) -> Result<()> {
        let plugin = json!({ "type": "loopback" });
        self.call(command, &plugin, "cni-loopback", "lo", of, None).map(drop)
    }

    /// ADD of all plugins, that of `lo` at the same time, as containerd does it.
    pub fn add(&self, id: &str, netns: &Path) -> Result<Attached> {
        let result = thread::scope(|scope| {
            let loopback = scope.spawn(|| self.loopback("ADD", (id, netns)));
            let mut result = None;
            for plugin in &self.plugins {
                let said =
                    self.call("ADD", plugin, &self.name, "eth0", (id, netns), result.as_ref())?;
                result = Some(serde_json::from_slice(&said).context("a result that is no JSON")?);
            }
            joined(loopback)?;
            result.context("no plugins")
        })?;
        Ok(Attached { id: id.to_owned(), netns: netns.to_owned(), result })
    }

    /// DEL of all plugins, backwards, after that of `lo`, as containerd does it.
    pub fn del(&self, attached: &Attached) -> Result<()> {
        self.loopback("DEL", (&attached.id, &attached.netns))?;
        self.del_network(attached, &attached.netns)
    }

    /// DEL when the namespace is gone already, as CRI asks for it once more at the removal of a pod.
    pub fn del_again(&self, attached: &Attached) -> Result<()> {
        let nowhere = Path::new("");
        self.loopback("DEL", (&attached.id, nowhere))?;
        self.del_network(attached, nowhere)
    }

    /// DEL of the network alone.
    pub fn del_network(&self, attached: &Attached, netns: &Path) -> Result<()> {
        for plugin in self.plugins.iter().rev() {
            let (of, result) = ((attached.id.as_str(), netns), Some(&attached.result));
            self.call("DEL", plugin, &self.name, "eth0", of, result)?;
        }
        Ok(())
    }

    /// ADD of the network alone.
    pub fn add_network(&self, id: &str, netns: &Path) -> Result<Attached> {
        let mut result = None;
        for plugin in &self.plugins {
            let said =
                self.call("ADD", plugin, &self.name, "eth0", (id, netns), result.as_ref())?;
            result = Some(serde_json::from_slice(&said).context("a result that is no JSON")?);
        }
        let result = result.context("no plugins")?;
        Ok(Attached { id: id.to_owned(), netns: netns.to_owned(), result })
    }
}

/// What a thread came to.
pub fn joined<T>(thread: thread::ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    match thread.join() {
        Ok(done) => done,
        Err(_) => bail!("a thread of the floor panicked"),
    }
}

/// A network namespace that a mount keeps.
pub fn make_netns(name: &str) -> Result<PathBuf> {
    let folder = Path::new("/run/netns");
    fs::create_dir_all(folder)?;
    let at = folder.join(name);
    fs::File::create_new(&at).with_context(|| format!("make {}", at.display()))?;
    thread::scope(|scope| {
        joined(scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).context("make a network namespace")?;
            let own = Path::new("/proc/thread-self/ns/net");
            mount(Some(own), &at, None::<&str>, MsFlags::MS_BIND, None::<&str>)
                .with_context(|| format!("mount {}", at.display()))
        }))
    })?;
    Ok(at)
}

/// Its end.
pub fn remove_netns(at: &Path) -> Result<()> {
    umount2(at, MntFlags::MNT_DETACH).with_context(|| format!("unmount {}", at.display()))?;
    fs::remove_file(at).with_context(|| format!("remove {}", at.display()))
}
