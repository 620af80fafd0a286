//! The holder: a process for the pods whose namespaces a thread cannot hold.
//!
//! Its program (shim/holder) is embedded in the shim and started from a sealed memory file, so that nothing on the
//! node has to be found, and nothing in the pod can change it. See the program for the letters and messages.

use std::{
    fs::File,
    io::{self, Write},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::process::CommandExt,
    },
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use nix::{
    fcntl::{FcntlArg, SealFlag, fcntl},
    sys::{
        memfd::{MFdFlags, memfd_create},
        socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair},
    },
};
use rustix::process::Signal;
use tokio::{
    task::JoinError,
    time::{Instant, timeout_at},
};

use super::{IdMapping, KeeperError, Net, User, Wanted, during, inside};
use crate::{
    process::{Exited, Expecting, Reaper},
    released::Released,
    sys::{
        identity::{self, Pinned},
        survivor::Survivors,
    },
};

/// The most that the holder needs for any of its steps; they are a handful of system calls.
const STEP: Duration = Duration::from_secs(5);

/// The holder's program, an ELF file for this machine.
#[derive(Clone, Copy)]
pub struct HolderProgram(pub &'static [u8]);

impl std::fmt::Debug for HolderProgram {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "HolderProgram({} bytes)", self.0.len())
    }
}

#[derive(Debug)]
pub struct Holder {
    identity: (i32, u64),
    pinned: Pinned,
    exited: Exited,
}

impl Holder {
    /// Starts the program and waits until it is inside and confined.
    pub async fn start(
        wanted: Wanted,
        reaper: &Reaper,
        program: HolderProgram,
    ) -> Result<Self, KeeperError> {
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
                .map_err(io::Error::from)
                .map_err(during("make the holder's socket"))?;
        // By a message, as arguments can be seen by whoever shares the pod's PID namespace.
        send(ours.as_raw_fd(), letters(&wanted).as_bytes(), MsgFlags::MSG_NOSIGNAL)
            .map_err(io::Error::from)
            .map_err(during("tell the holder its namespaces"))?;
        let path = match &wanted.net {
            Net::Join(path) => path.clone(),
            Net::Host | Net::New => "/dev/null".into(),
        };
        let prepared = tokio::task::spawn_blocking(move || prepared(&path, program)).await;
        let lost = |error: JoinError| KeeperError::Holder(error.to_string());
        let (net, image) = prepared.map_err(lost)??;
        // Held until the holder is adopted: its number is learned from its own message.
        let expecting = reaper.expecting();
        let mut command = Command::new(format!("/proc/self/fd/{}", image.as_raw_fd()));
        command.arg0("mooring-pod").env_clear();
        command.stdin(Stdio::from(theirs)).stdout(Stdio::null()).stderr(Stdio::from(net));
        // On this thread: the holder's parent-death signal follows the thread that starts it.
        let (started, _) = reaper.spawn(&mut command).map_err(during("start the holder"))?;
        drop(command);
        let launched = Launched { expecting, started, socket: ours };
        let talk = tokio::task::spawn_blocking(move || launched.settle(&wanted));
        talk.await.map_err(lost)?
    }

    pub fn pid(&self) -> u32 {
        self.identity.0.unsigned_abs()
    }

    /// Its process id and start time.
    pub fn identity(&self) -> (i32, u64) {
        self.identity
    }

    pub fn exited(&self) -> Exited {
        self.exited.clone()
    }

    /// Kills it and waits for its end, and with it for the end of everything in its PID namespace.
    pub async fn end(mut self, deadline: Instant) -> Result<i32, KeeperError> {
        // Fails only when it has ended by itself.
        let _ = self.pinned.signal(Signal::KILL);
        if let Ok(exit) = timeout_at(deadline, self.exited.wait()).await {
            return Ok(exit.status);
        }
        let (pid, _) = self.identity;
        let survivors = Survivors::seen(move || Survivors::in_namespace_of(pid)).await;
        Err(KeeperError::Alive { pid, survivors })
    }
}

/// A started program that is not inside yet.
struct Launched {
    expecting: Expecting,
    started: Exited,
    socket: OwnedFd,
}

