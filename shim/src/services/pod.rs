//! What the sandbox service calls.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use mooring::{
    error::{Code, Coded},
    options::AnyValue,
};

/// A mount as the library takes it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Mount {
    pub kind: String,
    pub source: String,
    pub target: Option<PathBuf>,
    pub options: Vec<String>,
}

#[derive(Debug, Default)]
pub struct CreateRequest {
    pub bundle: PathBuf,
    pub rootfs: Vec<Mount>,
    pub options: Option<AnyValue>,
    pub netns_path: Option<PathBuf>,
    pub annotations: HashMap<String, String>,
}

pub struct Started {
    pub pid: u32,
    pub created_at: SystemTime,
    pub spec: Option<AnyValue>,
}

pub struct Exit {
    pub status: u32,
    pub at: SystemTime,
}

pub struct Status {
    pub pid: u32,
    pub ready: bool,
    pub info: BTreeMap<String, String>,
    pub created_at: SystemTime,
    pub exited_at: Option<SystemTime>,
}

pub struct Metrics {
    pub at: SystemTime,
    pub data: AnyValue,
}

#[derive(Debug)]
pub struct Error {
    pub code: Code,
    pub message: String,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Coded for Error {
    fn code(&self) -> Code {
        self.code
    }
}

#[async_trait]
pub trait Pod: Send + Sync {
    async fn create(&self, request: CreateRequest) -> Result<(), Error>;
    async fn start(&self) -> Result<Started, Error>;
    async fn stop(&self, timeout: Option<Duration>) -> Result<(), Error>;
    async fn wait(&self) -> Result<Exit, Error>;
    async fn status(&self, verbose: bool) -> Result<Status, Error>;
    async fn ping(&self) -> Result<(), Error>;
    async fn metrics(&self) -> Result<Metrics, Error>;
    async fn shutdown(&self) -> Result<(), Error>;
    fn held(&self) -> bool;
}

pub struct Nothing;

fn none() -> Error {
    Error { code: Code::NotFound, message: "not found".into() }
}

#[async_trait]
impl Pod for Nothing {
    async fn create(&self, _: CreateRequest) -> Result<(), Error> {
        Err(none())
    }
    async fn start(&self) -> Result<Started, Error> {
        Err(none())
    }
    async fn stop(&self, _: Option<Duration>) -> Result<(), Error> {
        Ok(())
    }
    async fn wait(&self) -> Result<Exit, Error> {
        std::future::pending().await
    }
    async fn status(&self, _: bool) -> Result<Status, Error> {
        Err(none())
    }
    async fn ping(&self) -> Result<(), Error> {
        Err(none())
    }
    async fn metrics(&self) -> Result<Metrics, Error> {
        Err(none())
    }
    async fn shutdown(&self) -> Result<(), Error> {
        Ok(())
    }
    fn held(&self) -> bool {
        false
    }
}
