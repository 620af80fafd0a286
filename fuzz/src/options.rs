//! The options: the node's config.toml, and what containerd passes of a handler's, in every form that they arrive in.

use std::{path::Path, time::Duration};

use mooring::options::{AnyValue, Options, Profile, is_options_type};
use prost::Message;

use crate::scratch;

const RUNC: &str = "containerd.runc.v1.Options";
const GENERIC: &str = "runtimeoptions.v1.Options";
const NO_FILE: &str = "/nonexistent/config.toml";
/// The shim by a name that stands for a profile.
const PROGRAM: &str = "containerd-shim-mooring-crun-v1";

/// `runtimeoptions.v1.Options`, as CRI sends it to a runtime that it does not know.
#[derive(Clone, PartialEq, Message)]
struct Generic {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(string, tag = "2")]
    config_path: String,
    #[prost(bytes = "vec", tag = "3")]
    config_body: Vec<u8>,
}

pub fn options(input: &[u8]) {
    let folder = scratch::folder();
    let file = folder.join("config.toml");
    scratch::write(&file, input);
    let by_file = Options::load_from(&file, None, None);
    let body = Generic { config_body: input.to_vec(), ..Generic::default() };
    let by_body = given(GENERIC, body.encode_to_vec());
    let path = Generic { config_path: file.display().to_string(), ..Generic::default() };
    let by_path = given(GENERIC, path.encode_to_vec());
    match (&by_file, &by_body, &by_path) {
        (Ok((one, unknown)), Ok((two, of_body)), Ok((three, _))) => {
            assert!(one == two && one == three, "one text, two meanings");
            // Profiles are tables of the node's file alone.
            let of_body = of_body.iter().filter(|text| !text.contains("\"profile\""));
            assert_eq!(unknown.len(), of_body.count());
        }
        // The message has text that is not UTF-8 made so, which a key or a comment may then be.
        (Err(error), _, _) => assert!(error.to_string().contains("config.toml"), "{error}"),
        (_, Err(error), _) | (_, _, Err(error)) => panic!("only in a message: {error}"),
    }
    let profile = Profile::of_program(PROGRAM.as_ref());
    let by_profile = Options::load_from(&file, profile.as_ref(), None);
    if let Err(error) = &by_profile {
        assert!(error.to_string().contains("config.toml"), "{error}");
    }
    let by_message = given(RUNC, input.to_vec());
    let of_any = prost_types::Any::decode(input).ok().and_then(|any| {
        let is_options = is_options_type(&any.type_url);
        let read = given(&any.type_url, any.value.clone());
        assert!(is_options || read.is_err() || (any.type_url.is_empty() && any.value.is_empty()));
        read.ok()
    });
    let all = [by_file.ok(), by_profile.ok(), by_body.ok(), by_path.ok(), by_message.ok(), of_any];
    for (options, unknown) in all.iter().flatten() {
        can_be_used(options);
        assert!(unknown.iter().all(|text| text.contains("unknown option")), "{unknown:?}");
    }
}

fn given(url: &str, value: Vec<u8>) -> Result<(Options, Vec<String>), mooring::options::Error> {
    let any = AnyValue { type_url: url.into(), value };
    let read = Options::load_from(Path::new(NO_FILE), None, Some(&any));
    if let Err(error) = &read {
        let text = error.to_string();
        assert!(text.contains("option") || text.contains("configuration"), "{text}");
    }
    read
}

/// What nothing that is done with them checks again.
fn can_be_used(options: &Options) {
    let Options { runtime, network, state_root, run_root, containerd_timeout, .. } = options;
    let paths = [&runtime.root, &network.conf_dir, &network.cache_dir, state_root, run_root];
    assert!(paths.into_iter().chain(&network.bin_dirs).all(|path| path.is_absolute()));
    assert!(!runtime.binary.as_os_str().is_empty());
    let day = Duration::from_hours(24);
    assert!([runtime.timeout, network.timeout, *containerd_timeout].iter().all(|t| *t <= day));
    assert!(!runtime.timeout.is_zero());
    assert!((1..16).contains(&network.ifname.len()) && !network.ifname.contains(['/', ':']));
}
