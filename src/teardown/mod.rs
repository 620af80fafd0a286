//! Taking a sandbox down: the plan, its execution, and the journal that makes it survive a crash.

mod executor;
#[cfg(test)]
mod executor_tests;
pub mod journal;
mod plan;

pub use executor::{Executor, Observer, Outcome, StepReport, TeardownError, Work, WorkError};
pub use plan::{PLAN, Policy, Step, StepSpec};
