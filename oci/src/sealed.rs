//! The program itself, out of a container's reach.
//!
//! Until its own program runs, a container's process is a copy of this one, and `/proc/PID/exe` in the container leads to
//! this program's file. Who has that open may write to it once nothing runs it any more: the node's program
//! (CVE-2019-5736). So this runs itself again before it does anything, from where nobody can write to it: an overlay
//! without an upper layer, which the kernel never makes writable, or a sealed copy in memory.

use std::{
    env,
    ffi::{CString, OsStr},
    fs::File,
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::{OsStrExt, OsStringExt},
    },
    path::Path,
};

use rustix::{
    fs::{MemfdFlags, Mode, OFlags, SealFlags, StatVfsMountFlags},
    mount::{FsMountFlags, FsOpenFlags, MountAttrFlags},
};

use crate::{
    error::{Doing, Error, Result},
    sys,
};

const EXE: &str = "/proc/self/exe";
const SEALS: SealFlags =
    SealFlags::SEAL.union(SealFlags::SHRINK).union(SealFlags::GROW).union(SealFlags::WRITE);
/// Says that this has been tried, so that it is not for ever.
const TRIED: &str = "MOORING_OCI_SEALED";

/// Whether nobody can write to the file of a program that is open here.
pub fn is_sealed(program: impl AsFd) -> bool {
    let read_only = rustix::fs::fstatvfs(&program)
        .is_ok_and(|about| about.f_flag.contains(StatVfsMountFlags::RDONLY));
    let overlay = rustix::fs::fstatfs(&program).is_ok_and(|about| about.f_type == OVERLAY_MAGIC);
    (read_only && overlay)
        || rustix::fs::fcntl_get_seals(&program).is_ok_and(|on| on.contains(SEALS))
}

const OVERLAY_MAGIC: rustix::fs::FsWord = 0x794c_7630;

/// Goes on only in a process whose program nobody can write to.
pub fn ensure() -> Result<()> {
    let own = File::open(EXE).doing_at("open", EXE)?;
    if is_sealed(&own) {
        return Ok(());
    }
    if env::var_os(TRIED).is_some() {
        return Err(Error::invalid("this program cannot be kept from being written to"));
    }
    let program = seal(&own)?;
    let text = |text: &OsStr| CString::new(text.as_bytes());
    let invalid = |_| Error::invalid("an argument with a zero byte");
    let arguments: Vec<CString> = env::args_os()
        .map(|one| text(&one))
        .collect::<std::result::Result<_, _>>()
        .map_err(invalid)?;
    let environment = env::vars_os().map(|(name, value)| {
        let mut both = name.into_vec();
        both.push(b'=');
        both.extend(value.as_bytes());
        CString::new(both)
    });
    let mut environment: Vec<CString> =
        environment.collect::<std::result::Result<_, _>>().map_err(invalid)?;
    environment.push(CString::new(format!("{TRIED}=1")).map_err(invalid)?);
    let error = sys::exec(Some(program.as_fd()), c"", &arguments, &environment);
    Err(error).doing("run this program from where it cannot be written to")
}

/// What may be run in the place of the program that is open as `own`: closed by the exec that runs it.
pub fn seal(own: &File) -> Result<OwnedFd> {
    match overlaid(own) {
        Ok(found) if is_sealed(&found) => Ok(found),
        // No overlayfs here, or the file lies where it cannot be a layer, or it is not there any more.
        _ => copied(own),
    }
}

/// The same file as seen through an overlay that has no upper layer: its pages are the file's own.
fn overlaid(own: &File) -> io::Result<OwnedFd> {
    let path = std::fs::read_link(EXE)?;
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::NotFound.into());
    };
    // Any other folder of the kernel's: nothing in it is looked for.
    let other = Path::new("/sys/kernel");
    let at = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    // Two layers at least are wanted. Colons and commas in a path would be others' layers.
    if folder.as_os_str().as_bytes().iter().any(|byte| b":,\\".contains(byte)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let layers = [folder.as_os_str().as_bytes(), b":", other.as_os_str().as_bytes()].concat();
    rustix::mount::fsconfig_set_string(&at, "lowerdir", layers.as_slice())?;
    rustix::mount::fsconfig_create(&at)?;
    let mount = rustix::mount::fsmount(
        &at,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::MOUNT_ATTR_RDONLY
            | MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV,
    )?;
    let found = rustix::fs::openat(
        &mount,
        name,
        OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW,
        Mode::empty(),
    )?;
    // What lies there now may be another release.
    let (mine, theirs) = (rustix::fs::fstat(own)?, rustix::fs::fstat(&found)?);
    let same = mine.st_size == theirs.st_size
        && mine.st_mtime == theirs.st_mtime
        && mine.st_ino == theirs.st_ino;
    if same { Ok(found) } else { Err(io::ErrorKind::NotFound.into()) }
}

/// A copy in memory that is never changed again.
fn copied(own: &File) -> Result<OwnedFd> {
    let deed = "copy this program into memory";
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let copy = rustix::fs::memfd_create("mooring-oci", flags).doing(deed)?;
    let mut left = usize::try_from(own.metadata().doing(deed)?.len()).unwrap_or(usize::MAX);
    let mut offset = 0;
    while left > 0 {
        match rustix::fs::sendfile(&copy, own, Some(&mut offset), left).doing(deed)? {
            0 => break,
            sent => left -= sent,
        }
    }
    rustix::fs::fcntl_add_seals(&copy, SEALS).doing(deed)?;
    Ok(copy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_cannot_be_written_to() {
        let own = File::open(EXE).unwrap();
        assert!(!is_sealed(&own));
        for sealed in [copied(&own).unwrap(), seal(&own).unwrap()] {
            assert!(is_sealed(&sealed));
            let again = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&sealed));
            let written = File::options().write(true).open(again);
            let written = written.and_then(|mut file| io::Write::write_all(&mut file, b"x"));
            let code = written.unwrap_err().raw_os_error();
            assert!(
                [Some(libc::EROFS), Some(libc::EPERM), Some(libc::ETXTBSY)].contains(&code),
                "{code:?}"
            );
        }
    }
}
