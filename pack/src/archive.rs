//! Files as a tar archive that is the same whenever and by whomever it is made.

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::Result;
use tar::{Builder, EntryType, Header};

use crate::tree::{Entry, What, folders};

/// The entries, and the folders that they lie in, each below `prefix` (a folder with its slash, or nothing): sorted, of
/// root and of one time.
pub fn tar(all: &[Entry], prefix: &str, time: u64) -> Result<Vec<u8>> {
    let mut builder = Builder::new(Vec::new());
    let mut made = BTreeSet::new();
    for entry in all {
        for folder in folders(std::slice::from_ref(entry)) {
            if made.insert(folder.clone()) {
                let path = PathBuf::from(prefix).join(folder).join("");
                // The archive's own root has no entry.
                if !path.as_os_str().is_empty() {
                    builder.append_data(
                        &mut header(EntryType::Directory, 0o755, 0, time),
                        path,
                        &[][..],
                    )?;
                }
            }
        }
        let path = format!("{prefix}{}", entry.path);
        match &entry.what {
            What::File { mode, content } => {
                let mut header = header(EntryType::Regular, *mode, content.len(), time);
                builder.append_data(&mut header, path, content.as_slice())?;
            }
            What::Link(target) => {
                let mut header = header(EntryType::Symlink, 0o777, 0, time);
                builder.append_link(&mut header, path, target)?;
            }
        }
    }
    Ok(builder.into_inner()?)
}

fn header(kind: EntryType, mode: u32, size: usize, time: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size as u64);
    header.set_mtime(time);
    header.set_uid(0);
    header.set_gid(0);
    header
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn entries() -> Vec<Entry> {
        let file = |path: &str, mode| Entry {
            path: path.to_owned(),
            what: What::File { mode, content: path.into() },
        };
        let link =
            Entry { path: "usr/lib/link".to_owned(), what: What::Link("../bin/one".to_owned()) };
        vec![file("usr/bin/one", 0o755), link, file("usr/share/two", 0o644)]
    }

    #[test]
    fn folders_come_before_what_is_in_them_and_once() {
        let bytes = tar(&entries(), "top/", 7).unwrap();
        let mut archive = ::tar::Archive::new(bytes.as_slice());
        let names: Vec<String> = archive
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap().path().unwrap().display().to_string())
            .collect();
        assert_eq!(
            names,
            [
                "top/",
                "top/usr/",
                "top/usr/bin/",
                "top/usr/bin/one",
                "top/usr/lib/",
                "top/usr/lib/link",
                "top/usr/share/",
                "top/usr/share/two",
            ]
        );
    }

    #[test]
    fn everything_is_roots_and_of_the_time_given() {
        let bytes = tar(&entries(), "", 7).unwrap();
        for entry in ::tar::Archive::new(bytes.as_slice()).entries().unwrap() {
            let entry = entry.unwrap();
            let header = entry.header();
            let about = (header.uid().unwrap(), header.gid().unwrap(), header.mtime().unwrap());
            assert_eq!(about, (0, 0, 7), "{:?}", entry.path());
        }
        assert_eq!(bytes, tar(&entries(), "", 7).unwrap());
    }
}
