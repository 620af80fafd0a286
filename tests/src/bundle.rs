//! The built-in OCI runtime called by hand, on bundles of the tests' own.
#![allow(clippy::missing_panics_doc, clippy::missing_errors_doc, reason = "for tests")]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::node::{deps, shim};
use crate::suite::Case;

/// What of busybox the root has by name.
const PROGRAMS: [&str; 14] = [
    "sh", "sleep", "ls", "cat", "readlink", "tr", "id", "stat", "mount", "unshare", "mkdir",
    "uname", "grep", "env",
];

/// A bundle below the node's folder, and the runtime's root beside it.
pub struct Bundle {
    /// Where it lies.
    pub folder: PathBuf,
    /// The container's name.
    pub id: String,
}

impl Bundle {
    /// A bundle with busybox as its root; `change` is given its specification and the folder of the root.
    pub fn new(case: &Case, change: impl FnOnce(&mut Value, &Path)) -> Result<Self> {
        let id = case.unique("by-hand");
        let folder = case.node.folder().join(&id);
        let root = folder.join("rootfs");
        for sub in ["bin", "etc", "proc", "dev", "sys", "tmp"] {
            fs::create_dir_all(root.join(sub))?;
        }
        fs::copy(deps()?.join("bin/busybox"), root.join("bin/busybox"))?;
        for name in PROGRAMS {
            symlink("busybox", root.join("bin").join(name))?;
        }
        let mut spec = json!({
            "ociVersion": "1.2.0",
            "root": {"path": "rootfs"},
            "process": {
                "args": ["sleep", "1000"], "cwd": "/", "env": ["PATH=/bin"],
                "capabilities": {"bounding": ["CAP_KILL"], "effective": ["CAP_KILL"], "permitted": ["CAP_KILL"]},
            },
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
            ],
            "linux": {
                "cgroupsPath": format!("/e2e/{id}"),
                "namespaces": [{"type": "mount"}, {"type": "pid"}, {"type": "ipc"}, {"type": "uts"}],
                "maskedPaths": ["/proc/kcore", "/proc/keys"],
                "readonlyPaths": ["/proc/sys"],
            },
        });
        change(&mut spec, &root);
        fs::write(folder.join("config.json"), spec.to_string())?;
        Ok(Self { folder, id })
    }

    /// A call of the runtime.
    pub fn command(&self, arguments: &[&str]) -> Result<Command> {
        let mut command = Command::new(shim()?);
        command.arg("oci").arg("--root").arg(self.folder.join("state")).args(arguments);
        command.stdin(Stdio::null()).current_dir(&self.folder);
        Ok(command)
    }

    /// Runs a verb; what the container prints goes to a file, so that nobody waits for the container's end.
    pub fn call(&self, arguments: &[&str]) -> Result<Output> {
        let printed = self.folder.join("printed");
        let file = fs::File::create(&printed)?;
        let status = self.command(arguments)?.stdout(file.try_clone()?).stderr(file).status()?;
        let stdout = fs::read(&printed)?;
        Ok(Output { status, stdout, stderr: Vec::new() })
    }

    /// Creates the container, with the process's number in the file `pid`.
    pub fn create(&self) -> Result<Output> {
        self.call(&["create", "--pid-file", "pid", &self.id])
    }

    /// Creates and starts it.
    pub fn run(&self) -> Result<()> {
        succeed(&self.create()?)?;
        succeed(&self.call(&["start", &self.id])?)
    }

    /// The number of its first process.
    pub fn pid(&self) -> Result<i32> {
        Ok(fs::read_to_string(self.folder.join("pid"))?.parse()?)
    }

    /// Fails to be created, with a message that has these words; then nothing is left.
    pub fn refused(&self, words: &str) -> Result<()> {
        let created = self.create()?;
        let said = text(&created);
        if created.status.success() || !said.contains(words) {
            bail!("{words:?} was expected, and not: {said}");
        }
        let state = self.folder.join("state").join(&self.id);
        let groups = fs::read_dir("/sys/fs/cgroup")?.flatten();
        let left: Vec<PathBuf> = groups
            .flat_map(|one| [one.path().join("e2e").join(&self.id)])
            .chain([state])
            .filter(|path| path.exists())
            .collect();
        if !left.is_empty() {
            bail!("left: {left:?}");
        }
        self.remove()
    }

    /// Removes the container and the bundle.
    pub fn end(&self) -> Result<()> {
        succeed(&self.call(&["delete", "--force", &self.id])?)?;
        self.remove()
    }

    /// Removes the bundle.
    pub fn remove(&self) -> Result<()> {
        fs::remove_dir_all(&self.folder).context("remove the bundle")
    }
}

/// What was printed.
pub fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// An error unless the call has succeeded.
pub fn succeed(output: &Output) -> Result<()> {
    if !output.status.success() {
        bail!("{}: {}", output.status, text(output));
    }
    Ok(())
}
