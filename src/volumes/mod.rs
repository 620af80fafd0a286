//! Image volumes: an image's content, mounted read-only once per pod, and the lease that keeps its snapshot.

mod error;
pub mod image_mount;
pub mod lease;
#[cfg(test)]
mod tests;
pub mod volume;

pub use error::Error;
