//! What the programs that a shim starts inherit, and what hostile files in an image make of the node's. See
//! docs/security.md.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use mooring_e2e::cri::{ContainerSpec, PodSpec};
use mooring_e2e::node::{DATA_IMAGE, IMAGE, Settings};
use mooring_e2e::plugins::Plugins;
use mooring_e2e::services::{Client, container_spec, sandbox_spec};
use mooring_e2e::suite;
use mooring_e2e::suite::Case;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::json;

/// What a process has open, by number.
fn descriptors(pid: i32) -> Result<BTreeMap<i32, PathBuf>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        let entry = entry?;
        let number = entry.file_name().to_string_lossy().parse()?;
        found.insert(number, fs::read_link(entry.path())?);
    }
    Ok(found)
}

/// Words that only the environment of containerd and its shims has.
const OF_THE_SHIM: [&str; 9] = [
    "TTRPC_ADDRESS",
    "GRPC_ADDRESS",
    "MAX_SHIM_VERSION",
    "NAMESPACE=k8s.io",
    "MOORING",
    "GOMAXPROCS",
    "NOTIFY_SOCKET",
    "LISTEN_",
    "GLIBC_TUNABLES",
];

fn assert_nothing_of_the_shim(environment: &str) {
    for word in OF_THE_SHIM {
        let inherited = environment
            .split(['\0', '\n'])
            .any(|line| line.starts_with(word) && !line.starts_with("CONTAINER_"));
        assert!(!inherited, "{word} in {environment:?}");
    }
}

