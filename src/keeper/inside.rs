//! Things that must be done from inside a namespace: hostname and kernel parameters.

use std::{
    io::{self, Write},
    os::fd::AsFd,
};

use super::{KeeperError, deed};
use crate::sandbox::config::Sysctls;

/// Sets the hostname of the calling thread's UTS namespace.
pub(super) fn set_hostname(name: &str) -> Result<(), KeeperError> {
    nix::unistd::sethostname(name)
        .map_err(io::Error::from)
        .map_err(deed(format!("set hostname {name:?}")))
}

/// Sets kernel parameters in the calling thread's network and IPC namespaces.
pub(super) fn set_sysctls(sysctls: &Sysctls) -> Result<(), KeeperError> {
    for (name, value) in sysctls {
        let wrong =
            |source| KeeperError::Sysctl { name: name.clone(), value: value.clone(), source };
        let path = sysctl_path(name).ok_or_else(|| wrong(io::ErrorKind::NotFound.into()))?;
        let mut file = std::fs::OpenOptions::new().write(true).open(&path).map_err(wrong)?;
        // One write: the kernel takes a parameter's value from a single call only.
        file.write_all(value.as_bytes()).map_err(wrong)?;
    }
    Ok(())
}

/// The file of a kernel parameter. Both separators are in use; with `/` first, dots belong to names
/// (`net/ipv4/conf/eth0.100/forwarding`), as sysctl(8) has it.
fn sysctl_path(name: &str) -> Option<String> {
    let path = match name.find(['.', '/']) {
        Some(at) if name.as_bytes().get(at) == Some(&b'/') => name.to_owned(),
        _ => name
            .chars()
            .map(|c| {
                if c == '.' {
                    '/'
                } else if c == '/' {
                    '.'
                } else {
                    c
                }
            })
            .collect(),
    };
    let safe = path.split('/').all(|part| !part.is_empty() && part != "." && part != "..");
    safe.then(|| format!("/proc/sys/{path}"))
}

/// Enters the namespaces of process or thread `pid` with the calling thread.
pub(super) fn enter(pid: u32, kinds: &[&str]) -> Result<(), KeeperError> {
    for kind in kinds {
        let path = format!("/proc/{pid}/ns/{kind}");
        let file = std::fs::File::open(&path).map_err(deed(format!("open {path}")))?;
        join(file.as_fd(), &path)?;
    }
    Ok(())
}

/// Enters the namespace behind `namespace` with the calling thread.
pub(super) fn join(namespace: impl AsFd, name: &str) -> Result<(), KeeperError> {
    nix::sched::setns(namespace, nix::sched::CloneFlags::empty())
        .map_err(io::Error::from)
        .map_err(deed(format!("join namespace {name}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_spellings_of_a_parameter_are_understood() {
        for (name, path) in [
            ("net.ipv4.ip_forward", Some("/proc/sys/net/ipv4/ip_forward")),
            ("net/ipv4/ip_forward", Some("/proc/sys/net/ipv4/ip_forward")),
            ("net/ipv4/conf/eth0.1/forwarding", Some("/proc/sys/net/ipv4/conf/eth0.1/forwarding")),
            ("net.ipv4.conf.eth0/1.forwarding", Some("/proc/sys/net/ipv4/conf/eth0.1/forwarding")),
            ("kernel/../../x", None),
            ("", None),
        ] {
            assert_eq!(sysctl_path(name).as_deref(), path, "{name}");
        }
    }
}
