//! Kernel parameters that a pod may have: those of namespaces that are its own.
//!
//! Most of /proc/sys is the node's, whoever writes it. What may be set for a pod is what the OCI runtime allows a
//! container (runc's validation of `linux.sysctl`): everything of a network namespace, a list for an IPC namespace, and
//! the domain name of a UTS namespace.

use std::collections::BTreeMap;

use thiserror::Error;

/// Kernel parameters by name, the parts of a name separated by dots; a dot within a part is written `/`, as in
/// `net.ipv4.conf.eth0/100.forwarding`.
pub type Sysctls = BTreeMap<String, String>;

/// Which of a pod's namespaces are not the node's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Own {
    pub net: bool,
    pub ipc: bool,
    pub uts: bool,
}

/// A kernel parameter that a pod may not have.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("sysctl {name:?} {reason}")]
pub struct Refused {
    /// Its name, as the client wrote it.
    pub name: String,
    pub reason: &'static str,
}

/// The parameters of an IPC namespace (`ipc_namespaces(7)`) beside `fs.mqueue.*`.
const IPC: [&str; 8] = [
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "kernel.shm_rmid_forced",
];

/// Checks what a client asks for and brings the names into one form.
pub fn check(
    asked: impl IntoIterator<Item = (String, String)>,
    own: Own,
) -> Result<Sysctls, Refused> {
    let mut sysctls = Sysctls::new();
    for (name, value) in asked {
        let refused = |reason| Refused { name: name.clone(), reason };
        let known = dotted(&name).ok_or_else(|| refused("is no name of a kernel parameter"))?;
        if let Some(reason) = objection(&known, own) {
            return Err(refused(reason));
        }
        if sysctls.insert(known, value).is_some() {
            return Err(refused("is given twice, in dots and in slashes"));
        }
    }
    Ok(sysctls)
}

/// Why a pod may not have the parameter `name`, written in dots.
fn objection(name: &str, own: Own) -> Option<&'static str> {
    let unless = |own: bool, reason| (!own).then_some(reason);
    if name.starts_with("net.") {
        return unless(own.net, "is the node's: the pod has no network namespace of its own");
    }
    if IPC.contains(&name) || name.starts_with("fs.mqueue.") {
        return unless(own.ipc, "is the node's: the pod has no IPC namespace of its own");
    }
    match name {
        "kernel.domainname" => {
            unless(own.uts, "is the node's: the pod has no UTS namespace of its own")
        }
        "kernel.hostname" => Some("is not set like this: the pod's hostname is"),
        _ => Some("is not of a namespace that a pod can have: it would be set on the node"),
    }
}

/// A name in dots. Both separators are in use; with `/` first, dots belong to names
/// (`net/ipv4/conf/eth0.100/forwarding`), as sysctl(8) has it.
fn dotted(name: &str) -> Option<String> {
    let slashes_first =
        name.find(['.', '/']).is_some_and(|at| name.as_bytes().get(at) == Some(&b'/'));
    let name = if slashes_first { exchanged(name) } else { name.to_owned() };
    let sound = |part: &str| {
        !matches!(part, "" | "/" | "//")
            && !part.contains(|c: char| c.is_whitespace() || c.is_control())
    };
    name.split('.').all(sound).then_some(name)
}

fn exchanged(name: &str) -> String {
    let exchange = |c| match c {
        '.' => '/',
        '/' => '.',
        other => other,
    };
    name.chars().map(exchange).collect()
}

/// The kernel's name of the kind of namespace that a checked parameter belongs to.
pub(super) fn namespace(name: &str) -> &'static str {
    match name {
        "kernel.domainname" => "uts",
        name if name.starts_with("net.") => "net",
        _ => "ipc",
    }
}

/// The file of a checked parameter.
pub(super) fn file(name: &str) -> String {
    format!("/proc/sys/{}", exchanged(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Own = Own { net: true, ipc: true, uts: true };

    fn one(name: &str, own: Own) -> Result<String, Refused> {
        let checked = check([(name.to_owned(), "1".to_owned())], own)?;
        Ok(checked.into_keys().next().unwrap())
    }

    #[test]
    fn both_spellings_of_a_parameter_are_understood() {
        for (name, path) in [
            ("net.ipv4.ip_forward", "/proc/sys/net/ipv4/ip_forward"),
            ("net/ipv4/ip_forward", "/proc/sys/net/ipv4/ip_forward"),
            ("net/ipv4/conf/eth0.1/forwarding", "/proc/sys/net/ipv4/conf/eth0.1/forwarding"),
            ("net.ipv4.conf.eth0/1.forwarding", "/proc/sys/net/ipv4/conf/eth0.1/forwarding"),
            ("kernel/domainname", "/proc/sys/kernel/domainname"),
            ("fs/mqueue/msg_max", "/proc/sys/fs/mqueue/msg_max"),
        ] {
            assert_eq!(file(&one(name, ALL).unwrap()), path, "{name}");
        }
    }

    #[test]
    fn a_name_that_leaves_its_folder_is_refused() {
        for name in [
            "",
            ".",
            "/",
            "..",
            "net",
            "net.",
            "net..x",
            "/net/ipv4/ip_forward",
            "net/../kernel/panic",
            "net.//.//.kernel.panic",
            "net.ipv4.//.//.//.kernel.core_pattern",
            "net/./ipv4/ip_forward",
            "net./.ipv4.ip_forward",
            "net//ipv4",
            "fs.mqueue.//.file-max",
            "fs/mqueue/../file-max",
            "net.ipv4.x\0y",
            "net.ipv4.x y",
            "net.ipv4.x\ny",
        ] {
            let refused = one(name, ALL).unwrap_err();
            assert_eq!(refused.name, name);
        }
    }

    #[test]
    fn what_is_the_nodes_is_refused() {
        for name in [
            "vm.swappiness",
            "kernel.panic",
            "kernel.core_pattern",
            "kernel.hostname",
            "kernel.msgmax_",
            "kernel.shm_next_id",
            "kernel.msg_next_id",
            "kernel.sem_next_id",
            "kernel.yama.ptrace_scope",
            "kernel.ns_last_pid",
            "fs.file-max",
            "fs.mqueue",
            "fs/file-max",
            "user.max_user_namespaces",
            "debug.exception-trace",
            "network.x",
        ] {
            assert!(one(name, ALL).is_err(), "{name}");
        }
    }

    #[test]
    fn a_parameter_needs_its_own_namespace() {
        for (name, without) in [
            ("net.ipv4.ip_forward", Own { net: false, ..ALL }),
            ("kernel.sem", Own { ipc: false, ..ALL }),
            ("kernel.shm_rmid_forced", Own { ipc: false, ..ALL }),
            ("fs.mqueue.queues_max", Own { ipc: false, ..ALL }),
            ("kernel.domainname", Own { uts: false, ..ALL }),
        ] {
            assert!(one(name, ALL).is_ok(), "{name}");
            let refused = one(name, without).unwrap_err().to_string();
            assert!(refused.contains(name), "{refused}");
        }
    }

    #[test]
    fn one_parameter_in_two_spellings_is_refused() {
        let both = ["net.ipv4.ip_forward", "net/ipv4/ip_forward"];
        let both = both.map(|name| (name.to_owned(), "1".to_owned()));
        assert!(check(both, ALL).is_err());
    }
}
