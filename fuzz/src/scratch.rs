//! A folder for the files that one input becomes.

use std::{
    cell::OnceCell,
    fs,
    path::{Path, PathBuf},
};

use tempfile::TempDir;

thread_local! {
    /// Made once per thread: making and removing it would be most of an input's time.
    static FOLDER: OnceCell<TempDir> = const { OnceCell::new() };
}

/// An empty folder, the same one for all inputs of a thread.
pub fn folder() -> PathBuf {
    let path = FOLDER.with(|folder| {
        let folder = folder.get_or_init(|| tempfile::tempdir().expect("a temporary folder"));
        folder.path().join("input")
    });
    if path.exists() {
        fs::remove_dir_all(&path).expect("empty the temporary folder");
    }
    fs::create_dir(&path).expect("make the temporary folder");
    path
}

/// Writes a file, with the folders above it.
pub fn write(path: &Path, content: &[u8]) {
    if let Some(above) = path.parent() {
        fs::create_dir_all(above).expect("make a temporary folder");
    }
    fs::write(path, content).expect("write a temporary file");
}

/// Every file below `folder`, in order.
pub fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() { folders.push(path) } else { found.push(path) }
        }
    }
    found.sort();
    found
}
