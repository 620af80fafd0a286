//! What the process that was called and the container's process tell each other.

use std::os::fd::OwnedFd;

use rustix::{
    io::Errno,
    net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair},
};

use crate::error::{Doing, Error, Result};

/// The most that is told at once; a longer complaint is cut.
const MOST: usize = 8 << 10;

#[derive(Debug, PartialEq, Eq)]
pub enum Message {
    /// A user namespace is there, and wants its mappings.
    Map,
    /// A time namespace is there, and wants its offsets.
    Offsets,
    /// The container's process is this one, which waits for the answer: it asks for nothing before its number is known.
    Born(i32),
    /// The namespaces are there: the hooks of this moment may run.
    Hooks,
    /// Everything is there: the limits may be set, with which nothing more could be made.
    Limits,
    /// It waits to be started.
    Ready,
    Warning(String),
    /// It has failed.
    Failed(String),
}

impl Message {
    fn text(&self) -> String {
        match self {
            Self::Map => "map".into(),
            Self::Offsets => "offsets".into(),
            Self::Born(pid) => format!("born {pid}"),
            Self::Hooks => "hooks".into(),
            Self::Limits => "limits".into(),
            Self::Ready => "ready".into(),
            Self::Warning(what) => format!("warning {what}"),
            Self::Failed(why) => format!("failed {why}"),
        }
    }

    fn of(text: &str) -> Option<Self> {
        let (word, rest) = text.split_once(' ').unwrap_or((text, ""));
        Some(match word {
            "map" => Self::Map,
            "offsets" => Self::Offsets,
            "born" => Self::Born(rest.parse().ok()?),
            "hooks" => Self::Hooks,
            "limits" => Self::Limits,
            "ready" => Self::Ready,
            "warning" => Self::Warning(rest.into()),
            "failed" => Self::Failed(rest.into()),
            _ => return None,
        })
    }
}

/// One end. It is closed by exec, which is how the other one sees that the container's program runs.
#[derive(Debug)]
pub struct End(OwnedFd);

pub fn pair() -> Result<(End, End)> {
    let (one, other) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .doing("make a pair of sockets")?;
    Ok((End(one), End(other)))
}

impl End {
    pub fn tell(&self, message: &Message) -> Result<()> {
        let text = message.text();
        let cut = text.floor_char_boundary(MOST.min(text.len()));
        let bytes = text.as_bytes().get(..cut).unwrap_or_default();
        send(&self.0, bytes, SendFlags::NOSIGNAL).doing("tell the caller").map(drop)
    }

    /// Tells [`Message::Ready`], by the plainest of calls: the container's own filter may be in force.
    pub fn tell_ready(&self) -> Result<()> {
        rustix::io::write(&self.0, Message::Ready.text().as_bytes())
            .doing("tell the caller")
            .map(drop)
    }

    /// The next message; `None` when the other end is closed.
    pub fn next(&self) -> Result<Option<Message>> {
        let mut bytes = [0; MOST];
        let length = loop {
            match recv(&self.0, &mut bytes, RecvFlags::empty()) {
                Ok((length, _)) => break length,
                Err(Errno::INTR) => {}
                Err(Errno::CONNRESET) => return Ok(None),
                Err(error) => return Err(error).doing("listen to the container's process"),
            }
        };
        let text = String::from_utf8_lossy(bytes.get(..length).unwrap_or_default());
        if text.is_empty() {
            return Ok(None);
        }
        let message = Message::of(&text);
        message.map(Some).ok_or_else(|| Error::invalid(format!("message {text:?}")))
    }

    /// Lets the other one go on.
    pub fn answer(&self) -> Result<()> {
        send(&self.0, b"go", SendFlags::NOSIGNAL).doing("answer the container's process").map(drop)
    }

    /// Waits for that.
    pub fn wait(&self) -> Result<()> {
        let mut bytes = [0; 8];
        loop {
            match recv(&self.0, &mut bytes, RecvFlags::empty()) {
                Ok((2, _)) => return Ok(()),
                Ok(_) => return Err(Error::invalid("the caller is gone")),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error).doing("wait for the caller"),
            }
        }
    }

    pub fn ask(&self, message: &Message) -> Result<()> {
        self.tell(message)?;
        self.wait()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_as_they_went() {
        let (one, other) = pair().unwrap();
        let all = [
            Message::Map,
            Message::Born(7),
            Message::Hooks,
            Message::Limits,
            Message::Ready,
            Message::Warning("a b".into()),
            Message::Failed("no\nway".into()),
        ];
        for message in all {
            one.tell(&message).unwrap();
            assert_eq!(other.next().unwrap(), Some(message));
        }
        one.tell(&Message::Failed("ä".repeat(MOST))).unwrap();
        assert!(matches!(other.next().unwrap(), Some(Message::Failed(_))));
        other.answer().unwrap();
        one.wait().unwrap();
        drop(one);
        assert_eq!(other.next().unwrap(), None);
        assert!(other.wait().is_err());
    }
}
