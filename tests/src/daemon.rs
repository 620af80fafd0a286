//! The running containerd: a child of the tests, or a unit of systemd.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};

use crate::systemd;

/// A containerd that was started.
pub enum Daemon {
    /// A child process.
    Child(Child),
    /// The main process of the unit.
    Unit(u32),
}

impl Daemon {
    /// Starts it; what it prints is added to `log`.
    pub fn start(mut command: Command, log: &Path) -> Result<Self> {
        if systemd::is_first() {
            systemd::write_unit(&command, log)?;
            // One that failed a moment ago may be started again at once.
            let _ = systemd::systemctl(&["reset-failed", systemd::UNIT]);
            systemd::systemctl(&["start", systemd::UNIT])?;
            return Ok(Self::Unit(systemd::main_pid().context("the unit has no process")?));
        }
        let log = fs::File::options().create(true).append(true).open(log)?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        Ok(Self::Child(command.spawn().context("start containerd")?))
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        match self {
            Self::Child(child) => child.id(),
            Self::Unit(pid) => *pid,
        }
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Result<Option<String>> {
        match self {
            Self::Child(child) => Ok(child.try_wait()?.map(|status| status.to_string())),
            Self::Unit(pid) => {
                let there = systemd::main_pid() == Some(*pid);
                Ok((!there).then(|| format!("{:?}", systemd::property(systemd::UNIT, "Result"))))
            }
        }
    }

    /// Waits for its end.
    pub fn wait(mut self) -> Result<()> {
        if let Self::Child(child) = &mut self {
            child.wait()?;
            return Ok(());
        }
        while self.ended()?.is_none() {
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        // The unit may still be on its way to "inactive", and would refuse a start.
        while systemd::property(systemd::UNIT, "ActiveState")? == "deactivating" {
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        Ok(())
    }
}
