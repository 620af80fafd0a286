//! The holder: the one process of a pod that needs a process of its own (a shared PID namespace or a user namespace).
//!
//! It is started by the shim with three descriptors, moves into the pod's namespaces, leaves the node's files for an
//! empty root of its own, gives up everything it could do, and sleeps until it is killed. As PID 1 of a shared PID
//! namespace it reaps orphans by ignoring SIGCHLD, which makes the kernel do it (`wait(2)`, NOTES); and whoever shares
//! that namespace can look at it (`/proc/1`), so there must be nothing to see. It uses no library at all: a pod's
//! holder costs one page of code and one of stack.
//!
//! Descriptors: 0 the shim's socket, 1 unused, 2 the pod's network namespace (or /dev/null). No argument.
//! The first message on the socket is a string of letters, carried out in this order:
//! `U` join the user namespace that owns descriptor 2; `u` make a user namespace and wait until the shim has mapped
//! it; `N` join descriptor 2; `n` make a network namespace; `i`, `t` make IPC and UTS namespaces; `p` make a PID
//! namespace and become its first process.
//! Messages on the socket (`SOCK_SEQPACKET`): `m` (map me, answered by one byte); `P` and the number of the process that
//! holds the pod, where it is not the one that was started (4 bytes, in the machine's order); `R` (ready, answered by
//! one byte); or `E`, the letter that failed, and its errno (4 bytes). Letters of what follows the list: `r` the empty
//! root, `c` capabilities, `d` everything else that is given up.
#![cfg(not(test))] // Cargo would link its tests with the standard library, whose panic handler is another.
#![no_std]
#![no_main]
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::many_single_char_names,
    reason = "a system call takes and gives words, which mean numbers of other sizes"
)]

use core::arch::{asm, global_asm};

#[cfg(target_arch = "x86_64")]
mod nr {
    pub const READ: usize = 0;
    pub const WRITE: usize = 1;
    pub const CLOSE: usize = 3;
    pub const RT_SIGACTION: usize = 13;
    pub const IOCTL: usize = 16;
    pub const PPOLL: usize = 271;
    pub const CLONE: usize = 56;
    pub const EXIT_GROUP: usize = 231;
    pub const CAPSET: usize = 126;
    pub const PRCTL: usize = 157;
    pub const CHDIR: usize = 80;
    pub const MOUNT: usize = 165;
    pub const UMOUNT2: usize = 166;
    pub const PIVOT_ROOT: usize = 155;
    pub const CLOSE_RANGE: usize = 436;
    pub const SETSID: usize = 112;
    pub const SETGROUPS: usize = 116;
    pub const SETRESUID: usize = 117;
    pub const SETRESGID: usize = 119;
    pub const UNSHARE: usize = 272;
    pub const SETNS: usize = 308;
    pub const SECCOMP: usize = 317;
    pub const AUDIT_ARCH: u32 = 0xC000_003E;
}

#[cfg(target_arch = "aarch64")]
mod nr {
    pub const READ: usize = 63;
    pub const WRITE: usize = 64;
    pub const CLOSE: usize = 57;
    pub const RT_SIGACTION: usize = 134;
    pub const IOCTL: usize = 29;
    pub const PPOLL: usize = 73;
    pub const CLONE: usize = 220;
    pub const EXIT_GROUP: usize = 94;
    pub const CAPSET: usize = 91;
    pub const PRCTL: usize = 167;
    pub const CHDIR: usize = 49;
    pub const MOUNT: usize = 40;
    pub const UMOUNT2: usize = 39;
    pub const PIVOT_ROOT: usize = 41;
    pub const CLOSE_RANGE: usize = 436;
    pub const SETSID: usize = 157;
    pub const SETGROUPS: usize = 159;
    pub const SETRESUID: usize = 147;
    pub const SETRESGID: usize = 149;
    pub const UNSHARE: usize = 97;
    pub const SETNS: usize = 268;
    pub const SECCOMP: usize = 277;
    pub const AUDIT_ARCH: u32 = 0xC000_00B7;
}

