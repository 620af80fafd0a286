//! What the security modules of the kernel call a process.

use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags};

use super::is_missing;
use crate::{
    error::{Doing, Error, Result},
    spec::Process,
};

/// Whether the node's modules can do what is asked for.
pub fn check(process: &Process) -> Result<()> {
    if !process.selinux_label.is_empty() && !mooring::mounts::label::is_enabled() {
        return Err(Error::unsupported("process.selinuxLabel on a node without SELinux"));
    }
    if wants_profile(process) && !has_apparmor() {
        return Err(Error::unsupported("process.apparmorProfile on a node without AppArmor"));
    }
    Ok(())
}

fn wants_profile(process: &Process) -> bool {
    !matches!(process.apparmor_profile.as_str(), "" | "unconfined")
}

fn has_apparmor() -> bool {
    std::fs::read("/sys/module/apparmor/parameters/enabled")
        .is_ok_and(|text| text.starts_with(b"Y"))
}

/// Has the program run under its label and profile.
pub(super) fn set(process: &Process, proc: &OwnedFd) -> Result<()> {
    if !process.selinux_label.is_empty() {
        write(proc, "thread-self/attr/exec", &process.selinux_label)
            .doing(&format!("set SELinux label {:?}", process.selinux_label))?;
    }
    let unconfined = process.apparmor_profile == "unconfined" && has_apparmor();
    if wants_profile(process) || unconfined {
        let text = format!("exec {}", process.apparmor_profile);
        let own = write(proc, "thread-self/attr/apparmor/exec", &text);
        let done = match own {
            // An older kernel has one file for all modules.
            Err(error) if is_missing(&error) => write(proc, "thread-self/attr/exec", &text),
            other => other,
        };
        done.doing(&format!("apply apparmor profile {:?}", process.apparmor_profile))?;
    }
    Ok(())
}

fn write(proc: &OwnedFd, path: &str, text: &str) -> std::io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(proc, path, flags, Mode::empty())?;
    rustix::io::write(&file, text.as_bytes())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_that_is_not_there_is_named() {
        if !has_apparmor() {
            let process = Process { apparmor_profile: "p".into(), ..Process::default() };
            assert!(check(&process).unwrap_err().to_string().contains("apparmorProfile"));
        }
        if !mooring::mounts::label::is_enabled() {
            let process = Process { selinux_label: "a:b:c".into(), ..Process::default() };
            assert!(check(&process).unwrap_err().to_string().contains("selinuxLabel"));
        }
        let process = Process { apparmor_profile: "unconfined".into(), ..Process::default() };
        check(&process).unwrap();
    }
}
