//! The mounts of this process's mount namespace, as the kernel lists them.

use std::{
    ffi::OsString,
    fs, io,
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
};

/// One line of `/proc/self/mountinfo`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub id: u64,
    /// The folder of the file system that is mounted.
    pub root: PathBuf,
    pub target: PathBuf,
    pub options: String,
    pub kind: String,
    pub source: String,
    /// Options of the file system.
    pub super_options: String,
}

/// Reads the whole table, in the kernel's order.
pub fn read() -> io::Result<Vec<Entry>> {
    Ok(parse(&fs::read("/proc/self/mountinfo")?))
}

/// Whether something is mounted at exactly `path`, which must be canonical.
pub fn is_mounted(path: &Path) -> io::Result<bool> {
    Ok(read()?.iter().any(|entry| entry.target == path))
}

/// Lines that are not understood are left out: a future kernel may add what it likes.
pub fn parse(bytes: &[u8]) -> Vec<Entry> {
    bytes.split(|byte| *byte == b'\n').filter_map(entry).collect()
}

fn entry(line: &[u8]) -> Option<Entry> {
    let mut fields = line.split(|byte| *byte == b' ');
    let id = text(fields.next()?).parse().ok()?;
    let mut fields = fields.skip(2);
    let root = path(fields.next()?);
    let target = path(fields.next()?);
    let options = text(fields.next()?);
    // Any number of optional fields, up to a lone dash.
    fields.by_ref().find(|field| *field == b"-")?;
    let kind = text(fields.next()?);
    let source = text(fields.next()?);
    let super_options = text(fields.next()?);
    Some(Entry { id, root, target, options, kind, source, super_options })
}

fn text(field: &[u8]) -> String {
    String::from_utf8_lossy(&unescape(field)).into_owned()
}

fn path(field: &[u8]) -> PathBuf {
    PathBuf::from(OsString::from_vec(unescape(field)))
}

/// The kernel writes space, tab, newline and backslash as a backslash and three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, after)) = rest.split_first() {
        let octal = after.get(..3).filter(|_| first == b'\\').and_then(|digits| {
            digits.iter().try_fold(0_u32, |number, digit| {
                matches!(digit, b'0'..=b'7').then(|| number * 8 + u32::from(digit - b'0'))
            })
        });
        if let Some(byte) = octal.and_then(|number| u8::try_from(number).ok()) {
            bytes.push(byte);
            rest = after.get(3..).unwrap_or_default();
        } else {
            bytes.push(first);
            rest = after;
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_line_with_optional_fields_is_read() {
        let line = b"36 35 98:0 /mnt1 /mnt\\0402 rw,noatime master:1 propagate_from:2 - ext3 /dev/root rw,errors=continue";
        let entries = parse(line);
        assert_eq!(
            entries,
            [Entry {
                id: 36,
                root: "/mnt1".into(),
                target: "/mnt 2".into(),
                options: "rw,noatime".into(),
                kind: "ext3".into(),
                source: "/dev/root".into(),
                super_options: "rw,errors=continue".into(),
            }]
        );
    }

    #[test]
    fn lines_that_are_not_understood_are_left_out() {
        assert_eq!(parse(b"\n1 2\nx y z\n1 2 3:4 / / rw no dash here\n"), []);
    }

    #[test]
    fn the_machines_own_table_has_proc() {
        assert!(is_mounted(Path::new("/proc")).unwrap());
    }

    proptest! {
        #[test]
        fn what_the_kernel_escapes_comes_back(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let mut escaped = Vec::new();
            for byte in &bytes {
                if matches!(byte, b' ' | b'\t' | b'\n' | b'\\') {
                    escaped.extend(format!("\\{byte:03o}").into_bytes());
                } else {
                    escaped.push(*byte);
                }
            }
            prop_assert_eq!(unescape(&escaped), bytes);
        }

        #[test]
        fn no_text_makes_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
            let _ = parse(&bytes);
        }
    }
}
