//! The OCI runtime in the shim's own program: pods on it, and what a container may try on the node by way of it. Those that
//! need no pod call it by hand, on bundles of their own. See docs/builtin.md.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use anyhow::{Result, bail};
use k8s_cri::v1 as cri;
use mooring_e2e::bundle::{Bundle, succeed, text};
use mooring_e2e::cri::{ContainerSpec, PodSpec};
use mooring_e2e::node::{Settings, shim};
use mooring_e2e::suite;
use mooring_e2e::suite::Case;
use serde_json::{Value, json};

suite!(
    Settings { builtin: true, ..Settings::default() };
    both:;
    mooring:
    a_pod_runs_on_it,
    a_terminal_and_a_failing_command,
    a_container_has_nothing_of_the_nodes_open,
    the_nodes_program_cannot_be_written_by_way_of_a_container,
    a_proc_that_is_a_link_is_refused,
    a_masked_path_that_is_a_link_is_refused,
    a_mount_by_a_link_stays_in_the_root,
    nothing_is_laid_over_proc,
    a_working_directory_by_a_descriptor_is_refused,
    an_exec_cannot_be_looked_into,
    hooks_run_in_their_order,
    a_container_may_be_limited_to_its_one_process,
    an_exec_is_in_the_containers_group_or_in_one_of_its_own,
    what_it_does_not_do_is_refused_by_name_and_leaves_nothing,
);

/// As CRI's clients see it: rights, files, limits, signals, exits.
async fn a_pod_runs_on_it(case: Case) -> Result<()> {
    let pod = PodSpec::new(&case).run().await?;
    let mut spec = ContainerSpec::idle("idle");
    spec.security().seccomp = Some(cri::SecurityProfile::default());
    let container = pod.start(&spec).await?;
    let status = container.shell("cat /proc/self/status").await?;
    for line in ["CapEff:\t00000000a80425fb", "Seccomp:\t2", "CapAmb:\t0000000000000000"] {
        if !status.contains(line) {
            bail!("no {line:?} in:\n{status}");
        }
    }
    // What the node lists is one of its own runtime, and not runc's.
    let state = format!("/run/containerd/runc/k8s.io/{}/state.json", container.id);
    let state: Value = serde_json::from_slice(&fs::read(state)?)?;
    if state.pointer("/mooring/form").is_none() {
        bail!("the container is another runtime's: {state}");
    }
    let ran = container.exec(&["sh", "-c", "echo out; echo err >&2; exit 7"]).await?;
    if (ran.code, ran.stdout.as_str(), ran.stderr.as_str()) != (7, "out\n", "err\n") {
        bail!("{} {} {}", ran.code, ran.stdout, ran.stderr);
    }
    container.stop(1).await?;
    pod.end().await
}

async fn a_terminal_and_a_failing_command(case: Case) -> Result<()> {
    let pod = PodSpec::new(&case).run().await?;
    let mut spec = ContainerSpec::script("tty", "tty; exec sleep 1000");
    spec.config.tty = true;
    let container = pod.start(&spec).await?;
    container
        .logged("stdout", |text| text.contains("/dev/pts/0") || text.contains("/dev/console"))
        .await?;
    let missing = pod.create(&ContainerSpec::new("missing", &["no-such-program"])).await?;
    let error = missing.start().await.expect_err("it has no program");
    let error = format!("{error:#}");
    if !error.contains("executable file not found in $PATH") {
        bail!("{error}");
    }
    pod.end().await
}

