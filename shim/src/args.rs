//! The command line, as containerd writes it: Go's flags, which have one dash, and one action.

use std::{ffi::OsString, path::PathBuf};

use mooring::{
    id::{Id, InvalidId},
    options::Profile,
};
use thiserror::Error;

/// What the binary is asked to do.
#[derive(Debug, PartialEq, Eq)]
pub enum Request {
    /// Start the shim of a sandbox or container, or find the one that serves it already.
    Start(Args),
    /// Clean up after a shim that is gone.
    Delete(Args),
    Info(Args),
    Version,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Args {
    /// What the program's name stands for.
    pub profile: Option<Profile>,
    pub namespace: Option<Id>,
    pub id: Option<Id>,
    pub address: PathBuf,
    /// The program that publishes events where there is no ttrpc address.
    pub publish_binary: PathBuf,
    /// The bundle; `start` has it as its working directory instead.
    pub bundle: PathBuf,
    /// Log what is only of use when looking for a fault.
    pub debug: bool,
}

/// The command line is wrong.
#[derive(Debug, Error)]
pub enum Error {
    /// A flag that nobody knows.
    #[error("unknown flag {0:?}")]
    UnknownFlag(String),
    /// A flag that wants a value and has none.
    #[error("flag -{0} needs a value")]
    NoValue(String),
    /// A flag that is either there or not has a value that is neither.
    #[error("flag -{flag}: {value:?} is neither true nor false")]
    NoBoolean { flag: String, value: String },
    /// A flag has a value that is no identifier.
    #[error("flag -{flag}: {source}")]
    Id {
        flag: &'static str,
        /// What is wrong with it.
        source: InvalidId,
    },
    /// The action cannot be done without this flag.
    #[error("{action} needs the flag -{flag}")]
    Missing { action: &'static str, flag: &'static str },
    /// The text is no UTF-8.
    #[error("argument {0:?} is not valid UTF-8")]
    Encoding(OsString),
    /// No action, or one that nobody knows.
    #[error("unknown action {0:?}: it is start or delete (containerd calls this program, not you)")]
    Action(String),
}

/// Reads the program's name and the arguments that follow it.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Request, Error> {
    let mut rest = arguments.into_iter();
    let profile = rest.next().and_then(|program| Profile::of_program(&program));
    let mut args = Args { profile, ..Args::default() };
    let (mut version, mut info) = (false, false);
    let mut action = None;
    while let Some(argument) = rest.next() {
        let argument = argument.into_string().map_err(Error::Encoding)?;
        // As in Go: the first argument that is no flag ends the flags, and so do two dashes.
        if argument == "--" {
            action = rest.next();
            break;
        }
        let Some(flag) = argument.strip_prefix('-').filter(|flag| !flag.is_empty()) else {
            action = Some(argument.into());
            break;
        };
        let flag = flag.strip_prefix('-').unwrap_or(flag);
        let (flag, given) = match flag.split_once('=') {
            Some((flag, value)) => (flag, Some(value.to_owned())),
            None => (flag, None),
        };
        let mut value = || match given.clone() {
            Some(value) => Ok(value),
            None => match rest.next() {
                Some(value) => value.into_string().map_err(Error::Encoding),
                None => Err(Error::NoValue(flag.to_owned())),
            },
        };
        match flag {
            "namespace" => args.namespace = Some(id("namespace", value()?)?),
            "id" => args.id = Some(id("id", value()?)?),
            "address" => args.address = value()?.into(),
            "publish-binary" => args.publish_binary = value()?.into(),
            "bundle" => args.bundle = value()?.into(),
            // Of old shims, which were told where to listen.
            "socket" => drop(value()?),
            "debug" => args.debug = boolean(flag, given.as_deref())?,
            "v" | "version" => version = boolean(flag, given.as_deref())?,
            "info" => info = boolean(flag, given.as_deref())?,
            _ => return Err(Error::UnknownFlag(argument)),
        }
    }
    if version {
        return Ok(Request::Version);
    }
    if info {
        return Ok(Request::Info(args));
    }
    let action = action.unwrap_or_default().into_string().map_err(Error::Encoding)?;
    match action.as_str() {
        "start" => check("start", args).map(Request::Start),
        "delete" => check("delete", args).map(Request::Delete),
        _ => Err(Error::Action(action)),
    }
}

