//! The links of this network namespace, and where the other ends of those that come in pairs are.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, OwnedFd},
};

use nix::{
    errno::Errno,
    libc::{
        IFLA_IFNAME, IFLA_INFO_KIND, IFLA_LINK, IFLA_LINK_NETNSID, IFLA_LINKINFO, IFLA_MASTER,
        RTM_GETLINK, RTM_GETNSID, RTM_NEWLINK, RTM_NEWNSID,
    },
    sys::socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto,
        socket,
    },
};

// libc has these wider than messages have them, and the last two not at all.
pub(super) const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
pub(super) const NLM_F_REQUEST: u16 = 1;
const NLM_F_DUMP: u16 = 0x300;
const NETNSA_NSID: u16 = 1;
const NETNSA_FD: u16 = 3;
/// The two highest bits of an attribute's type say how it is written.
const TYPE: u16 = 0x3fff;
/// `nlmsghdr`.
const HEADER: usize = 16;
/// `ifinfomsg`.
const LINK: usize = 16;
/// `rtgenmsg`, padded.
const GENERAL: usize = 4;

/// A link.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    pub index: i32,
    pub name: String,
    /// `veth`, `bridge` …; empty for a device.
    pub kind: String,
    /// The index of its other end, or of the link below it.
    pub peer: Option<i32>,
    /// The number of the namespace that the peer is in, where that is another: see [`number_of`].
    pub peer_netns: Option<i32>,
    /// The bridge that it is a port of.
    pub master: Option<i32>,
}

/// All links of this thread's network namespace. Blocks for a moment.
pub fn read() -> io::Result<Vec<Link>> {
    let mut links = Vec::new();
    ask(RTM_GETLINK, NLM_F_REQUEST | NLM_F_DUMP, &[0; LINK], |kind, body| {
        if kind == RTM_NEWLINK {
            links.extend(link(body));
        }
    })?;
    Ok(links)
}

/// By which number this thread's network namespace knows another; nothing where it has none for it, which is so where
/// no link of it leads there.
pub fn number_of(netns: BorrowedFd<'_>) -> io::Result<Option<i32>> {
    let mut body = vec![0; GENERAL];
    body.extend(8_u16.to_ne_bytes());
    body.extend(NETNSA_FD.to_ne_bytes());
    body.extend(netns.as_raw_fd().to_ne_bytes());
    let mut number = None;
    ask(RTM_GETNSID, NLM_F_REQUEST, &body, |kind, body| {
        if kind == RTM_NEWNSID {
            let mut all = attributes(body.get(GENERAL..).unwrap_or_default());
            number = all.find_map(|(kind, value)| (kind == NETNSA_NSID).then(|| i32_of(value))?);
        }
    })?;
    Ok(number.filter(|number| *number >= 0))
}

/// Sends one request and hands over every message of the answer.
fn ask(kind: u16, flags: u16, body: &[u8], mut each: impl FnMut(u16, &[u8])) -> io::Result<()> {
    let socket: OwnedFd = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkRoute,
    )?;
    let length = u32::try_from(HEADER + body.len()).map_err(io::Error::other)?;
    let mut request = Vec::new();
    request.extend(length.to_ne_bytes());
    request.extend(kind.to_ne_bytes());
    request.extend(flags.to_ne_bytes());
    request.extend([1_u32.to_ne_bytes(), 0_u32.to_ne_bytes()].concat());
    request.extend(body);
    sendto(socket.as_raw_fd(), &request, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
    let mut answer = vec![0; 64 << 10];
    loop {
        // The kernel answers while it is read, so this never waits.
        let length = recv(socket.as_raw_fd(), &mut answer, MsgFlags::MSG_DONTWAIT)?;
        let ended = messages(answer.get(..length).unwrap_or_default(), &mut each)?;
        if ended || flags & NLM_F_DUMP == 0 {
            return Ok(());
        }
    }
}

/// Hands over each message; whether the last one of a list was among them.
fn messages(mut bytes: &[u8], each: &mut impl FnMut(u16, &[u8])) -> io::Result<bool> {
    while !bytes.is_empty() {
        let (message, rest, kind) = message(bytes).ok_or(io::ErrorKind::InvalidData)?;
        match kind {
            NLMSG_DONE => return Ok(true),
            NLMSG_ERROR => {
                let error = message.get(..4).and_then(i32_of).unwrap_or(0);
                if error != 0 {
                    return Err(Errno::from_raw(error.saturating_neg()).into());
                }
            }
            kind => each(kind, message),
        }
        bytes = rest;
    }
    Ok(false)
}