const CLONE_PARENT: usize = 0x0000_8000;
const CLONE_NEWNS: usize = 0x0002_0000;
const CLONE_NEWUTS: usize = 0x0400_0000;
const CLONE_NEWIPC: usize = 0x0800_0000;
const CLONE_NEWUSER: usize = 0x1000_0000;
const CLONE_NEWPID: usize = 0x2000_0000;
const CLONE_NEWNET: usize = 0x4000_0000;
const SIGCHLD: usize = 17;
const EINVAL: isize = -22;
const ENOSYS: isize = -38;
/// `NS_GET_USERNS` of `ioctl_ns(2)`.
const NS_GET_USERNS: usize = 0xB701;

// The entry point. What the kernel put on the stack is of no interest.
#[cfg(target_arch = "x86_64")]
global_asm!(".globl _start", "_start:", "and rsp, -16", "call {main}", main = sym begin);
#[cfg(target_arch = "aarch64")]
global_asm!(".globl _start", "_start:", "bl {main}", main = sym begin);

/// One system call; negative answers are errno.
fn call(number: usize, a: usize, b: usize, c: usize, d: usize, e: usize) -> isize {
    let answer: isize;
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the callers below pass only plain numbers and addresses of live values of the size the call reads.
    unsafe {
        asm!("syscall", inlateout("rax") number => answer, in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d,
            in("r8") e, lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: as above.
    unsafe {
        asm!("svc 0", in("x8") number, inlateout("x0") a as isize => answer, in("x1") b, in("x2") c, in("x3") d,
            in("x4") e, options(nostack));
    }
    answer
}

fn exit(status: usize) -> ! {
    loop {
        call(nr::EXIT_GROUP, status, 0, 0, 0, 0);
    }
}

/// Tells the shim which letter failed, and ends.
fn fail(letter: u8, answer: isize) -> ! {
    let errno = (-answer as i32).to_ne_bytes();
    let message = [b'E', letter, errno[0], errno[1], errno[2], errno[3]];
    call(nr::WRITE, 0, message.as_ptr() as usize, message.len(), 0, 0);
    exit(1)
}

fn must(letter: u8, answer: isize) -> usize {
    if answer < 0 { fail(letter, answer) } else { answer as usize }
}

extern "C" fn begin() -> ! {
    let mut letters = [0u8; 16];
    let told = call(nr::READ, 0, letters.as_mut_ptr() as usize, letters.len(), 0, 0);
    if told < 0 {
        exit(2);
    }
    call(nr::SETSID, 0, 0, 0, 0, 0);
    for letter in letters.into_iter().take(told as usize) {
        match letter {
            b'U' => {
                let owner = must(letter, call(nr::IOCTL, 2, NS_GET_USERNS, 0, 0, 0));
                must(letter, call(nr::SETNS, owner, CLONE_NEWUSER, 0, 0, 0));
                call(nr::CLOSE, owner, 0, 0, 0, 0);
                become_root(letter);
            }
            b'u' => {
                must(letter, call(nr::UNSHARE, CLONE_NEWUSER, 0, 0, 0, 0));
                call(nr::WRITE, 0, c"m".as_ptr() as usize, 1, 0, 0);
                let mut mapped = [0u8; 1];
                if call(nr::READ, 0, mapped.as_mut_ptr() as usize, 1, 0, 0) != 1 {
                    exit(3);
                }
                become_root(letter);
            }
            b'N' => {
                must(letter, call(nr::SETNS, 2, CLONE_NEWNET, 0, 0, 0));
            }
            b'n' => {
                must(letter, call(nr::UNSHARE, CLONE_NEWNET, 0, 0, 0, 0));
            }
            b'i' => {
                must(letter, call(nr::UNSHARE, CLONE_NEWIPC, 0, 0, 0, 0));
            }
            b't' => {
                must(letter, call(nr::UNSHARE, CLONE_NEWUTS, 0, 0, 0, 0));
            }
            b'p' => {
                // CLONE_PARENT: the new process is the shim's child as this one is, so that it dies with the shim.
                let pid = must(
                    letter,
                    call(nr::CLONE, CLONE_PARENT | CLONE_NEWPID | SIGCHLD, 0, 0, 0, 0),
                );
                if pid != 0 {
                    report(pid as u32);
                    exit(0);
                }
                hold();
            }
            _ => fail(letter, EINVAL),
        }
    }
    hold()
}

/// Takes the identity of the user namespace's root; outside it this process has no rights any more.
fn become_root(letter: u8) {
    // May be denied by the namespace's owner (setgroups=deny): nothing here needs groups.
    call(nr::SETGROUPS, 0, 0, 0, 0, 0);
    must(letter, call(nr::SETRESGID, 0, 0, 0, 0, 0));
    must(letter, call(nr::SETRESUID, 0, 0, 0, 0, 0));
}

fn report(pid: u32) {
    let bytes = pid.to_ne_bytes();
    let message = [b'P', bytes[0], bytes[1], bytes[2], bytes[3]];
    call(nr::WRITE, 0, message.as_ptr() as usize, message.len(), 0, 0);
}

/// Moves into a mount namespace that has nothing in it but an empty root that nobody can write to.
///
/// The mounts that were copied with the namespace are locked where a user namespace owns it (`mount_namespaces(7)`): none
/// may be taken away alone. All of them at once, with the root that they are mounted on, may.
fn leave_the_node() {
    const FAILED: u8 = b'r';
    const MS_RDONLY: usize = 1;
    const MS_NOSUID: usize = 2;
    const MS_NODEV: usize = 4;
    const MS_NOEXEC: usize = 8;
    const MS_REC: usize = 0x4000;
    const MS_SLAVE: usize = 1 << 19;
    const MNT_DETACH: usize = 2;

    must(FAILED, call(nr::UNSHARE, CLONE_NEWNS, 0, 0, 0, 0));
    // Nothing of what follows reaches the node, while what is unmounted there is unmounted here: nothing is kept busy.
    let root = c"/".as_ptr() as usize;
    must(FAILED, call(nr::MOUNT, 0, root, 0, MS_REC | MS_SLAVE, 0));
    // Any folder that is sure to be there serves.
    let (kind, at) = (c"tmpfs".as_ptr() as usize, c"/proc".as_ptr() as usize);
    let flags = MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC;
    let options = c"mode=555,size=4k,nr_inodes=1".as_ptr() as usize;
    must(FAILED, call(nr::MOUNT, kind, at, kind, flags, options));
    must(FAILED, call(nr::CHDIR, at, 0, 0, 0, 0));
    // The old root comes to lie on the new one, from where it is taken off (pivot_root(2), NOTES).
    let here = c".".as_ptr() as usize;
    must(FAILED, call(nr::PIVOT_ROOT, here, here, 0, 0, 0));
    must(FAILED, call(nr::UMOUNT2, here, MNT_DETACH, 0, 0, 0));
    must(FAILED, call(nr::CHDIR, root, 0, 0, 0, 0));
}

/// Leaves the node's files, gives up every right and sleeps for ever.
fn hold() -> ! {
    const PR_SET_PDEATHSIG: usize = 1;
    const PR_SET_DUMPABLE: usize = 4;
    const PR_SET_NAME: usize = 15;
    const PR_CAPBSET_DROP: usize = 24;
    const PR_SET_NO_NEW_PRIVS: usize = 38;
    const SIGKILL: usize = 9;

    leave_the_node();
    // Else it would be named after the descriptor that it was started from.
    call(nr::PRCTL, PR_SET_NAME, c"mooring-pod".as_ptr() as usize, 0, 0, 0);
    // Ignored children are reaped by the kernel. Layout of the kernel's sigaction: handler, flags, restorer, mask.
    let ignore: [usize; 4] = [1, 0, 0, 0];
    must(b'd', call(nr::RT_SIGACTION, SIGCHLD, ignore.as_ptr() as usize, 0, 8, 0));
    for capability in 0..64 {
        match call(nr::PRCTL, PR_CAPBSET_DROP, capability, 0, 0, 0) {
            // Beyond the kernel's last capability.
            EINVAL => break,
            answer => must(b'c', answer),
        };
    }
    // _LINUX_CAPABILITY_VERSION_3, this process; then all three sets empty, and with them the ambient one.
    let header: [u32; 2] = [0x2008_0522, 0];
    let none: [u32; 6] = [0; 6];
    must(b'c', call(nr::CAPSET, header.as_ptr() as usize, none.as_ptr() as usize, 0, 0, 0));
    must(b'd', call(nr::PRCTL, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    // After all changes of identity and rights, which undo both.
    must(b'd', call(nr::PRCTL, PR_SET_DUMPABLE, 0, 0, 0, 0));
    must(b'd', call(nr::PRCTL, PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0));
    call(nr::WRITE, 0, c"R".as_ptr() as usize, 1, 0, 0);
    // The shim answers once it has seen all it needs; a closed socket means that it is gone.
    let mut go = [0u8; 1];
    if call(nr::READ, 0, go.as_mut_ptr() as usize, 1, 0, 0) != 1 {
        exit(3);
    }
    close_all();
    confine();
    loop {
        // Waits for no descriptor, no time, no signal.
        call(nr::PPOLL, 0, 0, 0, 0, 0);
    }
}

/// Closes every descriptor, also one that the shim should not have passed on.
fn close_all() {
    const LAST: usize = u32::MAX as usize;
    if call(nr::CLOSE_RANGE, 0, LAST, 0, 0, 0) < 0 {
        // Linux before 5.9. The shim opens everything for itself alone; this is for what it did not open.
        for descriptor in 0..1024 {
            call(nr::CLOSE, descriptor, 0, 0, 0, 0);
        }
    }
}

/// Allows waiting, returning from signals and exiting; anything else ends the process (seccomp(2)).
fn confine() {
    #[repr(C)]
    struct Instruction {
        code: u16,
        yes: u8,
        no: u8,
        value: u32,
    }
    #[repr(C)]
    struct Program {
        length: u16,
        instructions: *const Instruction,
    }
    const LOAD: u16 = 0x20;
    const EQUALS: u16 = 0x15;
    const RETURN: u16 = 0x06;
    const SECCOMP_SET_MODE_FILTER: usize = 1;
    const KILL_PROCESS: u32 = 0x8000_0000;
    const ALLOW: u32 = 0x7FFF_0000;
    #[cfg(target_arch = "x86_64")]
    const RETURN_FROM_SIGNAL: u32 = 15;
    #[cfg(target_arch = "x86_64")]
    const RESTART: u32 = 219;
    #[cfg(target_arch = "aarch64")]
    const RETURN_FROM_SIGNAL: u32 = 139;
    #[cfg(target_arch = "aarch64")]
    const RESTART: u32 = 128;
    let step = |code, yes, no, value| Instruction { code, yes, no, value };
    let filter = [
        step(LOAD, 0, 0, 4), // the architecture
        step(EQUALS, 0, 5, nr::AUDIT_ARCH),
        step(LOAD, 0, 0, 0), // the call's number
        step(EQUALS, 4, 0, nr::PPOLL as u32),
        step(EQUALS, 3, 0, RETURN_FROM_SIGNAL),
        step(EQUALS, 2, 0, RESTART),
        step(EQUALS, 1, 0, nr::EXIT_GROUP as u32),
        step(RETURN, 0, 0, KILL_PROCESS),
        step(RETURN, 0, 0, ALLOW),
    ];
    let program = Program { length: filter.len() as u16, instructions: filter.as_ptr() };
    // A kernel without seccomp leaves a process without capabilities that only sleeps: nothing to end for.
    match call(nr::SECCOMP, SECCOMP_SET_MODE_FILTER, 0, &raw const program as usize, 0, 0) {
        0 | ENOSYS | EINVAL => {}
        _ => exit(5),
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    exit(4)
}
