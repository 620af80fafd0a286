//! What a pod mounts: its containers' root file systems, its own files and shm, and how every one
//! of them is unmounted.

mod attach;
mod context;
mod error;
pub mod files;
mod filesystem;
mod idmap;
pub mod kernel;
pub mod label;
mod mount;
mod options;
mod overlay;
pub mod pod_files;
#[cfg(test)]
mod pod_files_tests;
mod root;
pub mod shm;
#[cfg(test)]
mod tests;
mod unmount;

pub use error::Error;
pub use idmap::UserNamespace;
pub(crate) use idmap::proc_path;
pub use mount::Mount;
pub(crate) use mount::open_within;
pub use root::{mount_all, mount_all_mapped};
pub use unmount::unmount_all;