/// CVE-2024-21626: descriptors that the runtime, or who called it, has open.
async fn a_container_has_nothing_of_the_nodes_open(case: Case) -> Result<()> {
    let bundle = Bundle::new(&case, |spec, _| {
        spec["process"]["args"] =
            json!(["sh", "-c", "ls /proc/self/fd > /tmp/init; exec sleep 1000"]);
    })?;
    // A descriptor that is left open, as a shell's.
    let leak = |call: &str| -> Result<Output> {
        let runtime = shim()?;
        let line = format!(
            "exec 9</; exec {} oci --root {}/state {call}",
            runtime.display(),
            bundle.folder.display()
        );
        let mut command = Command::new("sh");
        command.args(["-c", &line]).stdin(Stdio::null()).current_dir(&bundle.folder);
        let printed = bundle.folder.join("printed");
        let file = fs::File::create(&printed)?;
        let status = command.stdout(file.try_clone()?).stderr(file).status()?;
        Ok(Output { status, stdout: fs::read(&printed)?, stderr: Vec::new() })
    };
    let id = &bundle.id;
    succeed(&leak(&format!("create --pid-file pid {id}"))?)?;
    // While it waits: its streams, and what it needs to go on. The node's root is told by its device and number, for the
    // container's has that name too.
    let node = fs::metadata("/")?;
    for one in fs::read_dir(format!("/proc/{}/fd", bundle.pid()?))?.flatten() {
        let (to, about) = (fs::read_link(one.path())?, fs::metadata(one.path())?);
        let is_root = (about.dev(), about.ino()) == (node.dev(), node.ino());
        if is_root || to.starts_with("/sys") {
            bail!("{} of the node is open in the container", to.display());
        }
    }
    succeed(&bundle.call(&["start", id])?)?;
    let exec = leak(&format!("exec {id} sh -c 'ls /proc/self/fd'"))?;
    succeed(&exec)?;
    // Standard streams, and the folder that ls itself reads.
    if text(&exec).split_whitespace().count() > 4 {
        bail!("open in an exec: {}", text(&exec));
    }
    bundle.end()
}

/// CVE-2019-5736: the runtime's program, reached through /proc while it is a process of the container.
async fn the_nodes_program_cannot_be_written_by_way_of_a_container(case: Case) -> Result<()> {
    let before = fs::read(shim()?)?;
    let bundle = Bundle::new(&case, |spec, _| {
        // Everything that the attack can wish for.
        let all = json!(["CAP_SYS_PTRACE", "CAP_SYS_ADMIN", "CAP_DAC_OVERRIDE", "CAP_KILL"]);
        spec["process"]["capabilities"] =
            json!({"bounding": all, "effective": all, "permitted": all});
    })?;
    succeed(&bundle.create()?)?;
    // While it waits to be started, seen from the node by who may do everything.
    let exe = format!("/proc/{}/exe", bundle.pid()?);
    let error = fs::OpenOptions::new().write(true).open(&exe).expect_err("it was opened");
    if ![Some(libc_erofs()), Some(libc_eperm()), Some(26)].contains(&error.raw_os_error()) {
        bail!("{error}");
    }
    let sealed = fs::read_link(&exe)?;
    if sealed == shim()? {
        bail!("its program is the node's file: {}", sealed.display());
    }
    succeed(&bundle.call(&["start", &bundle.id])?)?;
    // Its own program instead of one of the image: that one ends, and is not the node's file either.
    let ran = bundle.call(&["exec", &bundle.id, "/proc/self/exe"])?;
    if ran.status.success() {
        bail!("the runtime ran in the container: {}", text(&ran));
    }
    if fs::read(shim()?)? != before {
        bail!("the program was changed");
    }
    bundle.end()
}

fn libc_erofs() -> i32 {
    nix::errno::Errno::EROFS as i32
}

fn libc_eperm() -> i32 {
    nix::errno::Errno::EPERM as i32
}

/// CVE-2019-19921, CVE-2019-16884: an image or a volume whose /proc is a link.
async fn a_proc_that_is_a_link_is_refused(case: Case) -> Result<()> {
    let bundle = Bundle::new(&case, |_, root| {
        fs::remove_dir(root.join("proc")).unwrap();
        fs::create_dir(root.join("evil")).unwrap();
        symlink("/evil", root.join("proc")).unwrap();
    })?;
    bundle.refused("symbolic link")
}

