//! What a pod mounts: its containers' root file systems, its own files and shm, its image volumes; and how every one
//! of them is unmounted.

mod attach;
mod error;
mod filesystem;
mod idmap;
mod mount;
mod options;
mod overlay;
pub mod table;
#[cfg(test)]
mod tests;
mod unmount;

pub use error::Error;
pub use idmap::UserNamespace;
pub use mount::{Mount, mount_all, mount_all_mapped};
pub use unmount::{unmount_all, unmount_tree};
