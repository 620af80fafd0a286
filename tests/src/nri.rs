//! NRI plugins on a node: programs that do what a test says, and write down what they are told.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::{Child, Command};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::node::{Configuration, Node, shim};

/// The program of the plugins, which lies beside the shim under test.
pub const PLUGIN: &str = "nri-plugin";

/// What a plugin was told.
#[derive(Clone, Debug)]
pub struct Told {
    /// `NN-NAME`.
    pub plugin: String,
    /// The call.
    pub call: String,
    /// What came with it.
    pub request: Value,
}

impl Told {
    /// In a few words: the plugin's index, the call, the container's id where it is about one.
    fn words(&self) -> String {
        let index = self.plugin.get(..2).unwrap_or_default();
        let container = self.request.pointer("/container/id").and_then(Value::as_str);
        let container = container.map(|id| format!(" {id}")).unwrap_or_default();
        format!("{index} {}{container}", self.call)
    }
}

/// The plugins of shims that are started from the installation on, until this is dropped.
pub struct NriPlugins {
    folder: PathBuf,
    /// Those that listen.
    listening: Vec<Child>,
    _configuration: Configuration,
}

impl NriPlugins {
    /// Installs a plugin's program as each of the plugins `(NN-NAME, what it does)`; one of which `socket` is said is running by
    /// itself and listens. `options` are further lines for the node's
    /// configuration of Mooring.
    pub fn install(
        node: &Node,
        name: &str,
        plugins: &[(&str, Value)],
        options: &str,
    ) -> Result<Self> {
        let program = shim()?.with_file_name(PLUGIN);
        let folder = node.folder().join("nri").join(name);
        fs::create_dir_all(&folder)?;
        let (mut list, mut listening) = (Vec::new(), Vec::new());
        for (plugin, script) in plugins {
            let path = folder.join(plugin);
            symlink(&program, &path)?;
            fs::write(folder.join(format!("{plugin}.json")), script.to_string())?;
            let at = if script["socket"] == true {
                listening.push(Command::new(&path).spawn().context("start a plugin")?);
                folder.join(format!("{plugin}.sock"))
            } else {
                path
            };
            list.push(format!("'{}'", at.display()));
        }
        let line = format!("NriPlugins = [{}]", list.join(", "));
        // Before the tables, where there are any.
        let configuration = Configuration::change(|before| format!("{line}\n{options}\n{before}"))?;
        Ok(Self { folder, listening, _configuration: configuration })
    }

    /// Ends those that listen, as somebody who restarts them.
    pub fn end_listening(&mut self) {
        for mut child in self.listening.drain(..) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// All that the plugins were told, in order.
    pub fn told(&self) -> Vec<Told> {
        let text = fs::read_to_string(self.folder.join("log")).unwrap_or_default();
        let all = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let text = |line: &Value, key: &str| line[key].as_str().unwrap_or_default().to_owned();
        let told = |line: Value| Told {
            plugin: text(&line, "plugin"),
            call: text(&line, "call"),
            request: line["request"].clone(),
        };
        all.map(told).collect()
    }

    /// The same in a few words each.
    pub fn words(&self) -> Vec<String> {
        self.told().iter().map(Told::words).collect()
    }
}

impl Drop for NriPlugins {
    fn drop(&mut self) {
        self.end_listening();
        let _ = fs::remove_dir_all(&self.folder);
    }
}
