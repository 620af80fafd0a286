//! What is kept of a container: a folder of its own below the runtime's root, with `state.json` in the form that runc
//! writes, as far as it is read by others (the shim's short ways, the operator's tool), and the fifo that starts it.

use std::{
    collections::BTreeMap,
    fs, io,
    os::{
        fd::AsFd,
        unix::fs::{DirBuilderExt, PermissionsExt},
    },
    path::{Path, PathBuf},
};

use mooring::{cgroup::Cgroup, sys::identity};
use rustix::fs::{FileType, Mode};
use serde::{Deserialize, Serialize};

use crate::{
    error::{Doing, Error, Result},
    seccomp::Filter,
    spec::{Hooks, Personality, Process},
};

/// The form of the files; one of another form is not taken for this one.
const FORM: u32 = 1;

#[derive(Debug, Serialize, Deserialize)]
pub struct State {
    pub id: String,
    pub init_process_pid: i32,
    pub init_process_start: u64,
    /// In seconds since 1970.
    pub created: u64,
    /// The folder of each controller of v1; v2's has no name.
    pub cgroup_paths: BTreeMap<String, PathBuf>,
    pub intel_rdt_path: String,
    pub rootless: bool,
    pub config: Config,
    /// What runc has no place for.
    pub mooring: Own,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Config {
    #[serde(rename = "Hooks")]
    pub hooks: Hooks,
    #[serde(rename = "intelRdt")]
    pub intel_rdt: Option<()>,
    pub cgroups: Cgroups,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Cgroups {
    pub systemd: bool,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Own {
    pub form: u32,
    pub oci_version: String,
    pub bundle: PathBuf,
    pub rootfs: PathBuf,
    /// systemd's unit, where it has made the group.
    #[serde(default)]
    pub scope: Option<String>,
    pub annotations: BTreeMap<String, String>,
    /// The container's own process, from which execs take what they do not say.
    pub process: Process,
    #[serde(default)]
    pub personality: Option<Personality>,
    /// Whether its processes end with the first one.
    #[serde(default)]
    pub ends_whole: bool,
}

/// What the container's process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Created,
    Running,
    Paused,
    Stopped,
}

impl Status {
    pub fn name(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        }
    }
}

/// The folder of one container.
#[derive(Clone, Debug)]
pub struct Folder(PathBuf);

impl Folder {
    pub fn of(root: &Path, id: &str) -> Self {
        Self(root.join(id))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Makes it. There is one container of a name.
    pub fn create(root: &Path, id: &str) -> Result<Self> {
        let mut builder = fs::DirBuilder::new();
        builder.mode(0o711).recursive(true).create(root).doing_at("make", root)?;
        let folder = Self::of(root, id);
        match fs::DirBuilder::new().mode(0o711).create(&folder.0) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                Err(Error::Exists { id: id.into() })
            }
            other => other.doing_at("make", &folder.0).map(|()| folder),
        }
    }

    /// Makes the fifo that the container's process waits at; it belongs to the container's root.
    pub fn make_fifo(&self, owner: (u32, u32)) -> Result<()> {
        let path = self.fifo();
        let folder = fs::File::open(&self.0).doing_at("open", &self.0)?;
        // By others it is only written to; and who has no way to it cannot do that.
        let mode = Mode::from_raw_mode(0o622);
        rustix::fs::mknodat(folder.as_fd(), FIFO, FileType::Fifo, mode, 0)
            .doing_at("make", &path)?;
        // Whatever the caller's umask leaves of it.
        fs::set_permissions(&path, fs::Permissions::from_mode(mode.as_raw_mode()))
            .doing_at("open to others", &path)?;
        std::os::unix::fs::chown(&path, Some(owner.0), Some(owner.1)).doing_at("give away", &path)
    }

    pub fn fifo(&self) -> PathBuf {
        self.0.join(FIFO)
    }

    pub fn save(&self, state: &State) -> Result<()> {
        let path = self.0.join(STATE);
        let new = self.0.join("state.json.new");
        let text = serde_json::to_vec(state).map_err(io::Error::from);
        fs::write(&new, text.doing("write the state")?).doing_at("write", &new)?;
        fs::rename(&new, &path).doing_at("replace", &path)
    }

    pub fn load(&self) -> Result<State> {
        let path = self.0.join(STATE);
        let missing = || Error::Missing {
            id: self.0.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        };
        let text = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(missing()),
            other => other.doing_at("read", &path)?,
        };
        let state: State =
            serde_json::from_slice(&text).map_err(io::Error::from).doing_at("read", &path)?;
        if state.mooring.form == FORM {
            Ok(state)
        } else {
            Err(Error::invalid(format!("{} is of another release", path.display())))
        }
    }

    pub fn save_filter(&self, filter: &Filter) -> Result<()> {
        let path = self.0.join(FILTER);
        fs::write(&path, filter.to_bytes()).doing_at("write", &path)
    }

    /// The filter of the container's processes; one that is there and cannot be read is never taken for none.
    pub fn filter(&self) -> Result<Option<Filter>> {
        let path = self.0.join(FILTER);
        match fs::read(&path) {
            Ok(bytes) => Filter::from_bytes(&bytes)
                .map(Some)
                .ok_or_else(|| Error::invalid(format!("{} is damaged", path.display()))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).doing_at("read", &path),
        }
    }

    pub fn remove(&self) -> Result<()> {
        match fs::remove_dir_all(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).doing_at("remove", &self.0)
            }
            _ => Ok(()),
        }
    }
}

const FIFO: &str = "exec.fifo";
const STATE: &str = "state.json";
const FILTER: &str = "seccomp.bpf";

impl Own {
    pub fn form() -> u32 {
        FORM
    }
}

impl State {
    pub fn group(&self) -> Cgroup {
        let mut group = Cgroup::default();
        for (controller, path) in &self.cgroup_paths {
            if controller.is_empty() {
                group.v2 = Some(path.clone());
            } else {
                group.v1.insert(controller.clone(), path.clone());
            }
        }
        group
    }

    pub fn is_alive(&self) -> Result<bool> {
        identity::is_alive(self.init_process_pid, self.init_process_start)
            .doing("look at the container's process")
    }

    pub fn status(&self, folder: &Folder) -> Result<Status> {
        if !self.is_alive()? {
            return Ok(Status::Stopped);
        }
        if crate::cgroup::is_frozen(&self.group()) {
            return Ok(Status::Paused);
        }
        Ok(if folder.fifo().exists() { Status::Created } else { Status::Running })
    }

    /// As hooks of the node and `state` have it.
    pub fn told(&self, status: &str) -> serde_json::Value {
        self.told_as(status, if status == "stopped" { 0 } else { self.init_process_pid })
    }

    /// The same, where the container's process has another number.
    pub fn told_as(&self, status: &str, pid: i32) -> serde_json::Value {
        serde_json::json!({
            "ociVersion": self.mooring.oci_version,
            "id": self.id,
            "status": status,
            "pid": pid,
            "bundle": self.mooring.bundle,
            "annotations": self.mooring.annotations,
        })
    }
}

/// The folders of a group, as `state.json` has them.
pub fn paths_of(group: &Cgroup) -> BTreeMap<String, PathBuf> {
    let mut paths: BTreeMap<String, PathBuf> = group.v1.clone();
    if let Some(folder) = &group.v2 {
        paths.insert(String::new(), folder.clone());
    }
    paths
}
