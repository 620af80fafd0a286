//! What a pod mounts: its containers' root file systems, its own files and shm, its image volumes; and how every one
//! of them is unmounted.

mod attach;
mod error;
pub mod files;
mod filesystem;
mod idmap;
pub mod image;
pub mod image_mounts;
#[cfg(test)]
mod image_tests;
pub mod kernel;
pub mod label;
mod mount;
mod options;
mod overlay;
pub mod shm;
pub mod spec;
#[cfg(test)]
mod spec_tests;
pub mod table;
#[cfg(test)]
mod tests;
mod unmount;

pub use error::Error;
pub use idmap::UserNamespace;
pub use mount::{Mount, mount_all, mount_all_mapped};
pub use unmount::{unmount_all, unmount_tree};
