//! Checkpoint and restore, with criu.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use containerd_client::tonic::{Code, Status};
use k8s_cri::v1::{CheckpointContainerRequest, ImageSpec, ListImagesRequest, PullImageRequest};
use mooring_e2e::audit::all_processes;
use mooring_e2e::cri::{ContainerSpec, PodSpec};
use mooring_e2e::faults::{Failpoints, kill_shim, nobody_works_for, until};
use mooring_e2e::node::{Configuration, IMAGE, Settings, version};
use mooring_e2e::registry::Registry;
use mooring_e2e::services::{CheckpointOptions, Client, Streams, Task, container_spec};
use mooring_e2e::suite;
use mooring_e2e::suite::{Case, Handler};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(20);
/// containerd's numbers of states.
const CREATED: i32 = 1;
const RUNNING: i32 = 2;
const STOPPED: i32 = 3;
const PAUSED: i32 = 4;

/// Counts in its own memory, and says so in a file and on its output. It starts no process: criu cannot hold one that is
/// just starting another, and the peer gives up then.
const COUNT: &str = "/bin/busybox test -p /f || /bin/busybox mkfifo /f; exec 3<>/f; \
    i=0; while :; do i=$((i+1)); echo $i; echo $i >/n; read -t 0.05 x <&3; done";

/// A container that counts, with a root file system and streams of its own.
struct Counter {
    handler: Handler,
    task: Task,
    root: PathBuf,
    folder: PathBuf,
    streams: Streams,
    output: Output,
}

impl Counter {
    async fn new(case: &Case, script: &str) -> Result<Self> {
        Self::with(case, script, false).await
    }

    async fn with(case: &Case, script: &str, terminal: bool) -> Result<Self> {
        Self::changed(case, script, terminal, |_| ()).await
    }

    /// On the node's network, which is there when it is restored: criu makes an empty one where it was its own.
    async fn of_the_node(case: &Case, script: &str, mount: Option<Value>) -> Result<Self> {
        let change = |spec: &mut Value| {
            let namespaces = spec.pointer_mut("/linux/namespaces").and_then(Value::as_array_mut);
            if let Some(all) = namespaces {
                all.retain(|one| one["type"] != "network");
            }
            if let Some(all) = spec["mounts"].as_array_mut() {
                all.extend(mount.clone());
            }
        };
        Self::changed(case, script, false, change).await
    }

    async fn changed(
        case: &Case,
        script: &str,
        terminal: bool,
        change: impl Fn(&mut Value),
    ) -> Result<Self> {
        let id = case.unique("count");
        let folder = case.node.folder().join("checkpoints").join(&id);
        let root = folder.join("root");
        for part in ["bin", "dev", "proc", "etc"] {
            fs::create_dir_all(root.join(part))?;
        }
        fs::copy(case.node.deps().join("bin/busybox"), root.join("bin/busybox"))?;
        nix::unistd::mkfifo(&root.join("f"), nix::sys::stat::Mode::S_IRWXU)?;
        for applet in ["sh", "sleep", "cat"] {
            std::os::unix::fs::symlink("busybox", root.join("bin").join(applet))?;
        }
        let mut spec = container_spec(&id, &["/bin/sh", "-c", script], None);
        spec["process"]["terminal"] = terminal.into();
        if terminal {
            let pts = json!({
                "destination": "/dev/pts", "type": "devpts", "source": "devpts",
                "options": ["newinstance", "ptmxmode=0666", "mode=0620"],
            });
            spec["mounts"].as_array_mut().context("mounts")?.push(pts);
        }
        change(&mut spec);
        let task = Client::new(case).plain_container(&id, &spec).await?;
        let (streams, output) = streams(&folder, terminal)?;
        Ok(Self { handler: case.handler, task, root, folder, streams, output })
    }

    async fn start(&self) -> Result<()> {
        self.task.create_with(&self.root, &self.streams, None).await?;
        self.task.start().await?;
        self.goes_beyond(3).await
    }

