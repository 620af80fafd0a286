//! The binary as containerd calls it: `start`, the daemon behind it, and its end.
#![expect(clippy::unwrap_used, reason = "a test's preparations may fail it")]

use std::{
    fs,
    io::Write,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    rc::Rc,
    time::{Duration, Instant},
};

use containerd_shim_protos::{
    TaskClient,
    api::{
        ConnectRequest, ConnectResponse, CreateTaskRequest, KillRequest, PidsRequest,
        ShutdownRequest,
    },
    bootstrap_api::{BootstrapParams, BootstrapResult, Extension},
    protobuf::{Message, MessageField, well_known_types::any::Any},
    sandbox_api::{
        CreateSandboxRequest, PlatformRequest, ShutdownSandboxRequest, StartSandboxRequest,
    },
    sandbox_sync::SandboxClient,
    ttrpc::{self, Client, Code, context::with_duration},
};
use nix::{
    fcntl::{Flock, FlockArg},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use rustix::thread::{CoreSchedulingScope, core_scheduling_cookie};

const SHIM: &str = env!("CARGO_BIN_EXE_containerd-shim-mooring-v1");

/// A bundle, and a folder for sockets, both gone once neither this nor a daemon needs them.
struct Bundle {
    folder: Rc<tempfile::TempDir>,
    id: String,
}

impl Bundle {
    fn new(id: &str) -> Self {
        let folder = Rc::new(tempfile::tempdir().unwrap());
        nix::unistd::mkfifo(&folder.path().join("log"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let root = folder.path().display();
        let config = format!("StateRoot = '{root}/state'\nRunRoot = '{root}/run'\nSurprise = 1\n");
        fs::write(folder.path().join("config.toml"), config).unwrap();
        Self { folder, id: id.into() }
    }

    fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    fn sockets(&self) -> PathBuf {
        self.folder.path().join("s")
    }

    fn params(&self, options: Option<Any>) -> Vec<u8> {
        let extension = |any| Extension { value: MessageField::some(any), ..Extension::default() };
        let params = BootstrapParams {
            instance_id: self.id.clone(),
            namespace: "entry-test".into(),
            containerd_ttrpc_address: self.folder.path().join("ttrpc").display().to_string(),
            extensions: options.map(extension).into_iter().collect(),
            socket_dir: Some(self.sockets().display().to_string()),
            ..BootstrapParams::default()
        };
        params.write_to_bytes().unwrap()
    }

    fn start_with(&self, input: &[u8]) -> Output {
        Self::begin(&mut self.command(), input).wait_with_output().unwrap()
    }

    fn start_in(&self, variable: &str, value: &str) -> Output {
        let mut command = self.command();
        let child = Self::begin(command.env(variable, value), &self.params(None));
        child.wait_with_output().unwrap()
    }

    fn command(&self) -> Command {
        let mut command = Command::new(SHIM);
        command
            .args(["-namespace", "entry-test", "-publish-binary", "containerd"])
            .arg("-address")
            .arg(self.folder.path().join("grpc"))
            .args(["-id", &self.id, "start"])
            .current_dir(self.folder.path())
            .env("MOORING_CONFIG", self.folder.path().join("config.toml"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn begin(command: &mut Command, input: &[u8]) -> Child {
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(input).unwrap();
        child
    }

    fn start(&self) -> Daemon {
        let output = self.start_with(&self.params(None));
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
        let answer = BootstrapResult::parse_from_bytes(&output.stdout).unwrap();
        assert_eq!((answer.version, answer.protocol.as_str()), (3, "ttrpc"));
        let address = answer.address.as_str();
        let client = Client::connect(address).unwrap();
        let task = TaskClient::new(client.clone());
        let request = ConnectRequest { id: self.id.clone(), ..ConnectRequest::default() };
        let connected = task.connect(soon(), &request).unwrap();
        let pid = Pid::from_raw(i32::try_from(connected.shim_pid).unwrap());
        let socket = address.strip_prefix("unix://").unwrap().into();
        Daemon { pid, socket, client, task, _folder: Rc::clone(&self.folder) }
    }
}

struct Daemon {
    pid: Pid,
    socket: PathBuf,
    client: Client,
    task: TaskClient,
    /// A shim whose bundle is gone ends: the folder stays as long as somebody talks with the daemon.
    _folder: Rc<tempfile::TempDir>,
}

impl Daemon {
    /// Whether the process is there and no zombie.
    fn lives(&self) -> bool {
        fs::read_to_string(format!("/proc/{}/stat", self.pid)).is_ok_and(|s| !s.contains(") Z "))
    }

    fn ends_within(&self, limit: Duration) -> bool {
        let end = Instant::now() + limit;
        while self.lives() {
            if Instant::now() > end {
                return false;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        true
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.lives() {
            let _ = kill(self.pid, Signal::SIGKILL);
        }
    }
}

fn soon() -> ttrpc::context::Context {
    with_duration(Duration::from_secs(30))
}

fn code<T: std::fmt::Debug>(result: ttrpc::Result<T>) -> Code {
    match result {
        Err(ttrpc::Error::RpcStatus(status)) => status.code(),
        other => panic!("{other:?}"),
    }
}

fn is_empty(folder: &Path) -> bool {
    fs::read_dir(folder).map_or(true, |mut entries| entries.next().is_none())
}

#[test]
fn a_second_start_finds_the_first_ones_daemon() {
    let bundle = Bundle::new("twice");
    let first = bundle.start();
    let second = bundle.start();
    assert_eq!(first.pid, second.pid);
    assert_eq!(first.socket, second.socket);
}

/// containerd before 2.3 writes options, or nothing, and reads JSON.
#[test]
fn who_asks_without_bootstrap_parameters_is_answered_in_json() {
    let bundle = Bundle::new("json");
    let output = bundle.start_with(b"");
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&answer["version"], &answer["protocol"]), (&3.into(), &"ttrpc".into()));
    let client = Client::connect(answer["address"].as_str().unwrap()).unwrap();
    let request = ShutdownRequest { id: "json".into(), ..ShutdownRequest::default() };
    TaskClient::new(client).shutdown(soon(), &request).unwrap();
}

#[test]
fn the_daemon_is_on_its_own() {
    let daemon = Bundle::new("alone").start();
    let proc = PathBuf::from(format!("/proc/{}", daemon.pid));
    assert_eq!(fs::read_link(proc.join("cwd")).unwrap(), Path::new("/"));
    for fd in ["0", "1", "2"] {
        assert_eq!(fs::read_link(proc.join("fd").join(fd)).unwrap(), Path::new("/dev/null"));
    }
    let session = nix::unistd::getsid(Some(daemon.pid)).unwrap();
    assert_eq!(session, daemon.pid);
    assert_eq!(fs::read_dir(proc.join("task")).unwrap().count(), 1);
    // Of inotify instances root has 128 for all pods of a node, kubelet and containerd together.
    let files = fs::read_dir(format!("/proc/{}/fd", daemon.pid)).unwrap();
    let files = files.filter_map(|file| fs::read_link(file.unwrap().path()).ok());
    assert!(files.into_iter().all(|file| !file.to_string_lossy().contains("inotify")));
}

#[test]
fn a_daemon_that_was_killed_is_replaced() {
    let bundle = Bundle::new("killed");
    let first = bundle.start();
    kill(first.pid, Signal::SIGKILL).unwrap();
    assert!(first.ends_within(Duration::from_secs(30)));
    assert!(first.socket.exists());
    let second = bundle.start();
    assert_ne!(first.pid, second.pid);
}

#[test]
fn what_containerd_asks_after_its_own_restart_is_answered() {
    let daemon = Bundle::new("again").start();
    let pids = PidsRequest { id: "again".into(), ..PidsRequest::default() };
    assert_eq!(code(daemon.task.pids(soon(), &pids)), Code::NOT_FOUND);
    let connect = ConnectRequest { id: "other".into(), ..ConnectRequest::default() };
    assert_eq!(code(daemon.task.connect(soon(), &connect)), Code::NOT_FOUND);
    let shim = daemon.task.connect(soon(), &ConnectRequest::default()).unwrap();
    assert_eq!(shim.shim_pid, daemon.pid.as_raw().unsigned_abs());
    let sandbox = SandboxClient::new(daemon.client.clone());
    let platform =
        |id: &str| PlatformRequest { sandbox_id: id.into(), ..PlatformRequest::default() };
    let answer = sandbox.platform(soon(), &platform("again")).unwrap();
    assert_eq!(answer.platform.os, "linux");
    assert_eq!(code(sandbox.platform(soon(), &platform("other"))), Code::NOT_FOUND);
}

/// A wait that is built in makes every end late; on a busy machine any single one may be.
#[test]
fn shutdown_is_answered_then_nothing_is_left() {
    let at_once = (0..20).any(|_| {
        let bundle = Bundle::new("ends");
        let daemon = bundle.start();
        let request = ShutdownRequest { id: "ends".into(), ..ShutdownRequest::default() };
        // As containerd does: the connection is closed once the answer is there.
        let client = Client::connect(&format!("unix://{}", daemon.socket.display())).unwrap();
        TaskClient::new(client).shutdown(soon(), &request).unwrap();
        let answered = Instant::now();
        assert!(daemon.ends_within(Duration::from_secs(10)));
        assert!(is_empty(&bundle.sockets()) && is_empty(&bundle.state()));
        answered.elapsed() < Duration::from_millis(90)
    });
    assert!(at_once, "waited for nothing");
}

#[test]
fn a_started_sandbox_is_described_by_an_oci_specification() {
    let bundle = Bundle::new("described");
    // On the node's network, so that nothing of the node's is needed.
    let given =
        r#"{"ociVersion":"1.0.2","annotations":{"a":"b"},"linux":{"namespaces":[{"type":"ipc"}]}}"#;
    fs::write(bundle.folder.path().join("config.json"), given).unwrap();
    let daemon = bundle.start();
    let sandbox = SandboxClient::new(daemon.client.clone());
    let create = CreateSandboxRequest {
        sandbox_id: "described".into(),
        bundle_path: bundle.folder.path().display().to_string(),
        ..CreateSandboxRequest::default()
    };
    sandbox.create_sandbox(soon(), &create).unwrap();
    let start =
        StartSandboxRequest { sandbox_id: "described".into(), ..StartSandboxRequest::default() };
    let started = sandbox.start_sandbox(soon(), &start).unwrap();
    assert_eq!(started.spec.type_url, "types.containerd.io/opencontainers/runtime-spec/1/Spec");
    let spec: serde_json::Value = serde_json::from_slice(&started.spec.value).unwrap();
    let ipc = format!("/proc/{}/ns/ipc", started.pid);
    assert_eq!(spec["linux"]["namespaces"], serde_json::json!([{"type": "ipc", "path": ipc}]));
    assert!(Path::new(&ipc).exists());
    assert_eq!(spec["annotations"]["a"], "b");
    let mounts = spec["mounts"].as_array().unwrap();
    for mount in mounts {
        assert!(Path::new(mount["source"].as_str().unwrap()).exists(), "{mount}");
    }
    assert!(mounts.iter().any(|mount| mount["destination"] == "/dev/shm"));
    // After its own restart containerd asks these two of a sandbox, and warns of an error.
    let pids = PidsRequest { id: "described".into(), ..PidsRequest::default() };
    let pids = daemon.task.pids(soon(), &pids).unwrap();
    let pids: Vec<u32> = pids.processes.iter().map(|process| process.pid).collect();
    assert_eq!(pids, [started.pid]);
    let shutdown = ShutdownRequest { id: "gone".into(), ..ShutdownRequest::default() };
    daemon.task.shutdown(soon(), &shutdown).unwrap();
    assert!(!daemon.ends_within(Duration::from_millis(300)), "it holds a sandbox");
    let end = ShutdownSandboxRequest {
        sandbox_id: "described".into(),
        ..ShutdownSandboxRequest::default()
    };
    sandbox.shutdown_sandbox(soon(), &end).unwrap();
    assert!(daemon.ends_within(Duration::from_secs(5)));
    assert!(is_empty(&bundle.sockets()) && is_empty(&bundle.state()));
}

#[test]
fn the_task_service_has_both_its_names() {
    let daemon = Bundle::new("names").start();
    for service in ["containerd.task.v2.Task", "containerd.task.v3.Task"] {
        let connect = ConnectRequest { id: "names".into(), ..ConnectRequest::default() };
        let request = ttrpc::Request {
            service: service.into(),
            method: "Connect".into(),
            timeout_nano: 10_000_000_000,
            payload: connect.write_to_bytes().unwrap(),
            ..ttrpc::Request::default()
        };
        let answer = daemon.client.request(request).unwrap();
        let answer = ConnectResponse::parse_from_bytes(&answer.payload).unwrap();
        assert_eq!(answer.shim_pid, daemon.pid.as_raw().unsigned_abs());
    }
}

#[test]
fn what_is_not_there_is_not_found() {
    let daemon = Bundle::new("nothing").start();
    let sandbox = SandboxClient::new(daemon.client.clone());
    let kill = KillRequest { id: "c".into(), signal: 9, ..KillRequest::default() };
    assert_eq!(code(daemon.task.kill(soon(), &kill)), Code::NOT_FOUND);
    let start =
        |id: &str| StartSandboxRequest { sandbox_id: id.into(), ..StartSandboxRequest::default() };
    assert_eq!(code(sandbox.start_sandbox(soon(), &start("other"))), Code::NOT_FOUND);
    assert_eq!(code(sandbox.start_sandbox(soon(), &start("nothing"))), Code::NOT_FOUND);
    let create = CreateTaskRequest { id: "../c".into(), ..CreateTaskRequest::default() };
    assert_eq!(code(daemon.task.create(soon(), &create)), Code::INVALID_ARGUMENT);
    assert!(daemon.lives());
}

#[test]
fn a_signal_ends_a_daemon_that_holds_nothing() {
    let bundle = Bundle::new("signal");
    let daemon = bundle.start();
    kill(daemon.pid, Signal::SIGTERM).unwrap();
    assert!(daemon.ends_within(Duration::from_secs(30)));
    assert!(!daemon.socket.exists() && is_empty(&bundle.state()));
}

#[test]
fn a_start_that_fails_says_why_and_leaves_nothing() {
    let bundle = Bundle::new("fails");
    let runc = "containerd.runc.v1.Options";
    let torn = Any { type_url: runc.into(), value: vec![0x32], ..Any::default() };
    let output = bundle.start_with(&bundle.params(Some(torn)));
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty());
    let complaint = String::from_utf8(output.stderr).unwrap();
    assert!(complaint.contains(runc), "{complaint}");
    assert!(is_empty(&bundle.sockets()));
}

/// Where the kernel has core scheduling and the processor several threads a core, the daemon gets a cookie; elsewhere
/// nothing runs without what was asked for.
#[test]
fn core_scheduling_is_what_the_environment_asks_for() {
    let bundle = Bundle::new("cookie");
    let cookie = |pid| core_scheduling_cookie(pid, CoreSchedulingScope::ThreadGroup);
    let output = bundle.start_in("SCHED_CORE", "1");
    if cookie(rustix::process::getpid()).is_err() {
        let complaint = String::from_utf8(output.stderr).unwrap();
        assert!(complaint.contains("core scheduling, which SCHED_CORE asks for"), "{complaint}");
        assert!(is_empty(&bundle.sockets()) && is_empty(&bundle.state()));
    } else {
        let daemon = bundle.start();
        let pid = rustix::process::Pid::from_raw(daemon.pid.as_raw()).unwrap();
        assert_ne!(cookie(pid).unwrap(), 0);
    }
    let plain = Bundle::new("plain");
    assert!(plain.start_in("SCHED_CORE", "").status.success());
    drop(plain.start());
}

/// containerd kills `start` when its client loses patience, and learns neither the socket nor that there is a daemon.
#[test]
fn a_daemon_whose_start_was_killed_ends_and_leaves_nothing() {
    let bundle = Bundle::new("killed");
    let state = bundle.state().join("entry-test/killed");
    fs::create_dir_all(&state).unwrap();
    // Whoever finishes for an earlier shim of the name holds the daemon up.
    let lock = fs::File::create(state.join("lock")).unwrap();
    let lock = Flock::lock(lock, FlockArg::LockExclusive).unwrap();
    let mut start = Bundle::begin(&mut bundle.command(), &bundle.params(None));
    let within = |limit: u64, so: &dyn Fn() -> bool| {
        let end = Instant::now() + Duration::from_secs(limit);
        while !so() {
            assert!(Instant::now() < end);
            std::thread::sleep(Duration::from_millis(1));
        }
    };
    within(30, &|| !is_empty(&bundle.sockets()));
    start.kill().unwrap();
    start.wait().unwrap();
    drop(lock);
    within(30, &|| is_empty(&bundle.sockets()) && is_empty(&bundle.state()));
}

#[test]
fn a_container_of_a_sandbox_is_sent_to_the_sandboxs_shim() {
    let bundle = Bundle::new("pod");
    let daemon = bundle.start();
    fs::write(bundle.folder.path().join("sandbox"), "pod").unwrap();
    let container = Bundle { id: "container".into(), ..bundle };
    let answer = container.start_with(&container.params(None));
    let answer = BootstrapResult::parse_from_bytes(&answer.stdout).unwrap();
    assert_eq!(answer.address, format!("unix://{}", daemon.socket.display()));

    kill(daemon.pid, Signal::SIGKILL).unwrap();
    assert!(daemon.ends_within(Duration::from_secs(30)));
    let answer = container.start_with(&container.params(None));
    assert_eq!(answer.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&answer.stderr).contains("sandbox \"pod\""));
}

#[test]
fn the_log_reaches_the_bundles_pipe() {
    let bundle = Bundle::new("logs");
    let daemon = bundle.start();
    let log =
        fs::File::options().read(true).write(true).open(bundle.folder.path().join("log")).unwrap();
    let mut lines = [0; 4096];
    let read = std::io::Read::read(&mut &log, &mut lines).unwrap();
    let lines = String::from_utf8_lossy(&lines[..read]);
    assert!(lines.contains("level=warning msg=\"unknown option \\\"Surprise\\\""), "{lines}");
    assert!(lines.contains("namespace=entry-test id=logs"), "{lines}");
    assert!(UnixStream::connect(&daemon.socket).is_ok());
}
