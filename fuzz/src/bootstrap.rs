//! What containerd starts the shim with: command line, standard input, and the files of the bundle.
//!
//! An input is the arguments, one a line, then an empty line, then what comes on standard input.

use std::{ffi::OsString, os::unix::ffi::OsStringExt, path::Path};

use mooring::{id::Id, options::Options};
use mooring_shim::parts::{Boot, Request, group_of, parse, sandbox_of, socket_path};

use crate::scratch;

/// The length of a hash in hexadecimal: a socket's name.
const HASH: usize = 64;

pub fn bootstrap(input: &[u8]) {
    let end = input.windows(2).position(|pair| pair == b"\n\n").unwrap_or(input.len());
    let (lines, rest) = input.split_at(end);
    let given = rest.get(2..).unwrap_or_default();
    let arguments = lines.split(|byte| *byte == b'\n').map(|line| OsString::from_vec(line.into()));
    let program = [OsString::from("containerd-shim-mooring-v1")];
    let args = match parse(program.into_iter().chain(arguments)) {
        Ok(Request::Start(args)) => {
            assert!(args.namespace.is_some() && args.id.is_some());
            args
        }
        Ok(Request::Delete(args)) => return assert!(args.namespace.is_some() && args.id.is_some()),
        Ok(Request::Info(_) | Request::Version) => return,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    bundle(given);
    let (Some(namespace), Some(id)) = (args.namespace, args.id) else { return };
    let Ok(boot) = Boot::read(given, &namespace, &id) else { return };
    if !boot.bootstrap {
        assert!(boot.level.is_none() && boot.grpc_address.is_none());
        assert!(boot.ttrpc_address.is_none() && boot.socket_folder.is_none());
    }
    if let Some(options) = &boot.options {
        // Types that stand for no options are refused, not passed over.
        let _ = Options::load_from("/nonexistent/config.toml".as_ref(), None, Some(options));
    }
    let folder = boot.socket_folder.unwrap_or_else(|| "/run/containerd/s".into());
    let grpc = boot.grpc_address.unwrap_or(args.address);
    let socket = socket_path(&folder, &grpc, namespace.as_str(), id.as_str());
    assert_eq!(socket.parent(), Some(&*folder), "the socket leaves its folder");
    assert!(socket.file_name().is_some_and(|name| name.len() == HASH));
}

/// The bundle's files say whose shim it is: an id, or the start is refused.
fn bundle(text: &[u8]) {
    let folder = scratch::folder();
    let is_one_name = |id: &Id| Path::new(id.as_str()).components().count() == 1;
    scratch::write(&folder.join("sandbox"), text);
    scratch::write(&folder.join("config.json"), text);
    for found in [sandbox_of(&folder), group_of(&folder)] {
        match found {
            Ok(found) => assert!(found.iter().all(is_one_name)),
            Err(error) => {
                let text = error.to_string();
                assert!(text.contains("sandbox") || text.contains("config.json"), "{text}");
            }
        }
    }
}
