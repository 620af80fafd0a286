//! The kernel's release, and what is asked of it.

use std::fs;

use super::Remark;

const PART: &str = "kernel";
/// What a shim cannot do without: processes by descriptor (5.3), and paths resolved within a root (openat2).
const OLDEST: (u32, u32) = (5, 6);
/// With this a cgroup is killed at once; before, process by process.
const CGROUP_KILL: (u32, u32) = (5, 14);

pub fn remarks() -> Vec<Remark> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let filesystems = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let mut all = vec![of_release(release.trim())];
    if !has_overlay(&filesystems) {
        all.push(
            Remark::note(PART, "overlay is not among its file systems (yet)")
                .remedy("modprobe overlay"),
        );
    }
    all
}

/// `nodev` stands before those that need no device.
fn has_overlay(filesystems: &str) -> bool {
    filesystems.lines().any(|line| line.split_whitespace().next_back() == Some("overlay"))
}

fn of_release(release: &str) -> Remark {
    let mut numbers = release.split(['.', '-']).map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) if (major, minor) < OLDEST => {
            Remark::problem(PART, format!("{release} is too old")).remedy("5.6 or later is needed")
        }
        (Some(Ok(major)), Some(Ok(minor))) if (major, minor) < CGROUP_KILL => {
            Remark::note(PART, format!("{release}: cgroups cannot be killed at once before 5.14"))
        }
        (Some(Ok(_)), Some(Ok(_))) => Remark::good(PART, release),
        _ => Remark::note(PART, format!("what release is {release:?}?")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::setup::Level;

    #[test]
    fn overlay_is_found_among_the_file_systems() {
        assert!(has_overlay("nodev\tsysfs\n\text4\nnodev\toverlay\n"));
        assert!(!has_overlay("nodev\tsysfs\n\text4\n") && !has_overlay(""));
    }

    #[test]
    fn an_old_kernel_is_named() {
        for (release, level) in [
            ("4.19.0-27-amd64", Level::Problem),
            ("5.4.1", Level::Problem),
            ("5.10.0", Level::Note),
            ("6.18.2+deb", Level::Good),
            ("7-rc1", Level::Note),
            ("", Level::Note),
        ] {
            assert_eq!(of_release(release).level, level, "{release}");
        }
    }
}
