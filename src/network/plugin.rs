//! CNI plugins as a party outside: what is asked of one, and how it fails.

use std::{fmt, path::PathBuf};

use async_trait::async_trait;
use serde_json::Value;
use thiserror::Error;
use tokio::time::Instant;

use crate::{
    error::{Code, Coded},
    process::Failure,
};

/// What a plugin is asked to do: the value of `CNI_COMMAND`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    Add,
    Del,
    /// See whether the network can take containers.
    Status,
    /// Remove what belongs to no valid attachment.
    Gc,
}

impl Operation {
    /// The operation as plugins know it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Status => "STATUS",
            Self::Gc => "GC",
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The container that a call is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// `CNI_CONTAINERID`: the sandbox's id.
    pub container_id: String,
    /// `CNI_NETNS`; empty when the namespace is gone.
    pub netns: PathBuf,
    /// `CNI_IFNAME`.
    pub ifname: String,
    /// `CNI_ARGS`.
    pub args: Vec<(String, String)>,
}

/// One call of one plugin.
#[derive(Clone, Debug)]
pub struct Call {
    /// What it is asked to do.
    pub operation: Operation,
    /// The network it works for.
    pub network: String,
    /// Its type, which is the name of its program.
    pub plugin: String,
    /// Its configuration, for its standard input.
    pub config: Value,
    /// The container; STATUS and GC have none.
    pub target: Option<Target>,
    /// `CNI_PATH`.
    pub bin_dirs: Vec<PathBuf>,
}

#[async_trait]
pub trait CniPlugins: Send + Sync {
    /// Makes one call and gives what the plugin printed, `None` if that was nothing. A plugin that has not ended at
    /// the deadline is killed with all its children.
    async fn run(
        &self,
        call: &Call,
        deadline: Option<Instant>,
    ) -> Result<Option<Value>, PluginError>;
}

/// How one plugin call failed.
#[derive(Debug, Error)]
pub enum PluginError {
    /// The plugin says so itself, with the error object of the specification.
    #[error("{msg} (CNI code {code}){}", after_colon(details))]
    Reported {
        /// CNI's error code; from 100 on the plugin's own.
        code: u32,
        msg: String,
        /// More of it; may be empty.
        details: String,
    },
    /// There is no such program.
    #[error("no such plugin in {}", joined(bin_dirs))]
    Missing {
        /// The folders that were searched.
        bin_dirs: Vec<PathBuf>,
    },
    /// The type is no plain file name.
    #[error("the plugin type is no plain file name")]
    InvalidType,
    /// It was not ready in time.
    #[error("the deadline passed, the plugin was killed")]
    Deadline,
    /// It could not be run.
    #[error(transparent)]
    Run(Failure),
    /// It failed and did not say why in the form of the specification.
    #[error("exit status {status}{}", after_colon(stderr))]
    Died {
        /// The exit code, or 128 + the signal.
        status: i32,
        /// The end of what it printed on standard error, or else on standard output.
        stderr: String,
    },
    /// It claims success, but what it printed is no result.
    #[error("the answer is no CNI result ({reason}): {output:?}")]
    Garbage {
        /// What is wrong with it.
        reason: String,
        /// The beginning of what it printed.
        output: String,
    },
}

impl Coded for PluginError {
    // NotFound and Unavailable are avoided on purpose: containerd's CRI takes both as "stopped already".
    fn code(&self) -> Code {
        match self {
            Self::Deadline => Code::DeadlineExceeded,
            Self::Missing { .. } => Code::FailedPrecondition,
            Self::InvalidType => Code::InvalidArgument,
            _ => Code::Unknown,
        }
    }
}

fn after_colon(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!(": {text}") }
}

fn joined(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.to_string_lossy()).collect::<Vec<_>>().join(":")
}