/// CVE-2025-31133: a masked path, or what hides it, that leads elsewhere.
async fn a_masked_path_that_is_a_link_is_refused(case: Case) -> Result<()> {
    let secret = case.node.folder().join("secret");
    fs::write(&secret, "untouched")?;
    let bundle = Bundle::new(&case, |spec, root| {
        fs::create_dir(root.join("sys/firmware-real")).unwrap();
        symlink("firmware-real", root.join("sys/firmware")).unwrap();
        // Were the container's /dev/null what hides files, this would be mounted instead, to be written to.
        fs::create_dir_all(root.join("dev")).unwrap();
        symlink("/proc/sys/kernel/core_pattern", root.join("dev/null")).unwrap();
        spec["linux"]["maskedPaths"] = json!(["/sys/firmware"]);
    })?;
    bundle.refused("symbolic link")?;
    fs::remove_file(secret)?;
    let bundle = Bundle::new(&case, |_, _| {})?;
    bundle.run()?;
    let said = bundle.call(&[
        "exec",
        &bundle.id,
        "sh",
        "-c",
        "cat /proc/keys; echo x > /proc/sys/kernel/domainname",
    ])?;
    // Nothing of the keys, and the one complaint.
    if text(&said).lines().count() != 1 || !text(&said).contains("Read-only file system") {
        bail!("masked and read-only paths: {}", text(&said));
    }
    bundle.end()
}

/// CVE-2021-30465: a destination that leads out of the root.
async fn a_mount_by_a_link_stays_in_the_root(case: Case) -> Result<()> {
    let outside = case.node.folder().join("outside");
    fs::create_dir_all(&outside)?;
    let target = outside.clone();
    let bundle = Bundle::new(&case, move |spec, root| {
        symlink(&target, root.join("link")).unwrap();
        symlink("../../../../../../../..", root.join("up")).unwrap();
        let mounts = spec["mounts"].as_array_mut().unwrap();
        for destination in ["/link/made", "/up/tmp/up"] {
            mounts.push(json!({"destination": destination, "type": "tmpfs", "source": "tmpfs"}));
        }
    })?;
    bundle.run()?;
    if fs::read_dir(&outside)?.next().is_some() {
        bail!("a folder was made outside of the root");
    }
    let said = bundle.call(&["exec", &bundle.id, "cat", "/proc/self/mounts"])?;
    let within = format!("{}/made", outside.display());
    if !text(&said).contains(&within) || !text(&said).contains(" /tmp/up ") {
        bail!("{}", text(&said));
    }
    bundle.end()?;
    fs::remove_dir(outside)?;
    Ok(())
}

/// CVE-2025-52881 and CVE-2019-16884: what this runtime itself writes to would be another's.
async fn nothing_is_laid_over_proc(case: Case) -> Result<()> {
    for (destination, kind) in
        [("/proc/self/attr", "tmpfs"), ("/proc", "tmpfs"), ("/proc/sys", "tmpfs")]
    {
        let bundle = Bundle::new(&case, |spec, _| {
            let mounts = spec["mounts"].as_array_mut().unwrap();
            mounts.push(json!({"destination": destination, "type": kind, "source": kind}));
        })?;
        bundle.refused("/proc")?;
    }
    Ok(())
}

/// CVE-2024-21626: a working directory that is a descriptor of the runtime's.
async fn a_working_directory_by_a_descriptor_is_refused(case: Case) -> Result<()> {
    for number in 3..9 {
        let bundle = Bundle::new(&case, |spec, _| {
            spec["process"]["cwd"] = json!(format!("/proc/self/fd/{number}"));
        })?;
        bundle.refused("working directory")?;
    }
    let bundle = Bundle::new(&case, |_, _| {})?;
    bundle.run()?;
    let ran = bundle.call(&["exec", "--cwd", "/proc/self/fd/7", &bundle.id, "sh", "-c", "ls"])?;
    if ran.status.success() || !text(&ran).contains("working directory") {
        bail!("{}", text(&ran));
    }
    bundle.end()
}

/// CVE-2016-9962: a container that looks into each process that enters it, with the right to.
async fn an_exec_cannot_be_looked_into(case: Case) -> Result<()> {
    // Reads the root of every process that appears: of one that still has the node's, it would be another.
    let script = "while :; do for p in /proc/[0-9]*; do for f in $p/fd/*; do \
                  t=$(readlink $f 2>/dev/null) && case $t in *state*|*exec.fifo*|socket:*) echo $p $f $t >> /tmp/seen;; esac; \
                  done; done; done";
    let bundle = Bundle::new(&case, |spec, _| {
        spec["process"]["args"] = json!(["sh", "-c", script]);
    })?;
    bundle.run()?;
    for _ in 0..20 {
        succeed(&bundle.call(&["exec", &bundle.id, "sh", "-c", "exit 0"])?)?;
    }
    let seen = fs::read_to_string(bundle.folder.join("rootfs/tmp/seen")).unwrap_or_default();
    if !seen.is_empty() {
        bail!("descriptors of an exec were seen in the container:\n{seen}");
    }
    bundle.end()
}

