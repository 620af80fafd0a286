//! Values as a configuration has them.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use thiserror::Error;
use toml::Value;

use super::{NetworkOwner, time};
use crate::{keeper, network, runtime::criu};

/// What an option can be.
pub(super) trait Setting: Sized {
    fn read(value: &Value) -> Result<Self, Wrong>;
}

/// What is wrong with the value of an option.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Wrong {
    /// It is none that the option takes: the value, or what kind of thing it is.
    #[error("it is {wanted}, not {found}")]
    Value { wanted: &'static str, found: String },
    #[error("{} is not an absolute path", .0.display())]
    Relative(PathBuf),
    /// The profiles are no table of tables.
    #[error("a table for each profile is wanted, not a value of type {0}")]
    Profiles(&'static str),
    #[error("{profile} is a value of type {found}, not a table")]
    Profile { profile: String, found: &'static str },
    #[error("there is no [{table}.{profile}], which this shim's name stands for")]
    NoProfile { table: &'static str, profile: String },
}

fn wrong(wanted: &'static str, value: &Value) -> Wrong {
    let found = match value {
        Value::String(text) => format!("{text:?}"),
        Value::Integer(number) => number.to_string(),
        Value::Float(number) => number.to_string(),
        Value::Boolean(flag) => flag.to_string(),
        Value::Datetime(_) => "a date".into(),
        Value::Array(_) => "a list".into(),
        Value::Table(_) => "a table".into(),
    };
    Wrong::Value { wanted, found }
}

impl Setting for bool {
    fn read(value: &Value) -> Result<Self, Wrong> {
        value.as_bool().ok_or_else(|| wrong("true or false", value))
    }
}

impl Setting for u32 {
    fn read(value: &Value) -> Result<Self, Wrong> {
        let number = value.as_integer().and_then(|number| number.try_into().ok());
        number.ok_or_else(|| wrong("a number from 0 to 4294967295", value))
    }
}

impl Setting for usize {
    fn read(value: &Value) -> Result<Self, Wrong> {
        let number = value.as_integer().and_then(|number| number.try_into().ok());
        number.ok_or_else(|| wrong("a number, 0 or more", value))
    }
}

impl Setting for String {
    fn read(value: &Value) -> Result<Self, Wrong> {
        let text = value.as_str().ok_or_else(|| wrong("a text", value))?;
        Ok(text.to_owned())
    }
}

impl Setting for PathBuf {
    fn read(value: &Value) -> Result<Self, Wrong> {
        let path = value.as_str().filter(|path| Path::new(path).is_absolute());
        path.map(Self::from).ok_or_else(|| wrong("an absolute path", value))
    }
}

impl Setting for Vec<PathBuf> {
    fn read(value: &Value) -> Result<Self, Wrong> {
        let list = value.as_array().ok_or_else(|| wrong("a list of absolute paths", value))?;
        list.iter().map(PathBuf::read).collect()
    }
}

impl Setting for Duration {
    fn read(value: &Value) -> Result<Self, Wrong> {
        let time = match value {
            Value::Integer(seconds) => u64::try_from(*seconds).ok().map(Self::from_secs),
            Value::Float(seconds) => Self::try_from_secs_f64(*seconds).ok(),
            Value::String(text) => time::parse(text),
            _ => None,
        };
        let time = time.filter(|time| *time <= time::LONGEST);
        time.ok_or_else(|| {
            wrong("a length of time of at most 24h: seconds, or text such as \"1m30s\"", value)
        })
    }
}

impl Setting for NetworkOwner {
    fn read(value: &Value) -> Result<Self, Wrong> {
        match value.as_str() {
            Some("auto") => Ok(Self::Auto),
            Some("shim") => Ok(Self::Shim),
            Some("client") => Ok(Self::Client),
            _ => Err(wrong("\"auto\", \"shim\" or \"client\"", value)),
        }
    }
}

impl Setting for keeper::Preference {
    fn read(value: &Value) -> Result<Self, Wrong> {
        match value.as_str() {
            Some("thread") => Ok(Self::Thread),
            Some("pinned") => Ok(Self::Pinned),
            _ => Err(wrong("\"thread\" or \"pinned\"", value)),
        }
    }
}

/// A program: a path, or a name.
pub(super) fn program(value: &Value) -> Result<PathBuf, Wrong> {
    let name = value.as_str().filter(|name| !name.is_empty());
    name.map(PathBuf::from).ok_or_else(|| wrong("a path, or the name of a program", value))
}

/// criu, which goes by its name alone in the PATH of those who run it. Empty is the default.
pub(super) fn criu(value: &Value) -> Result<PathBuf, Wrong> {
    let wanted = "\"criu\", or an absolute path that ends in it";
    let path = Path::new(value.as_str().ok_or_else(|| wrong(wanted, value))?);
    let named = path.file_name().is_some_and(|name| name == criu::NAME);
    match path.components().count() {
        0 => Ok(criu::NAME.into()),
        1 if named => Ok(path.to_owned()),
        _ if named && path.is_absolute() => Ok(path.to_owned()),
        _ => Err(wrong(wanted, value)),
    }
}

/// A folder, or nothing.
pub(super) fn folder(value: &Value) -> Result<PathBuf, Wrong> {
    if value.as_str() == Some("") { Ok(PathBuf::new()) } else { PathBuf::read(value) }
}

/// A length of time that something can be done in.
pub(super) fn some_time(value: &Value) -> Result<Duration, Wrong> {
    let time = Duration::read(value)?;
    if time.is_zero() { Err(wrong("a length of time above 0", value)) } else { Ok(time) }
}

/// The name of a network interface.
pub(super) fn interface(value: &Value) -> Result<String, Wrong> {
    let name = value.as_str().filter(|name| network::is_ifname(name));
    name.map(str::to_owned).ok_or_else(|| wrong("the name of a network interface", value))
}

/// An option as TOML has it.
#[cfg(test)]
pub(super) trait Show {
    fn show(&self) -> String;
}

#[cfg(test)]
mod show {
    use super::*;

    macro_rules! as_in_rust {
        ($($kind:ty),*) => {$(
            impl Show for $kind {
                fn show(&self) -> String {
                    format!("{self:?}")
                }
            }
        )*};
    }

    as_in_rust!(bool, u32, usize, String, PathBuf, Vec<PathBuf>);

    impl Show for Duration {
        fn show(&self) -> String {
            assert_eq!(self.subsec_nanos(), 0, "a default that is no number of seconds");
            format!("\"{}s\"", self.as_secs())
        }
    }

    macro_rules! as_words {
        ($($kind:ty),*) => {$(
            impl Show for $kind {
                fn show(&self) -> String {
                    format!("{:?}", format!("{self:?}").to_lowercase())
                }
            }
        )*};
    }

    as_words!(NetworkOwner, keeper::Preference);
}