fn check(action: &'static str, args: Args) -> Result<Args, Error> {
    for (flag, there) in [("namespace", args.namespace.is_some()), ("id", args.id.is_some())] {
        if !there {
            return Err(Error::Missing { action, flag });
        }
    }
    Ok(args)
}

fn id(flag: &'static str, text: String) -> Result<Id, Error> {
    Id::new(text).map_err(|source| Error::Id { flag, source })
}

/// Go's `strconv.ParseBool`, for a flag that may stand alone.
fn boolean(flag: &str, given: Option<&str>) -> Result<bool, Error> {
    match given {
        None | Some("1" | "t" | "T" | "true" | "TRUE" | "True") => Ok(true),
        Some("0" | "f" | "F" | "false" | "FALSE" | "False") => Ok(false),
        Some(value) => Err(Error::NoBoolean { flag: flag.to_owned(), value: value.to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use std::iter::once;

    use proptest::prelude::*;

    use super::*;

    const SHIM: &str = "/usr/bin/containerd-shim-mooring-v1";

    fn read(line: &str) -> Result<Request, Error> {
        parse(once(SHIM).chain(line.split_whitespace()).map(OsString::from))
    }

    #[test]
    fn containerds_start_is_understood() {
        let line = "-namespace k8s.io -address /run/containerd/containerd.sock -publish-binary /usr/bin/containerd \
                    -id 0f3 -debug start";
        let Request::Start(args) = read(line).unwrap() else { panic!("no start") };
        assert_eq!(args.namespace.unwrap().as_str(), "k8s.io");
        assert_eq!(args.id.unwrap().as_str(), "0f3");
        assert_eq!(args.address, PathBuf::from("/run/containerd/containerd.sock"));
        assert_eq!(args.publish_binary, PathBuf::from("/usr/bin/containerd"));
        assert!(args.debug && args.profile.is_none());
    }

    #[test]
    fn the_programs_name_stands_for_a_profile() {
        let line = ["/opt/containerd-shim-mooring-crun-v1", "-info"].map(OsString::from);
        let Request::Info(args) = parse(line).unwrap() else { panic!("no info") };
        assert_eq!(args.profile.unwrap().to_string(), "crun");
    }

    #[test]
    fn containerds_delete_is_understood() {
        let line = "-namespace=k8s.io --id=a --bundle /run/b -debug=false delete";
        let Request::Delete(args) = read(line).unwrap() else { panic!("no delete") };
        assert_eq!(args.bundle, PathBuf::from("/run/b"));
        assert!(!args.debug);
    }

    #[test]
    fn version_and_info_need_nothing_else() {
        assert_eq!(read("-v").unwrap(), Request::Version);
        assert_eq!(read("--version").unwrap(), Request::Version);
        assert_eq!(read("-info").unwrap(), Request::Info(Args::default()));
    }

    #[test]
    fn mistakes_are_named() {
        for (line, part) in [
            ("", "unknown action"),
            ("run", "\"run\""),
            ("-namespace a -id b restart", "\"restart\""),
            ("-colour red start", "-colour"),
            ("-id", "-id needs a value"),
            ("-id ../x -namespace a start", "-id: identifier"),
            ("-id a start", "-namespace"),
            ("-namespace a delete", "-id"),
            ("-debug=perhaps start", "perhaps"),
            ("-", "unknown action"),
        ] {
            let error = read(line).unwrap_err().to_string();
            assert!(error.contains(part), "{line:?}: {error}");
        }
    }

    proptest! {
        #[test]
        fn no_line_makes_reading_panic(line in proptest::collection::vec(".*", 0..6)) {
            let _ = parse(line.into_iter().map(OsString::from));
        }
    }
}
