//! What went through the interfaces of a network namespace.

use std::{
    fs, io,
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use thiserror::Error;

use super::netns;

/// One interface's counters since it was made (`/proc/net/dev`, `proc_pid_net(5)`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    pub name: String,
    pub received: Counters,
    pub sent: Counters,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    pub bytes: u64,
    pub packets: u64,
    pub errors: u64,
    pub dropped: u64,
}

/// The counters cannot be read.
#[derive(Debug, Error)]
pub enum CountersError {
    #[error(transparent)]
    Netns(#[from] netns::Error),
    #[error("read the counters in network namespace {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
}

/// The counters in the network namespace at `path`, without `lo`. Blocks.
pub fn counters(path: &Path) -> Result<Vec<Interface>, CountersError> {
    let netns = netns::open(path)?;
    // The file is of the thread that opens it, and /proc/net is the process's first.
    let text = netns::in_netns(netns.as_fd(), || fs::read_to_string("/proc/thread-self/net/dev"))?;
    let text = text.map_err(|source| CountersError::Read { path: path.to_owned(), source })?;
    Ok(parse(&text))
}

/// Lines are `name: received… sent…`, eight numbers each: bytes, packets, errors, dropped and four more.
fn parse(text: &str) -> Vec<Interface> {
    let lines = text.lines().filter_map(|line| {
        let (name, numbers) = line.split_once(':')?;
        let numbers: Vec<u64> =
            numbers.split_whitespace().map_while(|number| number.parse().ok()).collect();
        let at = |start: usize| {
            let [bytes, packets, errors, dropped] =
                numbers.get(start..start + 4)?.try_into().ok()?;
            Some(Counters { bytes, packets, errors, dropped })
        };
        Some(Interface { name: name.trim().to_owned(), received: at(0)?, sent: at(8)? })
    });
    lines.filter(|one| one.name != "lo").collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_interface_but_lo_has_its_counters() {
        let text = "\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:  1 1 0 0 0 0 0 0  1 1 0 0 0 0 0 0
  eth0: 1500 10 1 2 0 0 0 3 900 8 3 4 0 0 0 0
  short: 1 2
";
        let received = Counters { bytes: 1500, packets: 10, errors: 1, dropped: 2 };
        let sent = Counters { bytes: 900, packets: 8, errors: 3, dropped: 4 };
        assert_eq!(parse(text), [Interface { name: "eth0".into(), received, sent }]);
    }

    #[test]
    fn what_is_no_namespace_is_named() {
        let error = counters(Path::new("/proc/self/status")).unwrap_err();
        assert!(error.to_string().contains("/proc/self/status"), "{error}");
    }

    #[test]
    fn the_counters_are_those_of_the_namespace() {
        // The test's own namespace, by another way.
        let own = fs::read_to_string("/proc/self/net/dev").unwrap();
        let names = |all: Vec<Interface>| all.into_iter().map(|one| one.name).collect::<Vec<_>>();
        let read = counters(Path::new("/proc/self/ns/net")).unwrap();
        assert_eq!(names(read), names(parse(&own)));
    }
}
