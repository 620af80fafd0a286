//! What containerd writes to standard input: options, or bootstrap parameters, which hold them.

use std::{
    io::{self, Read},
    os::fd::AsFd,
    path::PathBuf,
};

use containerd_shim_protos::{
    bootstrap_api::BootstrapParams,
    protobuf::{self, Message, well_known_types::any::Any},
};
use log::LevelFilter;
use mooring::{
    id::Id,
    options::{AnyValue, is_options_type},
};
use thiserror::Error;

/// The most that is read.
const INPUT_LIMIT: u64 = 10 << 20;

/// Standard input is no use.
#[derive(Debug, Error)]
pub enum Error {
    #[error("read the runtime options from standard input: {0}")]
    Read(io::Error),
    #[error("standard input holds more than {INPUT_LIMIT} bytes")]
    TooLong,
    #[error("standard input holds no runtime options: {0}")]
    Options(protobuf::Error),
}

/// Reads all of standard input, which may be closed, empty, or a terminal on which nobody is going to type protobuf.
pub fn read_input(from: impl Read + AsFd) -> Result<Vec<u8>, Error> {
    if nix::unistd::isatty(from.as_fd()).unwrap_or(false) {
        return Ok(Vec::new());
    }
    let mut input = Vec::new();
    match from.take(INPUT_LIMIT + 1).read_to_end(&mut input) {
        Ok(_) if input.len() as u64 > INPUT_LIMIT => Err(Error::TooLong),
        Ok(_) => Ok(input),
        Err(error) if error.raw_os_error() == Some(nix::libc::EBADF) => Ok(Vec::new()),
        Err(error) => Err(Error::Read(error)),
    }
}

/// Reads the options that `-info` gets, in the same bounds.
pub fn read_options() -> Result<Option<AnyValue>, Error> {
    let input = read_input(io::stdin().lock())?;
    options(&input)
}

fn options(input: &[u8]) -> Result<Option<AnyValue>, Error> {
    if input.is_empty() {
        return Ok(None);
    }
    Any::parse_from_bytes(input).map(value).map(Some).map_err(Error::Options)
}

fn value(any: Any) -> AnyValue {
    AnyValue { type_url: any.type_url, value: any.value }
}

#[derive(Debug, Default, PartialEq)]
pub struct Boot {
    pub options: Option<AnyValue>,
    pub level: Option<LevelFilter>,
    pub ttrpc_address: Option<PathBuf>,
    pub grpc_address: Option<PathBuf>,
    pub socket_folder: Option<PathBuf>,
    /// Whether these were bootstrap parameters.
    pub bootstrap: bool,
}

impl Boot {
    /// Each message parses as the other by accident, so it is taken for bootstrap parameters only when it names
    /// what the command line names.
    pub fn read(input: &[u8], namespace: &Id, id: &Id) -> Result<Self, Error> {
        if let Ok(params) = BootstrapParams::parse_from_bytes(input)
            && params.instance_id == id.as_str()
            && params.namespace == namespace.as_str()
        {
            return Ok(Self::from_params(params));
        }
        Ok(Self { options: options(input)?, ..Self::default() })
    }

    fn from_params(params: BootstrapParams) -> Self {
        let path = |text: String| {
            let path = text.strip_prefix("unix://").unwrap_or(&text);
            (!path.is_empty()).then(|| path.into())
        };
        let options = params
            .extensions
            .into_iter()
            .filter_map(|extension| extension.value.into_option())
            .find(|any| is_options_type(&any.type_url));
        Self {
            options: options.map(value),
            level: Some(match params.log_level.value() {
                ..=-8 => LevelFilter::Trace,
                -7..=-1 => LevelFilter::Debug,
                0..=3 => LevelFilter::Info,
                4..=7 => LevelFilter::Warn,
                8.. => LevelFilter::Error,
            }),
            ttrpc_address: path(params.containerd_ttrpc_address),
            grpc_address: path(params.containerd_grpc_address),
            socket_folder: params.socket_dir.and_then(path),
            bootstrap: true,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use containerd_shim_protos::{bootstrap_api::Extension, protobuf::MessageField};

    use super::*;

    fn any() -> Any {
        Any { type_url: "runtimeoptions.v1.Options".into(), value: vec![1, 2], ..Any::default() }
    }

    fn params() -> BootstrapParams {
        let other = Any { type_url: "some.Config".into(), ..Any::default() };
        let extension = |any| Extension { value: MessageField::some(any), ..Extension::default() };
        let mut params = BootstrapParams {
            instance_id: "pod".into(),
            namespace: "k8s.io".into(),
            containerd_ttrpc_address: "unix:///run/c.ttrpc".into(),
            containerd_grpc_address: "/run/c".into(),
            extensions: vec![extension(other), extension(any())],
            socket_dir: Some("/run/s".into()),
            ..BootstrapParams::default()
        };
        params.log_level = containerd_shim_protos::bootstrap_api::LogLevel::LOG_LEVEL_DEBUG.into();
        params
    }

    fn read(input: &[u8], id: &str) -> Boot {
        Boot::read(input, &Id::new("k8s.io").unwrap(), &Id::new(id).unwrap()).unwrap()
    }

    #[test]
    fn options_alone_are_taken_as_options() {
        let boot = read(&any().write_to_bytes().unwrap(), "pod");
        assert_eq!(boot, Boot { options: Some(value(any())), ..Boot::default() });
        assert_eq!(read(b"", "pod"), Boot::default());
    }

    #[test]
    fn bootstrap_parameters_are_taken_when_they_name_this_start() {
        let boot = read(&params().write_to_bytes().unwrap(), "pod");
        assert_eq!(boot.options, Some(value(any())));
        assert_eq!(boot.level, Some(LevelFilter::Debug));
        assert_eq!(boot.ttrpc_address, Some("/run/c.ttrpc".into()));
        assert_eq!(boot.grpc_address, Some("/run/c".into()));
        assert_eq!(boot.socket_folder, Some("/run/s".into()));
    }

    #[test]
    fn bootstrap_parameters_of_another_start_are_not_believed() {
        let input = params().write_to_bytes().unwrap();
        let other = Boot::read(&input, &Id::new("k8s.io").unwrap(), &Id::new("other").unwrap());
        assert!(!matches!(other, Ok(Boot { socket_folder: Some(_), .. })));
    }

    #[test]
    fn endless_input_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("input");
        fs::File::create(&path).unwrap().set_len(INPUT_LIMIT + 1).unwrap();
        let read = read_input(fs::File::open(path).unwrap());
        assert!(matches!(read, Err(Error::TooLong)));
    }

    proptest::proptest! {
        #[test]
        fn no_input_makes_reading_panic(
            input in proptest::collection::vec(proptest::num::u8::ANY, 0..128)
        ) {
            let _ = Boot::read(&input, &Id::new("a").unwrap(), &Id::new("b").unwrap());
        }
    }
}
