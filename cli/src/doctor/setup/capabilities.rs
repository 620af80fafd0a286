//! The capabilities that a shim inherits from containerd.

use std::fs;

use super::{Remark, Setup};

const PART: &str = "capabilities";

/// Number, name, what is not possible without, and whether pods do without.
const NEEDED: [(u32, &str, &str, bool); 9] = [
    (0, "CAP_CHOWN", "fifos cannot be given to their owner", false),
    (1, "CAP_DAC_OVERRIDE", "files of others cannot be reached", false),
    (5, "CAP_KILL", "containers of other users cannot be ended", false),
    (6, "CAP_SETGID", "containers cannot have groups", false),
    (7, "CAP_SETUID", "containers cannot have users", false),
    (12, "CAP_NET_ADMIN", "no network can be set up", false),
    (18, "CAP_SYS_CHROOT", "no namespace of mounts can be entered", false),
    (21, "CAP_SYS_ADMIN", "no namespace and no mount can be made", false),
    (
        24,
        "CAP_SYS_RESOURCE",
        "oom_score_adj cannot be lowered: pods of CRI want restrict_oom_score_adj = true",
        true,
    ),
];

pub fn remarks(setup: &Setup<'_>) -> Vec<Remark> {
    let (whose, file) = match setup.containerd {
        Some(one) => ("containerd", format!("/proc/{}/status", one.pid)),
        None => ("this process", "/proc/self/status".to_owned()),
    };
    let text = fs::read_to_string(file).unwrap_or_default();
    let Some(set) = effective(&text) else {
        return vec![Remark::note(PART, format!("those of {whose} cannot be read"))];
    };
    let missing = missing(whose, set);
    if missing.is_empty() { vec![Remark::good(PART, format!("all, of {whose}"))] } else { missing }
}

fn effective(status: &str) -> Option<u64> {
    let set = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(set.trim(), 16).ok()
}

fn missing(whose: &str, set: u64) -> Vec<Remark> {
    let missing = NEEDED.iter().filter(|(number, ..)| set >> number & 1 == 0);
    missing
        .map(|(_, name, what, bearable)| {
            let what = format!("{whose} has no {name}: {what}");
            if *bearable { Remark::note(PART, what) } else { Remark::problem(PART, what) }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::setup::Level;

    #[test]
    fn a_missing_capability_is_named() {
        assert_eq!(effective("Name:\tx\nCapEff:\t000001ffffffffff\n"), Some(0x1ff_ffff_ffff));
        assert!(missing("x", u64::MAX).is_empty());
        let all = missing("x", !(1 << 12 | 1 << 24));
        let levels: Vec<Level> = all.iter().map(|one| one.level).collect();
        assert_eq!(levels, [Level::Problem, Level::Note]);
        assert!(all[0].what.contains("CAP_NET_ADMIN"), "{all:?}");
    }
}
