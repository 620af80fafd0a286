//! A CNI network of the test's own, whose plugins write down how they are called and fail on demand.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::node::{CONFIG, Node};

/// The network's name.
pub const NETWORK: &str = "faults";
/// The plugins of the network, in the order of ADD.
pub const CHAIN: [&str; 2] = ["ptp", "tuning"];

/// The network that shims use from the installation on, until this is dropped.
pub struct Plugins {
    folder: PathBuf,
    ipam: PathBuf,
    before: Option<String>,
}

/// One call of a plugin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// Which plugin.
    pub plugin: String,
    /// `ADD`, `DEL` …
    pub command: String,
    /// The sandbox.
    pub container: String,
    /// The namespace's path.
    pub netns: String,
}

impl Plugins {
    /// Installs the network. `options` are further lines for the node's configuration of Mooring.
    pub fn install(node: &Node, name: &str, options: &str) -> Result<Self> {
        let folder = node.folder().join("plugins").join(name);
        let (bin, conf) = (folder.join("bin"), folder.join("net.d"));
        let ipam = node.folder().join("cni/ipam");
        for made in [&bin, &conf, &ipam] {
            fs::create_dir_all(made)?;
        }
        let real = node.deps().join("cni/bin");
        symlink(real.join("host-local"), bin.join("host-local"))?;
        let plugins = Self { folder, ipam, before: fs::read_to_string(CONFIG).ok() };
        for plugin in CHAIN {
            plugins.put(plugin, &real)?;
        }
        plugins.configure()?;
        let usual = plugins.before.as_deref().unwrap_or_default().lines();
        let usual: Vec<&str> = usual.filter(|line| !line.starts_with("Cni")).collect();
        let config = format!(
            "{}\nCniConfDir = '{}'\nCniBinDirs = ['{}']\n{options}\n",
            usual.join("\n"),
            conf.display(),
            bin.display()
        );
        fs::write(CONFIG, config).context("configure Mooring")?;
        Ok(plugins)
    }

    fn put(&self, plugin: &str, real: &Path) -> Result<()> {
        let script = format!(
            r#"#!/bin/sh
# Writes its call down, does what the fault of its name says, and is the real plugin otherwise.
dir='{dir}'
me=${{0##*/}}
echo "$me $CNI_COMMAND $CNI_CONTAINERID ${{CNI_NETNS:--}}" >>"$dir/calls"
fault="$dir/$me.$CNI_COMMAND"
[ -e "$fault.$CNI_CONTAINERID" ] && fault="$fault.$CNI_CONTAINERID"
if [ -e "$fault" ]; then
  read -r kind count <"$fault"
  if [ -n "$count" ] && [ "$kind" != slow ]; then
    if [ "$count" -le 1 ]; then rm "$fault"; else echo "$kind $((count - 1))" >"$fault"; fi
  fi
  case $kind in
    fail) echo '{{"cniVersion":"1.0.0","code":117,"msg":"told to fail","details":"by the test"}}'; exit 1 ;;
    die) echo 'dying of it' >&2; exit 3 ;;
    garbage) echo 'this is no JSON'; exit 1 ;;
    trash) echo 'this is no JSON'; exit 0 ;;
    hang) exec sleep 1000 ;;
    slow) sleep "$count" ;;
  esac
fi
exec '{real}'/"$me"
"#,
            dir = self.folder.display(),
            real = real.display()
        );
        let path = self.program(plugin);
        fs::write(&path, script)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        Ok(())
    }

    /// Where a plugin is.
    pub fn program(&self, plugin: &str) -> PathBuf {
        self.folder.join("bin").join(plugin)
    }

    /// The network's configuration.
    pub fn configuration(&self) -> PathBuf {
        self.folder.join("net.d/10-faults.conflist")
    }

    /// Writes the configuration, anew if it was removed.
    pub fn configure(&self) -> Result<()> {
        let text = format!(
            r#"{{ "cniVersion": "1.0.0", "name": "{NETWORK}", "plugins": [
  {{ "type": "ptp", "ipMasq": false,
     "ipam": {{ "type": "host-local", "dataDir": "{}", "ranges": [[{{ "subnet": "10.90.0.0/24" }}]] }} }},
  {{ "type": "tuning" }} ] }}
"#,
            self.ipam.display()
        );
        fs::write(self.configuration(), text)?;
        Ok(())
    }

    /// From now on `plugin` does so at `command`: `fail`, `die`, `garbage`, `trash`, `hang`, each with how often (or for
    /// ever), or `slow` and seconds.
    pub fn fault(&self, plugin: &str, command: &str, kind: &str) -> Result<()> {
        fs::write(self.folder.join(format!("{plugin}.{command}")), format!("{kind}\n"))?;
        Ok(())
    }

    /// The same for one sandbox alone.
    pub fn fault_of(&self, id: &str, plugin: &str, command: &str, kind: &str) -> Result<()> {
        self.fault(plugin, &format!("{command}.{id}"), kind)
    }

    /// The plugin works again.
    pub fn mend(&self, plugin: &str, command: &str) {
        let _ = fs::remove_file(self.folder.join(format!("{plugin}.{command}")));
    }

    /// All calls for a sandbox, in order.
    pub fn calls(&self, id: &str) -> Vec<Call> {
        let text = fs::read_to_string(self.folder.join("calls")).unwrap_or_default();
        let parse = |line: &str| {
            let mut words = line.split(' ').map(str::to_owned);
            Some(Call {
                plugin: words.next()?,
                command: words.next()?,
                container: words.next()?,
                netns: words.next()?,
            })
        };
        text.lines().filter_map(parse).filter(|call| call.container == id).collect()
    }

    /// The plugins that a sandbox's DELs reached, in order.
    pub fn dels(&self, id: &str) -> Vec<String> {
        let calls = self.calls(id).into_iter();
        calls.filter(|call| call.command == "DEL").map(|call| call.plugin).collect()
    }

    /// The addresses that are reserved in the network.
    pub fn reservations(&self) -> Vec<String> {
        let entries = fs::read_dir(self.ipam.join(NETWORK)).into_iter().flatten().flatten();
        let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        names.filter(|name| name.starts_with("10.90.")).collect()
    }
}

impl Drop for Plugins {
    fn drop(&mut self) {
        let _ = match &self.before {
            Some(text) => fs::write(CONFIG, text),
            None => fs::remove_file(CONFIG),
        };
        let _ = fs::remove_dir_all(&self.folder);
    }
}
