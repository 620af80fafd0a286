//! The command line: runc's, as far as this runtime goes.

use std::path::PathBuf;

use crate::error::{Error, Result};

/// What precedes the verb.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Global {
    pub root: Option<PathBuf>,
    pub log: Option<PathBuf>,
    pub log_is_json: bool,
    pub systemd_cgroup: bool,
}

/// What follows the verb.
#[expect(clippy::struct_excessive_bools, reason = "flags of a command line")]
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Local {
    pub bundle: Option<PathBuf>,
    pub pid_file: Option<PathBuf>,
    pub console_socket: Option<PathBuf>,
    pub process: Option<PathBuf>,
    pub resources: Option<PathBuf>,
    pub preserve_fds: u32,
    pub no_pivot: bool,
    pub no_new_keyring: bool,
    pub detach: bool,
    pub all: bool,
    pub force: bool,
    pub tty: bool,
    pub quiet: bool,
    pub no_new_privileges: bool,
    /// `UID[:GID]`.
    pub user: Option<String>,
    pub groups: Vec<String>,
    pub capabilities: Vec<String>,
    pub cwd: Option<String>,
    pub env: Vec<String>,
    pub format: Option<String>,
    /// The container's name, and what follows it.
    pub rest: Vec<String>,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Call {
    pub global: Global,
    pub verb: String,
    pub local: Local,
}

/// Splits `--flag=value` and `-flag value` alike.
fn flag(argument: &str) -> Option<(&str, Option<&str>)> {
    let name = argument.strip_prefix("--").or_else(|| argument.strip_prefix('-'))?;
    if name.is_empty() {
        return None;
    }
    Some(name.split_once('=').map_or((name, None), |(name, value)| (name, Some(value))))
}

fn boolean(name: &str, value: Option<&str>) -> Result<bool> {
    match value {
        None | Some("true" | "1") => Ok(true),
        Some("false" | "0") => Ok(false),
        Some(value) => {
            Err(Error::invalid(format!("flag --{name}: {value:?} is neither true nor false")))
        }
    }
}

/// Reads the arguments after `oci`.
pub fn parse(arguments: impl IntoIterator<Item = String>) -> Result<Call> {
    let mut call = Call::default();
    let mut rest = arguments.into_iter();
    while let Some(argument) = rest.next() {
        let Some((name, given)) = flag(&argument).filter(|_| call.local.rest.is_empty()) else {
            if call.verb.is_empty() {
                call.verb = argument;
            } else if argument != "--" || call.local.rest.is_empty() {
                call.local.rest.push(argument);
            }
            continue;
        };
        let mut value = || match given {
            Some(value) => Ok(value.to_owned()),
            None => {
                rest.next().ok_or_else(|| Error::invalid(format!("flag --{name} needs a value")))
            }
        };
        let local = &mut call.local;
        match (call.verb.as_str(), name) {
            ("", "root") => call.global.root = Some(value()?.into()),
            ("", "log") => call.global.log = Some(value()?.into()),
            ("", "log-format") => call.global.log_is_json = value()? == "json",
            ("", "systemd-cgroup") => call.global.systemd_cgroup = boolean(name, given)?,
            ("", "debug") => drop(boolean(name, given)?),
            ("", "version" | "v") => call.verb = "version".into(),
            ("create" | "run", "bundle" | "b") => local.bundle = Some(value()?.into()),
            ("create" | "run", "no-pivot") => local.no_pivot = boolean(name, given)?,
            ("create" | "run", "no-new-keyring") => local.no_new_keyring = boolean(name, given)?,
            ("create" | "exec" | "run", "pid-file") => local.pid_file = Some(value()?.into()),
            ("create" | "exec" | "run", "console-socket") => {
                local.console_socket = Some(value()?.into());
            }
            ("create" | "exec" | "run", "preserve-fds") => {
                let text = value()?;
                local.preserve_fds = text
                    .parse()
                    .map_err(|_| Error::invalid(format!("--preserve-fds: {text:?}")))?;
            }
            ("exec" | "run", "detach" | "d") => local.detach = boolean(name, given)?,
            ("exec", "process" | "p") => local.process = Some(value()?.into()),
            ("exec", "tty" | "t") => local.tty = boolean(name, given)?,
            ("exec", "cwd") => local.cwd = Some(value()?),
            ("exec", "env" | "e") => local.env.push(value()?),
            ("exec", "user" | "u") => local.user = Some(value()?),
            ("exec", "additional-gids" | "g") => local.groups.push(value()?),
            ("exec", "cap" | "c") => local.capabilities.push(value()?),
            ("exec", "no-new-privs") => local.no_new_privileges = boolean(name, given)?,
            ("kill", "all" | "a") => local.all = boolean(name, given)?,
            ("delete", "force" | "f") => local.force = boolean(name, given)?,
            ("update", "resources" | "r") => local.resources = Some(value()?.into()),
            ("list", "quiet" | "q") => local.quiet = boolean(name, given)?,
            ("ps" | "list", "format" | "f") => local.format = Some(value()?),
            _ => return Err(Error::unsupported(format!("flag {argument:?} of {:?}", call.verb))),
        }
    }
    Ok(call)
}

impl Local {
    /// The container's name. One that could lead elsewhere in the file system is none.
    pub fn id(&self) -> Result<&str> {
        let id = self.rest.first().map(String::as_str).unwrap_or_default();
        let valid = !id.is_empty()
            && id.len() <= 1024
            && id != "."
            && id != ".."
            && id.chars().all(|one| one.is_ascii_alphanumeric() || "_+-.".contains(one));
        if valid { Ok(id) } else { Err(Error::invalid(format!("invalid container ID {id:?}"))) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<Call> {
        parse(line.split(' ').map(str::to_owned))
    }

    #[test]
    fn the_calls_that_the_shim_makes_are_read() {
        let call = read("--root /r --log /l --log-format json --systemd-cgroup create --bundle /b --pid-file /p --no-pivot --no-new-keyring --console-socket /c id1").unwrap();
        assert_eq!(call.verb, "create");
        assert!(call.global.log_is_json && call.global.systemd_cgroup);
        assert!(call.local.no_pivot && call.local.no_new_keyring);
        assert_eq!(call.local.id().unwrap(), "id1");
        let call = read("--root /r update --resources=- id1").unwrap();
        assert_eq!(call.local.resources, Some("-".into()));
        let call = read("kill --all id1 9").unwrap();
        assert!(call.local.all);
        assert_eq!(call.local.rest, ["id1", "9"]);
        let call = read("exec -t id1 sh -c -x").unwrap();
        assert_eq!(call.local.rest, ["id1", "sh", "-c", "-x"]);
    }

    #[test]
    fn what_is_not_known_is_refused_by_name() {
        for (line, said) in [
            ("--rootless=true list", "--rootless"),
            ("checkpoint --image-path /x a", "--image-path"),
            ("--root", "needs a value"),
            ("kill --all=perhaps a", "perhaps"),
        ] {
            let error = read(line).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
    }

    #[test]
    fn a_name_that_leads_elsewhere_is_none() {
        for id in ["", ".", "..", "a/b", "../a", "a\0"] {
            let local = Local { rest: vec![id.into()], ..Local::default() };
            assert!(local.id().is_err(), "{id:?}");
        }
    }
}