impl Launched {
    /// Answers the program's questions until it is ready. Blocks.
    fn settle(self, wanted: &Wanted) -> Result<Holder, KeeperError> {
        let mut pid = self.started.pid();
        let settled = self.converse(wanted, &mut pid);
        let exited = if pid == self.started.pid() {
            self.started.clone()
        } else {
            self.expecting.adopt(pid)
        };
        let opened = || -> Result<Holder, KeeperError> {
            // It is this process's own child: until it is reaped nobody else has its number.
            let gone = || KeeperError::Holder("it ended before it was ready".into());
            let failed = || during("hold the holder");
            let pinned = Pinned::new(pid, None).map_err(failed())?.ok_or_else(gone)?;
            let start_time = identity::start_time(pid).map_err(failed())?.ok_or_else(gone)?;
            Ok(Holder { identity: (pid, start_time), pinned, exited: exited.clone() })
        };
        let made = settled.and_then(|()| opened()).and_then(|holder| {
            prepare(&holder, wanted)?;
            send(self.socket.as_raw_fd(), b"g", MsgFlags::MSG_NOSIGNAL)
                .map_err(io::Error::from)
                .map_err(during("release the holder"))?;
            Ok(holder)
        });
        if made.is_err() {
            // The number is still this process's own child, so it cannot have been given to another.
            for pid in [pid, self.started.pid()] {
                if let Ok(Some(pinned)) = Pinned::new(pid, None)
                    && exited.now().is_none()
                {
                    // Gone is as good. Where it cannot be held it dies with the shim.
                    let _ = pinned.signal(Signal::KILL);
                }
            }
        }
        made
    }

    fn converse(&self, wanted: &Wanted, pid: &mut i32) -> Result<(), KeeperError> {
        let limit = nix::sys::time::TimeVal::new(i64::try_from(STEP.as_secs()).unwrap_or(5), 0);
        nix::sys::socket::setsockopt(
            &self.socket,
            nix::sys::socket::sockopt::ReceiveTimeout,
            &limit,
        )
        .map_err(io::Error::from)
        .map_err(during("bound the wait for the holder"))?;
        // With a PID namespace two processes speak: one names the other, and the other says that it is ready.
        let mut named = !wanted.shared_pid;
        let mut ready = false;
        while !(named && ready) {
            let mut message = [0u8; 16];
            let length = recv(self.socket.as_raw_fd(), &mut message, MsgFlags::empty())
                .map_err(io::Error::from)
                .map_err(during("hear from the holder"))?;
            match message.get(..length) {
                Some([b'm']) => {
                    if let User::New { uids, gids } = &wanted.user {
                        map(*pid, uids, gids)?;
                    }
                    send(self.socket.as_raw_fd(), b"m", MsgFlags::MSG_NOSIGNAL)
                        .map_err(io::Error::from)
                        .map_err(during("answer the holder"))?;
                }
                Some([b'P', number @ ..]) if number.len() == 4 => {
                    let number = number.try_into().map(i32::from_ne_bytes).unwrap_or_default();
                    *pid = number;
                    named = true;
                }
                Some([b'R']) => ready = true,
                Some([b'E', letter, errno @ ..]) if errno.len() == 4 => {
                    let errno = errno.try_into().map(i32::from_ne_bytes).unwrap_or_default();
                    return Err(during(step_name(*letter))(io::Error::from_raw_os_error(errno)));
                }
                Some([]) => return Err(KeeperError::Holder("it ended before it was ready".into())),
                _ => {
                    return Err(KeeperError::Holder(
                        "it said something that is not understood".into(),
                    ));
                }
            }
        }
        Ok(())
    }
}

/// Sets hostname and kernel parameters from inside, on a thread that ends with it.
fn prepare(holder: &Holder, wanted: &Wanted) -> Result<(), KeeperError> {
    if wanted.uts.is_none() && wanted.sysctls.is_empty() {
        return Ok(());
    }
    let pid = holder.pid();
    std::thread::scope(|scope| {
        let inside = scope.spawn(|| {
            let kinds: &[&str] =
                if wanted.uts.is_some() { &["uts", "net", "ipc"] } else { &["net", "ipc"] };
            inside::enter(pid, kinds)?;
            if let Some(hostname) = &wanted.uts {
                inside::set_hostname(hostname)?;
            }
            let root = if wanted.user == User::Host { None } else { Some(ids(pid)?) };
            inside::set_sysctls(&wanted.sysctls, root)
        });
        inside
            .join()
            .unwrap_or_else(|_| Err(KeeperError::Holder("its preparation panicked".into())))
    })
}

