//! Capabilities: the five sets of a process.

use std::{fs, io};

use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::{
    error::{Doing, Error, Result},
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

/// One capability's bit.
pub fn bit(name: &str) -> Result<u64> {
    let plain = name.strip_prefix("CAP_").unwrap_or(name);
    let number = NAMES.iter().position(|known| known.eq_ignore_ascii_case(plain));
    number.map(|at| 1 << at).ok_or_else(|| Error::invalid(format!("unknown capability {name:?}")))
}

fn bits(names: &[String]) -> Result<u64> {
    names.iter().try_fold(0, |all, name| Ok(all | bit(name)?))
}

impl Sets {
    /// The sets of a specification; one without them has none.
    pub fn of(given: Option<&Capabilities>) -> Result<Self> {
        let Some(given) = given else { return Ok(Self::default()) };
        let sets = Self {
            bounding: bits(&given.bounding)?,
            effective: bits(&given.effective)?,
            inheritable: bits(&given.inheritable)?,
            permitted: bits(&given.permitted)?,
            ambient: bits(&given.ambient)?,
        };
        Ok(sets)
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

/// Takes on the other four sets.
pub fn take_on(sets: Sets) -> Result<()> {
    let set = |bits| CapabilitySet::from_bits_retain(bits);
    let three = CapabilitySets {
        effective: set(sets.effective),
        permitted: set(sets.permitted),
        inheritable: set(sets.inheritable),
    };
    rustix::thread::set_capabilities(None, three).doing("set the capabilities")?;
    rustix::thread::clear_ambient_capability_set().doing("clear the ambient capabilities")?;
    for number in (0..64).filter(|number| sets.ambient & (1 << number) != 0) {
        rustix::thread::configure_capability_in_ambient_set(set(1 << number), true)
            .doing("set an ambient capability")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_bits_and_an_unknown_one_is_refused() {
        assert_eq!(bit("CAP_CHOWN").unwrap(), 1);
        assert_eq!(bit("CAP_CHECKPOINT_RESTORE").unwrap(), 1 << 40);
        assert!(bit("CAP_FLY").unwrap_err().to_string().contains("CAP_FLY"));
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
        let sets = Sets::of(Some(&given)).unwrap().within(u64::MAX);
        assert_eq!((sets.effective, sets.ambient, sets.permitted), (0, 0, 1 << 5));
    }
}
