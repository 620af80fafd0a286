//! The last steps of a container's process before its program: rights, ids, limits, filter.

mod labels;
mod program;
mod scheduling;

use std::{
    ffi::CString,
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use rustix::{fs::Mode, io::Errno, process::DumpableBehavior};

use crate::{
    capabilities::{self, Sets},
    channel::{End, Message},
    error::{Doing, Error, Result},
    seccomp::Filter,
    spec::{Personality, Process},
    sys,
};

pub use labels::check as check_labels;
pub use scheduling::check as check_scheduling;

/// What a process is finished with.
pub struct Finish<'a> {
    pub process: &'a Process,
    pub filter: Option<&'a Filter>,
    pub personality: Option<&'a Personality>,
    /// The name of its session keyring; `None` keeps the node's.
    pub keyring: Option<&'a str>,
    /// Descriptors above the standard streams that the program is given.
    pub preserve_fds: u32,
    /// The node's /proc, for what is written there; that of the container is whatever its image made it.
    pub proc: &'a OwnedFd,
    pub channel: &'a End,
}

/// The program, ready to be run.
pub struct Ready {
    path: CString,
    arguments: Vec<CString>,
    environment: Vec<CString>,
}

/// Keeps others, in this container or beside it, from looking into this process while it still has what is the node's:
/// its descriptors, its memory, its program (CVE-2016-9962).
pub fn hide() -> Result<()> {
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).doing("hide this process")
}

/// Becomes what the container's program shall find itself as. What follows is [`Ready::run`].
pub fn finish(finish: &Finish<'_>) -> Result<Ready> {
    let process = finish.process;
    let user = &process.user;
    if let Some(name) = finish.keyring {
        keyring(name)?;
    }
    if process.no_new_privileges {
        rustix::thread::set_no_new_privs(true).doing("set no_new_privileges")?;
    }
    labels::set(process, finish.proc)?;
    scheduling::set(process)?;
    if let Some(wanted) = finish.personality {
        sys::personality(persona(wanted)?).doing("set the personality")?;
    }
    let available = capabilities::available()?;
    let sets = Sets::of(process.capabilities.as_ref()).within(available);
    give_streams(user.uid);
    // Before the limits: nothing needs much from here on.
    finish.channel.ask(&Message::Limits)?;
    capabilities::bound(sets.bounding, available)?;
    rustix::process::umask(Mode::from_raw_mode(user.umask.unwrap_or(0o022)));
    // Root of the container may enter where its user may not, and the other way round on a remote file system.
    let entered = enter_folder(&process.cwd);
    rustix::thread::set_keep_capabilities(true).doing("keep capabilities")?;
    sys::become_user(user.uid, user.gid, &user.additional_gids)
        .doing(&format!("become user {}:{}", user.uid, user.gid))?;
    rustix::thread::set_keep_capabilities(false).doing("keep no capabilities")?;
    if entered.is_err() {
        enter_folder(&process.cwd)?;
    }
    // Another user is another process's to look into, and the kernel forgets that this one is not.
    hide()?;
    // Without no_new_privs a filter wants a right that the program may not have.
    let early = finish.filter.filter(|_| !process.no_new_privileges);
    let kept = if early.is_some() { FOR_FILTERS & available } else { 0 };
    capabilities::take_on(sets, kept)?;
    let ready = program::of(process)?;
    is_inside()?;
    sys::close_at_exec(3 + finish.preserve_fds).doing("close descriptors")?;
    rustix::process::set_parent_process_death_signal(None).doing("outlive the caller")?;
    if let Some(filter) = early {
        capabilities::set(sets, kept, kept)?;
        install(filter)?;
        // From here on only what every profile lets through.
        capabilities::set(sets, 0, 0)?;
    }
    Ok(ready)
}

/// `CAP_SYS_ADMIN`.
const FOR_FILTERS: u64 = 1 << 21;

impl Ready {
    /// The program's variables.
    pub fn environment(&self) -> Vec<String> {
        self.environment.iter().map(|one| one.to_string_lossy().into_owned()).collect()
    }

