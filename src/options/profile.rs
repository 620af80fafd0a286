//! Profiles: tables of the node's configuration that the shim's own name chooses.
//!
//! containerd before 2.3.1 cannot pass options to a handler whose runtime is not runc's, and later versions cannot for
//! pods with a user namespace. It finds a shim by its runtime type though: `io.containerd.mooring-crun.v1` is the
//! program `containerd-shim-mooring-crun-v1`, a link to the shim, and stands for the table `[profile.crun]`.

use std::{ffi::OsStr, fmt, path::Path};

use toml::{Table, Value};

use super::value::Wrong;

/// The table of the node's configuration that holds the profiles.
pub(super) const TABLE: &str = "profile";
/// The name of the shim's program, before and behind the profile's.
const PROGRAM: (&str, &str) = ("containerd-shim-mooring", "-v1");

/// The name of a profile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile(String);

impl Profile {
    /// The profile that a program of this name or path stands for.
    pub fn of_program(program: &OsStr) -> Option<Self> {
        let name = Path::new(program).file_name()?.to_str()?;
        let name = name.strip_prefix(PROGRAM.0)?.strip_suffix(PROGRAM.1)?.strip_prefix('-')?;
        (!name.is_empty()).then(|| Self(name.to_owned()))
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Takes the profiles out of a configuration: what is left are the keys for every handler. Answers the table of
/// `profile`, or what is wrong with it.
pub(super) fn take(values: &mut Table, profile: Option<&Profile>) -> Result<Option<Table>, Wrong> {
    let mut all = match values.remove(TABLE) {
        None => Table::new(),
        Some(Value::Table(all)) => all,
        Some(other) => {
            return Err(Wrong::Profiles(other.type_str()));
        }
    };
    let Some(profile) = profile else { return Ok(None) };
    match all.remove(&profile.0) {
        Some(Value::Table(table)) => Ok(Some(table)),
        Some(other) => {
            Err(Wrong::Profile { profile: profile.to_string(), found: other.type_str() })
        }
        None => Err(Wrong::NoProfile { table: TABLE, profile: profile.to_string() }),
    }
}

/// The profiles of a configuration.
pub(super) fn all(values: &Table) -> Vec<Profile> {
    let tables = values.get(TABLE).and_then(Value::as_table).into_iter().flatten();
    tables.map(|(name, _)| Profile(name.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_programs_name_tells_the_profile() {
        for (program, profile) in [
            ("containerd-shim-mooring-v1", None),
            ("/usr/local/bin/containerd-shim-mooring-v1", None),
            ("/opt/bin/containerd-shim-mooring-crun-v1", Some("crun")),
            ("containerd-shim-mooring-kata-like-v1", Some("kata-like")),
            ("containerd-shim-mooring--v1", None),
            ("containerd-shim-runc-v2", None),
            ("", None),
        ] {
            let found = Profile::of_program(OsStr::new(program));
            assert_eq!(found.as_ref().map(|one| one.0.as_str()), profile, "{program}");
        }
    }
}
