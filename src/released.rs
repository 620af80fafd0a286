//! The shape of everything that a sandbox holds: it is acquired into a record and released from it.

use serde::{Deserialize, Serialize};

/// What a release found. All are success: a release may be repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Released {
    /// The resource was there and is gone now.
    Done,
    /// There was nothing left to release.
    AlreadyGone,
    /// Somebody uses it who is gone later: it stays, and so does its record.
    InUse,
}

impl Released {
    /// Joins the outcomes of two parts of one resource.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::InUse, _) | (_, Self::InUse) => Self::InUse,
            (Self::Done, _) | (_, Self::Done) => Self::Done,
            _ => Self::AlreadyGone,
        }
    }
}
