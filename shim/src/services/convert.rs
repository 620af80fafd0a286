//! Messages and the library's types, each in the other's words.

use std::time::SystemTime;

use containerd_shim_protos::{
    api::CheckpointTaskRequest,
    protobuf::{
        Message, MessageField, UnknownValueRef,
        well_known_types::{any::Any, timestamp::Timestamp},
    },
    shim::oci::CheckpointOptions,
    types::mount::Mount as WireMount,
};
use mooring::{
    error::{Code, Coded},
    mounts::Mount,
    options::AnyValue,
    runtime::checkpoint::Kept,
};
use thiserror::Error;

use crate::task::CheckpointRequest;

/// The options of a checkpoint.
const CHECKPOINT_OPTIONS: &str = "containerd.runc.v1.CheckpointOptions";

/// A time as messages carry it.
pub fn timestamp(at: SystemTime) -> MessageField<Timestamp> {
    MessageField::some(at.into())
}

/// A mount of a root file system.
pub fn mount(mount: WireMount) -> Mount {
    Mount {
        kind: mount.type_,
        source: mount.source,
        target: Some(mount.target).filter(|target| !target.is_empty()).map(Into::into),
        options: mount.options,
    }
}

/// A message of any type, as the library takes it.
pub fn value(any: Any) -> AnyValue {
    AnyValue { type_url: any.type_url, value: any.value }
}

/// The number of the field `parent_path`, which the protos crate does not know yet.
const PARENT_PATH: u32 = 10;

/// Options that are none.
#[derive(Debug, Error)]
pub enum BadOptions {
    #[error("checkpoint options of unknown type {0:?}")]
    Type(String),
    #[error("checkpoint options: {0}")]
    Message(#[from] containerd_shim_protos::protobuf::Error),
}

impl Coded for BadOptions {
    fn code(&self) -> Code {
        Code::InvalidArgument
    }
}

/// What a checkpoint is made with.
pub fn checkpoint(request: CheckpointTaskRequest) -> Result<CheckpointRequest, BadOptions> {
    let given = value(request.options.into_option().unwrap_or_default());
    let options = match given.type_name() {
        "" if given.value.is_empty() => CheckpointOptions::default(),
        CHECKPOINT_OPTIONS => CheckpointOptions::parse_from_bytes(&given.value)?,
        _ => return Err(BadOptions::Type(given.type_url)),
    };
    let parent = match options.special_fields.unknown_fields().get(PARENT_PATH) {
        Some(UnknownValueRef::LengthDelimited(text)) => String::from_utf8_lossy(text).into_owned(),
        _ => String::new(),
    };
    // containerd names the same folder in both, where the client has named one.
    let images = if request.path.is_empty() { options.image_path } else { request.path };
    Ok(CheckpointRequest {
        images,
        work: options.work_path,
        parent,
        exit: options.exit,
        kept: Kept {
            open_tcp: options.open_tcp,
            external_unix_sockets: options.external_unix_sockets,
            terminal: options.terminal,
            file_locks: options.file_locks,
            empty_namespaces: options.empty_namespaces,
        },
        cgroups_mode: options.cgroups_mode,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(type_url: &str, options: &CheckpointOptions) -> CheckpointTaskRequest {
        let value = options.write_to_bytes().unwrap();
        let options =
            MessageField::some(Any { type_url: type_url.into(), value, ..Any::default() });
        CheckpointTaskRequest { options, ..CheckpointTaskRequest::default() }
    }

    #[test]
    fn every_option_of_a_checkpoint_is_read() {
        let mut options = CheckpointOptions {
            exit: true,
            open_tcp: true,
            external_unix_sockets: true,
            terminal: true,
            file_locks: true,
            empty_namespaces: vec!["network".into()],
            cgroups_mode: "full".into(),
            image_path: "/images".into(),
            work_path: "/work".into(),
            ..CheckpointOptions::default()
        };
        let unknown = options.special_fields.mut_unknown_fields();
        unknown.add_length_delimited(PARENT_PATH, b"../parent".to_vec());
        let read = checkpoint(request(CHECKPOINT_OPTIONS, &options)).unwrap();
        assert_eq!((&*read.images, &*read.work, &*read.parent), ("/images", "/work", "../parent"));
        assert!(read.exit && read.cgroups_mode == "full");
        let kept = Kept {
            open_tcp: true,
            external_unix_sockets: true,
            terminal: true,
            file_locks: true,
            empty_namespaces: vec!["network".into()],
        };
        assert_eq!(read.kept, kept);
        let mut named = request(CHECKPOINT_OPTIONS, &options);
        named.path = "/other".into();
        assert_eq!(checkpoint(named).unwrap().images, "/other");
    }

    #[test]
    fn no_options_are_the_defaults_and_others_are_refused() {
        let none = CheckpointTaskRequest { path: "/images".into(), ..Default::default() };
        let read = checkpoint(none).unwrap();
        assert!(!read.exit && read.kept == Kept::default() && read.images == "/images");
        let other = request("containerd.runc.v1.Options", &CheckpointOptions::default());
        assert!(matches!(checkpoint(other), Err(BadOptions::Type(_))));
        let mut torn = request(CHECKPOINT_OPTIONS, &CheckpointOptions::default());
        torn.options.mut_or_insert_default().value = vec![0x0a];
        assert!(matches!(checkpoint(torn), Err(BadOptions::Message(_))));
    }
}
