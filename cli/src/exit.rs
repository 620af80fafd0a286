//! What the tool's exit status says.

use std::{fmt, process::ExitCode};

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Done, and there is nothing left to see to: 0.
    Clean,
    /// Something is there that wants a look or could not be done: 1.
    Findings,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        match exit {
            Exit::Clean => Self::SUCCESS,
            Exit::Findings => Self::from(1),
        }
    }
}

/// The command could not look, or could not begin: nothing was changed. The status is 2, as of a wrong command line.
#[derive(Debug)]
pub struct CouldNot(pub String);

impl fmt::Display for CouldNot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for CouldNot {}

/// The status for a command that failed: 2 where it could not look, else 1.
pub fn of(error: &anyhow::Error) -> ExitCode {
    ExitCode::from(if error.is::<CouldNot>() { 2 } else { 1 })
}
