//! What the kernel is asked in more than one room: which boot this is, which process a number means, what it costs and what
//! keeps one that was killed, what is mounted, which namespaces are the node's; unmounting, namespaces that a mount keeps, files that are replaced as a whole, paths that stay
//! within a root, and the shims' sockets.

pub mod boot;
pub mod identity;
#[cfg(test)]
mod identity_tests;
pub mod memory;
pub mod mountinfo;
pub mod namespaces;
pub mod pin;
mod platform;
pub mod replace;
pub mod rooted;
pub mod socket;
pub mod survivor;
pub mod unmount;
mod watch;

pub use platform::architecture;
pub use watch::{wait_readable, watched};
