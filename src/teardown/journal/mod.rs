//! The journal: one small file per sandbox that says what was acquired and how far the teardown is.
//!
//! Every transition is written before it is made (intent) and after it (outcome): to a temporary file that is renamed
//! over the old one. A killed process loses nothing that way, since the page cache outlives it. What a reboot
//! destroys anyway (namespaces, mounts, processes, cgroups) needs no more than that; while the journal names something
//! that outlives a reboot (a CNI attachment and its address, a snapshot, a lease), the file is also synced at each
//! transition, and the folder at those that change what is said of it.

mod folder;
mod format;
mod store;
#[cfg(test)]
mod tests;

pub use folder::{
    FolderLock, exists, is_locked, lock, make_and_lock, remove, remove_folder, set_aside,
    was_set_aside,
};
pub use format::{About, Entry, Journal, JournalError, Stage, VERSION, read};
pub use store::{Left, Store, Written, open};
