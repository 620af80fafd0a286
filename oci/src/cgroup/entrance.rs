//! How a process comes into a control group.
//!
//! A process that another one moves has the kernel wait until no processor can be in the midst of a fork, which takes 6 to
//! 16 ms. Two ways are without that: on v2 a process is started in its group (`CLONE_INTO_CGROUP`, Linux 5.7), and on v1
//! one that is a single thread moves itself by the file `tasks`.

use std::{
    fs::File,
    io::Write,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
};

use mooring::cgroup::Cgroup;
use rustix::fs::{Mode, OFlags};

use crate::{
    error::{Doing, Result},
    sys::{self, Fork},
};

/// A group that is open, to start a process in.
pub struct Entrance {
    /// Of v2.
    unified: Option<(PathBuf, OwnedFd)>,
    /// What the process writes to itself.
    files: Vec<(PathBuf, File)>,
}

impl Entrance {
    pub fn of(group: &Cgroup) -> Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let unified = match &group.v2 {
            Some(folder) => {
                let opened =
                    rustix::fs::open(folder, flags, Mode::empty()).doing_at("open", folder)?;
                Some((folder.clone(), opened))
            }
            None => None,
        };
        let mut entrance = Self { unified, files: Vec::new() };
        for folder in group.folders() {
            if group.v2.as_deref() != Some(folder) {
                entrance.add(folder.join("tasks"))?;
            }
        }
        Ok(entrance)
    }

    /// For a process that somebody else puts into its group.
    pub fn none() -> Self {
        Self { unified: None, files: Vec::new() }
    }

    fn add(&mut self, path: PathBuf) -> Result<()> {
        let file = File::options().write(true).open(&path).doing_at("open", &path)?;
        self.files.push((path, file));
        Ok(())
    }

    /// Copies this process, which has one thread. The copy is in the group once it has called [`Self::enter`].
    pub fn fork(&mut self) -> Result<Fork> {
        if let Some((folder, opened)) = &self.unified {
            match sys::fork_into(opened.as_fd()) {
                Err(error) if is_unknown(&error) => {
                    let file = folder.join("cgroup.procs");
                    self.add(file)?;
                }
                other => return other.doing_at("start a process in", folder),
            }
        }
        sys::fork(false).doing("start a process")
    }

    /// What the copy does first. Afterwards nothing of the node's groups is open.
    pub fn enter(self) -> Result<()> {
        for (path, mut file) in self.files {
            file.write_all(b"0").doing_at("write", &path)?;
        }
        Ok(())
    }
}

/// Whether the kernel has no such call or not this flag of it, or a filter of system calls keeps this process from it.
fn is_unknown(error: &std::io::Error) -> bool {
    [libc::ENOSYS, libc::EINVAL, libc::E2BIG, libc::EPERM]
        .into_iter()
        .any(|code| error.raw_os_error() == Some(code))
}

#[cfg(test)]
mod tests {
    use mooring::cgroup::Hierarchies;
    use rustix::process::{Pid, WaitOptions, waitpid};

    use super::*;
    use crate::sys::Instruction;

    /// Denies clone3 to this thread.
    fn deny_clone3(code: i32) {
        let statement = |code, k| Instruction { code, jt: 0, jf: 0, k };
        let number = u32::try_from(libc::SYS_clone3).unwrap();
        let answer = 0x0005_0000 | code.unsigned_abs();
        rustix::thread::set_no_new_privs(true).unwrap();
        let program = [
            statement(0x20, 0),
            Instruction { code: 0x15, jt: 0, jf: 1, k: number },
            statement(0x06, answer),
            statement(0x06, 0x7fff_0000),
        ];
        sys::seccomp(&program, 0).unwrap();
    }

    /// The groups that a process is in which was started in `group`; nothing of it is left afterwards.
    fn born(group: &Cgroup) -> Cgroup {
        let mut entrance = Entrance::of(group).unwrap();
        let (mut told, telling) = std::io::pipe().unwrap();
        let (waiting, go) = std::io::pipe().unwrap();
        // The copy of a process with many threads may do no more than the kernel's calls.
        match entrance.fork().unwrap() {
            Fork::Child => {
                let entered = entrance.enter().is_ok();
                let _ = rustix::io::write(&telling, &[u8::from(entered)]);
                drop(go);
                let _ = rustix::io::read(&waiting, &mut [0_u8; 1]);
                sys::exit(0)
            }
            Fork::Parent(pid) => {
                drop((telling, waiting));
                let mut entered = [0];
                std::io::Read::read_exact(&mut told, &mut entered).unwrap();
                let found = Cgroup::of_process(pid).unwrap();
                drop(go);
                waitpid(Pid::from_raw(pid), WaitOptions::empty()).unwrap();
                assert_eq!(entered, [1]);
                found
            }
        }
    }

    #[test]
    fn a_process_is_in_its_group_whatever_the_kernel_lets_it_do() {
        let name = format!("/mooring-entrance-{}", std::process::id());
        let group = Hierarchies::read().unwrap().group(&name).unwrap();
        let created = group.ensure().unwrap();
        let mut all = vec![born(&group)];
        for code in [libc::ENOSYS, libc::EPERM] {
            let group = &group;
            let denied = std::thread::scope(|scope| {
                let thread = scope.spawn(move || {
                    deny_clone3(code);
                    assert!(is_unknown(&sys::fork_into(std::io::stdin().as_fd()).err().unwrap()));
                    born(group)
                });
                thread.join().unwrap()
            });
            all.push(denied);
        }
        created.remove();
        assert!(group.folders().iter().all(|folder| !folder.exists()));
        assert_eq!(all, vec![group; 3]);
    }
}
