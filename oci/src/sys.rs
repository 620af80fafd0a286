//! System calls that neither std nor rustix has; the one file of this crate with unsafe code.
#![allow(unsafe_code)]

use std::{
    ffi::{CStr, CString},
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
};

/// Who a process is after a fork.
pub enum Fork {
    Child,
    Parent(i32),
}

fn answer(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Copies this process, which has one thread. A sibling's parent is this process's own parent.
pub fn fork(sibling: bool) -> io::Result<Fork> {
    let flags = libc::SIGCHLD | if sibling { libc::CLONE_PARENT } else { 0 };
    // SAFETY: without CLONE_VM and with no new stack this is fork(2). The process has one thread, so no lock can be held by
    // another that the copy lacks.
    let pid = answer(unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) })?;
    Ok(if pid == 0 { Fork::Child } else { Fork::Parent(i32::try_from(pid).unwrap_or(i32::MAX)) })
}

/// Copies this process, which has one thread, into the group of v2 that `group` is open at.
pub fn fork_into(group: BorrowedFd<'_>) -> io::Result<Fork> {
    // libc's own is an int, which it does not fit into.
    const INTO_CGROUP: u64 = 1 << 33;
    let arguments = libc::clone_args {
        flags: INTO_CGROUP,
        pidfd: 0,
        child_tid: 0,
        parent_tid: 0,
        exit_signal: u64::from(libc::SIGCHLD.unsigned_abs()),
        stack: 0,
        stack_size: 0,
        tls: 0,
        set_tid: 0,
        set_tid_size: 0,
        cgroup: u64::from(group.as_raw_fd().unsigned_abs()),
    };
    // SAFETY: as in [`fork`]; the kernel reads a structure of the size that is told.
    let pid = answer(unsafe {
        libc::syscall(
            libc::SYS_clone3,
            std::ptr::from_ref(&arguments),
            size_of::<libc::clone_args>(),
        )
    })?;
    Ok(if pid == 0 { Fork::Child } else { Fork::Parent(i32::try_from(pid).unwrap_or(i32::MAX)) })
}

/// Ends this process at once, without what the original would do at its end.
pub fn exit(status: i32) -> ! {
    // SAFETY: it takes a number and never returns.
    unsafe { libc::_exit(status) }
}

/// Enters namespaces: those of `flags` of the process that a pidfd holds, or the one that a namespace's file is.
pub fn setns(of: BorrowedFd<'_>, flags: i32) -> io::Result<()> {
    // SAFETY: it takes a descriptor and a number; no memory is touched.
    answer(unsafe { libc::setns(of.as_raw_fd(), flags) }.into()).map(drop)
}

/// The flag of the kind of namespace that a file is.
pub fn namespace_kind(file: BorrowedFd<'_>) -> io::Result<i32> {
    const NS_GET_NSTYPE: libc::c_ulong = 0xb703;
    // SAFETY: it asks for a number.
    answer(unsafe { libc::ioctl(file.as_raw_fd(), NS_GET_NSTYPE) }.into())
        .map(|kind| i32::try_from(kind).unwrap_or_default())
}

pub fn unshare(flags: i32) -> io::Result<()> {
    // SAFETY: none of the flags that are given affects the table of descriptors or the memory of this one thread.
    answer(unsafe { libc::unshare(flags) }.into()).map(drop)
}

/// What [`mount_setattr`] is asked for.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MountAttr {
    pub set: u64,
    pub clear: u64,
    pub propagation: u64,
    pub userns_fd: u64,
}

/// Changes the mount that `mount` is the root of, and those below it.
pub fn mount_setattr(mount: BorrowedFd<'_>, recursive: bool, attr: &MountAttr) -> io::Result<()> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is an empty C string, and the structure is of the size that is told.
    answer(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            std::ptr::from_ref(attr),
            size_of::<MountAttr>(),
        )
    })
    .map(drop)
}

/// Puts the mount at `new` in the place of the root, whose old mount lies at `old` afterwards.
pub fn pivot_root(new: &CStr, old: &CStr) -> io::Result<()> {
    // SAFETY: both are C strings.
    answer(unsafe { libc::syscall(libc::SYS_pivot_root, new.as_ptr(), old.as_ptr()) }).map(drop)
}

/// Has every descriptor from `first` on closed by the next exec.
pub fn close_at_exec(first: u32) -> io::Result<()> {
    // SAFETY: it only sets a flag of descriptors.
    answer(unsafe {
        libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC)
    })
    .map(drop)
}

