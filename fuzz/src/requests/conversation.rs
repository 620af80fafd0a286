//! One conversation with the services of a new shim, and what it must leave.

use std::{collections::HashMap, fs, path::PathBuf, sync::Arc, time::Duration};

use containerd_shim_protos::{
    protobuf::{Message, MessageDyn},
    sandbox_api::ShutdownSandboxRequest,
    ttrpc::{
        self, Code, Request,
        asynchronous::{Service, TtrpcContext},
    },
};
use log::LevelFilter;
use mooring::{
    containerd::fake::FakeContainerd, id::Id, keeper::HolderProgram, options::HandlerOptions,
    process::Reaper, runtime::OciRuntime,
};
use mooring_shim::parts::{Ending, Events, Launch, Parties, Services};
use tokio::{task::JoinSet, time::timeout};

use super::{
    SERVICES, Step,
    confined::Place,
    runtime::{Sleepers, Sleeping},
};
use crate::{plugins::Plugins, scratch};

pub const SANDBOX: &str = "containerd.runtime.sandbox.v1.Sandbox";
pub const TASK: &str = "containerd.task.v3.Task";
/// The sandbox's id, and its bundle's and its container's names.
const POD: &str = "pod";
const NAMESPACE: &str = "fuzz";
/// How long a call is waited for; then its client goes away.
const PATIENCE: Duration = Duration::from_millis(200);
/// How long the end of a process takes to be known.
const REAPED: Duration = Duration::from_millis(5);
/// How long the end may take.
const END: Duration = Duration::from_secs(20);
/// How soon the end is tried again, and how often.
const AGAIN: (Duration, usize) = (Duration::from_millis(20), 100);
/// How long a blocking call may take to end after everything else has.
const LAST: Duration = Duration::from_secs(5);

struct Silent;

impl Events for Silent {
    fn publish(&self, _: &'static str, _: &dyn MessageDyn) {}
}

/// Holds a conversation, ends the sandbox, and looks at what is left.
pub fn hold(place: &Place, steps: &[Step]) {
    furnish(place);
    let mut building = tokio::runtime::Builder::new_current_thread();
    let runtime = building.enable_all().thread_name(SERVICES).build().expect("an async runtime");
    runtime.block_on(talk(place, steps));
    runtime.shutdown_timeout(LAST);
}

fn furnish(place: &Place) {
    let folder = place.folder();
    for entry in fs::read_dir(folder).expect("the place is there").flatten() {
        let path = entry.path();
        let gone = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        gone.expect("empty the place");
    }
    let here = Place::NAME;
    let config = format!(
        "StateRoot = '{here}/state'\nRunRoot = '{here}/run'\nRoot = '{here}/runc'\n\
         CniConfDir = '{here}/net.d'\nCniCacheDir = '{here}/cni'\nContainerdTimeout = '100ms'\n"
    );
    scratch::write(&folder.join("config.toml"), config.as_bytes());
    for bundle in ["bundles/pod", "bundles/c"] {
        fs::create_dir_all(folder.join(bundle).join("rootfs")).expect("make a bundle");
    }
}

fn services(place: &Place, sleepers: &Sleepers) -> Services {
    let id = |text| Id::new(text).expect("an id");
    let config = place.folder().join("config.toml");
    let (options, _) = HandlerOptions::load_from(&config, None, None).expect("good options");
    let launch = Launch {
        namespace: id(NAMESPACE),
        id: id(POD),
        bundle: format!("{}/bundles/pod", Place::NAME).into(),
        socket: "/nonexistent.sock".into(),
        grpc_address: "/nonexistent.sock".into(),
        ttrpc_address: "/nonexistent.sock".into(),
        profile: None,
        options: None,
        level: LevelFilter::Off,
        bootstrap: true,
    };
    let sleepers = sleepers.clone();
    let runtime = move |settings| -> Arc<dyn OciRuntime> {
        Arc::new(Sleeping { settings, sleepers: sleepers.clone() })
    };
    let parties = Parties {
        containerd: Arc::new(FakeContainerd::default()),
        plugins: Arc::new(Plugins::succeeding()),
        runtimes: Arc::new(runtime),
        events: Arc::new(Silent),
        reaper: Reaper::start().expect("watch for children"),
        holder: HolderProgram(&[]),
    };
    Services::new(launch, options, parties, &Arc::new(Ending::default()))
}

async fn talk(place: &Place, steps: &[Step<'_>]) {
    let sleepers = Sleepers::default();
    let services = services(place, &sleepers);
    let all = Arc::new(services.register());
    let mut waiting = JoinSet::new();
    let bundle = |name: &str| place.folder().join("bundles").join(name).join("config.json");
    for step in steps {
        match step {
            Step::SandboxSpec(text) => scratch::write(&bundle("pod"), text),
            Step::ContainerSpec(text) => scratch::write(&bundle("c"), text),
            Step::Exits => {
                sleepers.end();
                tokio::time::sleep(REAPED).await;
            }
            Step::Call { method, payload, awaited } => {
                let (all, method, payload) = (Arc::clone(&all), *method, payload.to_vec());
                let call = async move { call(&all, method, payload).await };
                // These have an answer only when something ends.
                if *awaited && !method.1.starts_with("Wait") {
                    let _ = timeout(PATIENCE, call).await;
                } else {
                    waiting.spawn(call);
                    tokio::task::yield_now().await;
                }
            }
        }
    }
    let mut left = end(place, &all).await;
    // A task without sandbox may still have been coming, for a client that is gone.
    for _ in 0..AGAIN.1 {
        if left.is_empty() {
            break;
        }
        tokio::time::sleep(AGAIN.0).await;
        left = end(place, &all).await;
    }
    assert!(left.is_empty(), "left after the shutdown: {left:?}");
    sleepers.end();
    waiting.shutdown().await;
}

/// Shuts the sandbox down; answers the files that are left of it, or of tasks.
async fn end(place: &Place, all: &HashMap<String, Service>) -> Vec<PathBuf> {
    let shutdown = ShutdownSandboxRequest { sandbox_id: POD.into(), ..Default::default() };
    let shutdown = shutdown.write_to_bytes().expect("a request");
    let ended = timeout(END, call(all, (SANDBOX, "ShutdownSandbox"), shutdown)).await;
    if let Err(why) = ended.expect("the sandbox ends in time") {
        panic!("the sandbox cannot go: {why}");
    }
    let folders = ["state", "run", "runc"].map(|folder| place.folder().join(folder));
    folders.iter().flat_map(|folder| scratch::files(folder)).collect()
}

/// Makes a call; an answer that is an error says what is wrong with the request or with the world, never with the
/// service.
async fn call(
    services: &HashMap<String, Service>,
    (service, method): (&str, &str),
    payload: Vec<u8>,
) -> Result<(), String> {
    let handler = services.get(service).and_then(|service| service.methods.get(method));
    let handler = handler.unwrap_or_else(|| panic!("there is no {service}/{method}"));
    let context = TtrpcContext {
        mh: ttrpc::MessageHeader::default(),
        metadata: HashMap::default(),
        timeout_nano: 0,
        connection_data: Arc::default(),
    };
    let request = Request {
        service: service.to_owned(),
        method: method.to_owned(),
        payload,
        ..Request::default()
    };
    // It fails itself where the request is no message.
    let answer = handler.handler(context, request).await.map_err(|error| error.to_string())?;
    let status = answer.status.unwrap_or_default();
    if status.code() == Code::OK {
        return Ok(());
    }
    assert!(!status.message().is_empty(), "{method} fails without a word");
    assert!(!status.message().contains("given up"), "{}", status.message());
    Err(status.message().to_owned())
}