/// The ids on the node of the process `pid`, which is its user namespace's root.
fn ids(pid: u32) -> Result<(u32, u32), KeeperError> {
    let path = format!("/proc/{pid}/status");
    let status = std::fs::read_to_string(&path).map_err(during(format!("read {path}")))?;
    let real = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key))?;
        line.split_whitespace().next()?.parse().ok()
    };
    real("Uid:").zip(real("Gid:")).ok_or_else(|| KeeperError::Holder(format!("{path} has no ids")))
}

/// The program's first message for a pod; see shim/holder.
fn letters(wanted: &Wanted) -> String {
    let mut letters = String::new();
    match wanted.user {
        User::Host => {}
        User::OwnerOfNet => letters.push('U'),
        User::New { .. } => letters.push('u'),
    }
    match wanted.net {
        Net::Host => {}
        Net::Join(_) => letters.push('N'),
        Net::New => letters.push('n'),
    }
    if wanted.ipc {
        letters.push('i');
    }
    if wanted.uts.is_some() {
        letters.push('t');
    }
    if wanted.shared_pid {
        letters.push('p');
    }
    letters
}

fn step_name(letter: u8) -> &'static str {
    match letter {
        b'U' => "join the user namespace that owns the pod's network namespace",
        b'u' => "make the pod's user namespace",
        b'N' => "join the pod's network namespace",
        b'n' => "make the pod's network namespace",
        b'i' => "make the pod's IPC namespace",
        b't' => "make the pod's UTS namespace",
        b'p' => "make the pod's PID namespace",
        b'r' => "give the holder an empty root",
        b'c' => "take the holder's capabilities",
        _ => "confine the holder",
    }
}

fn map(pid: i32, uids: &[IdMapping], gids: &[IdMapping]) -> Result<(), KeeperError> {
    for (kind, mappings) in [("uid_map", uids), ("gid_map", gids)] {
        let path = format!("/proc/{pid}/{kind}");
        let lines: Vec<String> = mappings
            .iter()
            .map(|m| format!("{} {} {}", m.container_id, m.host_id, m.length))
            .collect();
        let text = lines.join(
            "
",
        );
        // One write: the kernel takes a map only once and whole (user_namespaces(7)).
        std::fs::write(&path, text).map_err(during(format!("write {path}")))?;
    }
    Ok(())
}

/// The file at `net`, which the holder is given, and its program. Blocks.
fn prepared(net: &Path, program: HolderProgram) -> Result<(OwnedFd, File), KeeperError> {
    let net = File::open(net).map_err(during(format!("open {}", net.display())))?;
    Ok((net.into(), memory_file(program.0)?))
}

fn memory_file(program: &[u8]) -> Result<File, KeeperError> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let made = memfd_create("mooring-holder", flags).map_err(io::Error::from);
    let mut file = File::from(made.map_err(during("make a memory file for the holder"))?);
    file.write_all(program).map_err(during("write the holder to its memory file"))?;
    let seals = SealFlag::F_SEAL_WRITE
        | SealFlag::F_SEAL_GROW
        | SealFlag::F_SEAL_SHRINK
        | SealFlag::F_SEAL_SEAL;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals))
        .map_err(io::Error::from)
        .map_err(during("seal the holder"))?;
    // A file that is open for writing cannot be executed (ETXTBSY): go on with a read-only description of it.
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    File::open(path).map_err(during("open the holder's memory file"))
}

/// Kills the process `pid` if it is still the one that started at `start_time`.
pub(super) fn kill_by_identity(pid: i32, start_time: u64) -> Result<Released, KeeperError> {
    let held = Pinned::new(pid, Some(start_time)).map_err(during(format!("hold holder {pid}")))?;
    let Some(pinned) = held else { return Ok(Released::AlreadyGone) };
    match pinned.kill_and_wait(STEP) {
        Ok(true) => Ok(Released::Done),
        Ok(false) => Ok(Released::AlreadyGone),
        Err(error) if error.kind() == io::ErrorKind::TimedOut => {
            Err(KeeperError::Alive { pid, survivors: Survivors::in_namespace_of(pid) })
        }
        Err(error) => Err(during(format!("kill holder {pid}"))(error)),
    }
}
