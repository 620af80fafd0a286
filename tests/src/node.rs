//! A containerd of the tests' own, with the handlers under comparison.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use containerd_client::services::v1 as api;
use containerd_client::tonic::transport::Channel;
use k8s_cri::v1 as cri;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::daemon::Daemon;
use crate::images::PAUSE_IMAGE;
pub use crate::images::{DATA_IMAGE, IMAGE};
use crate::suite::Handler;
use crate::systemd;

/// The node's configuration of Mooring.
pub const CONFIG: &str = "/etc/mooring/config.toml";

/// The node's configuration is this, until it is dropped.
pub struct Configuration(String);

impl Configuration {
    /// Changes the text.
    pub fn change(change: impl FnOnce(&str) -> String) -> Result<Self> {
        let before = fs::read_to_string(CONFIG)?;
        fs::write(CONFIG, change(&before))?;
        Ok(Self(before))
    }
}

impl Drop for Configuration {
    fn drop(&mut self) {
        let _ = fs::write(CONFIG, &self.0);
    }
}

/// A further runtime handler of the node.
#[derive(Clone, Debug)]
pub struct Extra {
    /// The handler's name.
    pub name: &'static str,
    /// The keys of its profile, as TOML lines.
    pub options: String,
}

impl Extra {
    /// A handler with an OCI runtime of its own.
    pub fn with_runtime(name: &'static str, program: &Path) -> Self {
        Self { name, options: format!("BinaryName = '{}'", program.display()) }
    }
}

/// What a test binary wants of its node beyond the usual.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Further handlers with Mooring's shim, beside those of [`Handler`](crate::suite::Handler).
    pub extra: Vec<Extra>,
    /// More lines of TOML for the node's `/etc/mooring/config.toml`.
    pub options: String,
    /// Whether containers of the handler `mooring` run on the OCI runtime in the shim.
    pub builtin: bool,
    /// Whether containerd and the shims send traces to [`crate::otlp::Receiver`].
    pub traces: bool,
}

impl Settings {
    /// Every handler that is a profile of the node's configuration.
    fn profiles(&self) -> impl Iterator<Item = &'static str> {
        self.extra.iter().map(|one| one.name).chain([Handler::Builtin.name()])
    }
}

/// A booted containerd. It lives as long as the machine does.
pub struct Node {
    folder: PathBuf,
    deps: PathBuf,
    programs: PathBuf,
    channel: Channel,
    containerd: Mutex<Option<Daemon>>,
    traces: bool,
}

impl Node {
    /// Writes the configuration, boots containerd, imports the images.
    pub async fn boot(folder: &Path, settings: &Settings) -> Result<Self> {
        let deps = deps()?;
        let programs = programs(&deps);
        for program in ["containerd", "ctr", "containerd-shim-runc-v2"] {
            must_exist(&programs.join(program), "run tools/deps.sh")?;
        }
        for file in ["bin/runc", "bin/busybox", "cni/bin/bridge"] {
            must_exist(&deps.join(file), "run tools/deps.sh")?;
        }
        let shim = shim()?;
        for sub in ["bin", "cni/net.d", "cni/ipam", "certs.d", "cdi", "nri", "logs"] {
            fs::create_dir_all(folder.join(sub))?;
        }
        // What clients find by name: `ctr run --runtime io.containerd.mooring.v1`, options without BinaryName.
        for (name, target) in [
            ("containerd-shim-mooring-v1", shim.clone()),
            ("containerd-shim-runc-v2", programs.join("containerd-shim-runc-v2")),
            ("runc", runc(&deps)),
        ] {
            symlink(target, folder.join("bin").join(name)).context("link a program")?;
        }
        fs::write(folder.join("config.toml"), config(folder, &deps, settings))?;
        fs::write(folder.join("cni/net.d/10-e2e.conflist"), network(folder))?;
        // The node's configuration of Mooring: see `config` for why the handler itself has no options.
        fs::create_dir_all("/etc/mooring")?;
        let bin = deps.join("cni/bin");
        let mut own = format!(
            "BinaryName = '{}'\nSystemdCgroup = {}\nCniConfDir = '{}'\nCniBinDirs = ['{}']\n{}\n",
            oci(&deps, settings).display(),
            systemd::is_first(),
            folder.join("cni/net.d").display(),
            bin.display(),
            settings.options
        );
        // In one line, for tests write further keys below it, which are every handler's.
        writeln!(own, "profile.{}.BinaryName = 'builtin'", Handler::Builtin.name())?;
        for Extra { name, options } in &settings.extra {
            write!(own, "[profile.{name}]\n{options}\n")?;
        }
        for name in settings.profiles() {
            let program = format!("bin/containerd-shim-mooring-{name}-v1");
            symlink(&shim, folder.join(program)).context("link the shim")?;
        }
        fs::write(CONFIG, own)?;
        let channel = channel_to(&folder.join("c.sock"))?;
        let node = Self {
            folder: folder.to_owned(),
            deps,
            programs,
            channel,
            containerd: Mutex::default(),
            traces: settings.traces,
        };
        node.start().await?;
        node.import_images().await?;
        Ok(node)
    }

