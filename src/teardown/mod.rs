//! Taking something down in steps that survive a crash: a plan, its execution, and the journal between them.
//!
//! Nothing here knows what is held: the resources are a type that can be journaled ([`Journaled`]), the plan is data,
//! and who does the steps is a trait ([`StepWork`]). A sandbox's are in [`crate::resources`].

mod executor;
#[cfg(test)]
mod executor_tests;
#[cfg(test)]
mod fake;
pub mod journal;
mod plan;

pub use executor::{Executor, Observer, Outcome, StepError, StepReport, StepWork, TeardownError};
pub use plan::{Does, Journaled, Line, Policy, Step, releasing};
