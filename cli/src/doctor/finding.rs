//! What a look says of one thing.

use std::{
    path::Path,
    time::{Duration, SystemTime},
};

use serde::Serialize;

use crate::span;

/// How certain it is that nobody needs the thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Sure {
    #[serde(rename = "sure")]
    Certain,
    Likely,
    Unsure,
}

impl Sure {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Certain => "sure",
            Self::Likely => "likely",
            Self::Unsure => "unsure",
        }
    }
}

/// One thing that belongs to no living sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The name of the look that found it.
    pub kind: &'static str,
    pub what: String,
    /// For how long it has been there as it is, where that can be told.
    #[serde(rename = "since_seconds", serialize_with = "seconds")]
    pub since: Option<Duration>,
    /// The sandbox or container whose it was, as `NAMESPACE/ID` or as far as is known.
    pub whose: Option<String>,
    pub sure: Sure,
    /// Why it is thought to be nobody's.
    pub why: String,
    /// The command that frees it; nothing is freed before somebody runs it.
    pub frees: Option<String>,
}

#[expect(clippy::ref_option, reason = "the signature that serde wants")]
fn seconds<S: serde::Serializer>(since: &Option<Duration>, to: S) -> Result<S::Ok, S::Error> {
    since.map(|length| length.as_secs()).serialize(to)
}

impl Finding {
    pub fn new(kind: &'static str, what: impl Into<String>) -> Self {
        Self {
            kind,
            what: what.into(),
            since: None,
            whose: None,
            sure: Sure::Unsure,
            why: String::new(),
            frees: None,
        }
    }

    #[must_use]
    pub fn of(mut self, whose: impl Into<String>) -> Self {
        self.whose = Some(whose.into());
        self
    }

    #[must_use]
    pub fn because(mut self, sure: Sure, why: impl Into<String>) -> Self {
        self.sure = sure;
        self.why = why.into();
        self
    }

    /// A thing of Mooring's sandbox whose shim is gone.
    #[must_use]
    pub fn ours(self, whose: impl Into<String>) -> Self {
        let why = "its shim is gone, and nobody works on it";
        self.of(whose).because(Sure::Certain, why).freed_by("mooring gc --yes")
    }

    #[must_use]
    pub fn freed_by(mut self, command: impl Into<String>) -> Self {
        self.frees = Some(command.into());
        self
    }

    /// There as it is since `then`.
    #[must_use]
    pub fn since(mut self, then: Option<SystemTime>, now: SystemTime) -> Self {
        self.since = then.map(|then| span::since(then, now));
        self
    }

    /// Whether it is about the same thing, said at another time.
    pub fn is_same(&self, other: &Self) -> bool {
        self.kind == other.kind && self.what == other.what
    }
}

/// A path as one word of a shell.
pub fn word(path: impl AsRef<Path>) -> String {
    let text = path.as_ref().to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-:@+=,".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.into_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_one_word_whatever_is_in_it() {
        for (path, written) in [
            ("/run/netns/cni-1", "/run/netns/cni-1"),
            ("/a b", "'/a b'"),
            ("/a'; rm -r /", r"'/a'\''; rm -r /'"),
            ("$(x)", "'$(x)'"),
            ("", "''"),
        ] {
            assert_eq!(word(path), written);
        }
    }
}
