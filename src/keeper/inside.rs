//! Things that must be done from inside a namespace: hostname and kernel parameters.

use std::{
    io::{self, Write},
    os::fd::AsFd,
};

use rustix::{
    process::{Gid, Uid},
    thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid},
};

use super::{
    KeeperError, during,
    sysctls::{self, Sysctls},
};
use crate::sys::namespaces;

/// Sets the hostname of the calling thread's UTS namespace.
pub(super) fn set_hostname(name: &str) -> Result<(), KeeperError> {
    nix::unistd::sethostname(name)
        .map_err(io::Error::from)
        .map_err(during(format!("set hostname {name:?}")))
}

/// Sets kernel parameters, which were checked, in the calling thread's network, IPC and UTS namespaces: never in one of
/// the node's.
///
/// Some belong to the root of the user namespace that owns theirs: with `root`, its ids on the node, the thread takes that
/// identity for what it may not write as the node's root. It keeps it, and is to end soon.
pub(super) fn set_sysctls(sysctls: &Sysctls, root: Option<(u32, u32)>) -> Result<(), KeeperError> {
    let mut refused = Vec::new();
    for (name, value) in sysctls {
        match set_sysctl(name, value) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied && root.is_some() => {
                refused.push((name, value));
            }
            answer => answer.map_err(wrong(name, value))?,
        }
    }
    if let (Some((user, group)), false) = (root, refused.is_empty()) {
        become_user(user, group).map_err(during("take the identity of the pod's root"))?;
        for (name, value) in refused {
            set_sysctl(name, value).map_err(wrong(name, value))?;
        }
    }
    Ok(())
}

fn wrong(name: &str, value: &str) -> impl FnOnce(io::Error) -> KeeperError {
    let (name, value) = (name.to_owned(), value.to_owned());
    |source| KeeperError::Sysctl { name, value, source }
}

fn set_sysctl(name: &str, value: &str) -> io::Result<()> {
    let kind = sysctls::namespace(name);
    let own = format!("/proc/thread-self/ns/{kind}");
    if namespaces::is_the_nodes(own.as_ref(), kind)? {
        return Err(io::Error::other("it would be set on the node"));
    }
    let mut file = std::fs::OpenOptions::new().write(true).open(sysctls::file(name))?;
    // One write: the kernel takes a parameter's value from a single call only.
    file.write_all(value.as_bytes())
}

/// Gives the calling thread, and no other, these effective ids.
fn become_user(user: u32, group: u32) -> io::Result<()> {
    let (user, group) = (Uid::from_raw(user), Gid::from_raw(group));
    set_thread_groups(&[])?;
    set_thread_res_gid(None::<Gid>, group, None::<Gid>)?;
    set_thread_res_uid(None::<Uid>, user, None::<Uid>)?;
    Ok(())
}

/// Enters the namespaces of process or thread `pid` with the calling thread.
pub(super) fn enter(pid: u32, kinds: &[&str]) -> Result<(), KeeperError> {
    for kind in kinds {
        let path = format!("/proc/{pid}/ns/{kind}");
        let file = std::fs::File::open(&path).map_err(during(format!("open {path}")))?;
        join(file.as_fd(), &path)?;
    }
    Ok(())
}

/// Enters the namespace behind `namespace` with the calling thread.
pub(super) fn join(namespace: impl AsFd, name: &str) -> Result<(), KeeperError> {
    nix::sched::setns(namespace, nix::sched::CloneFlags::empty())
        .map_err(io::Error::from)
        .map_err(during(format!("join namespace {name}")))
}
