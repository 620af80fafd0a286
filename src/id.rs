//! Identifiers that become path components and socket names.

use std::fmt;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::error::{Code, Coded};

/// The longest identifier that containerd accepts, in bytes.
const MAX_LENGTH: usize = 76;

/// An identifier of a namespace, sandbox, container or exec process, checked by containerd's rule: letters and
/// digits, joined by single `-`, `_` or `.`, at most 76 bytes. No such text can climb out of a folder.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Id(String);

/// The text is no identifier.
#[derive(Debug, Error, PartialEq, Eq)]
#[error(
    "identifier {text:?} is not valid: letters and digits joined by single '-', '_' or '.', 1 to 76 bytes"
)]
pub struct InvalidId {
    text: String,
}

impl Coded for InvalidId {
    fn code(&self) -> Code {
        Code::InvalidArgument
    }
}

impl Id {
    /// Checks `text` and takes it as an identifier.
    pub fn new(text: impl Into<String>) -> Result<Self, InvalidId> {
        let text = text.into();
        let separator = |byte: u8| matches!(byte, b'-' | b'_' | b'.');
        let bytes = text.as_bytes();
        let allowed = bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || separator(*byte));
        let joined = bytes.windows(2).all(|pair| !(separator(pair[0]) && separator(pair[1])));
        let edges = [bytes.first(), bytes.last()]
            .into_iter()
            .all(|b| b.is_some_and(u8::is_ascii_alphanumeric));
        if allowed && joined && edges && bytes.len() <= MAX_LENGTH {
            Ok(Self(text))
        } else {
            let text = text.chars().take(2 * MAX_LENGTH).collect();
            Err(InvalidId { text })
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for Id {
    type Error = InvalidId;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::new(text)
    }
}

impl From<Id> for String {
    fn from(id: Id) -> Self {
        id.0
    }
}

impl AsRef<std::path::Path> for Id {
    fn as_ref(&self) -> &std::path::Path {
        self.0.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ordinary_names_are_taken() {
        for text in ["a", "pod-1", "k8s.io", "0f3_b.c-d", &"a".repeat(76)] {
            assert!(Id::new(text).is_ok(), "{text}");
        }
    }

    #[test]
    fn tricks_are_refused() {
        for text in ["", ".", "..", "../x", "a/b", "-a", "a-", "a..b", "a\0b", "é", &"a".repeat(77)]
        {
            assert!(Id::new(text).is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn whatever_passes_is_one_plain_path_component(text in ".*") {
            if let Ok(id) = Id::new(text) {
                let parts: Vec<_> = std::path::Path::new(id.as_str()).components().collect();
                prop_assert!(matches!(parts[..], [std::path::Component::Normal(_)]));
            }
        }
    }
}
