//! Places where a test makes the process die or pause. Without the feature `failpoints` nothing of it is compiled in.

/// Passes the point `name`. With the feature, `MOORING_FAILPOINTS` (read from the file of that name in the state
/// folder, or from the environment) lists `name=kill`, `name=pause:MILLISECONDS` or `name=error`, joined by commas.
#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub fn pass(_name: &str) {}
