//! Faults that are made to happen: points of the shim's life at which it dies or waits, killed processes, and a look
//! at what the journal says.
//!
//! The points exist in a shim that was built with the feature `failpoints`; every other build passes them unseen.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::audit::{Process, all_processes};
use crate::node::Node;

/// The points of all shims of a node; the node names the file to them.
pub struct Failpoints {
    file: PathBuf,
}

impl Failpoints {
    /// The node's.
    pub fn of(node: &Node) -> Self {
        Self { file: node.failpoints() }
    }

    fn beside(&self, ending: &str) -> PathBuf {
        let mut path = self.file.clone().into_os_string();
        path.push(ending);
        path.into()
    }

    /// From now on every point that is passed is written down.
    pub fn record(&self) -> Result<()> {
        let _ = fs::remove_file(self.beside(".log"));
        self.write("record\n")
    }

    /// The points that were passed since the last call, in order, each as often as it was passed.
    pub fn passed(&self) -> Vec<String> {
        let text = fs::read_to_string(self.beside(".log")).unwrap_or_default();
        let _ = fs::remove_file(self.beside(".log"));
        text.lines().map(str::to_owned).collect()
    }

    /// At the next passing of `point`, once, `action` happens: `kill`, `panic`, or `pause:` and milliseconds.
    pub fn arm(&self, point: &str, action: &str) -> Result<()> {
        self.disarm();
        self.write(&format!("{point}={action}\n"))
    }

    /// Whether what [`Self::arm`] prepared has happened.
    pub fn was_hit(&self) -> bool {
        self.beside(".hit").exists()
    }

    /// Waits until it has happened.
    pub async fn hit(&self) -> Result<()> {
        until(Duration::from_secs(10), "the failpoint is not reached", || self.was_hit()).await
    }

    /// Nothing happens any more.
    pub fn disarm(&self) {
        for file in [self.file.clone(), self.beside(".hit"), self.beside(".log")] {
            let _ = fs::remove_file(file);
        }
    }

    fn write(&self, text: &str) -> Result<()> {
        // Whole or not at all: shims read it at any moment.
        let new = self.beside(".new");
        fs::write(&new, text)?;
        fs::rename(new, &self.file).context("arm the failpoints")
    }
}

impl Drop for Failpoints {
    fn drop(&mut self) {
        self.disarm();
    }
}

