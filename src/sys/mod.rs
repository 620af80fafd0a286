//! What the kernel is asked in more than one room: which process a number means, what is mounted.

pub mod identity;
#[cfg(test)]
mod identity_tests;
pub mod mountinfo;
mod platform;
mod watch;

pub use platform::architecture;
pub use watch::watched;
pub mod namespaces;