    /// One that has ended with its checkpoint, whose task is gone.
    async fn checkpointed(case: &Case) -> Result<Self> {
        let counter = Self::new(case, COUNT).await?;
        counter.start().await?;
        counter.checkpoint(true).await?;
        counter.task.wait().await?;
        counter.task.delete().await?;
        Ok(counter)
    }

    fn count(&self) -> u32 {
        let text = fs::read_to_string(self.root.join("n")).unwrap_or_default();
        text.trim().parse().unwrap_or(0)
    }

    async fn goes_beyond(&self, count: u32) -> Result<()> {
        until(PATIENCE, "it does not count on", || self.count() > count).await
    }

    /// What it has said since it was last asked.
    fn said(&mut self) -> Vec<u32> {
        let mut text = Vec::new();
        // Nothing there yet is no error that matters.
        let _ = self.output.0.read_to_end(&mut text);
        let text = String::from_utf8_lossy(&text).into_owned();
        text.lines().filter_map(|line| line.trim().parse().ok()).collect()
    }

    fn images(&self) -> PathBuf {
        self.folder.join("images")
    }

    fn options(&self, exit: bool) -> CheckpointOptions {
        CheckpointOptions {
            exit,
            image_path: self.images().display().to_string(),
            work_path: self.folder.join("work").display().to_string(),
            ..CheckpointOptions::default()
        }
    }

    async fn checkpoint(&self, exit: bool) -> Result<()> {
        self.checkpoint_with(&self.options(exit)).await
    }

    /// A checkpoint, on the peer of a frozen container, as containerd's client library makes one.
    async fn checkpoint_with(&self, options: &CheckpointOptions) -> Result<()> {
        let peer = self.handler == Handler::Runc;
        if peer {
            self.task.pause().await?;
        }
        self.task.checkpoint(options).await?;
        if peer && !options.exit {
            self.task.resume().await?;
        }
        Ok(())
    }

    /// New streams, and a task that its start restores.
    async fn create_restored(&mut self) -> Result<u32, Status> {
        let (streams, output) = streams(&self.folder, self.streams.terminal)
            .map_err(|error| Status::internal(format!("{error:#}")))?;
        (self.streams, self.output) = (streams, output);
        self.task.create_with(&self.root, &self.streams, Some(&self.images())).await
    }

    async fn end(self) -> Result<()> {
        // Where it has ended already there is nothing to kill.
        let _ = self.task.kill(9).await;
        self.task.wait().await?;
        self.forget().await
    }

    async fn forget(self) -> Result<()> {
        // One whose creation failed has no task.
        let _ = self.task.delete().await;
        self.task.forget().await?;
        fs::remove_dir_all(&self.folder).context("remove the test's folder")
    }
}

/// The reading ends of output and errors. The peer waits for both.
struct Output(File, #[expect(dead_code, reason = "it is only held")] File);

/// New fifos, and the ends to read.
fn streams(folder: &Path, terminal: bool) -> Result<(Streams, Output)> {
    let fifo = |name: &str| -> Result<PathBuf> {
        let path = folder.join(name);
        let _ = fs::remove_file(&path);
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU)?;
        Ok(path)
    };
    let (stdin, stdout, stderr) = (fifo("stdin")?, fifo("stdout")?, fifo("stderr")?);
    let flags = nix::fcntl::OFlag::O_NONBLOCK.bits();
    let open = |path: &Path| File::options().read(true).custom_flags(flags).open(path);
    let output = Output(open(&stdout)?, open(&stderr)?);
    let shown = |path: PathBuf| path.display().to_string();
    // The peer wants one where there is no terminal, and none where there is.
    let stderr = if terminal { String::new() } else { shown(stderr) };
    Ok((Streams { stdin: shown(stdin), stdout: shown(stdout), stderr, terminal }, output))
}

fn is_crun() -> bool {
    std::env::var("MOORING_RUNC").is_ok_and(|program| program.ends_with("crun"))
}

