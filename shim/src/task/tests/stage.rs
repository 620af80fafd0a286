//! A bundle, an engine, and what it published.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use containerd_shim_protos::{
    events::task::{TaskExecStarted, TaskExit},
    protobuf::MessageDyn,
};
use mooring::{
    cgroup::{Cgroup, Hierarchies},
    id::Id,
    process::Reaper,
    runtime::{Runc, RuntimeSettings},
};
use serde_json::{Value, json};

use crate::{
    events::Events,
    task::{CreateRequest, Ended, Error, ExecRequest, Pod, PodError, Streams, Tasks},
};

/// Where `tools/deps.sh` puts the runtimes and busybox.
pub fn dependency(name: &str) -> PathBuf {
    let deps = std::env::var_os("MOORING_DEPS")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../.deps"), PathBuf::from);
    let path = deps.join("bin").join(name);
    assert!(path.exists(), "{} is missing: run tools/deps.sh, or `make test`", path.display());
    path
}

/// A pod that has nothing to say.
struct NoPod {
    tasks_dir: PathBuf,
}

#[async_trait]
impl Pod for NoPod {
    fn admit(&self, _container: &Id) -> Result<Box<dyn Send>, PodError> {
        Ok(Box::new(()))
    }

    async fn prepare(
        &self,
        _container: &Id,
        _bundle: &Path,
        _spec: &mut serde_json::Value,
    ) -> Result<bool, PodError> {
        Ok(false)
    }

    async fn verify(&self, _: &Id, _: i32, _: &serde_json::Value) -> Result<(), PodError> {
        Ok(())
    }

    fn tasks_dir(&self) -> PathBuf {
        self.tasks_dir.clone()
    }
}

/// Remembers events as text: `/tasks/exit init 7`.
#[derive(Default)]
pub struct Published(Mutex<Vec<String>>);

impl Events for Published {
    fn publish(&self, topic: &'static str, event: &dyn MessageDyn) {
        let mut line = topic.trim_start_matches("/tasks/").to_owned();
        if let Some(exit) = <dyn MessageDyn>::downcast_ref::<TaskExit>(event) {
            let which = if exit.id == exit.container_id { "init" } else { &exit.id };
            line = format!("{line} {which} {}", exit.exit_status);
        }
        if let Some(start) = <dyn MessageDyn>::downcast_ref::<TaskExecStarted>(event) {
            line = format!("{line} {}", start.exec_id);
        }
        self.0.lock().unwrap().push(line);
    }
}

impl Published {
    pub fn all(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

/// One container's surroundings, gone with it.
pub struct Stage {
    pub id: Id,
    pub folder: tempfile::TempDir,
    pub tasks: Tasks,
    pub events: Arc<Published>,
    pub settings: RuntimeSettings,
    pub group: Cgroup,
}

static NUMBER: AtomicU32 = AtomicU32::new(0);

impl Stage {
    /// A bundle whose init is `sh -c script`.
    pub fn new(script: &str) -> Self {
        nix::sys::prctl::set_child_subreaper(true).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("mooring-task-{}-{number}", std::process::id());
        let bin = folder.path().join("bundle/rootfs/bin");
        fs::create_dir_all(&bin).unwrap();
        for made in ["proc", "dev", "sys", "tmp"] {
            fs::create_dir(folder.path().join("bundle/rootfs").join(made)).unwrap();
        }
        fs::copy(dependency("busybox"), bin.join("busybox")).unwrap();
        for applet in ["sh", "sleep", "cat", "kill", "stty", "head", "tr", "true", "grep", "ls"] {
            symlink("busybox", bin.join(applet)).unwrap();
        }
        let group = Hierarchies::read().unwrap().group(&format!("/{name}")).unwrap();
        let settings = RuntimeSettings {
            binary: dependency("runc"),
            root: folder.path().join("runc"),
            ..RuntimeSettings::default()
        };
        let events = Arc::new(Published::default());
        let reaper = Reaper::start().unwrap();
        let programs = reaper.clone();
        let tasks = Tasks::new(
            "test".into(),
            Arc::clone(&events) as Arc<dyn Events>,
            Arc::new(NoPod { tasks_dir: folder.path().join("tasks") }),
            Arc::new(move |settings| Arc::new(Runc::new(settings, programs.clone()))),
            reaper,
            folder.path().join("run"),
        );
        let stage = Self { id: Id::new(name).unwrap(), folder, tasks, events, settings, group };
        stage.write(&stage.spec(script));
        stage
    }

    pub fn spec(&self, script: &str) -> Value {
        json!({
            "ociVersion": "1.0.2",
            "process": Self::process(script),
            "root": {"path": "rootfs"},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
                {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
                 "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]}
            ],
            "linux": {
                "cgroupsPath": format!("/{}", self.id),
                "namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"}]
            }
        })
    }

