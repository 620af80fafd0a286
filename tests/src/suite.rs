//! Runs async test functions once per handler, one after another on one node, each followed by an audit.

use std::fs;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures_util::FutureExt;
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use tokio::runtime::Runtime;
use tokio::sync::{Mutex, OnceCell};

use crate::audit::{Snapshot, leftovers};
use crate::machine::{Storage, enter};
use crate::node::{Node, Settings, tail};
use crate::patience;
use crate::systemd;
use crate::vm::host::plain_name;
use crate::vm::{ONLY, is_emulated};

/// No test takes longer than this; a hang must become a failure.
const LIMIT: Duration = Duration::from_secs(90);

/// The runtime handler of a run of a test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handler {
    /// The peer: podsandbox with containerd-shim-runc-v2.
    Runc,
    /// The shim under test, with the node's OCI runtime.
    Mooring,
    /// The same shim, with the OCI runtime in it.
    Builtin,
}

impl Handler {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Runc, Self::Mooring, Self::Builtin];

    /// As the node's configuration calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Runc => "runc",
            Self::Mooring => "mooring",
            Self::Builtin => "builtin",
        }
    }

    /// Whether its pods are those of Mooring's shim.
    pub fn is_mooring(self) -> bool {
        self != Self::Runc
    }

    /// The runtime type, as `ctr` wants it.
    pub fn runtime(self) -> &'static str {
        match self {
            Self::Runc => "io.containerd.runc.v2",
            Self::Mooring => "io.containerd.mooring.v1",
            Self::Builtin => "io.containerd.mooring-builtin.v1",
        }
    }
}

/// What a test is given.
#[derive(Clone)]
pub struct Case {
    /// The containerd to talk to.
    pub node: Arc<Node>,
    /// The handler to use.
    pub handler: Handler,
}

static NUMBER: AtomicU32 = AtomicU32::new(0);

impl Case {
    /// A name that no other object of this run has.
    pub fn unique(&self, stem: &str) -> String {
        format!("{stem}-{}", NUMBER.fetch_add(1, Ordering::Relaxed))
    }
}

struct World {
    folder: PathBuf,
    settings: Settings,
    node: OnceCell<Arc<Node>>,
    turn: Mutex<()>,
    runtime: Runtime,
}

/// The tests of one binary.
pub struct Suite {
    arguments: Arguments,
    world: Option<Arc<World>>,
    trials: Vec<Trial>,
    systemd: bool,
    builtin: bool,
}

impl Suite {
    /// Enters the machine, unless the tests shall only be listed. To be called first thing in main.
    pub fn begin(settings: Settings) -> Self {
        let mut arguments = Arguments::from_args();
        // One node, one test at a time: the audit looks at the whole machine.
        arguments.test_threads = Some(1);
        if arguments.list {
            return Self::of(arguments, None);
        }
        let world = enter(Storage::Memory).and_then(|folder| {
            remember_panics();
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()?;
            Ok(World { folder, settings, node: OnceCell::new(), turn: Mutex::new(()), runtime })
        });
        match world {
            Ok(world) => Self::of(arguments, Some(Arc::new(world))),
            Err(error) => {
                eprintln!("the tests cannot run: {error:#}");
                std::process::exit(1);
            }
        }
    }

    fn of(arguments: Arguments, world: Option<Arc<World>>) -> Self {
        Self { arguments, world, trials: Vec::new(), systemd: false, builtin: false }
    }

    /// All tests of Mooring that follow run on the handler `builtin` too.
    pub fn on_builtin_too(&mut self) {
        self.builtin = true;
    }

    /// All tests that follow are of a machine whose first process is systemd, and are skipped on others.
    pub fn needs_systemd(&mut self) {
        self.systemd = true;
    }