/// The body of the first message, what is behind it, and its type.
fn message(bytes: &[u8]) -> Option<(&[u8], &[u8], u16)> {
    let length = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
    let kind = u16_of(bytes.get(4..6)?)?;
    let body = bytes.get(HEADER..length)?;
    let rest = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((body, rest, kind))
}

fn link(body: &[u8]) -> Option<Link> {
    let mut link = Link { index: i32_of(body.get(4..8)?)?, ..Link::default() };
    for (kind, value) in attributes(body.get(LINK..)?) {
        match kind {
            IFLA_IFNAME => link.name = text(value),
            IFLA_LINK => link.peer = i32_of(value),
            IFLA_MASTER => link.master = i32_of(value),
            IFLA_LINK_NETNSID => link.peer_netns = i32_of(value),
            IFLA_LINKINFO => {
                let kind = attributes(value).find(|(kind, _)| *kind == IFLA_INFO_KIND);
                link.kind = kind.map(|(_, value)| text(value)).unwrap_or_default();
            }
            _ => {}
        }
    }
    Some(link)
}

/// Type and value of each attribute; what is cut short ends the list.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16_of(bytes.get(..2)?)?);
        let kind = u16_of(bytes.get(2..4)?)? & TYPE;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

fn u16_of(bytes: &[u8]) -> Option<u16> {
    bytes.try_into().ok().map(u16::from_ne_bytes)
}

fn i32_of(bytes: &[u8]) -> Option<i32> {
    bytes.try_into().ok().map(i32::from_ne_bytes)
}

fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(bytes.get(..end).unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests {
    use std::{fs::File, os::fd::AsFd, process::Command};

    use proptest::prelude::*;

    use super::*;
    use crate::{network::netns, process::testing::TestChild};

    #[test]
    fn a_pair_of_links_is_seen_from_either_end() {
        let folder = tempfile::tempdir().unwrap();
        let (near, far) = (folder.path().join("near"), folder.path().join("far"));
        let (near, far) = (netns::acquire(&near).unwrap(), netns::acquire(&far).unwrap());
        let (here, there) = (netns::open(&near.path).unwrap(), netns::open(&far.path).unwrap());
        let (links, number) = netns::in_netns(here.as_fd(), || {
            for command in [
                "link add name br0 type bridge".to_owned(),
                format!(
                    "link add name near0 master br0 type veth peer name far0 netns {}",
                    far.path.display()
                ),
            ] {
                let mut ip = Command::new("ip");
                let done = TestChild::start(ip.args(command.split(' '))).status();
                assert_eq!(done, 0, "{command}");
            }
            let own = File::open("/proc/thread-self/ns/net").unwrap();
            assert_eq!(number_of(own.as_fd()).unwrap(), None);
            (read().unwrap(), number_of(there.as_fd()).unwrap())
        })
        .unwrap();
        let other = netns::in_netns(there.as_fd(), || read().unwrap()).unwrap();
        drop((here, there));
        for record in [near, far] {
            netns::release(&record).unwrap();
        }
        let named = |name: &str| links.iter().find(|link| link.name == name).unwrap();
        let end = other.iter().find(|link| link.name == "far0").unwrap();
        assert_eq!(named("br0").kind, "bridge");
        let near = named("near0");
        assert_eq!((near.kind.as_str(), near.master), ("veth", Some(named("br0").index)));
        assert_eq!((near.peer, end.peer), (Some(end.index), Some(near.index)));
        assert!(near.peer_netns.is_some() && near.peer_netns == number, "{near:?} {number:?}");
        assert_eq!(named("lo").peer_netns, None);
    }

    proptest! {
        #[test]
        fn whatever_the_kernel_may_answer_is_read_or_refused(
            bytes in prop::collection::vec(any::<u8>(), 0..256),
        ) {
            let _ = messages(&bytes, &mut |_, body| drop(link(body)));
        }
    }
}