/// Makes descriptor `to` a copy of `from` that survives exec.
pub fn duplicate(from: BorrowedFd<'_>, to: RawFd) -> io::Result<()> {
    if from.as_raw_fd() == to {
        // SAFETY: it clears a flag of a descriptor that is open.
        return answer(unsafe { libc::fcntl(to, libc::F_SETFD, 0) }.into()).map(drop);
    }
    // SAFETY: what `to` was is one of the three standard streams, which nothing here owns.
    answer(unsafe { libc::dup2(from.as_raw_fd(), to) }.into()).map(drop)
}

fn pointers(texts: &[CString]) -> Vec<*const libc::c_char> {
    texts.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect()
}

/// Becomes the program that `program` is open at, or that lies at the path `path` where there is no descriptor.
pub fn exec(
    program: Option<BorrowedFd<'_>>,
    path: &CStr,
    arguments: &[CString],
    environment: &[CString],
) -> io::Error {
    let (arguments, environment) = (pointers(arguments), pointers(environment));
    let (at, flags) = match program {
        Some(fd) => (fd.as_raw_fd(), libc::AT_EMPTY_PATH),
        None => (libc::AT_FDCWD, 0),
    };
    // SAFETY: the path is a C string, and both lists are of C strings that live until the call ends, with a null at their end.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            at,
            path.as_ptr(),
            arguments.as_ptr(),
            environment.as_ptr(),
            flags,
        )
    };
    io::Error::last_os_error()
}

/// Joins a new session keyring of this name.
pub fn join_session_keyring(name: &CStr) -> io::Result<i32> {
    const JOIN_SESSION_KEYRING: libc::c_long = 1;
    // SAFETY: the name is a C string.
    let id =
        answer(unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, name.as_ptr()) })?;
    Ok(i32::try_from(id).unwrap_or_default())
}

/// Lets a keyring be searched by who possesses it only through its user too.
pub fn allow_key_search(key: i32) -> io::Result<()> {
    const SETPERM: libc::c_long = 5;
    // All rights to the possessor; view, read, search and link to its user.
    const PERMISSIONS: libc::c_long = 0x3f1b_0000;
    // SAFETY: numbers only.
    answer(unsafe { libc::syscall(libc::SYS_keyctl, SETPERM, key, PERMISSIONS) }).map(drop)
}

/// One instruction of a classic BPF program.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    pub code: u16,
    pub jt: u8,
    pub jf: u8,
    pub k: u32,
}

/// Filters this thread's system calls from now on.
pub fn seccomp(program: &[Instruction], flags: u32) -> io::Result<()> {
    #[repr(C)]
    struct Program {
        length: u16,
        first: *const Instruction,
    }
    let length =
        u16::try_from(program.len()).map_err(|_| io::Error::from_raw_os_error(libc::E2BIG))?;
    let program = Program { length, first: program.as_ptr() };
    // SAFETY: the kernel copies `length` instructions, which are there.
    answer(unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            std::ptr::from_ref(&program),
        )
    })
    .map(drop)
}

/// Loads a program that judges the use of devices, and attaches it to the v2 group that `group` is open at.
pub fn attach_device_program(group: BorrowedFd<'_>, program: &[u64]) -> io::Result<()> {
    const PROG_LOAD: libc::c_long = 5;
    const PROG_ATTACH: libc::c_long = 8;
    const TYPE_CGROUP_DEVICE: u32 = 15;
    const CGROUP_DEVICE: u32 = 6;
    const ALLOW_MULTI: u32 = 2;
    #[repr(C)]
    #[derive(Default)]
    struct Load {
        kind: u32,
        count: u32,
        instructions: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log: u64,
        kernel_version: u32,
        flags: u32,
    }
    #[repr(C)]
    struct Attach {
        target: u32,
        program: u32,
        kind: u32,
        flags: u32,
        replaced: u32,
    }
    let license = c"Apache-2.0";
    let load = Load {
        kind: TYPE_CGROUP_DEVICE,
        count: u32::try_from(program.len())
            .map_err(|_| io::Error::from_raw_os_error(libc::E2BIG))?,
        instructions: program.as_ptr() as u64,
        license: license.as_ptr() as u64,
        ..Load::default()
    };
    // SAFETY: the structure is of the size that is told, and what its addresses lead to lives until the call ends.
    let loaded = answer(unsafe {
        libc::syscall(libc::SYS_bpf, PROG_LOAD, std::ptr::from_ref(&load), size_of::<Load>())
    })?;
    // SAFETY: the kernel has just given this descriptor, and nobody else knows it.
    let loaded = unsafe { OwnedFd::from_raw_fd(i32::try_from(loaded).unwrap_or(-1)) };
    let attach = Attach {
        target: group.as_raw_fd().unsigned_abs(),
        program: loaded.as_raw_fd().unsigned_abs(),
        kind: CGROUP_DEVICE,
        flags: ALLOW_MULTI,
        replaced: 0,
    };
    // SAFETY: as above.
    answer(unsafe {
        libc::syscall(libc::SYS_bpf, PROG_ATTACH, std::ptr::from_ref(&attach), size_of::<Attach>())
    })
    .map(drop)
}