async fn containers_and_execs_inherit_nothing_but_their_streams(case: Case) -> Result<()> {
    let pod = PodSpec::new(&case).run().await?;
    let mut terminal = ContainerSpec::idle("terminal");
    terminal.config.tty = true;
    let mut stdin = ContainerSpec::idle("stdin");
    stdin.config.stdin = true;
    for spec in [ContainerSpec::idle("plain"), stdin, terminal] {
        let container = pod.start(&spec).await?;
        let init = container.pid().await?;
        // The runtime is in its place until the moment when it runs the image's program.
        let until = Instant::now() + Duration::from_secs(10);
        while !fs::read_to_string(format!("/proc/{init}/cmdline"))?.starts_with("/bin/sleep") {
            assert!(Instant::now() < until, "the container's program is not run");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let open = descriptors(init)?;
        assert_eq!(open.keys().copied().collect::<Vec<_>>(), [0, 1, 2], "{open:?}");
        for path in open.values() {
            let path = path.display().to_string();
            assert!(!path.starts_with("socket:") && !path.starts_with("anon_inode:"), "{open:?}");
        }
        let environment = fs::read_to_string(format!("/proc/{init}/environ"))?;
        assert_nothing_of_the_shim(&environment);
        // `ls` has its own folder open as the fourth.
        let seen =
            container.shell("ls /proc/self/fd; cat /proc/self/environ | tr '\\0' '\\n'").await?;
        let (open, environment) = seen.split_at(8.min(seen.len()));
        assert_eq!(open.split_whitespace().collect::<Vec<_>>(), ["0", "1", "2", "3"], "{seen}");
        assert_nothing_of_the_shim(environment);
    }
    pod.end().await
}

/// A script that notes what it has open and what it is told, and then does `rest`. A shell may have the script itself
/// open.
fn noting(at: &Path, notes: &Path, rest: &str) -> Result<()> {
    let notes = notes.display();
    // In a subshell: redirecting, a shell keeps its own descriptors at further numbers.
    let script = format!(
        "#!/bin/sh\n[ -e '{notes}.fds' ] || (ls -l /proc/$$/fd >'{notes}.fds'; \
         tr '\\0' '\\n' </proc/$$/environ >'{notes}.env')\n{rest}\n"
    );
    // Never written while it may be run.
    let _ = fs::remove_file(at);
    fs::write(at, script)?;
    fs::set_permissions(at, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

/// What a noting script had open, by number, without its own text which its shell reads; and its environment.
async fn noted(script: &Path, notes: &Path) -> Result<(Vec<String>, String)> {
    let (open, environment) = (notes.with_extension("fds"), notes.with_extension("env"));
    let until = Instant::now() + Duration::from_secs(10);
    while !fs::metadata(&environment).is_ok_and(|found| found.len() > 0) {
        if Instant::now() > until {
            bail!("{} was not run", script.display());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let script = script.display().to_string();
    let open = fs::read_to_string(open)?;
    let open = open.lines().filter(|line| line.contains(" -> ") && !line.ends_with(&script));
    let words = open.filter_map(|line| line.split(" -> ").next()?.split_whitespace().last());
    Ok((words.map(str::to_owned).collect(), fs::read_to_string(environment)?))
}

async fn a_log_program_inherits_its_three_pipes_and_two_words(case: Case) -> Result<()> {
    let folder = case.node.folder().join(case.unique("logger"));
    fs::create_dir_all(&folder)?;
    let (script, notes) = (folder.join("logger"), folder.join("notes"));
    noting(&script, &notes, "exec 5>&-; exec cat <&3 >/dev/null")?;
    let id = case.unique("logged");
    let uri = format!("binary://{}", script.display());
    let runtime = case.handler.runtime();
    let arguments = [
        "run",
        "--detach",
        "--runtime",
        runtime,
        "--log-uri",
        &uri,
        IMAGE,
        &id,
        "/bin/sleep",
        "1000",
    ];
    case.node.ctr(&arguments).await?;
    let (open, environment) = noted(&script, &notes).await?;
    if case.handler.is_mooring() {
        // The peer passes on what containerd was started with.
        assert_eq!(open, ["0", "1", "2", "3", "4", "5"]);
    }
    assert_nothing_of_the_shim(&environment);
    assert!(environment.contains(&format!("CONTAINER_ID={id}")), "{environment}");
    if case.handler.is_mooring() {
        let ours: Vec<&str> = environment.lines().filter(|line| !line.is_empty()).collect();
        assert_eq!(ours.len(), 2, "{ours:?}");
    }
    case.node.ctr(&["tasks", "rm", "-f", &id]).await?;
    case.node.ctr(&["containers", "rm", &id]).await?;
    Ok(())
}

async fn a_plugin_inherits_its_streams_and_what_cni_says(case: Case) -> Result<()> {
    let plugins = Plugins::install(&case.node, &case.unique("noting"), "")?;
    let real = case.node.deps().join("cni/bin/tuning");
    let (script, notes) =
        (plugins.program("tuning"), case.node.folder().join(case.unique("notes")));
    noting(&script, &notes, &format!("exec '{}'", real.display()))?;
    let client = Client::new(&case);
    let spec = sandbox_spec("x", false);
    client.record(&spec).await?;
    client.create(&spec, None, "").await?;
    client.start().await?;
    let (open, environment) = noted(&script, &notes).await?;
    assert_eq!(open, ["0", "1", "2"]);
    for line in environment.lines().filter(|line| !line.is_empty()) {
        let name = line.split('=').next().unwrap_or_default();
        assert!(name == "PATH" || name.starts_with("CNI_"), "{line}");
    }
    client.stop().await?;
    client.shutdown().await?;
    client.forget().await?;
    Ok(())
}

/// Symlinks where the pod's files and devices are mounted lead to the image's own files, whatever they say.
async fn an_images_symlinks_lead_nowhere_on_the_node(case: Case) -> Result<()> {
    let victim = case.node.folder().join(case.unique("victim"));
    for folder in ["etc", "dev/shm", "proc"] {
        fs::create_dir_all(victim.join(folder))?;
    }
    fs::write(victim.join("etc/hosts"), "of the node")?;
    let up = "../../../../../../../../../../../..";
    for (link, target) in [
        ("etc", victim.join("etc").display().to_string()),
        ("etc", format!("{up}{}/etc", victim.display())),
        ("dev", victim.join("dev").display().to_string()),
        ("dev", format!("{up}{}/dev", victim.display())),
        ("etc", "/proc/1/root/etc".to_owned()),
    ] {
        let root = case.node.folder().join(case.unique("hostile"));
        for folder in ["bin", "proc", "sys", "tmp"] {
            fs::create_dir_all(root.join(folder))?;
        }
        fs::copy(case.node.deps().join("bin/busybox"), root.join("bin/busybox"))?;
        symlink("busybox", root.join("bin/sh"))?;
        symlink(&target, root.join(link))?;
        let client = Client::new(&case);
        let spec = sandbox_spec("x", true);
        client.record(&spec).await?;
        client.create(&spec, None, "").await?;
        let pid = client.start().await?.pid;
        let id = case.unique("container");
        let script = "echo attack > /etc/hosts; echo attack > /etc/new; echo attack > /dev/shm/new; \
                      /bin/busybox mkdir /etc/folder; exit 0";
        let mut spec = container_spec(&id, &["/bin/sh", "-c", script], Some(pid));
        spec["linux"]["cgroupsPath"] = json!(format!("/default/{id}"));
        let task = client.container(&id, &spec).await?;
        // Whether the runtime takes such a root is its own matter.
        if task.create_on(&root).await.is_ok() {
            task.start().await?;
            task.wait().await?;
            task.delete().await?;
        }
        task.forget().await?;
        client.stop().await?;
        client.shutdown().await?;
        client.forget().await?;
        assert_eq!(
            fs::read_to_string(victim.join("etc/hosts"))?,
            "of the node",
            "{link} -> {target}"
        );
        assert_eq!(fs::read_dir(victim.join("etc"))?.count(), 1, "{link} -> {target}");
        assert_eq!(fs::read_dir(victim.join("dev/shm"))?.count(), 0, "{link} -> {target}");
    }
    Ok(())
}

/// Ids are names of files: none leaves its folder. containerd refuses them before the shim could.
async fn ids_that_climb_are_refused(case: Case) -> Result<()> {
    let client = Client::new(&case);
    for id in ["../climbing", "a/b", "..", ".hidden", "a//b", "a\u{0}b", "a b", ""] {
        let stranger = client.with_id(id);
        let spec = sandbox_spec("x", true);
        if stranger.record(&spec).await.is_ok() {
            let created = stranger.create(&spec, None, "").await;
            assert!(created.is_err(), "{id:?}");
            stranger.forget().await?;
        }
    }
    Ok(())
}

/// A volume of the node's that is busy, or has further mounts in it, when its pod goes.
async fn nothing_of_a_volume_is_deleted_with_its_pod(case: Case) -> Result<()> {
    use k8s_cri::v1 as cri;
    let volume = case.node.folder().join(case.unique("volume"));
    for folder in ["sub/deep", "mounted", "outside"] {
        fs::create_dir_all(volume.join(folder))?;
    }
    let none = None::<&str>;
    mount(Some(&volume), &volume, none, MsFlags::MS_BIND, none)?;
    mount(none, &volume, none, MsFlags::MS_SHARED, none)?;
    mount(Some("e2e"), &volume.join("mounted"), Some("tmpfs"), MsFlags::empty(), none)?;
    for file in ["file", "sub/deep/file", "mounted/file", "outside/file"] {
        fs::write(volume.join(file), "kept")?;
    }
    let result = async {
        let pod = PodSpec::new(&case).run().await?;
        let path = volume.display().to_string();
        let mut spec = ContainerSpec::idle("main")
            .mount(&path, "/volume", false)
            .image_volume(DATA_IMAGE, "/image");
        spec.config.mounts[0].propagation = cri::MountPropagation::PropagationBidirectional as i32;
        spec.security().privileged = true;
        let mut pod_spec = pod.spec.clone();
        pod_spec.security().privileged = true;
        pod.end().await?;
        let pod = pod_spec.run().await?;
        let container = pod.start(&spec).await?;
        // A mount that the container makes is seen on the node, and keeps the volume busy there.
        container
            .shell("mount -t tmpfs inner /volume/sub && echo inner > /volume/sub/inner")
            .await?;
        assert!(volume.join("sub/inner").exists(), "the mount did not come to the node");
        // Somebody on the node works in the container's root and in the volume.
        let root = format!("/proc/{}/root", container.pid().await?);
        let busy = [
            fs::File::open(format!("{root}/bin/busybox"))?,
            fs::File::open(volume.join("mounted/file"))?,
            fs::File::open(&root)?,
        ];
        pod.end().await?;
        drop(busy);
        for file in ["file", "mounted/file", "outside/file"] {
            assert_eq!(fs::read_to_string(volume.join(file))?, "kept", "{file}");
        }
        umount2(&volume.join("sub"), MntFlags::MNT_DETACH)
            .context("the container's mount is gone")?;
        assert_eq!(fs::read_to_string(volume.join("sub/deep/file"))?, "kept");
        // The image is whole as well.
        let pod = PodSpec::new(&case).run().await?;
        let container =
            pod.start(&ContainerSpec::idle("after").image_volume(DATA_IMAGE, "/image")).await?;
        assert_eq!(container.shell("cat /image/data/sub/deep.txt").await?, "deep");
        pod.end().await
    }
    .await;
    for at in [volume.join("sub"), volume.join("mounted"), volume.clone()] {
        let _ = umount2(&at, MntFlags::MNT_DETACH);
    }
    result
}

suite!(Settings::default();
    too: builtin;
    both: containers_and_execs_inherit_nothing_but_their_streams,
        a_log_program_inherits_its_three_pipes_and_two_words,
        nothing_of_a_volume_is_deleted_with_its_pod;
    mooring: a_plugin_inherits_its_streams_and_what_cni_says,
        an_images_symlinks_lead_nowhere_on_the_node,
        ids_that_climb_are_refused);
