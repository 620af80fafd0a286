//! A place for the services from which they cannot touch the node.
//!
//! The thread that enters it, and every thread and process that it starts, has no capability, writes nowhere but in the
//! place's folder, starts no program but `sleep`, signals nobody but its own, and makes and joins no namespace.

use std::{
    collections::BTreeMap,
    env,
    path::{Path, PathBuf},
};

use landlock::{
    ABI, Access, AccessFs, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset,
    RulesetAttr, RulesetCreatedAttr, Scope,
};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, apply_filter,
};

/// What stands for a container's process.
pub const PROGRAM: &str = "/bin/sleep";
/// The kinds of namespaces.
const NEW: [libc::c_int; 8] = [
    libc::CLONE_NEWNS,
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
    0x80, // CLONE_NEWTIME
];

/// The folder, under a name that is the same in every run, so that inputs can name it.
pub struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    /// The folder as the services are told.
    pub const NAME: &str = "/proc/self/cwd";

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}

/// Whether this kernel can shut somebody in: Landlock confines signals from Linux 6.12 on, and may be switched off.
pub fn is_possible() -> bool {
    let hard = Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
    hard.scope(Scope::Signal).is_ok()
}

/// Shuts the calling thread in. The process's working directory becomes the place's folder.
pub fn enter() -> Place {
    let place = Place { folder: tempfile::tempdir().expect("a temporary folder") };
    env::set_current_dir(place.folder()).expect("enter the temporary folder");
    shut_in(place.folder());
    place
}

fn shut_in(folder: &Path) {
    assert!(
        is_possible(),
        "this kernel's Landlock is off, or older than Linux 6.12: the services are not driven without it"
    );
    restrict_files(folder).expect("Landlock");
    let none = CapabilitySet::empty();
    let none = CapabilitySets { effective: none, permitted: none, inheritable: none };
    set_capabilities(None, none).expect("drop all capabilities");
    refuse_namespaces().expect("a seccomp filter");
}

fn restrict_files(folder: &Path) -> Result<(), landlock::RulesetError> {
    let all = AccessFs::from_all(ABI::V6);
    let rule = |path: &str, access: BitFlags<AccessFs>| {
        let opened = PathFd::new(path).unwrap_or_else(|error| panic!("open {path}: {error}"));
        PathBeneath::new(opened, access)
    };
    let mut rules = Ruleset::default()
        .handle_access(all)?
        .scope(Scope::Signal)?
        .create()?
        .add_rule(rule("/", AccessFs::ReadFile | AccessFs::ReadDir))?
        .add_rule(rule("/dev/null", AccessFs::ReadFile | AccessFs::WriteFile))?
        .add_rule(PathBeneath::new(PathFd::new(folder).expect("the folder is there"), all))?;
    // The program, and what loads it.
    let loaders = ["/lib", "/lib64", "/usr/lib"];
    for path in loaders.into_iter().chain([PROGRAM]).filter(|path| PathBuf::from(path).exists()) {
        rules = rules.add_rule(rule(path, AccessFs::Execute | AccessFs::ReadFile))?;
    }
    rules.restrict_self()?;
    Ok(())
}

fn refuse_namespaces() -> Result<(), seccompiler::Error> {
    let any_new = || -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
        let one = |flag: libc::c_int| {
            let flag = u64::try_from(flag).unwrap_or_default();
            let equals = SeccompCmpOp::MaskedEq(flag);
            let condition = SeccompCondition::new(0, SeccompCmpArgLen::Qword, equals, flag)?;
            SeccompRule::new(vec![condition])
        };
        NEW.into_iter().map(one).collect()
    };
    let refused = BTreeMap::from([
        (libc::SYS_unshare, any_new()?),
        (libc::SYS_clone, any_new()?),
        (libc::SYS_setns, vec![]),
    ]);
    // Its flags are in memory, where no filter sees them; the C library does without it.
    let unknown = BTreeMap::from([(libc::SYS_clone3, vec![])]);
    for (calls, errno) in [(refused, libc::EPERM), (unknown, libc::ENOSYS)] {
        let action = SeccompAction::Errno(u32::try_from(errno).unwrap_or_default());
        let machine = env::consts::ARCH.try_into()?;
        let filter = SeccompFilter::new(calls, SeccompAction::Allow, action, machine)?;
        apply_filter(&BpfProgram::try_from(filter)?)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{fs, process::Command, thread};

    use nix::sched::{CloneFlags, unshare};
    use rustix::{
        mount::{MountFlags, UnmountFlags, mount, unmount},
        process::{Pid, Signal, kill_process},
    };

    use super::*;

    #[test]
    fn who_is_shut_in_cannot_touch_the_node() {
        if !is_possible() {
            return eprintln!("not run: this kernel cannot shut anybody in");
        }
        let (inside, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut other = Command::new(PROGRAM).arg("60").spawn().unwrap();
        let pid = Pid::from_raw(i32::try_from(other.id()).unwrap()).unwrap();
        thread::scope(|scope| {
            let shut = scope.spawn(|| {
                shut_in(inside.path());
                // Its threads are, too.
                thread::spawn({
                    let (inside, outside) = (inside.path().to_owned(), outside.path().to_owned());
                    move || {
                        fs::write(inside.join("file"), "").unwrap();
                        fs::write(outside.join("file"), "").unwrap_err();
                        fs::read_dir(&outside).unwrap();
                        Command::new(PROGRAM).arg("0").status().unwrap();
                        Command::new("/bin/true").status().unwrap_err();
                        mount("none", &inside, "tmpfs", MountFlags::empty(), None).unwrap_err();
                        unmount("/proc", UnmountFlags::DETACH).unwrap_err();
                        kill_process(pid, Signal::KILL).unwrap_err();
                        for flags in [CloneFlags::CLONE_NEWUSER, CloneFlags::CLONE_NEWUTS] {
                            unshare(flags).unwrap_err();
                        }
                    }
                })
                .join()
                .unwrap();
            });
            shut.join().unwrap();
        });
        assert_eq!(other.try_wait().unwrap(), None);
        other.kill().unwrap();
        other.wait().unwrap();
    }
}
