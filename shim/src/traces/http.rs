//! One request of HTTP/1.1, and the status of its answer.
//!
//! A connection for each: an idle shim keeps none. What an answer says beyond its status is not read.

use std::{
    fs::File,
    io::{self, Read},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use mooring::telemetry::trace::Settings;
use thiserror::Error;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// The most that is read of `/etc/hosts`.
const HOSTS_LIMIT: u64 = 256 << 10;
/// The longest first line of an answer.
const STATUS_LIMIT: usize = 256;

/// The spans were not taken.
#[derive(Debug, Error)]
pub enum Error {
    #[error("the host is neither an address nor in /etc/hosts (no other names are looked up)")]
    Unknown,
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("the answer is no HTTP")]
    Garbage,
    #[error("the answer is {0}")]
    Status(u16),
}

impl Error {
    /// Whether the same request may be taken later, as OTLP has it.
    pub fn passes(&self) -> bool {
        match self {
            Self::Io(_) => true,
            Self::Status(status) => matches!(status, 429 | 502..=504),
            Self::Unknown | Self::Garbage => false,
        }
    }
}

/// Sends one request. Whoever calls this bounds its time.
pub async fn post(settings: &Settings, body: &[u8]) -> Result<(), Error> {
    let addresses = resolve(&settings.endpoint.host, settings.endpoint.port).await?;
    let mut stream = connect(&addresses).await?;
    stream.write_all(head(settings, body.len()).as_bytes()).await?;
    stream.write_all(body).await?;
    match status(&mut stream).await? {
        200..300 => Ok(()),
        other => Err(Error::Status(other)),
    }
}

fn head(settings: &Settings, length: usize) -> String {
    let endpoint = &settings.endpoint;
    let mut head = format!(
        "POST {} HTTP/1.1\r\nHost: {}\r\nContent-Type: {}\r\nContent-Length: {length}\r\n\
         User-Agent: mooring/{}\r\nConnection: close\r\n",
        endpoint.path,
        endpoint.authority(),
        settings.format.content_type(),
        env!("CARGO_PKG_VERSION"),
    );
    for (name, value) in &settings.headers {
        head.extend([name.as_str(), ": ", value.as_str(), "\r\n"]);
    }
    head + "\r\n"
}

/// The status of the answer's first line; what follows is not waited for.
async fn status(stream: &mut TcpStream) -> Result<u16, Error> {
    let mut line = [0; STATUS_LIMIT];
    let mut have = 0;
    while !line.contains(&b'\n') && have < STATUS_LIMIT {
        match stream.read(line.get_mut(have..).unwrap_or_default()).await? {
            0 => break,
            more => have += more,
        }
    }
    parse_status(line.get(..have).unwrap_or_default()).ok_or(Error::Garbage)
}

fn parse_status(line: &[u8]) -> Option<u16> {
    let line = line.split(|byte| *byte == b'\n').next()?;
    let mut words = std::str::from_utf8(line).ok()?.trim_end().splitn(3, ' ');
    let version = words.next()?;
    if !version.starts_with("HTTP/1.") {
        return None;
    }
    words.next()?.parse().ok().filter(|status| (100..600).contains(status))
}

async fn connect(addresses: &[SocketAddr]) -> io::Result<TcpStream> {
    let mut last = io::ErrorKind::AddrNotAvailable.into();
    for address in addresses {
        match TcpStream::connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Addresses, localhost, and what `/etc/hosts` names. A static program has no other way to look up a name that would not
/// load libraries of the node.
async fn resolve(host: &str, port: u16) -> Result<Vec<SocketAddr>, Error> {
    let with_port = |all: Vec<IpAddr>| all.into_iter().map(|ip| (ip, port).into()).collect();
    if let Ok(ip) = host.parse() {
        return Ok(with_port(vec![ip]));
    }
    if host.eq_ignore_ascii_case("localhost") {
        return Ok(with_port(vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]));
    }
    let name = host.to_owned();
    let named = tokio::task::spawn_blocking(move || -> io::Result<Vec<IpAddr>> {
        let mut text = String::new();
        File::open("/etc/hosts")?.take(HOSTS_LIMIT).read_to_string(&mut text)?;
        Ok(addresses_of(&name, &text))
    });
    match named.await {
        Ok(Ok(all)) if !all.is_empty() => Ok(with_port(all)),
        _ => Err(Error::Unknown),
    }
}

fn addresses_of(name: &str, hosts: &str) -> Vec<IpAddr> {
    let line = |line: &str| {
        let mut words = line.split('#').next()?.split_whitespace();
        let address = words.next()?.parse().ok()?;
        words.any(|one| one.eq_ignore_ascii_case(name)).then_some(address)
    };
    hosts.lines().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_a_line_of_http_has_a_status() {
        for (line, status) in [
            (&b"HTTP/1.1 200 OK\r\n"[..], Some(200)),
            (b"HTTP/1.0 503", Some(503)),
            (b"HTTP/2 200 OK\r\n", None),
            (b"HTTP/1.1 2000 OK\r\n", None),
            (b"HTTP/1.1\r\n200", None),
            (b"\xff\xfe", None),
            (b"", None),
        ] {
            assert_eq!(parse_status(line), status, "{line:?}");
        }
    }

    #[test]
    fn names_are_those_of_the_hosts_file() {
        let hosts = "127.0.0.1 localhost\n10.0.0.7 a Collector # not b\n\nx y\nfd00::7 collector\n";
        let of = |name| addresses_of(name, hosts).iter().map(IpAddr::to_string).collect::<Vec<_>>();
        assert_eq!(of("collector"), ["10.0.0.7", "fd00::7"]);
        assert!(of("b").is_empty() && of("y").is_empty());
    }

    proptest! {
        #[test]
        fn no_answer_makes_reading_panic(line in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = parse_status(&line);
        }
    }
}