    /// Runs the program. Comes back only when that fails.
    pub fn run(self) -> Error {
        let source = sys::exec(None, &self.path, &self.arguments, &self.environment);
        program::failed(&self.path, &source)
    }
}

/// With `no_new_privs` the filter comes as late as can be: before hooks of the container, and its program.
pub fn confine(finish: &Finish<'_>) -> Result<()> {
    finish.filter.filter(|_| finish.process.no_new_privileges).map_or(Ok(()), install)
}

fn install(filter: &Filter) -> Result<()> {
    sys::seccomp(&filter.program, filter.flags).doing("install the seccomp filter")
}

fn keyring(name: &str) -> Result<()> {
    let name = CString::new(format!("_ses.{name}")).map_err(|_| Error::invalid("keyring"))?;
    match sys::join_session_keyring(&name) {
        // Who may not read it through its user simply cannot.
        Ok(id) => {
            let _ = sys::allow_key_search(id);
            Ok(())
        }
        // A kernel without keys has none of the node's to be kept from; a quota is one container's misfortune.
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => Ok(()),
        Err(error) => Err(error).doing("join a new session keyring"),
    }
}

/// Goes to a folder of the container. A path by way of a descriptor could lead out of it (CVE-2024-21626), and is followed
/// by nothing.
fn enter_folder(path: &str) -> Result<()> {
    use rustix::fs::{CWD, OFlags, ResolveFlags, openat2};
    let path = if path.is_empty() { "/" } else { path };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = openat2(CWD, path, flags, Mode::empty(), ResolveFlags::NO_MAGICLINKS)
        .doing_at("change to the working directory", path)?;
    rustix::process::fchdir(&folder).doing_at("change to the working directory", path)
}

/// A working directory that is outside of the root has no path.
fn is_inside() -> Result<()> {
    let inside =
        rustix::process::getcwd(Vec::new()).is_ok_and(|path| path.as_bytes().starts_with(b"/"));
    if inside {
        Ok(())
    } else {
        Err(Error::invalid("the working directory is outside of the container"))
    }
}

/// The streams belong to the user, so that the program may open them again by their path in /proc.
fn give_streams(uid: u32) {
    let null = rustix::fs::makedev(1, 3);
    let (input, output, errors) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
    for stream in [input.as_fd(), output.as_fd(), errors.as_fd()] {
        let Ok(about) = rustix::fs::fstat(stream) else { continue };
        if about.st_uid == uid || about.st_rdev == null {
            continue;
        }
        // A stream on a file system that is read-only or knows no owners is used as it is.
        let _ = rustix::fs::fchown(stream, Some(rustix::process::Uid::from_raw(uid)), None);
    }
}

/// The kernel's number of a personality.
pub fn persona(wanted: &Personality) -> Result<libc::c_ulong> {
    if let Some(flag) = wanted.flags.first() {
        return Err(Error::unsupported(format!("linux.personality flag {flag:?}")));
    }
    match wanted.domain.as_str() {
        "LINUX" => Ok(0),
        "LINUX32" => Ok(8),
        other => Err(Error::invalid(format!("linux.personality domain {other:?}"))),
    }
}

/// The container's /etc/passwd, or another of its files: whatever lies there, it is not waited for.
fn read_of_container(path: &Path) -> Option<String> {
    use rustix::fs::{FileType, OFlags};
    const MOST: u64 = 4 << 20;
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    let opened = rustix::fs::open(path, flags, Mode::empty()).ok()?;
    let about = rustix::fs::fstat(&opened).ok()?;
    if FileType::from_raw_mode(about.st_mode) != FileType::RegularFile {
        return None;
    }
    let mut text = Vec::new();
    let mut file = std::io::Read::take(std::fs::File::from(opened), MOST);
    std::io::Read::read_to_end(&mut file, &mut text).ok()?;
    Some(String::from_utf8_lossy(&text).into_owned())
}

/// Whether an error says that the kernel has no such thing.
fn is_missing(error: &std::io::Error) -> bool {
    Errno::from_io_error(error) == Some(Errno::NOENT)
}
