//! `-info` and `-v`: what this runtime is, and what its OCI runtime can do.

use std::{io, path::Path, time::Duration};

use containerd_shim_protos::{
    protobuf::{Message, MessageField, well_known_types::any::Any},
    types::introspection::{RuntimeInfo, RuntimeVersion},
};
use mooring::{
    options::{self, AnyValue, Options, Profile},
    process::{self, Reaper},
    runtime::program,
};
use thiserror::Error;
use tokio::time::Instant;

use crate::boot;

/// The type of the features, which are JSON.
const FEATURES: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";
/// How long the OCI runtime may think about its features.
const PATIENCE: Duration = Duration::from_secs(5);

/// The runtime cannot be described.
#[derive(Debug, Error)]
pub enum Error {
    /// The options cannot be read.
    #[error(transparent)]
    Input(#[from] boot::Error),
    /// The options cannot be used.
    #[error(transparent)]
    Options(#[from] options::Error),
    /// The kernel refused something that every process may have.
    #[error("prepare to run the OCI runtime: {0}")]
    Io(#[from] io::Error),
    /// The answer cannot be encoded.
    #[error("encode the answer: {0}")]
    Encode(#[from] containerd_shim_protos::protobuf::Error),
}

/// The text of `-v`.
pub fn version() -> String {
    let mut text = format!("{} {}", env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"));
    if let Some(revision) = option_env!("MOORING_REVISION") {
        text.extend([" ", revision]);
    }
    text.push('\n');
    text
}

/// The answer of `-info`, encoded.
pub fn run(profile: Option<&Profile>) -> Result<Vec<u8>, Error> {
    let given = boot::read_options()?;
    let (options, _) = Options::load(profile, given.as_ref())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let features = runtime.block_on(async {
        let reaper = Reaper::start()?;
        Ok::<_, io::Error>(features(&reaper, &options.runtime.binary).await)
    })?;
    Ok(describe(options.runtime_type(), given, features).write_to_bytes()?)
}

/// The features of the OCI runtime; an old one does not know the question.
async fn features(reaper: &Reaper, binary: &Path) -> Option<Vec<u8>> {
    let mut command = program(binary);
    command.arg("features");
    let deadline = Some(Instant::now() + PATIENCE);
    let output = Box::pin(process::run(reaper, &mut command, b"", deadline)).await.ok()?;
    let json = serde_json::from_slice::<serde_json::Value>(&output.stdout);
    (output.exit.status == 0 && json.is_ok_and(|json| json.is_object())).then_some(output.stdout)
}

fn describe(name: String, options: Option<AnyValue>, features: Option<Vec<u8>>) -> RuntimeInfo {
    let any = |type_url: String, value| Any { type_url, value, ..Any::default() };
    let version = RuntimeVersion {
        version: env!("CARGO_PKG_VERSION").into(),
        revision: option_env!("MOORING_REVISION").unwrap_or_default().into(),
        ..RuntimeVersion::default()
    };
    RuntimeInfo {
        name,
        version: MessageField::some(version),
        options: options.map(|options| any(options.type_url, options.value)).into(),
        features: features.map(|features| any(FEATURES.into(), features)).into(),
        ..RuntimeInfo::default()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    async fn features_of(script: &str) -> Option<Vec<u8>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("runtime");
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        features(&Reaper::start().unwrap(), &path).await
    }

    #[tokio::test]
    async fn features_are_passed_on_and_their_absence_is_no_error() {
        let said =
            features_of("[ \"$*\" = features ] && echo '{\"ociVersionMin\":\"1.0.0\"}'").await;
        assert_eq!(said.unwrap(), b"{\"ociVersionMin\":\"1.0.0\"}\n");
        assert_eq!(features_of("echo '{}'; exit 1").await, None);
        assert_eq!(features_of("echo garbage").await, None);
        let reaper = Reaper::start().unwrap();
        assert_eq!(features(&reaper, Path::new("/nonexistent/runc")).await, None);
    }

    #[test]
    fn the_options_are_echoed() {
        let options = AnyValue { type_url: "a.B".into(), value: vec![1] };
        let info = describe("a".into(), Some(options), Some(b"{}".to_vec()));
        assert_eq!(info.options.type_url, "a.B");
        assert_eq!(info.features.type_url, FEATURES);
        assert!(describe("a".into(), None, None).features.is_none());
    }
}