    /// A test on both handlers.
    pub fn both<F, W>(&mut self, name: &str, test: F)
    where
        F: Fn(Case) -> W + Clone + Send + 'static,
        W: Future<Output = Result<()>> + Send + 'static,
    {
        self.on(Handler::Runc, name, test.clone());
        self.mooring(name, test);
    }

    /// A test of Mooring alone.
    pub fn mooring<F, W>(&mut self, name: &str, test: F)
    where
        F: Fn(Case) -> W + Clone + Send + 'static,
        W: Future<Output = Result<()>> + Send + 'static,
    {
        self.on(Handler::Mooring, name, test.clone());
        if self.builtin {
            self.on(Handler::Builtin, name, test);
        }
    }

    /// A test on one handler.
    pub fn on<F, W>(&mut self, handler: Handler, name: &str, test: F)
    where
        F: Fn(Case) -> W + Send + 'static,
        W: Future<Output = Result<()>> + Send + 'static,
    {
        let world = self.world.clone();
        let full = format!("{}::{name}", handler.name());
        let skipped = self.systemd && !systemd::is_first();
        self.trials.push(Trial::ignorable_test(full, move || {
            if skipped {
                let reason = "systemd is not this machine's first process (make test-vm)";
                return Ok(Completion::ignored_with(reason));
            }
            let world = world.context("the machine was not entered").map_err(failed)?;
            world.runtime.block_on(world.run(handler, &test)).map_err(failed)?;
            Ok(Completion::Completed)
        }));
    }

    /// A test that does with the machine what only an emulated one can bear; shown as ignored on others.
    pub fn on_emulated<F, W>(&mut self, handler: Handler, name: &str, test: F)
    where
        F: Fn(Case) -> W + Send + 'static,
        W: Future<Output = Result<()>> + Send + 'static,
    {
        self.ignored_where(!is_emulated(), |suite| suite.on(handler, name, test));
    }

    /// Tests of what an emulated machine is not given; shown as ignored there.
    pub fn but_on_emulated(&mut self, add: impl FnOnce(&mut Self)) {
        self.ignored_where(is_emulated(), add);
    }

    /// A test of a pod on the node's network. CRI of containerd 2.1 crashes when such a pod is a shim's sandbox (a nil
    /// specification in its `NewBundle`): there the test is shown as ignored for Mooring.
    pub fn host_network<F, W>(&mut self, name: &str, test: F)
    where
        F: Fn(Case) -> W + Clone + Send + 'static,
        W: Future<Output = Result<()>> + Send + 'static,
    {
        self.on(Handler::Runc, name, test.clone());
        let crashes = crate::node::version().is_ok_and(|version| version < (2, 2));
        self.ignored_where(crashes, |suite| suite.mooring(name, test));
    }

    /// Tests that are shown as ignored where this says so.
    pub fn ignored_where(&mut self, ignored: bool, add: impl FnOnce(&mut Self)) {
        let before = self.trials.len();
        add(self);
        if ignored {
            let added = self.trials.split_off(before);
            self.trials.extend(added.into_iter().map(|one| one.with_ignored_flag(true)));
        }
    }

    /// Runs what the arguments ask for and exits.
    pub fn run(mut self) -> ! {
        if let Ok(only) = std::env::var(ONLY)
            && !only.is_empty()
        {
            let program = std::env::args_os().next().unwrap_or_default();
            let program = plain_name(Path::new(&program));
            let chosen = |one: &Trial| {
                let name = format!("{program}::{}", one.name());
                only.split(',').any(|part| name.contains(part))
            };
            self.trials.retain(chosen);
        }
        let conclusion = libtest_mimic::run(&self.arguments, self.trials);
        if systemd::is_first() {
            let _ = systemd::systemctl(&["stop", systemd::UNIT]);
        }
        conclusion.exit()
    }
}

#[expect(clippy::needless_pass_by_value, reason = "the signature of map_err")]
fn failed(error: anyhow::Error) -> Failed {
    Failed::from(format!("{error:#}"))
}

