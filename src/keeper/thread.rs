//! The parked thread: it enters the pod's namespaces and waits.

use std::{fs::File, io, sync::mpsc, thread::JoinHandle};

use nix::sched::{CloneFlags, unshare};

use super::{KeeperError, Net, Wanted, during, inside};

/// Virtual size of the thread's stack; only what is touched costs memory.
const STACK: usize = 48 * 1024;

/// A thread that holds a pod's namespaces until it is told to end.
#[derive(Debug)]
pub struct Parked {
    tid: u32,
    /// Dropping it wakes the thread.
    leash: Option<mpsc::Sender<()>>,
    handle: Option<JoinHandle<()>>,
}

impl Parked {
    /// Starts the thread and waits until it is inside. Blocks for as long as the kernel takes (well under 1 ms).
    pub fn start(wanted: &Wanted) -> Result<Self, KeeperError> {
        let (leash, parked) = mpsc::channel::<()>();
        let (report, reported) = mpsc::sync_channel(1);
        let wanted = wanted.clone();
        let body = move || {
            let home = match Home::open() {
                Ok(home) => home,
                Err(error) => return drop(report.send(Err(error))),
            };
            let entered = enter(&wanted);
            let good = entered.is_ok();
            let _ = report.send(entered.map(|()| nix::unistd::gettid().as_raw().unsigned_abs()));
            drop((report, wanted));
            if good {
                // Ends with an error when the leash is dropped; nothing is ever sent.
                let _ = parked.recv();
            }
            // The kernel lets go of a thread's namespaces a moment after a join has returned. Leaving them first
            // makes the join mean what the pod's end needs: nothing holds them any more.
            home.enter();
        };
        let handle = std::thread::Builder::new().name("pod".into()).stack_size(STACK).spawn(body);
        let handle = handle.map_err(during("start the pod's thread"))?;
        match reported.recv() {
            Ok(Ok(tid)) => Ok(Self { tid, leash: Some(leash), handle: Some(handle) }),
            Ok(Err(error)) => {
                let _ = handle.join();
                Err(error)
            }
            Err(_) => Err(KeeperError::Holder("the pod's thread ended at once".into())),
        }
    }

    /// The thread's id, which stands for the pod under /proc.
    pub fn tid(&self) -> u32 {
        self.tid
    }

    /// Ends the thread; returns when it holds no namespace any more.
    pub fn end(mut self) {
        self.finish();
    }

    fn finish(&mut self) {
        drop(self.leash.take());
        if let Some(handle) = self.handle.take() {
            let _ = handle.join();
        }
    }
}

impl Drop for Parked {
    fn drop(&mut self) {
        self.finish();
    }
}

/// Makes the pod's namespaces around the calling thread and sets them up.
pub(super) fn enter(wanted: &Wanted) -> Result<(), KeeperError> {
    if let Net::Join(path) = &wanted.net {
        let name = path.display().to_string();
        let file = File::open(path).map_err(during(format!("open {name}")))?;
        nix::sched::setns(&file, CloneFlags::CLONE_NEWNET)
            .map_err(io::Error::from)
            .map_err(during(format!("join network namespace {name}")))?;
    }
    let mut flags = CloneFlags::empty();
    flags.set(CloneFlags::CLONE_NEWIPC, wanted.ipc);
    flags.set(CloneFlags::CLONE_NEWUTS, wanted.uts.is_some());
    flags.set(CloneFlags::CLONE_NEWNET, wanted.net == Net::New);
    unshare(flags).map_err(io::Error::from).map_err(during("make the pod's namespaces"))?;
    if let Some(hostname) = &wanted.uts {
        inside::set_hostname(hostname)?;
    }
    inside::set_sysctls(&wanted.sysctls, None)
}

/// The namespaces that the thread came from.
pub(super) struct Home([File; 3]);

impl Home {
    pub(super) fn open() -> Result<Self, KeeperError> {
        let open = |kind: &str| {
            let path = format!("/proc/thread-self/ns/{kind}");
            File::open(&path).map_err(during(format!("open {path}")))
        };
        Ok(Self([open("net")?, open("ipc")?, open("uts")?]))
    }

    pub(super) fn enter(&self) {
        for namespace in &self.0 {
            // On failure the thread's end lets go of the namespace all the same, a moment later.
            let _ = nix::sched::setns(namespace, CloneFlags::empty());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::User;
    use super::*;

    fn wanted() -> Wanted {
        Wanted {
            pins: None,
            net: Net::New,
            user: User::Host,
            ipc: true,
            uts: Some("moored".into()),
            shared_pid: false,
            sysctls: [("kernel.shm_rmid_forced".to_owned(), "1".to_owned())].into(),
        }
    }

    fn namespace(of: &str, kind: &str) -> std::path::PathBuf {
        std::fs::read_link(format!("/proc/{of}/ns/{kind}")).unwrap()
    }

    #[test]
    fn the_thread_stands_for_namespaces_of_its_own() {
        let parked = Parked::start(&wanted()).unwrap();
        let tid = parked.tid().to_string();
        for kind in ["net", "ipc", "uts"] {
            assert_ne!(namespace(&tid, kind), namespace("self", kind), "{kind}");
        }
        assert_eq!(namespace(&tid, "user"), namespace("self", "user"));
        let held = namespace(&tid, "net");
        parked.end();
        // The thread's folder below /proc may outlive the join by a moment; what must not is its hold on the pod.
        let now = std::fs::read_link(format!("/proc/{tid}/ns/net"));
        assert_ne!(now.ok(), Some(held));
    }

    #[test]
    fn a_parameter_that_the_kernel_does_not_know_is_named() {
        let sysctls = [("net.ipv4.no_such_thing".to_owned(), "1".to_owned())].into();
        let error = Parked::start(&Wanted { sysctls, ..wanted() }).unwrap_err();
        assert!(error.to_string().contains("net.ipv4.no_such_thing"), "{error}");
    }

    #[test]
    fn a_namespace_that_is_not_there_is_named() {
        let error = Parked::start(&Wanted { net: Net::Join("/nonexistent/ns".into()), ..wanted() })
            .unwrap_err();
        assert!(error.to_string().contains("/nonexistent/ns"), "{error}");
    }
}
