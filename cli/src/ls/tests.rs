use mooring::{
    id::Id,
    mounts::files::FilesRecord,
    resources::PLAN,
    sandbox::{daemon_record::DaemonRecord, survey::survey},
    teardown::journal::{About, Store},
};

use super::*;

fn row(id: &str, state: State) -> Row {
    Row {
        namespace: "k8s.io".into(),
        id: id.into(),
        state,
        age_seconds: Some(7300),
        handler: Some("mooring".into()),
        keeper: Some("thread".into()),
        network: Some("client"),
        containers: vec![
            Container { id: "a".into(), pid: Some(7), runs: true },
            Container { id: "b".into(), pid: None, runs: false },
        ],
        shim: Some(Shim { pid: 4711, alive: true, pss_bytes: Some(430_080) }),
        waits_for: None,
        doubts: Vec::new(),
    }
}

#[test]
fn the_table_is_as_it_was() {
    let long = "0f3b".repeat(16);
    let stopping = Row {
        waits_for: Some(Waits { step: "network".into(), seconds: Some(12) }),
        ..row(&long, State::Stopping)
    };
    let unsure = Row {
        age_seconds: None,
        handler: None,
        keeper: None,
        network: None,
        containers: Vec::new(),
        shim: Some(Shim { pid: 12, alive: false, pss_bytes: None }),
        doubts: vec!["journal x has version 99".into()],
        ..row("web", State::Unsure)
    };
    let rows = [row("a-name-that-is-no-number", State::Ready), stopping, unsure];
    let lines = [
        "NAMESPACE  ID                        STATE     AGE  HANDLER  KEEPER  NETWORK  CONTAINERS  SHIM     PSS      WAITS FOR",
        "k8s.io     a-name-that-is-no-number  ready     2h   mooring  thread  client   1/2         4711     420 KiB  -",
        "k8s.io     0f3b0f3b0f3b0             stopping  2h   mooring  thread  client   1/2         4711     420 KiB  network (12s)",
        "k8s.io     web                       unsure    -    -        -       -        0/0         12 gone  -        journal x has version 99",
    ];
    assert_eq!(table(&rows, false), lines.join("\n"));
    assert!(table(&rows, true).contains(&long));
    // A list that is empty has its header, so that a reader knows that it was made.
    assert!(table(&[], false).starts_with("NAMESPACE"));
}

#[test]
fn the_handlers_name_is_that_of_the_shims_program() {
    for (program, name) in [
        ("/usr/local/bin/containerd-shim-mooring-v1\n", Some("mooring")),
        ("containerd-shim-mooring-crun-v1", Some("mooring-crun")),
        ("/usr/bin/containerd-shim-runc-v2", None),
        ("", None),
    ] {
        assert_eq!(handler(program).as_deref(), name, "{program}");
    }
}

/// From nothing but a state folder.
#[test]
fn a_state_folder_tells_what_a_sandbox_is_about() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("ns/pod");
    let about = About {
        namespace: Id::new("ns").unwrap(),
        id: Id::new("pod").unwrap(),
        bundle: root.path().join("bundle"),
        grpc_address: "/c.sock".into(),
        created_at: SystemTime::now(),
        run_dir: root.path().join("run"),
        shim: None,
        boot: None,
    };
    let look = || {
        let found = survey(root.path()).unwrap();
        Row::of(&found[0], SystemTime::now())
    };
    let store = Store::create(&folder, about).unwrap();
    assert_eq!(look().state, State::Finishing, "the lock is held");
    // A record is saved under the lock that the journal holds.
    let shim = DaemonRecord::of_this_process(Path::new("/s")).unwrap();
    fs::write(folder.join("shim.json"), serde_json::to_vec(&shim).unwrap()).unwrap();
    assert_eq!(look().state, State::Created);
    let pss = look().shim.unwrap().pss_bytes.unwrap();
    assert!(pss > 0);
    let files = || Resource::Files(FilesRecord { dir: root.path().join("run") });
    let entry = store.intend(files()).unwrap();
    store.held(entry, files()).unwrap();
    let keeper = || Resource::Keeper(mooring::keeper::KeeperRecord::Thread);
    let entry = store.intend(keeper()).unwrap();
    store.held(entry, keeper()).unwrap();
    let row = look();
    assert_eq!((row.state, row.keeper.as_deref()), (State::Ready, Some("thread")));
    assert_eq!(row.network, Some("client"));
    let network = PLAN.iter().find(|line| line.step.name() == "network").unwrap();
    store.advance(None, &[], Some(network.step)).unwrap();
    let row = look();
    assert_eq!((row.state, row.waits_for.unwrap().step.as_str()), (State::Stopping, "network"));
    drop(store);
    fs::remove_file(folder.join("shim.json")).unwrap();
    assert_eq!(look().state, State::Left);
    let json = serde_json::to_value(look()).unwrap();
    assert_eq!(json["state"], "left");
    assert_eq!(json["waits_for"]["step"], "network");
}
