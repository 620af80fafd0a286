//! Capabilities: the five sets of a process.

use std::{fs, io};

use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::{
    error::{Doing, Result},
    spec::Capabilities,
};

/// In the order of their numbers.
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// The sets, as bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sets {
    pub bounding: u64,
    pub effective: u64,
    pub inheritable: u64,
    pub permitted: u64,
    pub ambient: u64,
}

/// One capability's bit, if there is such a capability.
fn bit(name: &str) -> Option<u64> {
    let plain = name.strip_prefix("CAP_").unwrap_or(name);
    NAMES.iter().position(|known| known.eq_ignore_ascii_case(plain)).map(|at| 1 << at)
}

/// What is not known is a right that nobody has: a newer kernel's, or a slip of the pen.
fn bits(names: &[String]) -> u64 {
    names.iter().filter_map(|name| bit(name)).fold(0, |all, one| all | one)
}

/// Those that are asked for and cannot be had, by name: unknown ones, and ambient ones that are not permitted and
/// inheritable.
pub fn ignored(given: &Capabilities) -> Vec<String> {
    let all = [&given.bounding, &given.effective, &given.inheritable, &given.permitted];
    let carried = bits(&given.permitted) & bits(&given.inheritable);
    let unknown = all.into_iter().flatten().filter(|name| bit(name).is_none());
    let ambient =
        given.ambient.iter().filter(|name| bit(name).is_none_or(|bit| bit & carried == 0));
    let mut names: Vec<String> = unknown.chain(ambient).cloned().collect();
    names.sort();
    names.dedup();
    names
}

impl Sets {
    /// The sets of a specification; one without them has none.
    pub fn of(given: Option<&Capabilities>) -> Self {
        let Some(given) = given else { return Self::default() };
        Self {
            bounding: bits(&given.bounding),
            effective: bits(&given.effective),
            inheritable: bits(&given.inheritable),
            permitted: bits(&given.permitted),
            ambient: bits(&given.ambient),
        }
    }

    /// Without what cannot be had here: a capability that a newer kernel has, or that this runtime itself lacks.
    #[must_use]
    pub fn within(self, most: u64) -> Self {
        Self {
            bounding: self.bounding & most,
            effective: self.effective & self.permitted & most,
            inheritable: self.inheritable & most,
            permitted: self.permitted & most,
            ambient: self.ambient & self.permitted & self.inheritable & most,
        }
    }
}

/// The names of a set, for the log.
pub fn names(bits: u64) -> Vec<String> {
    let known = NAMES.iter().enumerate().filter(|(at, _)| bits & (1 << at) != 0);
    known.map(|(_, name)| format!("CAP_{name}")).collect()
}

fn last() -> io::Result<u32> {
    let text = fs::read_to_string("/proc/sys/kernel/cap_last_cap")?;
    text.trim().parse().map_err(|_| io::ErrorKind::InvalidData.into())
}

/// What this process may hand on at most: what is in its bounding set.
pub fn available() -> Result<u64> {
    let last = last().doing("read /proc/sys/kernel/cap_last_cap")?;
    let mut all = 0;
    for number in 0..=last.min(63) {
        let one = CapabilitySet::from_bits_retain(1 << number);
        if rustix::thread::capability_is_in_bounding_set(one).unwrap_or(false) {
            all |= 1 << number;
        }
    }
    Ok(all)
}

/// Takes what is not in `bounding` out of the bounding set, for this process and all that it becomes.
pub fn bound(bounding: u64, available: u64) -> Result<()> {
    for number in (0..64).filter(|number| available & !bounding & (1 << number) != 0) {
        let one = CapabilitySet::from_bits_retain(1 << number);
        rustix::thread::remove_capability_from_bounding_set(one)
            .doing("drop a capability of the bounding set")?;
    }
    Ok(())
}

/// Takes on the other four sets, with `kept` permitted besides.
pub fn take_on(sets: Sets, kept: u64) -> Result<()> {
    set(sets, kept, 0)?;
    rustix::thread::clear_ambient_capability_set().doing("clear the ambient capabilities")?;
    for number in (0..64).filter(|number| sets.ambient & (1 << number) != 0) {
        let one = CapabilitySet::from_bits_retain(1 << number);
        rustix::thread::configure_capability_in_ambient_set(one, true)
            .doing("set an ambient capability")?;
    }
    Ok(())
}

/// Sets the first three, with those of `kept` permitted besides, and those of `used` effective.
pub fn set(sets: Sets, kept: u64, used: u64) -> Result<()> {
    let three = CapabilitySets {
        effective: CapabilitySet::from_bits_retain(sets.effective | used),
        permitted: CapabilitySet::from_bits_retain(sets.permitted | kept),
        inheritable: CapabilitySet::from_bits_retain(sets.inheritable),
    };
    rustix::thread::set_capabilities(None, three).doing("set the capabilities")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_bits_and_an_unknown_one_is_told() {
        assert_eq!(bit("CAP_CHOWN"), Some(1));
        assert_eq!(bit("CAP_CHECKPOINT_RESTORE"), Some(1 << 40));
        let text = |names: &[&str]| names.iter().map(ToString::to_string).collect();
        let given = Capabilities {
            permitted: text(&["CAP_FLY", "CAP_KILL", "CAP_CHOWN"]),
            inheritable: text(&["CAP_KILL"]),
            ambient: text(&["CAP_KILL", "CAP_CHOWN", "CAP_SING"]),
            ..Capabilities::default()
        };
        assert_eq!(ignored(&given), ["CAP_CHOWN", "CAP_FLY", "CAP_SING"]);
        assert_eq!(Sets::of(Some(&given)).permitted, 1 | 1 << 5);
        assert_eq!(names(1 | 1 << 21), ["CAP_CHOWN", "CAP_SYS_ADMIN"]);
    }

    #[test]
    fn nothing_is_effective_that_is_not_permitted() {
        let text = |name: &str| vec![name.to_owned()];
        let given = Capabilities {
            effective: text("CAP_SYS_ADMIN"),
            permitted: text("CAP_KILL"),
            ambient: text("CAP_KILL"),
            ..Capabilities::default()
        };
        let sets = Sets::of(Some(&given)).within(u64::MAX);
        assert_eq!((sets.effective, sets.ambient, sets.permitted), (0, 0, 1 << 5));
    }
}
