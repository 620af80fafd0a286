//! The calls back: what a sandbox asks of containerd.

mod error;

pub use error::Error;
