//! Reading a configuration file, whatever its path leads to.

use std::{
    fs::OpenOptions,
    io::{self, Read},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

/// The most that a configuration may hold, in bytes.
const LIMIT: u64 = 1 << 20;

/// The text of a plain file of at most 1 MiB. Does not wait for a pipe's writer.
pub(super) fn read(path: &Path) -> io::Result<String> {
    let refused = |why| io::Error::new(io::ErrorKind::InvalidInput, why);
    let flags = nix::fcntl::OFlag::O_NONBLOCK.bits();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(refused("it is no plain file"));
    }
    let mut text = String::new();
    // Files of the kernel's say that they are empty: what counts is what comes.
    if file.take(LIMIT + 1).read_to_string(&mut text)? as u64 > LIMIT {
        return Err(refused("it has more than 1 MiB"));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_never_ends_or_never_comes_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (fifo, long) = (folder.path().join("fifo"), folder.path().join("long"));
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        std::fs::File::create(&long).unwrap().set_len(LIMIT + 1).unwrap();
        for path in [Path::new("/dev/zero"), &fifo, &long, folder.path()] {
            let error = read(path).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{}", path.display());
        }
        std::fs::write(&long, "a = 1").unwrap();
        assert_eq!(read(&long).unwrap(), "a = 1");
    }
}
