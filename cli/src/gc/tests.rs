use std::fs;

use mooring::{
    mounts::files::FilesRecord,
    network::netns::NetnsRecord,
    resources::Resource,
    sandbox::daemon_record::DaemonRecord,
    teardown::journal::{About, Store},
};

use super::*;
use crate::{
    args::{Output, RootArgs},
    exit::CouldNot,
};

struct Node(tempfile::TempDir);

impl Node {
    fn path(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    /// A sandbox whose shim is gone, with files and the place of a network namespace.
    fn sandbox(&self, id: &str) {
        let about = About {
            namespace: Id::new("ns").unwrap(),
            id: Id::new(id).unwrap(),
            bundle: self.path("bundle"),
            grpc_address: self.path("c.sock"),
            created_at: SystemTime::now(),
            run_dir: self.path("run").join(id),
            shim: None,
            boot: None,
        };
        let store = Store::create(&self.path("state/ns").join(id), about).unwrap();
        let dir = self.path("run").join(id);
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("hosts"), "").unwrap();
        let netns = self.path("netns").join(id);
        fs::create_dir_all(self.path("netns")).unwrap();
        fs::write(&netns, "").unwrap();
        let netns: NetnsRecord =
            serde_json::from_value(serde_json::json!({ "path": netns })).unwrap();
        for resource in [Resource::Files(FilesRecord { dir }), Resource::Netns(netns)] {
            let entry = store.intend(resource.clone()).unwrap();
            store.held(entry, resource).unwrap();
        }
    }

    fn gc(&self, args: &GcArgs) -> (Exit, String) {
        let roots = RootArgs { state_root: vec![self.path("state")] };
        let mut out = Vec::new();
        let GcArgs { yes, older_than, boot, output, .. } = *args;
        let args = GcArgs { roots, yes, older_than, boot, output, ..GcArgs::default() };
        let exit = run(&args, &mut out).unwrap();
        (exit, String::from_utf8(out).unwrap().replace(&self.0.path().display().to_string(), ""))
    }
}

#[test]
fn what_would_be_freed_is_shown_then_freed_and_nothing_else_is() {
    let node = Node(tempfile::tempdir().unwrap());
    assert_eq!(node.gc(&GcArgs::default()), (Exit::Clean, "nothing is left\n".into()));
    node.sandbox("alive");
    DaemonRecord::of_this_process(Path::new("/s"))
        .unwrap()
        .save(&node.path("state/ns/alive"))
        .unwrap();
    node.sandbox("left");
    node.sandbox("newer");
    let newer = node.path("state/ns/newer/journal.json");
    fs::write(&newer, r#"{"version":99}"#).unwrap();

    let (exit, shown) = node.gc(&GcArgs::default());
    let wanted = "\
ns/left: its shim is gone, left as it is for 0s
  netns          unmount and remove /netns/left
  files          remove the files in /run/left
  records        remove /state/ns/left
ns/newer: not touched: journal /state/ns/newer/journal.json has version 99, this Mooring reads up to 1
1 to be freed, 1 not touched, 1 in use
\"mooring gc --yes\" frees it
";
    let (before, rest) = shown.split_once(" for ").unwrap();
    let (_, after) = rest.split_once('\n').unwrap();
    let shown = format!("{before} for 0s\n{after}");
    assert_eq!((exit, shown.as_str()), (Exit::Findings, wanted));
    assert!(node.path("run/left/hosts").exists(), "it was only asked");

    let hour = Some(Duration::from_hours(1));
    let (_, shown) = node.gc(&GcArgs { yes: true, older_than: hour, ..GcArgs::default() });
    assert!(shown.ends_with("1 not touched, 1 not old enough, 1 in use\n"), "{shown}");
    assert!(node.path("run/left/hosts").exists(), "it is younger than an hour");

    let (exit, shown) = node.gc(&GcArgs { yes: true, ..GcArgs::default() });
    assert!(shown.starts_with("ns/left: freed\n"), "{shown}");
    assert!(shown.ends_with("1 freed, 1 not touched, 1 in use\n"), "{shown}");
    assert_eq!(exit, Exit::Findings, "one was not touched");
    for gone in ["run/left", "netns/left", "state/ns/left"] {
        assert!(!node.path(gone).exists(), "{gone}");
    }
    for kept in ["run/alive/hosts", "netns/alive", "run/newer/hosts", "netns/newer"] {
        assert!(node.path(kept).exists(), "{kept}");
    }
    assert_eq!(fs::read_to_string(newer).unwrap(), r#"{"version":99}"#);
}

#[test]
fn at_boot_it_is_quiet_where_nothing_is_left() {
    let node = Node(tempfile::tempdir().unwrap());
    let boot = || GcArgs { boot: true, ..GcArgs::default() };
    node.sandbox("left");
    assert_eq!(node.gc(&boot()), (Exit::Clean, String::new()));
    assert!(!node.path("state/ns").exists());
    node.sandbox("newer");
    fs::write(node.path("state/ns/newer/journal.json"), r#"{"version":99}"#).unwrap();
    let (exit, told) = node.gc(&boot());
    assert!(exit == Exit::Findings && told.contains("has version 99"), "{told}");
}

#[test]
fn a_state_root_that_cannot_be_read_is_no_clean_node() {
    let node = Node(tempfile::tempdir().unwrap());
    fs::write(node.path("state"), "").unwrap();
    let roots = RootArgs { state_root: vec![node.path("state")] };
    let error = run(&GcArgs { roots, ..GcArgs::default() }, &mut Vec::new()).unwrap_err();
    assert!(error.is::<CouldNot>(), "{error:#}");
}

#[test]
fn json_tells_the_same_as_the_lines() {
    let node = Node(tempfile::tempdir().unwrap());
    node.sandbox("left");
    node.sandbox("newer");
    fs::write(node.path("state/ns/newer/journal.json"), r#"{"version":99}"#).unwrap();
    let json = |yes| {
        let (exit, text) = node.gc(&GcArgs { yes, output: Output::Json, ..GcArgs::default() });
        assert_eq!(exit, Exit::Findings);
        serde_json::from_str::<serde_json::Value>(&text).unwrap()["sandboxes"].clone()
    };
    let shown = json(false);
    assert_eq!(shown[0]["outcome"], "to_be_freed");
    let wanted = serde_json::json!({ "step": "netns", "what": "unmount and remove /netns/left" });
    assert_eq!(shown[0]["holdings"][0], wanted);
    assert_eq!(shown[1]["outcome"], "not_touched");
    assert!(shown[1]["why"].as_str().unwrap().contains("has version 99"), "{shown}");
    assert_eq!(json(true)[0]["outcome"], "freed");
    assert!(!node.path("state/ns/left").exists());
}
