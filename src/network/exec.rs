//! CNI plugins as programs.

use std::{
    env,
    os::unix::fs::PermissionsExt,
    path::{Component, Path, PathBuf},
    process::Command,
};

use async_trait::async_trait;
use serde::Deserialize;
use serde_json::Value;
use tokio::time::Instant;

use super::{Call, CniPlugins, Operation, PluginError, Target};
use crate::process::{self, Failure, Output, Reaper};

/// The most of a plugin's output that goes into an error message, in bytes.
const EXCERPT: usize = 512;
/// The most of a plugin's own message, and of its details, in bytes.
const LONGEST: usize = 4096;
/// For a shim that was started without one.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Runs plugins as the specification says, each in a process group of its own.
///
/// A plugin runs in the node's network namespace, because the threads that start processes never enter another.
#[derive(Clone)]
pub struct ExecPlugins {
    reaper: Reaper,
}

impl ExecPlugins {
    /// Runs plugins as children that `reaper` waits for.
    pub fn new(reaper: Reaper) -> Self {
        Self { reaper }
    }
}

#[async_trait]
impl CniPlugins for ExecPlugins {
    async fn run(
        &self,
        call: &Call,
        deadline: Option<Instant>,
    ) -> Result<Option<Value>, PluginError> {
        let program = find(&call.plugin, &call.bin_dirs)?;
        let mut command = command(&program, call);
        let input = call.config.to_string();
        let running = process::run(&self.reaper, &mut command, input.as_bytes(), deadline);
        let output = match Box::pin(running).await {
            Ok(output) => output,
            Err(Failure::Deadline { stderr, .. }) => {
                log_stderr(call, &stderr, log::Level::Warn);
                return Err(PluginError::Deadline);
            }
            Err(failure) => return Err(PluginError::Run(failure)),
        };
        let answer = understand(call.operation, &output);
        let level = if answer.is_ok() { log::Level::Debug } else { log::Level::Warn };
        log_stderr(call, &output.stderr, level);
        answer
    }
}

/// The first executable of that name.
fn find(plugin: &str, bin_dirs: &[PathBuf]) -> Result<PathBuf, PluginError> {
    let mut components = Path::new(plugin).components();
    let plain = matches!(
        (components.next(), components.next()),
        (Some(Component::Normal(name)), None) if name == plugin
    );
    if !plain || plugin.contains('\0') {
        return Err(PluginError::InvalidType);
    }
    let is_program = |path: &PathBuf| {
        path.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
    };
    bin_dirs
        .iter()
        .map(|dir| dir.join(plugin))
        .find(is_program)
        .ok_or_else(|| PluginError::Missing { bin_dirs: bin_dirs.to_vec() })
}

/// The plugin gets nothing of the shim's environment but PATH: it looks for tools such as `iptables` there.
fn command(program: &Path, call: &Call) -> Command {
    let mut command = Command::new(program);
    let bin_dirs: Vec<_> = call.bin_dirs.iter().map(|dir| dir.to_string_lossy()).collect();
    command
        .env_clear()
        .env("PATH", env::var_os("PATH").unwrap_or_else(|| DEFAULT_PATH.into()))
        .env("CNI_COMMAND", call.operation.as_str())
        .env("CNI_PATH", bin_dirs.join(":"));
    if let Some(Target { container_id, netns, ifname, args }) = &call.target {
        let args: Vec<_> = args.iter().map(|(key, value)| format!("{key}={value}")).collect();
        command
            .env("CNI_CONTAINERID", container_id)
            .env("CNI_NETNS", netns)
            .env("CNI_IFNAME", ifname)
            .env("CNI_ARGS", args.join(";"));
    }
    command
}

/// The error object of the specification.
#[derive(Deserialize)]
struct Reported {
    code: u32,
    #[serde(default)]
    msg: String,
    #[serde(default)]
    details: String,
}

/// What a plugin that has ended says by its output.
pub fn understand(operation: Operation, output: &Output) -> Result<Option<Value>, PluginError> {
    let printed = output.stdout.trim_ascii();
    if output.exit.status != 0 {
        if let Ok(Reported { code, msg, details }) = serde_json::from_slice(printed) {
            let (msg, details) = (cut(msg), cut(details));
            return Err(PluginError::Reported { code, msg, details });
        }
        let said = output.stderr.trim_ascii();
        let stderr = tail(if said.is_empty() { printed } else { said });
        return Err(PluginError::Died { status: output.exit.status, stderr });
    }
    // Only ADD has a result; what else a plugin prints is its own affair.
    if operation != Operation::Add {
        return Ok(None);
    }
    let garbage = |reason: String| PluginError::Garbage { reason, output: head(printed) };
    match serde_json::from_slice(printed) {
        Ok(Value::Object(result)) => Ok(Some(result.into())),
        Ok(_) => Err(garbage("no object".to_owned())),
        Err(error) => Err(garbage(error.to_string())),
    }
}

/// What a plugin says of its error, as far as an answer to a client can hold it.
fn cut(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(LONGEST));
    text
}

fn head(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.get(..EXCERPT).unwrap_or(bytes)).into_owned()
}

fn tail(bytes: &[u8]) -> String {
    let start = bytes.len().saturating_sub(EXCERPT);
    String::from_utf8_lossy(bytes.get(start..).unwrap_or_default()).into_owned()
}

fn log_stderr(call: &Call, stderr: &[u8], level: log::Level) {
    if log::log_enabled!(level) {
        for line in String::from_utf8_lossy(stderr).lines().filter(|line| !line.trim().is_empty()) {
            let Call { operation, plugin, network, .. } = call;
            log::log!(level, "CNI {operation} of plugin {plugin:?} in network {network:?}: {line}");
        }
    }
}

#[cfg(test)]
mod tests;
