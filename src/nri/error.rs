//! What can go wrong with a plugin.

use std::{io, time::Duration};

use thiserror::Error;

use super::adjust::Refused;
use crate::error::{Code, Coded};

/// A plugin that fails what was asked of it.
#[derive(Debug, Error)]
#[error("NRI plugin {plugin:?}: {method}: {failure}")]
pub struct Error {
    pub plugin: String,
    /// What was asked, in NRI's words.
    pub method: &'static str,
    pub failure: Failure,
}

/// Why a plugin failed.
#[derive(Debug, Error)]
pub enum Failure {
    /// It cannot be started or connected.
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(
        "its name is {0:?}: two digits, \"-\" and letters, digits, \".\", \"_\", \"+\" or \"-\" are wanted"
    )]
    Name(String),
    #[error("it did not answer within {:.1} s", .0.as_secs_f64())]
    Late(Duration),
    #[error("it closed the connection")]
    Closed,
    /// What it says is not understood.
    #[error("{0}")]
    Garbled(String),
    /// It does not know the call.
    #[error("it does not know the call")]
    Unknown,
    /// It says no.
    #[error("{0}")]
    Says(String),
    #[error(transparent)]
    Refused(#[from] Refused),
    /// It asks for something to be done to other containers.
    #[error("it asks for {0}, which Mooring does not do")]
    Others(String),
}

impl Failure {
    /// Whether nothing more is to be had from the plugin.
    pub(super) fn is_the_end(&self) -> bool {
        matches!(
            self,
            Self::Io(_) | Self::Name(_) | Self::Late(_) | Self::Closed | Self::Garbled(_)
        )
    }
}

impl Coded for Error {
    fn code(&self) -> Code {
        match self.failure {
            Failure::Refused(_) | Failure::Others(_) => Code::Unimplemented,
            Failure::Late(_) => Code::DeadlineExceeded,
            _ => Code::Unknown,
        }
    }
}
