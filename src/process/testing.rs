//! Children of tests. The reaper takes every child of the process, so a test that waits by itself may find that
//! another test's reaper was quicker: here it waits with it.

use std::process::Command;

use tokio::runtime::{Builder, Runtime};

use super::{Exited, Reaper};

/// A child whose end can be asked for.
pub struct TestChild {
    pub pid: i32,
    exited: Exited,
    runtime: Option<Runtime>,
}

impl TestChild {
    /// Starts `command`.
    pub fn start(command: &mut Command) -> Self {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let exited = {
            let _inside = runtime.enter();
            Reaper::start().unwrap().spawn(command).unwrap().0
        };
        Self { pid: exited.pid(), exited, runtime: Some(runtime) }
    }

    /// Waits for its end: its exit code, or 128 and the signal.
    pub fn status(&mut self) -> i32 {
        let (exited, runtime) = (&mut self.exited, self.runtime.as_ref().unwrap());
        // On a thread of its own, since the caller may be inside a runtime.
        std::thread::scope(|scope| {
            scope.spawn(|| runtime.block_on(exited.wait()).status).join().unwrap()
        })
    }
}

impl Drop for TestChild {
    fn drop(&mut self) {
        // A runtime must not be dropped inside another one while it waits for its threads.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