    /// The containerd that another process booted in this folder.
    pub fn attach(folder: &Path) -> Result<Self> {
        let deps = deps()?;
        Ok(Self {
            folder: folder.to_owned(),
            programs: programs(&deps),
            deps,
            channel: channel_to(&folder.join("c.sock"))?,
            containerd: Mutex::default(),
            traces: false,
        })
    }

    /// The folder of everything that is this node's.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where the prerequisites are.
    pub fn deps(&self) -> &Path {
        &self.deps
    }

    /// The bridge of the pods' network.
    pub fn bridge(&self) -> &'static str {
        "mooring-e2e0"
    }

    /// A connection to containerd that finds it again after a restart.
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// CRI's runtime service.
    pub fn cri(&self) -> cri::runtime_service_client::RuntimeServiceClient<Channel> {
        cri::runtime_service_client::RuntimeServiceClient::new(self.channel())
            .max_decoding_message_size(64 << 20)
    }

    /// CRI's image service.
    pub fn images(&self) -> cri::image_service_client::ImageServiceClient<Channel> {
        cri::image_service_client::ImageServiceClient::new(self.channel())
    }

    /// The file that tells shims built for it where to die or wait (see [`crate::faults`]).
    pub fn failpoints(&self) -> PathBuf {
        self.folder.join("failpoints")
    }

    /// containerd's socket.
    pub fn socket(&self) -> PathBuf {
        self.folder.join("c.sock")
    }

    /// What containerd and its shims have logged.
    pub fn log(&self) -> String {
        let log = fs::read(self.folder.join("containerd.log")).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }

    /// containerd's process, while it runs.
    pub fn pid(&self) -> Option<i32> {
        self.daemon().as_ref().and_then(|daemon| i32::try_from(daemon.pid()).ok())
    }

    fn daemon(&self) -> MutexGuard<'_, Option<Daemon>> {
        self.containerd.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// PATH with the node's shims, containerd, ctr and the OCI runtimes before everything else.
    pub fn path(&self) -> String {
        let folders = [self.folder.join("bin"), self.programs.clone(), self.deps.join("bin")];
        let mut path: Vec<String> = folders.iter().map(|one| one.display().to_string()).collect();
        path.push(std::env::var("PATH").unwrap_or_default());
        path.push("/usr/sbin:/sbin:/usr/bin:/bin".to_owned());
        path.join(":")
    }

    /// Starts containerd and waits until CRI answers.
    pub async fn start(&self) -> Result<()> {
        let mut command = Command::new(self.programs.join("containerd"));
        command.arg("--config").arg(self.folder.join("config.toml"));
        command.env("PATH", self.path()).env("MOORING_FAILPOINTS", self.failpoints());
        if self.traces {
            command.envs(crate::otlp::variables());
        }
        *self.daemon() = Some(Daemon::start(command, &self.folder.join("containerd.log"))?);
        self.answers().await
    }

    async fn answers(&self) -> Result<()> {
        let until = Instant::now() + crate::patience(Duration::from_secs(30));
        loop {
            let request = cri::StatusRequest { verbose: false };
            let answer = tokio::time::timeout(
                crate::patience(Duration::from_secs(5)),
                self.cri().status(request),
            )
            .await;
            if let Ok(Ok(status)) = answer {
                let conditions = status.into_inner().status.map(|one| one.conditions);
                let ready = |name: &str| {
                    let mut all = conditions.iter().flatten();
                    all.any(|one| one.r#type == name && one.status)
                };
                // Others tell of what is deprecated.
                if ready("RuntimeReady") && ready("NetworkReady") {
                    return Ok(());
                }
            }
            if let Some(daemon) = self.daemon().as_mut()
                && let Some(status) = daemon.ended()?
            {
                bail!("containerd ended with {status}; its log says:\n{}", tail(&self.log(), 15));
            }
            if Instant::now() > until {
                bail!("containerd does not answer; its log says:\n{}", tail(&self.log(), 15));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Starts containerd again if it has ended without being asked to.
    pub async fn ensure(&self) -> Result<()> {
        // A process that dies of a panic may take a while to write down why.
        let until = Instant::now() + crate::patience(Duration::from_secs(10));
        loop {
            let ended = match self.daemon().as_mut() {
                Some(daemon) => daemon.ended()?.is_some(),
                None => true,
            };
            if ended {
                return self.start().await;
            }
            let request = cri::VersionRequest { version: String::new() };
            if self.cri().version(request).await.is_ok() || Instant::now() > until {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Sends containerd a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = self.pid().context("containerd does not run")?;
        kill(Pid::from_raw(pid), signal).with_context(|| format!("send containerd {signal}"))
    }

    /// Ends containerd with a signal and waits for its end; the shims go on.
    pub async fn end(&self, signal: Signal) -> Result<()> {
        self.signal(signal)?;
        let Some(daemon) = self.daemon().take() else { return Ok(()) };
        let wait = tokio::task::spawn_blocking(move || daemon.wait());
        tokio::time::timeout(crate::patience(Duration::from_secs(20)), wait)
            .await
            .context("containerd does not end")???;
        Ok(())
    }

    /// An orderly restart, by systemd where that is there.
    pub async fn restart(&self) -> Result<()> {
        if systemd::is_first() {
            systemd::systemctl(&["restart", systemd::UNIT])?;
            let pid = systemd::main_pid().context("the unit has no process")?;
            *self.daemon() = Some(Daemon::Unit(pid));
            return self.answers().await;
        }
        self.end(Signal::SIGTERM).await?;
        self.start().await
    }

    /// A crash, and what the init system does about it.
    pub async fn crash(&self) -> Result<()> {
        self.end(Signal::SIGKILL).await?;
        self.start().await
    }

    /// Runs `ctr` to its end and returns what it printed.
    pub async fn ctr(&self, arguments: &[&str]) -> Result<String> {
        let output = self.ctr_command(arguments).output();
        let output = tokio::time::timeout(crate::patience(Duration::from_mins(1)), output)
            .await
            .with_context(|| format!("ctr {} does not end", arguments.join(" ")))??;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            let errors = String::from_utf8_lossy(&output.stderr);
            bail!("ctr {}: {}: {text}{errors}", arguments.join(" "), output.status);
        }
        Ok(text)
    }

    /// `ctr`, for who wants to talk with it.
    pub fn ctr_command(&self, arguments: &[&str]) -> tokio::process::Command {
        let mut command = tokio::process::Command::new(self.programs.join("ctr"));
        command.arg("-a").arg(self.socket()).args(arguments).kill_on_drop(true);
        command.env("PATH", self.path()).stdin(Stdio::null());
        command
    }

    async fn import_images(&self) -> Result<()> {
        for (reference, tar) in crate::images::ensure_all(&self.deps)? {
            let tar = tar.to_str().context("a path that is no text")?;
            let label = "io.cri-containerd.image=managed";
            self.ctr(&["-n", "k8s.io", "images", "import", "--label", label, tar]).await?;
            self.ctr(&["-n", "default", "images", "import", tar]).await?;
            // CRI learns of images by event.
            let until = Instant::now() + crate::patience(Duration::from_secs(10));
            loop {
                let image = cri::ImageSpec { image: reference.to_owned(), ..Default::default() };
                let request = cri::ImageStatusRequest { image: Some(image), verbose: false };
                if self.images().image_status(request).await?.into_inner().image.is_some() {
                    break;
                }
                if Instant::now() > until {
                    bail!("CRI does not see the image {reference}");
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        Ok(())
    }

    /// After a test that failed: removes pods and tasks and whatever processes are still there.
    pub async fn clean_up(&self) -> Result<()> {
        self.ensure().await?;
        self.remove_workloads().await?;
        for process in crate::audit::all_processes() {
            if Some(process.pid) != self.pid() {
                let _ = kill(Pid::from_raw(process.pid), Signal::SIGKILL);
            }
        }
        Ok(())
    }

    /// The polite way to be rid of pods, tasks, containers and sandboxes: through containerd.
    pub async fn remove_workloads(&self) -> Result<()> {
        let mut cri = self.cri();
        let list = cri.list_pod_sandbox(cri::ListPodSandboxRequest { filter: None }).await?;
        for pod in list.into_inner().items {
            let id = pod.id.clone();
            let request = cri::StopPodSandboxRequest { pod_sandbox_id: id.clone() };
            let _ = tokio::time::timeout(
                crate::patience(Duration::from_secs(20)),
                cri.stop_pod_sandbox(request),
            )
            .await;
            let request = cri::RemovePodSandboxRequest { pod_sandbox_id: id };
            let _ = tokio::time::timeout(
                crate::patience(Duration::from_secs(20)),
                cri.remove_pod_sandbox(request),
            )
            .await;
        }
        for namespace in ["default", "k8s.io"] {
            let tasks = self.ctr(&["-n", namespace, "tasks", "ls", "-q"]).await.unwrap_or_default();
            for id in tasks.lines() {
                let _ = self.ctr(&["-n", namespace, "tasks", "rm", "-f", id]).await;
            }
            let all = self.ctr(&["-n", namespace, "containers", "ls", "-q"]).await;
            for id in all.unwrap_or_default().lines() {
                let _ = self.ctr(&["-n", namespace, "containers", "rm", id]).await;
            }
            let mut store = api::sandbox::store_client::StoreClient::new(self.channel());
            let request = api::sandbox::StoreListRequest { filters: vec![] };
            let request = crate::services::in_namespace(namespace, request);
            if let Ok(list) = store.list(request).await {
                for one in list.into_inner().list {
                    let _ = self
                        .ctr(&["-n", namespace, "sandboxes", "rm", "-f", &one.sandbox_id])
                        .await;
                }
            }
        }
        Ok(())
    }
}

/// containerd's version: major and minor.
pub fn version() -> Result<(u32, u32)> {
    let program = programs(&deps()?).join("containerd");
    let output =
        Command::new(program).arg("--version").output().context("ask containerd's version")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let version = text.split_whitespace().nth(2).context("no version")?;
    let mut numbers = version.trim_start_matches('v').split('.').map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => Ok((major, minor)),
        _ => bail!("what version is {version:?}?"),
    }
}

/// The last lines of a text.
pub fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// Where the prerequisites are.
pub fn deps() -> Result<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let deps = match std::env::var_os("MOORING_DEPS") {
        Some(deps) => PathBuf::from(deps),
        None => here.parent().unwrap_or(here).join(".deps"),
    };
    must_exist(&deps, "run tools/deps.sh, or say with MOORING_DEPS where its results are")?;
    Ok(deps.canonicalize()?)
}

/// The shim under test: beside this binary's own folder of the build, unless `MOORING_SHIM` says otherwise.
pub fn shim() -> Result<PathBuf> {
    if let Some(shim) = std::env::var_os("MOORING_SHIM") {
        let shim = PathBuf::from(shim);
        must_exist(&shim, "MOORING_SHIM names it")?;
        return Ok(shim);
    }
    let own = fs::read_link("/proc/self/exe")?;
    let beside = own.ancestors().skip(1).take(2).map(|at| at.join("containerd-shim-mooring-v1"));
    let found = beside.into_iter().find(|at| at.exists());
    found.context("no containerd-shim-mooring-v1 beside the tests: run cargo build -p containerd-shim-mooring-v1, or say with MOORING_SHIM where it is")
}

fn programs(deps: &Path) -> PathBuf {
    std::env::var_os("MOORING_CONTAINERD").map_or_else(|| deps.join("bin"), PathBuf::from)
}

fn runc(deps: &Path) -> PathBuf {
    std::env::var_os("MOORING_RUNC").map_or_else(|| deps.join("bin/runc"), PathBuf::from)
}

/// The OCI runtime's command line, as the shims call it.
pub fn runtime(deps: &Path) -> Vec<String> {
    vec![runc(deps).display().to_string()]
}

/// The OCI runtime of Mooring's pods: as `MOORING_OCI` says, or the same as the peer's.
fn oci(deps: &Path, settings: &Settings) -> PathBuf {
    if settings.builtin {
        return "builtin".into();
    }
    std::env::var_os("MOORING_OCI").map_or_else(|| runc(deps), PathBuf::from)
}

fn must_exist(at: &Path, what_to_do: &str) -> Result<()> {
    if !at.exists() {
        bail!("{} is missing: {what_to_do}", at.display());
    }
    Ok(())
}

/// A connection that is made when it is first used, and again when it was lost.
pub fn channel_to(socket: &Path) -> Result<Channel> {
    let socket = socket.to_owned();
    let endpoint = containerd_client::tonic::transport::Endpoint::try_from("http://[::]")?;
    Ok(endpoint.connect_with_connector_lazy(tower::service_fn(move |_| {
        let socket = socket.clone();
        async move {
            let stream = tokio::net::UnixStream::connect(socket).await?;
            Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(stream))
        }
    })))
}

fn config(folder: &Path, deps: &Path, settings: &Settings) -> String {
    let dir = folder.display();
    let runc = runc(deps).display().to_string();
    let deps = deps.display().to_string();
    let systemd = systemd::is_first();
    let without = if settings.traces {
        ""
    } else {
        "'io.containerd.internal.v1.tracing', 'io.containerd.tracing.processor.v1.otlp'"
    };
    let table = "plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes";
    // CRI of containerd 2.1 cannot start containers of a shim sandbox whose handler has options, unless they are of
    // runc's type: it reads them as runc's ("failed to get runtime v2 options"). Hence none here: Mooring reads the
    // node's configuration, and each further handler is a profile in it, which the shim's name stands for.
    let mut handlers = format!(
        "[{table}.mooring]\nruntime_type = 'io.containerd.mooring.v1'\n\
         runtime_path = '{dir}/bin/containerd-shim-mooring-v1'\nsandboxer = 'shim'\n"
    );
    for name in settings.profiles() {
        let _ = write!(
            handlers,
            "[{table}.{name}]\nruntime_type = 'io.containerd.mooring-{name}.v1'\nsandboxer = 'shim'\n"
        );
    }
    format!(
        "version = 3
root = '{dir}/root'
state = '{dir}/state'
disabled_plugins = [{without}]

[grpc]
address = '{dir}/c.sock'

[ttrpc]
address = '{dir}/c.sock.ttrpc'

[debug]
level = 'info'

[plugins.'io.containerd.internal.v1.opt']
path = '{dir}/opt'

[plugins.'io.containerd.nri.v1.nri']
socket_path = '{dir}/nri.sock'
plugin_path = '{dir}/nri/plugins'
plugin_config_path = '{dir}/nri/conf.d'

[plugins.'io.containerd.image-verifier.v1.bindir']
bin_dir = '{dir}/verifiers'

[plugins.'io.containerd.cri.v1.images']
snapshotter = 'overlayfs'
[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = '{PAUSE_IMAGE}'
[plugins.'io.containerd.cri.v1.images'.registry]
config_path = '{dir}/certs.d'

[plugins.'io.containerd.grpc.v1.cri']
disable_tcp_service = true
stream_server_address = '127.0.0.1'
stream_server_port = '0'

[plugins.'io.containerd.cri.v1.runtime']
# Not every machine lets root lower it.
restrict_oom_score_adj = true
# How long ExecSync waits for output that what an exec left behind still holds, before it deletes the exec.
drain_exec_sync_io_timeout = '3s'
cdi_spec_dirs = ['{dir}/cdi']
[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = ['{deps}/cni/bin']
conf_dir = '{dir}/cni/net.d'
[plugins.'io.containerd.cri.v1.runtime'.containerd]
default_runtime_name = 'runc'
[{table}.runc]
runtime_type = 'io.containerd.runc.v2'
sandboxer = 'podsandbox'
[{table}.runc.options]
BinaryName = '{runc}'
SystemdCgroup = {systemd}
{handlers}"
    )
}

fn network(folder: &Path) -> String {
    format!(
        r#"{{ "cniVersion": "1.0.0", "name": "e2e", "plugins": [
  {{ "type": "bridge", "bridge": "mooring-e2e0", "isGateway": true, "ipMasq": true,
     "ipam": {{ "type": "host-local", "dataDir": "{}/cni/ipam",
               "ranges": [[{{ "subnet": "10.88.0.0/16" }}]], "routes": [{{ "dst": "0.0.0.0/0" }}] }} }},
  {{ "type": "portmap", "capabilities": {{ "portMappings": true }} }} ] }}
"#,
        folder.display()
    )
}