/// The other end of the terminal whose master is given.
pub fn terminal_peer(master: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: the call takes a number and answers a descriptor.
    let peer = answer(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags) }.into())?;
    // SAFETY: the kernel has just given this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(i32::try_from(peer).unwrap_or(-1)) })
}

/// A new terminal can be opened by anybody until it is unlocked.
pub fn unlock_terminal(master: BorrowedFd<'_>) -> io::Result<()> {
    let locked: libc::c_int = 0;
    // SAFETY: the kernel reads one int.
    answer(
        unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, std::ptr::from_ref(&locked)) }
            .into(),
    )
    .map(drop)
}

/// What [`sched_setattr`] is asked for: the kernel's `struct sched_attr`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scheduling {
    pub size: u32,
    pub policy: u32,
    pub flags: u64,
    pub nice: i32,
    pub priority: u32,
    pub runtime: u64,
    pub deadline: u64,
    pub period: u64,
}

pub fn sched_setattr(mut wanted: Scheduling) -> io::Result<()> {
    wanted.size = u32::try_from(size_of::<Scheduling>()).unwrap_or_default();
    // SAFETY: the structure says its own size.
    answer(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, std::ptr::from_ref(&wanted), 0) })
        .map(drop)
}

pub fn ioprio_set(priority: i32) -> io::Result<()> {
    const WHO_PROCESS: libc::c_long = 1;
    // SAFETY: numbers only.
    answer(unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0, priority) }).map(drop)
}

pub fn personality(persona: libc::c_ulong) -> io::Result<()> {
    // SAFETY: numbers only.
    answer(unsafe { libc::personality(persona) }.into()).map(drop)
}

/// Sets a limit of another process.
pub fn prlimit(pid: i32, resource: u32, soft: u64, hard: u64) -> io::Result<()> {
    let limit = libc::rlimit64 { rlim_cur: soft, rlim_max: hard };
    // SAFETY: the kernel reads one structure and writes none.
    answer(unsafe {
        libc::syscall(
            libc::SYS_prlimit64,
            pid,
            resource,
            std::ptr::from_ref(&limit),
            std::ptr::null::<libc::rlimit64>(),
        )
    })
    .map(drop)
}

/// Gives up the groups, and takes on ids.
pub fn become_user(uid: u32, gid: u32, groups: &[u32]) -> io::Result<()> {
    // SAFETY: the list is as long as is told. The calls of the kernel itself change this one thread, which is all there are.
    unsafe {
        answer(libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()))?;
        answer(libc::syscall(libc::SYS_setresgid, gid, gid, gid))?;
        answer(libc::syscall(libc::SYS_setresuid, uid, uid, uid))?;
    }
    Ok(())
}

pub fn set_domain_name(name: &[u8]) -> io::Result<()> {
    // SAFETY: the text is as long as is told.
    answer(unsafe { libc::setdomainname(name.as_ptr().cast(), name.len()) }.into()).map(drop)
}

pub fn set_host_name(name: &[u8]) -> io::Result<()> {
    // SAFETY: the text is as long as is told.
    answer(unsafe { libc::sethostname(name.as_ptr().cast(), name.len()) }.into()).map(drop)
}

/// Has the loopback interface of this network namespace work.
pub fn bring_up_loopback() -> io::Result<()> {
    #[repr(C)]
    struct Request {
        name: [u8; 16],
        flags: libc::c_short,
        rest: [u8; 22],
    }
    let mut name = [0; 16];
    if let Some(first) = name.first_chunk_mut::<2>() {
        *first = *b"lo";
    }
    // SAFETY: the kernel gives a descriptor, which nobody else knows.
    let socket = answer(
        unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) }.into(),
    )?;
    // SAFETY: as above.
    let socket = unsafe { OwnedFd::from_raw_fd(i32::try_from(socket).unwrap_or(-1)) };
    let up = libc::c_short::try_from(libc::IFF_UP).unwrap_or(1);
    let request = Request { name, flags: up, rest: [0; 22] };
    // SAFETY: the kernel reads a structure that is as large as its own `struct ifreq`.
    answer(
        unsafe {
            libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, std::ptr::from_ref(&request))
        }
        .into(),
    )
    .map(drop)
}

/// Has a broken pipe end this process, and what it becomes, as it does by default.
pub fn default_sigpipe() -> io::Result<()> {
    // SAFETY: it sets no handler, only the default.
    if unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) } == libc::SIG_ERR {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Closes every descriptor from `first` on: called before this program has opened any.
pub fn close_from(first: u32) -> io::Result<()> {
    // SAFETY: they were inherited, and nothing in this process refers to them.
    answer(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) }).map(drop)
}