/// Whether the handler's shim can restore: the peer calls every runtime with `--no-subreaper`, which crun does not know.
fn restores(case: &Case) -> bool {
    case.handler == Handler::Mooring || !is_crun()
}

fn there_is_no_criu() -> bool {
    !all_processes().iter().any(|one| one.command.contains("criu"))
}

async fn a_counter_that_ended_with_its_checkpoint_goes_on_when_it_is_restored(
    case: Case,
) -> Result<()> {
    if !restores(&case) {
        return Ok(());
    }
    let mut counter = Counter::new(&case, COUNT).await?;
    counter.start().await?;
    counter.checkpoint(true).await?;
    assert_eq!(counter.task.wait().await?, 137, "criu ends it");
    assert_eq!(counter.task.state().await?, STOPPED);
    let last = counter.count();
    assert!(counter.folder.join("work/dump.log").exists(), "the work path is the client's");
    counter.task.delete().await?;

    let pid = counter.create_restored().await?;
    assert_eq!((pid, counter.task.state().await?), (0, CREATED), "the start restores it");
    let pid = counter.task.start().await?;
    assert!(pid > 0);
    assert_eq!(counter.task.state().await?, RUNNING);
    assert!(counter.task.pids().await?.contains(&pid));
    counter.goes_beyond(last).await?;
    let said = counter.said();
    let first = *said.first().context("its output is connected")?;
    assert!(first == last || first == last + 1, "{first} after {last}");
    // It is a container like any other.
    counter.task.pause().await?;
    assert_eq!(counter.task.state().await?, PAUSED);
    counter.task.resume().await?;
    counter.task.kill(9).await?;
    assert_eq!(counter.task.wait().await?, 137);
    counter.end().await
}

async fn a_counter_goes_on_after_its_checkpoint_and_another_from_there(case: Case) -> Result<()> {
    if !restores(&case) {
        return Ok(());
    }
    let counter = Counter::new(&case, COUNT).await?;
    counter.start().await?;
    counter.checkpoint(false).await?;
    let then = counter.count();
    assert_eq!(counter.task.state().await?, RUNNING);
    counter.goes_beyond(then + 1).await?;
    // Beside it, in a container of another name.
    let mut other = Counter::new(&case, "exit 1").await?;
    fs::rename(counter.images(), other.images())?;
    assert_eq!(other.create_restored().await?, 0);
    other.task.start().await?;
    other.goes_beyond(then).await?;
    assert!(other.said().first().is_some_and(|first| *first > 1));
    // A restored one can be checkpointed as well, also while it is frozen.
    fs::remove_dir_all(other.images())?;
    other.task.pause().await?;
    let then = other.count();
    other.task.checkpoint(&other.options(false)).await?;
    assert_eq!(other.task.state().await?, PAUSED);
    other.task.resume().await?;
    other.goes_beyond(then).await?;
    other.task.pause().await?;
    other.task.checkpoint(&other.options(true)).await?;
    assert_eq!(other.task.wait().await?, 137);
    counter.end().await?;
    other.end().await
}

