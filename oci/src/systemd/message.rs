//! What comes from systemd, as far as it is looked at: answers, errors, and signals that a job has ended.

use std::io;

use super::wire::{MEMBER, SIGNATURE};

/// Kinds of messages.
pub const RETURN: u8 = 2;
pub const ERROR: u8 = 3;
pub const SIGNAL: u8 = 4;

/// Fields of a message's head that no call has.
const ERROR_NAME: u8 = 4;
const REPLY_SERIAL: u8 = 5;
const SENDER: u8 = 7;

/// What a message is at the least.
pub const START: usize = 16;
/// The most that the specification lets a message be.
const MOST: usize = 128 << 20;

/// What has come.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Message {
    pub kind: u8,
    pub member: String,
    pub error: String,
    pub answers: u32,
    pub sender: String,
    signature: String,
    body: Vec<u8>,
}

fn garbage(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("a D-Bus message {what}"))
}

/// How much follows the first [`START`] bytes of a message.
pub fn rest(start: &[u8; START]) -> io::Result<usize> {
    let mut read = Reader { bytes: start, at: 0 };
    if (read.byte()?, read.skip(2)?, read.byte()?) != (b'l', (), 1) {
        return Err(garbage("in another encoding"));
    }
    let body = read.number()? as usize;
    read.skip(4)?;
    let fields = read.number()? as usize;
    let rest = fields.checked_next_multiple_of(8).and_then(|fields| fields.checked_add(body));
    rest.filter(|rest| *rest <= MOST).ok_or_else(|| garbage("that is too long"))
}

/// Reads a whole message.
pub fn read(bytes: &[u8]) -> io::Result<Message> {
    let mut read = Reader { bytes, at: 1 };
    let mut message = Message { kind: read.byte()?, ..Message::default() };
    read.skip(10)?;
    let length = read.number()? as usize;
    let end = START + length;
    while read.at < end {
        read.align(8);
        let code = read.byte()?;
        let signature = read.signature()?;
        match signature.as_str() {
            "u" => {
                let number = read.number()?;
                if code == REPLY_SERIAL {
                    message.answers = number;
                }
            }
            "s" | "o" | "g" => {
                let text = if signature == "g" { read.signature()? } else { read.text()? };
                match code {
                    MEMBER => message.member = text,
                    ERROR_NAME => message.error = text,
                    SENDER => message.sender = text,
                    SIGNATURE => message.signature = text,
                    _ => {}
                }
            }
            _ => return Err(garbage("with a field of another type")),
        }
    }
    message.body = bytes.get(end.next_multiple_of(8)..).unwrap_or_default().to_vec();
    Ok(message)
}

impl Message {
    /// The texts among its first values, up to one that is neither text nor number.
    pub fn texts(&self) -> io::Result<Vec<String>> {
        let mut read = Reader { bytes: &self.body, at: 0 };
        let mut texts = Vec::new();
        for kind in self.signature.bytes() {
            match kind {
                b's' | b'o' => texts.push(read.text()?),
                b'u' => drop(read.number()?),
                _ => break,
            }
        }
        Ok(texts)
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> io::Result<&'a [u8]> {
        let end = self.at.checked_add(length).ok_or_else(|| garbage("that is too long"))?;
        let taken = self.bytes.get(self.at..end).ok_or_else(|| garbage("that ends too early"))?;
        self.at = end;
        Ok(taken)
    }

    fn skip(&mut self, length: usize) -> io::Result<()> {
        self.take(length).map(drop)
    }

    fn align(&mut self, size: usize) {
        self.at = self.at.next_multiple_of(size);
    }

    fn byte(&mut self) -> io::Result<u8> {
        self.take(1).map(|taken| taken.first().copied().unwrap_or_default())
    }

    fn number(&mut self) -> io::Result<u32> {
        self.align(4);
        let taken = self.take(4)?;
        taken.try_into().map(u32::from_le_bytes).map_err(|_| garbage("that ends too early"))
    }

    fn ended(&mut self, length: usize) -> io::Result<String> {
        let text = String::from_utf8_lossy(self.take(length)?).into_owned();
        self.skip(1)?;
        Ok(text)
    }

    fn text(&mut self) -> io::Result<String> {
        let length = self.number()? as usize;
        self.ended(length)
    }

    fn signature(&mut self) -> io::Result<String> {
        let length = self.byte()?.into();
        self.ended(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A signal as systemd sends it: each field at a multiple of eight, and what follows them.
    const TOLD: &[u8] = b"l\x04\x01\x01\x25\0\0\0\x09\0\0\0\x42\0\0\0\
        \x01\x01o\0\x02\0\0\0/a\0\0\0\0\0\0\
        \x03\x01s\0\x0a\0\0\0JobRemoved\0\0\0\0\0\0\
        \x07\x01s\0\x04\0\0\0:1.0\0\0\0\0\
        \x08\x01g\0\x04uoss\0\0\0\0\0\0\0\
        \x07\0\0\0\x06\0\0\0/job/7\0\0\x07\0\0\0a.scope\0\x04\0\0\0done\0";

    #[test]
    fn a_signal_is_read() {
        let bytes = TOLD.to_vec();
        let start: [u8; START] = bytes[..START].try_into().unwrap();
        assert_eq!(rest(&start).unwrap(), bytes.len() - START);
        let told = read(&bytes).unwrap();
        assert_eq!(
            (told.kind, told.member.as_str(), told.sender.as_str()),
            (SIGNAL, "JobRemoved", ":1.0")
        );
        assert_eq!(told.texts().unwrap(), ["/job/7", "a.scope", "done"]);
    }

    #[test]
    fn what_is_cut_or_damaged_is_an_error_and_no_more() {
        let bytes = TOLD.to_vec();
        for length in 0..bytes.len() {
            // Whatever it is, it is not taken for the whole.
            let texts = read(&bytes[..length]).and_then(|told| told.texts());
            assert!(texts.is_err() || texts.is_ok_and(|texts| texts.len() < 3), "{length}");
        }
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] = 0xff;
            let _ = read(&damaged).and_then(|told| told.texts());
            let _ = rest(damaged[..START].try_into().unwrap());
        }
        assert!(rest(b"B\x01\0\x01\0\0\0\0\0\0\0\0\0\0\0\0").is_err());
    }
}
