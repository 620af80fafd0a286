//! A process's terminal: made in the container, its other end sent to whoever listens at the console socket.

use std::{
    io::IoSlice,
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use rustix::{
    fs::{FsWord, Mode, OFlags},
    net::{
        AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
        SocketFlags, SocketType,
    },
    termios::Winsize,
};

use crate::{
    error::{Doing, Error, Result},
    rooted,
    spec::ConsoleSize,
    sys,
};

const DEVPTS_MAGIC: FsWord = 0x1cd1;

/// Connects to where the terminal is wanted; that path is the node's.
pub fn connect(path: &Path) -> Result<OwnedFd> {
    let what = "connect to the console socket";
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .doing(what)?;
    let address = SocketAddrUnix::new(path).doing_at(what, path)?;
    rustix::net::connect(&socket, &address).doing_at(what, path)?;
    Ok(socket)
}

/// Makes a terminal in the container whose root is given, and sends its master away. Answers the process's end.
pub fn make(root: BorrowedFd<'_>, socket: &OwnedFd, size: Option<ConsoleSize>) -> Result<OwnedFd> {
    let what = "make a terminal";
    let terminals = rooted::find(root, Path::new("/dev/pts"), true)?
        .filter(|found| rustix::fs::fstatfs(found).is_ok_and(|about| about.f_type == DEVPTS_MAGIC))
        .ok_or_else(|| Error::invalid("a terminal is wanted, and /dev/pts is no devpts"))?;
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let master = rustix::fs::openat(&terminals, "ptmx", flags, Mode::empty()).doing(what)?;
    sys::unlock_terminal(master.as_fd()).doing(what)?;
    let peer = sys::terminal_peer(master.as_fd()).doing(what)?;
    if let Some(size) = size {
        let size = Winsize { ws_row: size.height, ws_col: size.width, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(&master, size).doing(what)?;
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut rights = SendAncillaryBuffer::new(&mut space);
    let sent = [master.as_fd()];
    rights.push(SendAncillaryMessage::ScmRights(&sent));
    rustix::net::sendmsg(socket, &[IoSlice::new(b"/dev/ptmx")], &mut rights, SendFlags::NOSIGNAL)
        .doing("send the terminal to the console socket")?;
    Ok(peer)
}

const CONSOLE: &str = "/dev/console";

/// Makes the file that the terminal will be mounted on.
pub fn place(root: BorrowedFd<'_>) -> Result<()> {
    let path = Path::new(CONSOLE);
    if rooted::find(root, path, true)?.is_none() {
        drop(rooted::file(root, path)?);
    }
    Ok(())
}

/// Has the container find its terminal at /dev/console.
pub fn mount(root: BorrowedFd<'_>, peer: &OwnedFd) -> Result<()> {
    use rustix::mount::{MoveMountFlags, OpenTreeFlags};
    let what = "mount the terminal at /dev/console";
    let target =
        rooted::find(root, Path::new(CONSOLE), true)?.ok_or_else(|| Error::invalid(what))?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = rustix::mount::open_tree(peer, "", flags).doing(what)?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(&tree, "", &target, "", flags).doing(what)
}

/// Makes the terminal this process's standard streams, and its session's terminal.
pub fn take(peer: OwnedFd) -> Result<()> {
    let what = "take the terminal";
    for stream in 0..3 {
        sys::duplicate(peer.as_fd(), stream).doing(what)?;
    }
    drop(peer);
    rustix::process::ioctl_tiocsctty(std::io::stdin()).doing(what)
}