    pub fn process(script: &str) -> Value {
        json!({
            "user": {"uid": 0, "gid": 0}, "cwd": "/",
            "args": ["/bin/sh", "-c", script],
            "env": ["PATH=/bin"]
        })
    }

    pub fn write(&self, spec: &Value) {
        fs::write(self.bundle().join("config.json"), spec.to_string()).unwrap();
    }

    pub fn bundle(&self) -> PathBuf {
        self.folder.path().join("bundle")
    }

    pub fn request(&self) -> CreateRequest {
        CreateRequest {
            id: self.id.clone(),
            bundle: self.bundle(),
            rootfs: Vec::new(),
            streams: Streams::default(),
            checkpoint: String::new(),
            runtime: self.settings.clone(),
        }
    }

    pub async fn run(&self, streams: Streams) -> u32 {
        let pid = self.tasks.create(CreateRequest { streams, ..self.request() }).await.unwrap();
        assert_eq!(self.tasks.start(self.id.as_str(), "").await.unwrap(), pid);
        pid
    }

    pub async fn exec(&self, exec_id: &str, script: &str, streams: Streams) -> Result<u32, Error> {
        self.tasks.exec(ExecRequest {
            id: self.id.clone(),
            exec_id: Id::new(exec_id).unwrap(),
            streams,
            process: Self::process(script).to_string().into_bytes(),
        })?;
        self.tasks.start(self.id.as_str(), exec_id).await
    }

    pub async fn wait(&self, exec_id: &str) -> Ended {
        let waiting = self.tasks.wait(self.id.as_str(), exec_id);
        tokio::time::timeout(Duration::from_secs(20), waiting).await.expect("it ends").unwrap()
    }

    pub async fn kill(&self, signal: u32) {
        self.tasks.kill(self.id.as_str(), "", signal, false).await.unwrap();
    }

    pub async fn delete(&self) -> Ended {
        self.tasks.delete(self.id.as_str(), "").await.unwrap()
    }

    /// A fifo for a stream, as a client makes it.
    pub fn fifo(&self, name: &str) -> String {
        let path = self.folder.path().join(name);
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::from_bits_truncate(0o700)).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// Nothing of the container is left anywhere.
    pub fn assert_clean(&self) {
        for folder in self.group.folders() {
            assert!(!folder.exists(), "{} is left", folder.display());
        }
        assert!(!self.settings.root.join(&self.id).exists(), "runtime state is left");
        let records = fs::read_dir(self.folder.path().join("tasks")).map_or(0, Iterator::count);
        assert_eq!(records, 0, "a record is left");
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(self.folder.path().to_str().unwrap()), "a mount is left");
        assert!(self.tasks.is_empty());
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // A test that failed half way: what it left must not disturb the others.
        if self.group.kill_all().is_ok() {
            for folder in self.group.folders() {
                let gone = || !folder.exists() || fs::remove_dir(folder).is_ok();
                (0..100).any(|_| {
                    gone() || {
                        std::thread::sleep(Duration::from_millis(10));
                        false
                    }
                });
            }
        }
    }
}
