//! What lies in state folders beside the journal, and in folders that Mooring shares: every reader on the same bytes.

use std::path::Path;

use mooring::{
    container::load_all,
    id::Id,
    network::{Collection, Settings, cached_attachments, gc},
    runtime::{RuntimeSettings, quick},
    sandbox::daemon_record::{self, DaemonRecord},
};

use crate::{plugins::Plugins, scratch, wait::wait};

pub fn records(input: &[u8]) {
    let folder = scratch::folder();
    of_a_container(&folder.join("ns/pod/tasks"), input);
    of_the_shim(&folder.join("ns/pod"), input);
    of_the_runtime(&folder.join("runc"), input);
    scratch::write(&folder.join("bundle/mooring-state-root"), input);
    if let Some(root) = daemon_record::state_root(&folder.join("bundle")) {
        assert!(root.is_absolute());
    }
    of_an_attachment(&scratch::folder(), input);
}

/// `tasks/ID.json`.
fn of_a_container(dir: &Path, input: &[u8]) {
    scratch::write(&dir.join("pod.json"), input);
    let [read] = &load_all(dir).expect("the folder can be listed")[..] else {
        panic!("there is one file");
    };
    match read {
        Ok(record) => {
            assert_eq!(record.id.as_str(), "pod", "it names another than its file");
            record.save(dir).expect("what was read can be written");
            let again = load_all(dir).expect("the folder can be listed");
            let again: Vec<_> = again.into_iter().filter_map(Result::ok).collect();
            assert_eq!(again, std::slice::from_ref(record));
        }
        Err(error) => assert!(error.to_string().contains("pod.json"), "{error}"),
    }
}

/// `shim.json`.
fn of_the_shim(state_dir: &Path, input: &[u8]) {
    scratch::write(&state_dir.join("shim.json"), input);
    let Some(record) = DaemonRecord::load(state_dir).expect("the file can be read") else { return };
    // Whatever number it has, whoever has it now is not asked for more than what /proc shows.
    let _ = record.is_alive();
    record.save(state_dir).expect("what was read can be written");
    assert_eq!(DaemonRecord::load(state_dir).expect("the file can be read"), Some(record));
}

/// runc's own state.
fn of_the_runtime(root: &Path, input: &[u8]) {
    scratch::write(&root.join("pod/state.json"), input);
    let settings = RuntimeSettings { root: root.to_owned(), ..RuntimeSettings::default() };
    let pod = Id::new("pod").expect("an id");
    if let Some(state) = quick::State::find(&settings, &pod).expect("the file can be read") {
        // Every folder is one of a control group that is not its hierarchy's root.
        let is_group = |folder: &Path| folder.join("cgroup.procs").exists();
        let groups = state.cgroup();
        assert!(
            groups.folders().into_iter().all(|f| is_group(f) && f.parent().is_some_and(is_group))
        );
    }
}

/// A cached result of CNI, whoever wrote it. A collection removes it or leaves it, and touches nothing else.
fn of_an_attachment(folder: &Path, input: &[u8]) {
    let settings = Settings {
        conf_dir: folder.join("net.d"),
        cache_dir: folder.join("cni"),
        ..Settings::default()
    };
    let file = settings.cache_dir.join("results/node-pod-eth0");
    scratch::write(&file, input);
    let others = ["cni/results.of", "cni/networks/node/192.0.2.7", "other"];
    for other in others {
        scratch::write(&folder.join(other), b"another's");
    }
    let (attachments, problems) = cached_attachments(&settings.cache_dir);
    assert_eq!(attachments.len() + problems.len(), 1);
    assert!(problems.iter().all(|error| error.to_string().contains("node-pod-eth0")));
    wait(gc(&Plugins::succeeding(), &settings, Collection::of(&|_| false), None));
    let left = scratch::files(folder);
    assert!(others.iter().all(|other| left.contains(&folder.join(other))), "{left:?}");
}
