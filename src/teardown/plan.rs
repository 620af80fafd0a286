//! What a plan is made of.

use std::{fmt, time::Duration};

use serde::{Serialize, de::DeserializeOwned};

/// A step, by the name that errors, logs, metrics, failpoints and the journal know it by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Step(&'static str);

impl Step {
    pub(super) const fn named(name: &'static str) -> Self {
        Self(name)
    }

    pub const fn name(self) -> &'static str {
        self.0
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// Something that a journal can hold and a step can release.
pub trait Journaled:
    Clone + PartialEq + Serialize + DeserializeOwned + Send + Sync + 'static
{
    /// The name of its kind, in failpoints and logs.
    fn kind(&self) -> &'static str;
    /// The step that releases it.
    fn step(&self) -> Step;
    /// Whether it is still there after a reboot: then the journal has to outlive one too.
    fn outlives_reboot(&self) -> bool;
}

/// What a step's failure does to the teardown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// It ends here with the error; the next run resumes at this step.
    Abort,
    /// It is logged and the teardown goes on.
    Warn,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Does<A> {
    /// Something that is not about one resource; once for a journal.
    Act(A),
    /// Releases the resources that name this step; passed over where there are none.
    Release,
}

/// One line of a plan.
#[derive(Clone, Copy, Debug)]
pub struct Line<A> {
    pub step: Step,
    pub does: Does<A>,
    /// How long it may take.
    pub budget: Duration,
    pub policy: Policy,
}

impl<A: Copy> Line<A> {
    /// A step that does `action`.
    pub const fn act(name: &'static str, action: A, seconds: u64, policy: Policy) -> Self {
        let budget = Duration::from_secs(seconds);
        Self { step: Step::named(name), does: Does::Act(action), budget, policy }
    }

    /// A step that releases resources. Its failure ends the run: what comes later relies on it.
    pub const fn release(name: &'static str, seconds: u64) -> Self {
        let budget = Duration::from_secs(seconds);
        Self { step: Step::named(name), does: Does::Release, budget, policy: Policy::Abort }
    }
}

/// The step of `plan` called `name`, for a kind of resource to name in a `const` block: a plan that does not release it
/// does not compile.
#[expect(clippy::missing_panics_doc, reason = "reached by the compiler only")]
pub const fn releasing<A: Copy>(plan: &'static [Line<A>], name: &str) -> Step {
    let mut rest = plan;
    while let Some((line, after)) = rest.split_first() {
        if matches!(line.does, Does::Release) && is_same(line.step.0, name) {
            return line.step;
        }
        rest = after;
    }
    panic!("no step of the plan releases this kind")
}

/// `==` for text is no constant function yet.
const fn is_same(one: &str, other: &str) -> bool {
    let (mut one, mut other) = (one.as_bytes(), other.as_bytes());
    loop {
        match (one.split_first(), other.split_first()) {
            (None, None) => return true,
            (Some((first, one_rest)), Some((second, other_rest))) if *first == *second => {
                one = one_rest;
                other = other_rest;
            }
            _ => return false,
        }
    }
}