async fn a_terminal_is_connected_again(case: Case) -> Result<()> {
    if !restores(&case) {
        return Ok(());
    }
    let mut counter = Counter::with(&case, COUNT, true).await?;
    counter.start().await?;
    let options = CheckpointOptions { terminal: true, ..counter.options(true) };
    counter.checkpoint_with(&options).await?;
    counter.task.wait().await?;
    let last = counter.count();
    counter.task.delete().await?;
    counter.create_restored().await?;
    counter.task.start().await?;
    counter.goes_beyond(last + 2).await?;
    let mut said = Vec::new();
    for _ in 0..200 {
        said.extend(counter.said());
        if !said.is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(said.iter().all(|number| *number >= last) && !said.is_empty(), "{said:?}");
    counter.end().await
}

/// Refused without the option, whose name the caller sees in criu's words; with it the container goes on.
async fn kept_only_when_asked(
    mut counter: Counter,
    ask: impl Fn(&mut CheckpointOptions),
    still_there: impl Fn(&Counter, u32) -> bool,
) -> Result<()> {
    counter.start().await?;
    let refused = counter.checkpoint_with(&counter.options(true)).await;
    let error = refused.expect_err("it was not asked for");
    if counter.handler == Handler::Runc {
        counter.task.resume().await?;
    }
    let then = counter.count();
    counter.goes_beyond(then).await.with_context(|| format!("after {error:#}"))?;
    fs::remove_dir_all(counter.images())?;
    let mut options = counter.options(true);
    ask(&mut options);
    counter.checkpoint_with(&options).await?;
    counter.task.wait().await?;
    let last = counter.count();
    counter.task.delete().await?;
    if counter.handler == Handler::Runc {
        // The peer does not tell its runtime again what was asked for, and cannot restore it.
        return counter.forget().await;
    }
    counter.create_restored().await?;
    counter.task.start().await?;
    counter.goes_beyond(last).await?;
    until(PATIENCE, "what was open is not there", || still_there(&counter, last)).await?;
    counter.end().await
}

/// It tells itself the numbers through a connection.
async fn a_connection_is_kept_when_asked(case: Case) -> Result<()> {
    if !restores(&case) {
        return Ok(());
    }
    let script = "for one in q h; do /bin/busybox mkfifo /$one; done; exec 4<>/q 5<>/h; \
        /bin/busybox nc -l -p 7777 127.0.0.1 <&5 >/got & \
        (until /bin/busybox nc 127.0.0.1 7777 </q; do :; done) & \
        until /bin/busybox test -s /got; do echo 0 >&4; read -t 0.05 x <&5; done; exec 3<>/f; \
        i=0; while :; do i=$((i+1)); echo $i >&4; echo $i >/n; read -t 0.05 x <&3; done";
    let counter = Counter::of_the_node(&case, script, None).await?;
    let arrived = |counter: &Counter, last: u32| {
        let got = fs::read_to_string(counter.root.join("got")).unwrap_or_default();
        got.lines().filter_map(|line| line.parse::<u32>().ok()).any(|number| number > last + 1)
    };
    kept_only_when_asked(counter, |options| options.open_tcp = true, arrived).await
}

async fn a_lock_is_kept_when_asked(case: Case) -> Result<()> {
    if !restores(&case) {
        return Ok(());
    }
    // busybox knows no locks: the node's own program is lent to it.
    let lent = json!({
        "destination": "/usr", "type": "bind", "source": "/usr", "options": ["bind", "ro"],
    });
    let script = format!("exec 6>/lock; /usr/bin/flock -x 6 || exit 9; {COUNT}");
    let counter = Counter::of_the_node(&case, &script, Some(lent)).await?;
    for folder in ["lib", "lib64"] {
        std::os::unix::fs::symlink(format!("usr/{folder}"), counter.root.join(folder))?;
    }
    let held = |counter: &Counter, _| {
        let file = File::open(counter.root.join("lock"));
        file.is_ok_and(|file| matches!(file.try_lock(), Err(std::fs::TryLockError::WouldBlock)))
    };
    kept_only_when_asked(counter, |options| options.file_locks = true, held).await
}

/// To the log of the node, as a daemon has one.
async fn a_socket_of_the_node_is_kept_when_asked(case: Case) -> Result<()> {
    if !restores(&case) {
        return Ok(());
    }
    let log = case.node.folder().join(case.unique("log"));
    let listener = std::os::unix::net::UnixDatagram::bind(&log)?;
    listener.set_nonblocking(true)?;
    let bind = json!({
        "destination": log, "type": "bind", "source": log, "options": ["bind"],
    });
    // Its first words open the socket. criu connects it again by the name that the node gave it.
    let script = format!(
        "/bin/busybox ln -s {} /dev/log; /bin/busybox mkdir -p /cron; \
         /bin/busybox crond -f -c /cron & {COUNT}",
        log.display()
    );
    let counter = Counter::of_the_node(&case, &script, Some(bind)).await?;
    let heard = || listener.recv(&mut [0; 256]).is_ok();
    let connected = |_: &Counter, _| {
        let mut of_it = all_processes().into_iter().filter(|one| one.command.contains("crond -f"));
        of_it.any(|one| {
            let open = fs::read_dir(format!("/proc/{}/fd", one.pid)).into_iter().flatten();
            let mut targets = open.flatten().filter_map(|fd| fs::read_link(fd.path()).ok());
            targets.any(|target| target.to_string_lossy().starts_with("socket"))
        })
    };
    let ask = |options: &mut CheckpointOptions| {
        assert!(heard(), "crond has said nothing");
        options.external_unix_sockets = true;
    };
    kept_only_when_asked(counter, ask, connected).await?;
    fs::remove_file(&log).context("remove the socket")
}

async fn a_checkpoint_that_is_none_is_no_container(case: Case) -> Result<()> {
    if !restores(&case) {
        return Ok(());
    }
    let mut counter = Counter::new(&case, COUNT).await?;
    fs::create_dir(counter.images())?;
    let created = counter.create_restored().await;
    let error = match created {
        Ok(_) => counter.task.start().await.expect_err("there is nothing to restore"),
        Err(error) => error,
    };
    if case.handler == Handler::Mooring {
        assert_eq!(error.code(), Code::InvalidArgument, "{error}");
        assert!(error.message().contains("inventory.img"), "{error}");
    }
    assert_eq!(counter.count(), 0);
    counter.forget().await
}

async fn a_file_is_no_folder_for_a_checkpoint(case: Case) -> Result<()> {
    let counter = Counter::new(&case, COUNT).await?;
    counter.start().await?;
    fs::write(counter.images(), "")?;
    let error = counter.task.checkpoint(&counter.options(true)).await;
    let error = error.expect_err("a file holds no images");
    if case.handler == Handler::Mooring {
        assert_eq!(error.code(), Code::InvalidArgument, "{error}");
    }
    let then = counter.count();
    counter.goes_beyond(then).await?;
    fs::remove_file(counter.images())?;
    counter.end().await
}

async fn folders_that_lead_elsewhere_or_into_the_container_are_refused(case: Case) -> Result<()> {
    let counter = Counter::new(&case, COUNT).await?;
    counter.start().await?;
    let bundle =
        format!("state/io.containerd.runtime.v2.task/default/{}/rootfs/i", counter.task.id);
    let inside = case.node.folder().join(bundle).display().to_string();
    for bad in ["images", "/tmp/../etc/images", &inside] {
        let mut options = counter.options(true);
        options.image_path = bad.to_owned();
        let error = counter.task.checkpoint(&options).await.expect_err(bad);
        assert_eq!(error.code(), Code::InvalidArgument, "{error}");
        let mut options = counter.options(true);
        options.work_path = bad.to_owned();
        let error = counter.task.checkpoint(&options).await.expect_err(bad);
        assert_eq!(error.code(), Code::InvalidArgument, "{error}");
    }
    let options = CheckpointOptions { cgroups_mode: "hard".into(), ..counter.options(true) };
    let error = counter.task.checkpoint(&options).await.expect_err("no mode of criu");
    assert_eq!(error.code(), Code::InvalidArgument, "{error}");
    let then = counter.count();
    counter.goes_beyond(then).await?;
    assert!(!counter.images().join("inventory.img").exists());
    counter.end().await
}

async fn where_criu_is_missing_the_answer_says_so(case: Case) -> Result<()> {
    let mut counter = Counter::new(&case, COUNT).await?;
    {
        let without = |text: &str| format!("CriuPath = '/nonexistent/criu'\n{text}");
        let _configured = Configuration::change(without)?;
        counter.start().await?;
    }
    let error = counter.task.checkpoint(&counter.options(true)).await.expect_err("no criu");
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    assert!(error.message().contains("no program \"/nonexistent/criu\""), "{error}");
    assert!(!counter.images().exists());
    let then = counter.count();
    counter.goes_beyond(then).await?;
    counter.task.kill(9).await?;
    counter.task.wait().await?;
    counter.task.delete().await?;
    fs::create_dir(counter.images())?;
    fs::write(counter.images().join("inventory.img"), "")?;
    let without = |text: &str| format!("CriuPath = '/nonexistent/criu'\n{text}");
    let configured = Configuration::change(without)?;
    let error = counter.create_restored().await.expect_err("no criu");
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    drop(configured);
    counter.forget().await
}

async fn a_failed_restore_leaves_a_task_that_can_be_restored_or_deleted(case: Case) -> Result<()> {
    if !restores(&case) {
        return Ok(());
    }
    let mut counter = Counter::checkpointed(&case).await?;
    let last = counter.count();
    let (part, away) = (counter.images().join("core-1.img"), counter.folder.join("away"));
    fs::rename(&part, &away)?;
    counter.create_restored().await?;
    let error = counter.task.start().await.expect_err("an image is missing");
    assert!(error.message().contains("restore"), "{error}");
    if case.handler == Handler::Mooring {
        assert!(error.message().contains("(empty-image)"), "criu's own words: {error}");
        assert!(there_is_no_criu());
        assert_eq!(counter.task.state().await?, CREATED);
        assert_eq!(counter.task.kill(9).await.expect_err("no process").code(), Code::NotFound);
        fs::rename(&away, &part)?;
        counter.task.start().await?;
        counter.goes_beyond(last).await?;
        return counter.end().await;
    }
    counter.forget().await
}

async fn one_that_was_never_restored_is_deleted(case: Case) -> Result<()> {
    if !restores(&case) {
        return Ok(());
    }
    let mut counter = Counter::checkpointed(&case).await?;
    counter.create_restored().await?;
    assert_eq!(counter.task.delete().await?, 0);
    counter.forget().await
}

/// Waits until containerd has cleaned up after a killed shim. Between its end and the beginning of `delete` nobody works
/// for it either.
async fn cleaned_up(task: &Task) -> Result<()> {
    let end = Instant::now() + mooring_e2e::patience(PATIENCE);
    while !task.state().await.is_err_and(|error| error.code() == Code::NotFound) {
        ensure!(Instant::now() < end, "containerd still knows task {}", task.id);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    nobody_works_for(&task.id, PATIENCE).await
}

/// Ends the shim of a task while `moment` holds, and waits until containerd has noticed.
async fn killed_while(moment: impl Fn() -> bool, counter: Counter) -> Result<()> {
    let last = counter.count();
    let starting = counter.task.start();
    // A moment that was missed is over when it counts: then it is killed late, which must do no harm either.
    let come = || moment() || counter.count() > last;
    let kill = async {
        until(PATIENCE, "the moment does not come", come).await?;
        kill_shim(&counter.task.id)
    };
    let (_, killed) = tokio::join!(starting, kill);
    killed?;
    cleaned_up(&counter.task).await?;
    until(PATIENCE, "criu goes on", there_is_no_criu).await?;
    let count = counter.count();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(counter.count(), count, "somebody counts");
    counter.forget().await
}

async fn a_shim_killed_while_criu_works_leaves_nothing(case: Case) -> Result<()> {
    let mounted = |what: &str| {
        fs::read_to_string("/proc/self/mountinfo").is_ok_and(|mounts| mounts.contains(what))
    };
    for moment in 0..3 {
        let mut counter = Counter::checkpointed(&case).await?;
        counter.create_restored().await?;
        let come = || match moment {
            0 => !there_is_no_criu(),
            // The node's cgroups, for criu; then the root that the runtime gives it.
            1 => mounted("/.criu.cgyard."),
            _ => mounted("/criu-root") && !there_is_no_criu(),
        };
        killed_while(come, counter).await?;
    }
    Ok(())
}

async fn a_shim_killed_after_the_restore_leaves_nothing(case: Case) -> Result<()> {
    let mut counter = Counter::checkpointed(&case).await?;
    counter.create_restored().await?;
    let points = Failpoints::of(&case.node);
    points.arm("task-restored", "kill")?;
    counter.task.start().await.expect_err("its shim is gone");
    points.hit().await?;
    cleaned_up(&counter.task).await?;
    let count = counter.count();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(counter.count(), count, "somebody counts");
    counter.forget().await
}

async fn a_pods_container_is_checkpointed_over_cri(case: Case) -> Result<()> {
    let pod = PodSpec::new(&case).run().await?;
    let container = pod.start(&ContainerSpec::script("main", COUNT)).await?;
    container.logged("stdout", |text| text.lines().count() > 2).await?;
    let archive = case.node.folder().join(case.unique("checkpoint")).with_extension("tar");
    let request = CheckpointContainerRequest {
        container_id: container.id.clone(),
        location: archive.display().to_string(),
        timeout: 0,
    };
    case.node.cri().checkpoint_container(request).await?;
    let held = fs::read(&archive)?;
    let has = |name: &[u8]| held.windows(name.len()).any(|part| part == name);
    assert!(has(b"checkpoint/inventory.img") && has(b"config.dump"));
    let before = container.logged("stdout", |_| true).await?.lines().count();
    container.logged("stdout", |text| text.lines().count() > before).await?;
    fs::remove_file(&archive)?;
    pod.end().await
}

/// In another pod, from the archive that a kubelet's endpoint leaves. CRI pulls the image again that it was made of.
async fn a_pods_container_goes_on_in_another_pod(case: Case) -> Result<()> {
    // Later ones restore over CRI only where their configuration says so (2.3), or never.
    if !restores(&case) || version()? >= (2, 3) {
        return Ok(());
    }
    let node = &case.node;
    let _registry = Registry::start(&node.deps().join("images/busybox.tar")).await?;
    let image = ImageSpec { image: Registry::IMAGE.to_owned(), ..Default::default() };
    let pull = PullImageRequest { image: Some(image.clone()), ..Default::default() };
    node.images().pull_image(pull).await.context("PullImage")?;
    let pod = PodSpec::new(&case).run().await?;
    let mut spec = ContainerSpec::script("main", COUNT);
    spec.config.image = Some(image.clone());
    let container = pod.start(&spec).await?;
    container.logged("stdout", |text| text.lines().count() > 2).await?;
    let archive = node.folder().join(case.unique("checkpoint")).with_extension("tar");
    let request = CheckpointContainerRequest {
        container_id: container.id.clone(),
        location: archive.display().to_string(),
        timeout: 0,
    };
    node.cri().checkpoint_container(request).await?;
    pod.end().await?;

    let pod = PodSpec::new(&case).run().await?;
    let mut spec = ContainerSpec::new("main", &[]);
    spec.config.image =
        Some(ImageSpec { image: archive.display().to_string(), ..Default::default() });
    let container = pod.start(&spec).await?;
    let said = container.logged("stdout", |text| text.lines().count() > 2).await?;
    let first = said.lines().next().and_then(|line| line.parse::<u32>().ok());
    assert!(first.is_some_and(|first| first > 2), "it began anew: {said}");
    // It is this pod's: its address, its stop.
    let addresses = container.shell("ip -4 addr show eth0").await?;
    assert!(addresses.contains(&pod.address().await?), "{addresses}");
    container.stop(1).await?;
    pod.end().await?;
    fs::remove_file(&archive)?;
    // CRI would take the name away that all tests know the same image by.
    let all = node.images().list_images(ListImagesRequest::default()).await?.into_inner().images;
    let names = all.into_iter().flat_map(|image| [image.repo_tags, image.repo_digests].concat());
    for name in names.filter(|name| name.starts_with("localhost:5000/")) {
        node.ctr(&["--namespace", "k8s.io", "images", "rm", &name]).await?;
    }
    Ok(())
}

async fn ctr_checkpoints_and_restores(case: Case) -> Result<()> {
    if !restores(&case) {
        return Ok(());
    }
    let (id, other) = (case.unique("plain"), case.unique("plain"));
    let reference = format!("localhost/{id}:checkpoint");
    let node = &case.node;
    let run = ["run", "--detach", "--null-io", "--runtime", case.handler.runtime(), IMAGE, &id];
    node.ctr(&[&run[..], &["/bin/sh", "-c", COUNT]].concat()).await?;
    let count = async |of: &str| -> Result<u32> {
        let text = node.ctr(&["tasks", "exec", "--exec-id", "n", of, "/bin/cat", "/n"]).await?;
        Ok(text.trim().parse().unwrap_or(0))
    };
    while count(&id).await? < 3 {}
    let flags = ["containers", "checkpoint", "--rw", "--image", "--task"];
    node.ctr(&[&flags[..], &[&id, &reference]].concat()).await?;
    let then = count(&id).await?;
    node.ctr(&["tasks", "rm", "-f", &id]).await?;
    match node.ctr(&["containers", "restore", "--rw", "--live", &other, &reference]).await {
        // crun 1.28 does not tell criu of every mount of ctr's specification.
        Err(error) if is_crun() => {
            assert!(format!("{error:#}").contains("No mapping"), "{error:#}");
        }
        restored => {
            restored?;
            let mut now = 0;
            for _ in 0..100 {
                now = count(&other).await?;
                if now > then {
                    break;
                }
            }
            assert!(now > then, "{now} after {then}");
        }
    }
    node.ctr(&["tasks", "rm", "-f", &other]).await?;
    for container in [&id, &other] {
        node.ctr(&["containers", "rm", container]).await?;
    }
    node.ctr(&["images", "rm", &reference]).await.map(drop)
}

fn main() {
    let mut suite = suite::Suite::begin(Settings::default());
    suite.both(
        "a_counter_that_ended_with_its_checkpoint_goes_on_when_it_is_restored",
        a_counter_that_ended_with_its_checkpoint_goes_on_when_it_is_restored,
    );
    suite.both(
        "a_counter_goes_on_after_its_checkpoint_and_another_from_there",
        a_counter_goes_on_after_its_checkpoint_and_another_from_there,
    );
    suite.both("a_terminal_is_connected_again", a_terminal_is_connected_again);
    suite.both("a_connection_is_kept_when_asked", a_connection_is_kept_when_asked);
    suite.both("a_lock_is_kept_when_asked", a_lock_is_kept_when_asked);
    suite.both("a_socket_of_the_node_is_kept_when_asked", a_socket_of_the_node_is_kept_when_asked);
    suite.both(
        "a_checkpoint_that_is_none_is_no_container",
        a_checkpoint_that_is_none_is_no_container,
    );
    suite.both("a_file_is_no_folder_for_a_checkpoint", a_file_is_no_folder_for_a_checkpoint);
    suite.both(
        "a_failed_restore_leaves_a_task_that_can_be_restored_or_deleted",
        a_failed_restore_leaves_a_task_that_can_be_restored_or_deleted,
    );
    suite.both("one_that_was_never_restored_is_deleted", one_that_was_never_restored_is_deleted);
    suite.both(
        "a_pods_container_is_checkpointed_over_cri",
        a_pods_container_is_checkpointed_over_cri,
    );
    suite.both("a_pods_container_goes_on_in_another_pod", a_pods_container_goes_on_in_another_pod);
    suite.both("ctr_checkpoints_and_restores", ctr_checkpoints_and_restores);
    let mooring = Handler::Mooring;
    suite.on(
        mooring,
        "folders_that_lead_elsewhere_or_into_the_container_are_refused",
        folders_that_lead_elsewhere_or_into_the_container_are_refused,
    );
    suite.on(
        mooring,
        "where_criu_is_missing_the_answer_says_so",
        where_criu_is_missing_the_answer_says_so,
    );
    suite.on(
        mooring,
        "a_shim_killed_while_criu_works_leaves_nothing",
        a_shim_killed_while_criu_works_leaves_nothing,
    );
    suite.on(
        mooring,
        "a_shim_killed_after_the_restore_leaves_nothing",
        a_shim_killed_after_the_restore_leaves_nothing,
    );
    suite.run()
}
