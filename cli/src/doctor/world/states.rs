//! What OCI runtimes have written down of their containers: runc in `state.json`, crun in `status`.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::SystemTime,
};

use mooring::runtime::BUILTIN;
use serde_json::Value;

use super::{bundles::folders, processes::Process};

#[derive(Debug)]
pub struct State {
    pub namespace: String,
    pub id: String,
    pub folder: PathBuf,
    /// `runc`, `crun` or `builtin`, by the form of its file.
    pub runtime: &'static str,
    /// The container's first process, and when it started, in clock ticks since boot.
    pub pid: Option<i32>,
    pub start: Option<u64>,
    pub cgroups: Vec<PathBuf>,
    pub written: Option<SystemTime>,
}

/// All of a runtime's root, which has a folder for each of containerd's namespaces.
pub fn below(root: &Path) -> Vec<State> {
    let name = |path: &Path| Some(path.file_name()?.to_str()?.to_owned());
    let mut all = Vec::new();
    for namespace in folders(root) {
        for folder in folders(&namespace) {
            if let (Some(namespace), Some(id)) = (name(&namespace), name(&folder)) {
                all.push(read(namespace, id, folder));
            }
        }
    }
    all
}

fn read(namespace: String, id: String, folder: PathBuf) -> State {
    let json = |file: &str| {
        let text = fs::read(folder.join(file)).ok()?;
        serde_json::from_slice::<Value>(&text).ok()
    };
    let number = |value: Option<&Value>| {
        let value = value?;
        // runc writes the start as a number, older ones as a text.
        value.as_u64().or_else(|| value.as_str()?.parse().ok())
    };
    let (runtime, pid, start, cgroups) = if let Some(state) = json("state.json") {
        let paths = state.get("cgroup_paths").and_then(Value::as_object);
        let paths = paths.into_iter().flat_map(|paths| paths.values());
        let mut cgroups: Vec<PathBuf> =
            paths.filter_map(|path| path.as_str().map(PathBuf::from)).collect();
        // Controllers may share a hierarchy.
        cgroups.sort();
        cgroups.dedup();
        let pid = number(state.get("init_process_pid"));
        let runtime = if state.get("mooring").is_some() { BUILTIN } else { "runc" };
        (runtime, pid, number(state.get("init_process_start")), cgroups)
    } else if let Some(status) = json("status") {
        let cgroup = status.get("cgroup-path").and_then(Value::as_str);
        let cgroups = cgroup
            .filter(|path| !path.is_empty())
            .map(|path| Path::new("/sys/fs/cgroup").join(path.trim_start_matches('/')));
        let pid = number(status.get("pid"));
        ("crun", pid, number(status.get("process-start-time")), cgroups.into_iter().collect())
    } else {
        ("runc", None, None, Vec::new())
    };
    let written = fs::metadata(&folder).and_then(|about| about.modified()).ok();
    let pid = pid.and_then(|pid| i32::try_from(pid).ok());
    State { namespace, id, folder, runtime, pid, start, cgroups, written }
}

impl State {
    /// Its first process, while that lives and is still the same.
    pub fn running<'a>(&self, processes: &'a BTreeMap<i32, Process>) -> Option<&'a Process> {
        let process = processes.get(&self.pid?)?;
        self.start.is_none_or(|start| start == process.start).then_some(process)
    }

    /// The root that the runtime is to be called with.
    pub fn root(&self) -> &Path {
        self.folder.parent().unwrap_or(&self.folder)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_runtimes_states_are_read_and_a_number_given_out_again_is_no_container() {
        let root = tempfile::tempdir().unwrap();
        for (id, file, text) in [
            (
                "a",
                "state.json",
                r#"{"init_process_pid":7,"init_process_start":9,"cgroup_paths":{"pids":"/c/p"}}"#,
            ),
            ("b", "status", r#"{"pid":7,"process-start-time":8,"cgroup-path":"/x"}"#),
            ("c", "state.json", "torn"),
        ] {
            fs::create_dir_all(root.path().join("ns").join(id)).unwrap();
            fs::write(root.path().join("ns").join(id).join(file), text).unwrap();
        }
        let all = below(root.path());
        let processes = BTreeMap::from([(7, Process { pid: 7, start: 9, ..Process::default() })]);
        let running: Vec<bool> = all.iter().map(|one| one.running(&processes).is_some()).collect();
        assert_eq!(running, [true, false, false]);
        assert_eq!(all[0].cgroups, [PathBuf::from("/c/p")]);
        assert_eq!(
            (all[1].runtime, &all[1].cgroups),
            ("crun", &vec![PathBuf::from("/sys/fs/cgroup/x")])
        );
        assert_eq!(all[0].root(), root.path().join("ns"));
    }
}