/// Waits for something that no event tells.
pub async fn until(patience: Duration, complaint: &str, so: impl Fn() -> bool) -> Result<()> {
    let end = Instant::now() + crate::patience(patience);
    while !so() {
        if Instant::now() > end {
            bail!("{complaint}");
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

/// The processes of Mooring that work for a sandbox: its shim, or `delete` and the finisher.
pub fn shims_of(id: &str) -> Vec<Process> {
    let ours = |one: &Process| {
        one.command.contains("containerd-shim-mooring-") && one.command.contains(id)
    };
    all_processes().into_iter().filter(ours).collect()
}

/// All shims that serve: those that their starter has left to themselves.
pub fn daemons() -> Vec<Process> {
    let orphan = |one: &Process| {
        let status = fs::read_to_string(format!("/proc/{}/status", one.pid)).unwrap_or_default();
        status.lines().any(|line| line == "PPid:\t1")
    };
    let ours = |one: &Process| {
        one.command.contains("containerd-shim-mooring-") && one.command.ends_with("start")
    };
    all_processes().into_iter().filter(|one| ours(one) && orphan(one)).collect()
}

/// Whether containerd has connected to a shim. When one dies before that, nobody is told and no `delete` is run.
pub fn is_known(shim: &Process) -> bool {
    let all = fs::read_to_string("/proc/net/unix").unwrap_or_default();
    // What is accepted bears the listener's path, and is in state 3.
    let accepted: Vec<String> = all
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter(|line| line.get(5) == Some(&"03"))
        .filter(|line| line.get(7).is_some_and(|path| path.starts_with("/run/containerd/s/")))
        .map(|line| format!("socket:[{}]", line[6]))
        .collect();
    let open = fs::read_dir(format!("/proc/{}/fd", shim.pid)).into_iter().flatten().flatten();
    open.filter_map(|one| fs::read_link(one.path()).ok()?.into_os_string().into_string().ok())
        .any(|one| accepted.contains(&one))
}

/// The shim of a sandbox.
pub fn shim_of(id: &str) -> Result<Process> {
    let all = shims_of(id);
    let shim = all.into_iter().find(|one| !one.command.ends_with("delete"));
    shim.with_context(|| format!("sandbox {id} has no shim"))
}

/// Kills the shim of a sandbox as the kernel would.
pub fn kill_shim(id: &str) -> Result<()> {
    kill(Pid::from_raw(shim_of(id)?.pid), Signal::SIGKILL).context("kill the shim")
}

/// Whether there is a process of this number; one that has ended and not been waited for still is.
pub fn lives(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

/// Waits until no process of Mooring works for the sandbox.
pub async fn nobody_works_for(id: &str, patience: Duration) -> Result<()> {
    until(patience, &format!("somebody still works for sandbox {id}"), || shims_of(id).is_empty())
        .await
}

/// The state folder of a sandbox.
pub fn state_dir(namespace: &str, id: &str) -> PathBuf {
    Path::new("/var/lib/mooring").join(namespace).join(id)
}

/// A sandbox's journal as it is on disk.
pub fn journal(namespace: &str, id: &str) -> Result<Value> {
    let text = fs::read(state_dir(namespace, id).join("journal.json")).context("the journal")?;
    Ok(serde_json::from_slice(&text)?)
}

/// The teardown's steps that the journal calls done.
pub fn done(namespace: &str, id: &str) -> Result<Vec<String>> {
    let journal = journal(namespace, id)?;
    let done = journal.get("done").and_then(Value::as_array).context("no list of done steps")?;
    Ok(done.iter().filter_map(Value::as_str).map(str::to_owned).collect())
}

/// A step of a teardown, as the shim's log tells of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Logged {
    /// The step's name.
    pub step: String,
    /// What became of it.
    pub outcome: String,
    /// How long it took, in milliseconds.
    pub ms: String,
}

/// The steps of a sandbox's teardown that a log tells of, in order.
pub fn steps_in(log: &str, id: &str) -> Vec<Logged> {
    let word = |line: &str, key: &str| {
        let rest = line.split_once(&format!("{key}="))?.1;
        let end = rest.find(|c: char| c.is_whitespace() || c == '"' || c == '\\');
        Some(rest[..end.unwrap_or(rest.len())].to_owned())
    };
    let lines = log.lines().filter(|line| line.contains("teardown step"));
    let ours = lines.filter(|line| line.contains(&format!("sandbox={id} ")));
    let parse = |line: &str| {
        let (step, outcome) = (word(line, "step")?, word(line, "outcome")?);
        Some(Logged { step, outcome, ms: word(line, " ms").unwrap_or_default() })
    };
    ours.filter_map(parse).collect()
}

/// The steps that the node's log tells of, each with its outcome, in order.
pub fn logged_steps(node: &Node, id: &str) -> Vec<(String, String)> {
    steps_in(&node.log(), id).into_iter().map(|one| (one.step, one.outcome)).collect()
}

/// Fails where a step that was done is done again.
pub fn no_step_twice(steps: &[(String, String)]) -> Result<()> {
    for (index, (step, _)) in steps.iter().enumerate() {
        let earlier = steps.get(..index).unwrap_or_default();
        if earlier.iter().any(|(other, outcome)| other == step && outcome != "failed") {
            bail!("step {step} ran again after it was done: {steps:?}");
        }
    }
    Ok(())
}

/// Runs `delete` for a sandbox as containerd does when a shim is gone; how long it took to answer.
pub async fn delete(node: &Node, namespace: &str, id: &str) -> Result<Duration> {
    let state = node.folder().join("state/io.containerd.sandbox.controller.v1.shim");
    delete_in(node, namespace, id, &state.join(namespace).join(id)).await
}

/// The same for whatever has this bundle.
pub async fn delete_in(node: &Node, namespace: &str, id: &str, bundle: &Path) -> Result<Duration> {
    let mut command =
        tokio::process::Command::new(node.folder().join("bin/containerd-shim-mooring-v1"));
    command.arg("-namespace").arg(namespace).arg("-address").arg(node.socket());
    command.arg("-id").arg(id).arg("-bundle").arg(bundle).arg("delete");
    command.env("TTRPC_ADDRESS", node.folder().join("c.sock.ttrpc"));
    command.env("GRPC_ADDRESS", node.socket()).env("NAMESPACE", namespace);
    command.env("MOORING_FAILPOINTS", node.failpoints());
    command.stdin(std::process::Stdio::null()).kill_on_drop(true);
    let begun = Instant::now();
    let output = tokio::time::timeout(crate::patience(Duration::from_secs(20)), command.output());
    let output = output.await.context("delete does not answer")??;
    if !output.status.success() {
        bail!("delete: {}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(begun.elapsed())
}
