//! Which boot of the machine this is. Process ids, start times, control groups and what is below /run mean something
//! within one boot only: after a reboot the same number or path may be another's.

use std::{fs, io};

use serde::{Deserialize, Serialize};

/// Where the kernel says it (random(4)).
const FILE: &str = "/proc/sys/kernel/random/boot_id";

/// The identity of one boot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BootId(String);

impl BootId {
    /// The boot that the machine is in.
    pub fn current() -> io::Result<Self> {
        Ok(Self(fs::read_to_string(FILE)?.trim().to_owned()))
    }
}

/// Whether what was recorded in the boot `recorded` is of an earlier boot: then its processes, control groups and
/// runtime states are gone, and who has their names now is another. Records of Mooring 0.1.0 and before name no boot,
/// and are taken to be of this one.
pub fn is_over(recorded: Option<&BootId>) -> io::Result<bool> {
    match recorded {
        Some(recorded) => Ok(*recorded != BootId::current()?),
        None => Ok(false),
    }
}

#[cfg(test)]
impl BootId {
    /// A boot that is over.
    pub(crate) fn earlier() -> Self {
        Self("00000000-0000-0000-0000-000000000000".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_another_boot_is_over() {
        let now = BootId::current().unwrap();
        assert!(!is_over(Some(&now)).unwrap() && !is_over(None).unwrap());
        assert!(is_over(Some(&BootId::earlier())).unwrap());
        let text = serde_json::to_string(&now).unwrap();
        assert_eq!(serde_json::from_str::<BootId>(&text).unwrap(), now);
    }
}
