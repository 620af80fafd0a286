//! The one netlink request that is needed: an interface goes up.

use std::os::fd::AsRawFd;

use nix::{
    errno::Errno,
    libc::RTM_SETLINK,
    sys::socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto,
        socket,
    },
};

use super::links::{NLM_F_REQUEST, NLMSG_ERROR};

/// `lo` is the first interface of every network namespace.
const LOOPBACK: i32 = 1;

const NLM_F_ACK: u16 = 4;
const IFF_UP: u32 = 1;
/// `nlmsghdr` and `ifinfomsg`, both of 16 bytes.
const REQUEST_LENGTH: u32 = 32;

/// Brings `lo` of this thread's network namespace up.
pub(super) fn loopback_up() -> Result<(), Errno> {
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkRoute,
    )?;
    let kernel = NetlinkAddr::new(0, 0);
    sendto(socket.as_raw_fd(), &request(), &kernel, MsgFlags::empty())?;
    // The kernel answers before the send returns, so this never waits.
    let mut answer = [0; 256];
    let length = recv(socket.as_raw_fd(), &mut answer, MsgFlags::MSG_DONTWAIT)?;
    outcome(answer.get(..length).unwrap_or_default())
}

fn request() -> Vec<u8> {
    let mut bytes = Vec::with_capacity(REQUEST_LENGTH as usize);
    // nlmsghdr: length, type, flags, sequence, port.
    bytes.extend(REQUEST_LENGTH.to_ne_bytes());
    bytes.extend(RTM_SETLINK.to_ne_bytes());
    bytes.extend((NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
    bytes.extend(1_u32.to_ne_bytes());
    bytes.extend(0_u32.to_ne_bytes());
    // ifinfomsg: family and padding, device type, index, flags, mask of the flags to change.
    bytes.extend([0; 4]);
    bytes.extend(LOOPBACK.to_ne_bytes());
    bytes.extend(IFF_UP.to_ne_bytes());
    bytes.extend(IFF_UP.to_ne_bytes());
    bytes
}

/// Reads the acknowledgement: a header of type `NLMSG_ERROR`, then the negated error number, 0 for success.
fn outcome(answer: &[u8]) -> Result<(), Errno> {
    let kind = answer.get(4..6).and_then(|b| b.try_into().ok()).map(u16::from_ne_bytes);
    let error = answer.get(16..20).and_then(|b| b.try_into().ok()).map(i32::from_ne_bytes);
    match (kind, error) {
        (Some(NLMSG_ERROR), Some(0)) => Ok(()),
        (Some(NLMSG_ERROR), Some(error)) => Err(Errno::from_raw(error.saturating_neg())),
        _ => Err(Errno::EBADMSG),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_request_is_as_long_as_it_says() {
        assert_eq!(request().len(), REQUEST_LENGTH as usize);
    }

    #[test]
    fn a_refusal_is_its_error_number() {
        let mut answer = [0_u8; 36];
        answer[4..6].copy_from_slice(&NLMSG_ERROR.to_ne_bytes());
        assert_eq!(outcome(&answer), Ok(()));
        answer[16..20].copy_from_slice(&(-1_i32).to_ne_bytes());
        assert_eq!(outcome(&answer), Err(Errno::EPERM));
    }

    #[test]
    fn a_short_answer_is_no_success() {
        assert_eq!(outcome(&[]), Err(Errno::EBADMSG));
        assert_eq!(outcome(&[0; 18]), Err(Errno::EBADMSG));
    }
}