async fn hooks_run_in_their_order(case: Case) -> Result<()> {
    let told = case.node.folder().join("told");
    let at = told.clone();
    let bundle = Bundle::new(&case, move |spec, _| {
        let hook = |name: &str| {
            let script = format!("cat > /dev/null; echo {name} >> {}", at.display());
            json!([{"path": "/bin/sh", "args": ["sh", "-c", script]}])
        };
        spec["hooks"] = json!({
            "createRuntime": hook("createRuntime"), "createContainer": hook("createContainer"),
            "prestart": hook("prestart"), "poststart": hook("poststart"), "poststop": hook("poststop"),
        });
    })?;
    bundle.run()?;
    bundle.end()?;
    let order = fs::read_to_string(&told)?;
    if order.split_whitespace().collect::<Vec<_>>()
        != ["prestart", "createRuntime", "createContainer", "poststart", "poststop"]
    {
        bail!("{order}");
    }
    fs::remove_file(told)?;
    Ok(())
}

/// More processes than that take part in making it.
async fn a_container_may_be_limited_to_its_one_process(case: Case) -> Result<()> {
    let bundle = Bundle::new(&case, |spec, _| {
        spec["linux"]["resources"] = json!({"pids": {"limit": 1}});
    })?;
    bundle.run()?;
    let all = fs::read_to_string(format!("/proc/{}/cgroup", bundle.pid()?))?;
    let own = |line: &str| line.ends_with(&format!("/e2e/{}", bundle.id));
    if !all.lines().all(own) {
        bail!("it is not in its group everywhere: {all}");
    }
    let limits = ["/sys/fs/cgroup/pids/e2e", "/sys/fs/cgroup/e2e"]
        .map(|place| fs::read_to_string(Path::new(place).join(&bundle.id).join("pids.max")));
    if !limits.iter().flatten().any(|limit| limit.trim() == "1") {
        bail!("the limit is {limits:?}");
    }
    bundle.end()
}

/// A container with systemd in it, say: cgroup v2 lets no process into a group that has passed controllers on.
async fn an_exec_is_in_the_containers_group_or_in_one_of_its_own(case: Case) -> Result<()> {
    let bundle = Bundle::new(&case, |_, _| {})?;
    bundle.run()?;
    let entered = |wanted: &str| -> Result<()> {
        let said = bundle.call(&["exec", &bundle.id, "cat", "/proc/self/cgroup"])?;
        succeed(&said)?;
        let wanted = format!("/e2e/{}{wanted}", bundle.id);
        if !text(&said).lines().all(|line| line.ends_with(&wanted)) {
            bail!("{wanted} was expected: {}", text(&said));
        }
        Ok(())
    };
    entered("")?;
    let own = Path::new("/sys/fs/cgroup/e2e").join(&bundle.id);
    if own.join("cgroup.controllers").exists() {
        let below = own.join("below");
        fs::create_dir(&below)?;
        fs::write(below.join("cgroup.procs"), bundle.pid()?.to_string())?;
        fs::write(own.join("cgroup.subtree_control"), "+pids")?;
        entered("/below")?;
    }
    bundle.end()
}

async fn what_it_does_not_do_is_refused_by_name_and_leaves_nothing(case: Case) -> Result<()> {
    for (pointer, part, name) in [
        ("/linux/intelRdt", json!({"closID": "x"}), "linux.intelRdt"),
        ("/linux/seccomp", json!({"defaultAction": "SCMP_ACT_NOTIFY"}), "SCMP_ACT_NOTIFY"),
        ("/linux/fromTheFuture", json!(1), "fromTheFuture"),
        ("/process/args", json!(["no-such-program"]), "executable file not found in $PATH"),
    ] {
        let bundle = Bundle::new(&case, |spec, _| {
            let (above, field) = pointer.rsplit_once('/').unwrap();
            let fields = spec.pointer_mut(above).and_then(Value::as_object_mut).unwrap();
            fields.insert(field.to_owned(), part);
        })?;
        bundle.refused(name)?;
    }
    Ok(())
}