impl World {
    async fn run<F, W>(&self, handler: Handler, test: &F) -> Result<()>
    where
        F: Fn(Case) -> W,
        W: Future<Output = Result<()>>,
    {
        let _turn = self.turn.lock().await;
        let boot = || async { Node::boot(&self.folder, &self.settings).await.map(Arc::new) };
        let node = self.node.get_or_try_init(boot).await.context("boot the node")?;
        node.ensure().await.context("start containerd again")?;
        let before = Snapshot::take(node).await.context("look at the machine before the test")?;
        let log = node.log().len();
        let case = Case { node: Arc::clone(node), handler };
        let test = AssertUnwindSafe(test(case)).catch_unwind();
        let outcome = match tokio::time::timeout(patience(LIMIT), test).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err(anyhow::anyhow!(last_panic())),
            Err(_) => Err(anyhow::anyhow!("not done after {} s", patience(LIMIT).as_secs())),
        };
        let outcome = match outcome {
            Err(error) => Err(error),
            Ok(()) => match leftovers(node, &before).await {
                Ok(left) if left.is_empty() => Ok(()),
                Ok(left) => Err(anyhow::anyhow!("left on the machine:\n  {}", left.join("\n  "))),
                Err(error) => Err(error.context("look at the machine after the test")),
            },
        };
        if let Err(error) = outcome {
            let all = node.log();
            let log = tail(all.get(log..).unwrap_or_default(), log_lines());
            let cleaned = tokio::time::timeout(patience(LIMIT), node.clean_up()).await;
            let cleaned = match cleaned {
                Ok(Ok(())) => String::new(),
                Ok(Err(error)) => format!("\nand the clean-up failed: {error:#}"),
                Err(_) => "\nand the clean-up hangs".to_owned(),
            };
            bail!("{error:#}{cleaned}\n--- end of containerd's log:\n{log}");
        }
        remove_pod_parents();
        Ok(())
    }
}

fn log_lines() -> usize {
    std::env::var("MOORING_E2E_LOG").ok().and_then(|lines| lines.parse().ok()).unwrap_or(12)
}

/// What the last panic said, with its place.
static PANIC: std::sync::Mutex<String> = std::sync::Mutex::new(String::new());

fn last_panic() -> String {
    PANIC.lock().map(|text| text.clone()).unwrap_or_default()
}

fn remember_panics() {
    std::panic::set_hook(Box::new(|panic| {
        if let Ok(mut text) = PANIC.lock() {
            *text = panic.to_string();
        }
    }));
}

/// The cgroups that a kubelet would have made for the pods, and would remove now.
pub fn remove_pod_parents() {
    if systemd::is_first() {
        let _ = systemd::stop_pod_slices();
    }
    for hierarchy in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
        for pod in fs::read_dir(hierarchy.path().join("e2e")).into_iter().flatten().flatten() {
            let _ = fs::remove_dir(pod.path());
        }
    }
}

/// The tests of a binary: `suite!(settings; both: a, b; host_network: c; mooring: d)` makes its main. With
/// `too: builtin;` before `both` all of Mooring's run on the handler `builtin` too.
#[macro_export]
macro_rules! suite {
    ($settings:expr; $(too: $too:ident;)? both: $($both:ident),* $(,)?; $(host_network: $($host:ident),* $(,)?;)? mooring: $($mooring:ident),* $(,)?) => {
        fn main() {
            let mut suite = $crate::suite::Suite::begin($settings);
            $($crate::suite_on_too!(suite, $too);)?
            $(suite.both(stringify!($both), $both);)*
            $($(suite.host_network(stringify!($host), $host);)*)?
            $(suite.mooring(stringify!($mooring), $mooring);)*
            suite.run();
        }
    };
}

/// The handlers that [`suite!`] may name.
#[macro_export]
macro_rules! suite_on_too {
    ($suite:ident, builtin) => {
        $suite.on_builtin_too()
    };
}
