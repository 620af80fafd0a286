use mooring::{
    id::Id,
    resources::Resource,
    sandbox::survey::survey,
    teardown::journal::{About, Store},
};

use super::*;

fn process(pid: i32, parent: i32, line: &str) -> (i32, Process) {
    let arguments = line.split(' ').map(str::to_owned).collect();
    (pid, Process { pid, parent, start: 1, arguments, ..Process::default() })
}

fn claimed(mut world: World) -> World {
    world.claims = world.claimed();
    world
}

const SHIM: &str = "containerd-shim-runc-v2 -namespace ns -id pod -address /c";

#[test]
fn a_shim_outranks_what_was_left_and_that_what_containerd_has_written_down() {
    let root = tempfile::tempdir().unwrap();
    let about = About {
        namespace: Id::new("ns").unwrap(),
        id: Id::new("pod").unwrap(),
        bundle: "/bundle".into(),
        grpc_address: "/c".into(),
        created_at: SystemTime::UNIX_EPOCH,
        run_dir: "/run".into(),
        shim: None,
        boot: None,
    };
    drop(Store::<Resource>::create(&root.path().join("ns/pod"), about).unwrap());
    let record = |id: &str| ("ns".to_owned(), id.to_owned());
    let records = Records {
        sandboxes: BTreeSet::from([record("pod"), record("other")]),
        tasks: BTreeSet::from([record("task")]),
        ..Records::default()
    };
    let mut world = World::empty();
    world.found = survey(root.path()).unwrap();
    world.containerd = Asked::Records(Box::new(records));
    let world = claimed(world);
    let owners = ["pod", "other", "task", "none"].map(|id| world.owner("ns", id));
    assert_eq!(owners, [Owner::Left, Owner::Recorded, Owner::Lives, Owner::Unknown]);
    assert_eq!(world.owner("elsewhere", "pod"), Owner::Unknown);
    assert_eq!(world.owner_of("pod"), Owner::Left);
    let mut world = world;
    world.processes.extend([process(7, 1, SHIM)]);
    assert_eq!(claimed(world).owner("ns", "pod"), Owner::Lives);
}

#[test]
fn a_container_is_an_orphan_when_its_parent_is_no_shim() {
    let state = |id: &str, pid| State {
        namespace: "ns".into(),
        id: id.into(),
        folder: "/run/runc/ns/x".into(),
        runtime: "runc",
        pid: Some(pid),
        start: Some(1),
        cgroups: Vec::new(),
        written: None,
    };
    let mut world = World::empty();
    let all = [process(7, 1, SHIM), process(8, 7, "sleep"), process(9, 1, "sleep")];
    world.processes.extend(all);
    let world = claimed(world);
    let orphans = [("app", 8), ("app", 9), ("pod", 9), ("app", 10)]
        .map(|(id, pid)| world.is_orphan(&state(id, pid)));
    assert_eq!(
        orphans,
        [false, true, false, false],
        "a shim's child, an orphan, named by a shim, gone"
    );
}
