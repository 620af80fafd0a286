//! Child processes: how they are started, waited for and ended.
//!
//! The shim is a child subreaper, so containers and their orphans become its children. One [`Reaper`] waits for
//! all of them; nobody else may call `wait`. It also serves OCI runtime calls, CNI plugins and log binaries.

mod command;
pub mod orphans;
mod reaper;
#[cfg(test)]
pub(crate) mod testing;

pub use command::{Failure, Group, Output, run};
pub use reaper::{Exit, Exited, Expecting, Reaper};
