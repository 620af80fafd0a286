//! A connection to systemd: by the system's bus, or where there is none, by systemd's own socket.

use std::{
    fmt::Write as _,
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

use thiserror::Error;

use super::{
    message::{self, Message, START},
    wire::{self, Body, Method},
};

/// How long systemd may take for one thing.
const PATIENCE: Duration = Duration::from_secs(30);

const BUS: &str = "/run/dbus/system_bus_socket";
const OWN: &str = "/run/systemd/private";

const SYSTEMD: &str = "org.freedesktop.systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
const MANAGER_PATH: &str = "/org/freedesktop/systemd1";
const REMOVED: &str = "JobRemoved";

#[derive(Debug, Error)]
pub enum Failed {
    /// By systemd, or the bus.
    #[error("{text} ({name})")]
    Refused { name: String, text: String },
    #[error("{0}")]
    Connection(#[from] io::Error),
    #[error("its job ended with {0:?}")]
    Job(String),
}

impl Failed {
    /// Whether systemd answered this error, by the last part of its name.
    pub fn is(&self, wanted: &str) -> bool {
        matches!(self, Self::Refused { name, .. } if name.rsplit('.').next() == Some(wanted))
    }
}

pub struct Bus {
    stream: UnixStream,
    serial: u32,
    until: Instant,
    /// Jobs that have ended: who says so, their path and how.
    ended: Vec<(String, String, String)>,
}

fn late() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "systemd does not answer")
}

impl Bus {
    pub fn connect() -> Result<Self, Failed> {
        match UnixStream::connect(BUS) {
            Ok(stream) => {
                let mut bus = Self::greeted(stream)?;
                bus.subscribe()?;
                Ok(bus)
            }
            // It tells whoever is connected to it of its jobs.
            Err(error) => match UnixStream::connect(OWN) {
                Ok(stream) => Self::greeted(stream),
                Err(_) => Err(io::Error::new(error.kind(), format!("{BUS}: {error}")).into()),
            },
        }
    }

    /// Says who this is; the other end knows it by the socket.
    fn greeted(stream: UnixStream) -> Result<Self, Failed> {
        let until = Instant::now() + PATIENCE;
        let mut bus = Self { stream, serial: 0, until, ended: Vec::new() };
        let own = rustix::process::geteuid().as_raw().to_string();
        let mut hex = String::new();
        for digit in own.bytes() {
            // Writing to a text does not fail.
            let _ = write!(hex, "{digit:02x}");
        }
        bus.stream.write_all(format!("\0AUTH EXTERNAL {hex}\r\n").as_bytes())?;
        let mut line = Vec::new();
        // One at a time: what follows the line is not this function's.
        while !line.ends_with(b"\r\n") && line.len() < 512 {
            let mut byte = [0];
            bus.read(&mut byte)?;
            line.extend(byte);
        }
        if !line.starts_with(b"OK ") {
            let said = String::from_utf8_lossy(&line).trim().to_owned();
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, said).into());
        }
        bus.stream.write_all(b"BEGIN\r\n")?;
        Ok(bus)
    }

    fn subscribe(&mut self) -> Result<(), Failed> {
        let of_bus = |member, signature| Method {
            destination: "org.freedesktop.DBus",
            path: "/org/freedesktop/DBus",
            interface: "org.freedesktop.DBus",
            member,
            signature,
        };
        self.call(&of_bus("Hello", ""), &Body::default())?;
        let rule =
            format!("type='signal',sender='{SYSTEMD}',interface='{MANAGER}',member='{REMOVED}'");
        self.call(&of_bus("AddMatch", "s"), &Body::default().text(&rule))?;
        self.manager("Subscribe", "", &Body::default()).map(drop)
    }

    /// Calls systemd.
    pub fn manager(
        &mut self,
        member: &str,
        signature: &str,
        body: &Body,
    ) -> Result<Message, Failed> {
        let method = Method {
            destination: SYSTEMD,
            path: MANAGER_PATH,
            interface: MANAGER,
            member,
            signature,
        };
        self.call(&method, body)
    }

    /// Calls systemd for something that it makes a job of, and waits for its end.
    pub fn job(&mut self, member: &str, signature: &str, body: &Body) -> Result<(), Failed> {
        let answer = self.manager(member, signature, body)?;
        let job = answer.texts()?.into_iter().next().unwrap_or_default();
        loop {
            // Anybody may send a signal; only who has answered knows of the job.
            let ended =
                self.ended.iter().find(|(by, path, _)| *by == answer.sender && *path == job);
            match ended.map(|(_, _, how)| how.as_str()) {
                Some("done") => return Ok(()),
                Some(how) => return Err(Failed::Job(how.to_owned())),
                None => drop(self.next()?),
            }
        }
    }

    fn call(&mut self, method: &Method<'_>, body: &Body) -> Result<Message, Failed> {
        self.until = Instant::now() + PATIENCE;
        self.serial += 1;
        self.stream.set_write_timeout(Some(PATIENCE))?;
        self.stream.write_all(&wire::call(self.serial, method, body))?;
        loop {
            let told = self.next()?;
            match told.kind {
                message::RETURN if told.answers == self.serial => return Ok(told),
                message::ERROR if told.answers == self.serial => {
                    let text = told.texts()?.into_iter().next().unwrap_or_default();
                    return Err(Failed::Refused { name: told.error, text });
                }
                _ => {}
            }
        }
    }

    /// The next message; the end of a job is remembered.
    fn next(&mut self) -> Result<Message, Failed> {
        let mut start = [0; START];
        self.read(&mut start)?;
        let mut bytes = start.to_vec();
        bytes.resize(START + message::rest(&start)?, 0);
        self.read(bytes.get_mut(START..).unwrap_or_default())?;
        let told = message::read(&bytes)?;
        if told.kind == message::SIGNAL && told.member == REMOVED {
            // Its number is left out: path, unit, how.
            if let [path, _, how] = told.texts()?.as_slice() {
                self.ended.push((told.sender.clone(), path.clone(), how.clone()));
            }
        }
        Ok(told)
    }

    fn read(&mut self, mut into: &mut [u8]) -> io::Result<()> {
        while !into.is_empty() {
            let left = self.until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(late());
            }
            self.stream.set_read_timeout(Some(left))?;
            match self.stream.read(into) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => into = into.get_mut(read..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(late()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
