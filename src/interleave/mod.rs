//! Places where another process of Mooring may come in between, or where this one may die, as far as files, mounts and
//! locks are concerned: just before each thing that others can see.
//!
//! They are for the model of the teardown (`sandbox/model`), which lets several shims and finishers take turns at them.
//! Outside of this crate's own tests nothing of it is compiled in.

#[cfg(test)]
mod table;

#[cfg(test)]
pub(crate) use table::{Next, Table, kill, pause, point, wait_until};

/// What is next can be seen by others.
#[cfg(not(test))]
#[inline(always)]
pub(crate) fn point(_what: &'static str) {}

/// Waits for something that another process does. Blocks.
#[cfg(not(test))]
pub(crate) fn pause(time: std::time::Duration) {
    std::thread::sleep(time);
}
