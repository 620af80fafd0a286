//! A pod's life as plugins hear of it: plugins in this process that listen at sockets, and programs.

use std::{
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use serde_json::{Value, json};
use tokio::{
    net::UnixListener,
    time::{Instant, sleep},
};
use ttrpc::r#async::{
    Client, Server, TtrpcContext,
    transport::{Listener, Socket},
};

use super::{
    api::{
        AboutRequest, ConfigureRequest, ConfigureResponse, ContainerAdjustment, ContainerUpdate,
        CreateContainerResponse, Empty, KeyValue, RegisterPluginRequest, StateChangeEvent,
        SynchronizeRequest, SynchronizeResponse, ValidateContainerAdjustmentRequest,
        ValidateContainerAdjustmentResponse,
        services::{Plugin as Service, RuntimeClient, create_plugin},
    },
    *,
};
use crate::process::Reaper;

/// What happened, of all plugins of a test together.
type Heard = Arc<Mutex<Vec<String>>>;

/// What a plugin does.
#[derive(Clone, Default)]
struct Manners {
    /// The events that it asks for; 0 is all.
    events: i32,
    adjust: ContainerAdjustment,
    update: Option<ContainerUpdate>,
    /// Calls that it never answers, that it refuses, and that it does not know.
    hangs: &'static str,
    refuses: &'static str,
    unknown: &'static str,
    rejects: bool,
}

struct Fake {
    name: &'static str,
    manners: Manners,
    heard: Heard,
}

impl Fake {
    async fn does(&self, call: &str, about: &AboutRequest) -> ttrpc::Result<()> {
        let container = about.container.as_ref().map(|one| format!(" {} {}", one.id, one.state));
        let said = format!("{} {call}{}", self.name, container.unwrap_or_default());
        if self.manners.unknown == call {
            return Err(status(ttrpc::Code::UNIMPLEMENTED, "method not implemented"));
        }
        self.heard.lock().unwrap().push(said);
        if self.manners.hangs == call {
            sleep(Duration::from_hours(1)).await;
        }
        if self.manners.refuses == call {
            return Err(status(ttrpc::Code::UNKNOWN, "not this one"));
        }
        Ok(())
    }
}

fn status(code: ttrpc::Code, message: &str) -> ttrpc::Error {
    ttrpc::Error::RpcStatus(ttrpc::get_status(code, message))
}

macro_rules! told {
    ($($method:ident $call:literal)*) => {
        #[async_trait]
        impl Service for Fake {
            async fn configure(&self, _: &TtrpcContext, request: ConfigureRequest) -> ttrpc::Result<ConfigureResponse> {
                assert_eq!(request.runtime_name, "mooring");
                self.heard.lock().unwrap().push(format!("{} Configure {}", self.name, request.config));
                Ok(ConfigureResponse { events: self.manners.events, ..ConfigureResponse::default() })
            }
            async fn synchronize(&self, _: &TtrpcContext, request: SynchronizeRequest) -> ttrpc::Result<SynchronizeResponse> {
                self.does(&format!("Synchronize {}", request.pods.len()), &AboutRequest::default()).await?;
                if self.manners.hangs == "Synchronize" {
                    sleep(Duration::from_hours(1)).await;
                }
                Ok(SynchronizeResponse::default())
            }
            async fn create_container(&self, _: &TtrpcContext, about: AboutRequest) -> ttrpc::Result<CreateContainerResponse> {
                self.does("CreateContainer", &about).await?;
                let env = about.container.env.join(",");
                self.heard.lock().unwrap().push(format!("{} sees {env}", self.name));
                Ok(CreateContainerResponse {
                    adjust: Some(self.manners.adjust.clone()).into(),
                    update: self.manners.update.clone().into_iter().collect(),
                    ..CreateContainerResponse::default()
                })
            }
            async fn validate_container_adjustment(&self, _: &TtrpcContext, request: ValidateContainerAdjustmentRequest) -> ttrpc::Result<ValidateContainerAdjustmentResponse> {
                let owners = request.owners.owners.get(&request.container.id).map(|all| all.compound.len());
                let said = format!("{} judges {} of {} by {owners:?}", self.name, request.adjust.env.len(), request.plugins.len());
                self.heard.lock().unwrap().push(said);
                Ok(ValidateContainerAdjustmentResponse { reject: self.manners.rejects, reason: "no".into(), ..ValidateContainerAdjustmentResponse::default() })
            }
            async fn state_change(&self, _: &TtrpcContext, change: StateChangeEvent) -> ttrpc::Result<Empty> {
                self.heard.lock().unwrap().push(format!("{} StateChange {}", self.name, change.event));
                Ok(Empty::default())
            }
            $(async fn $method(&self, _: &TtrpcContext, about: AboutRequest) -> ttrpc::Result<Empty> {
                self.does($call, &about).await?;
                Ok(Empty::default())
            })*
        }
    };
}

told! {
    run_pod_sandbox "RunPodSandbox"
    stop_pod_sandbox "StopPodSandbox"
    remove_pod_sandbox "RemovePodSandbox"
    post_create_container "PostCreateContainer"
    start_container "StartContainer"
    post_start_container "PostStartContainer"
    remove_container "RemoveContainer"
}

/// A plugin that listens at a socket and serves whoever comes.
fn plugin(
    folder: &Path,
    index: &str,
    name: &'static str,
    manners: Manners,
    heard: &Heard,
) -> PathBuf {
    let path = folder.join(format!("{index}-{name}.sock"));
    let listener = UnixListener::bind(&path).unwrap();
    let (index, heard) = (index.to_owned(), Arc::clone(heard));
    tokio::spawn(async move {
        // Each conversation for as long as the test runs.
        let mut all = Vec::new();
        while let Ok((trunk, _)) = listener.accept().await {
            let mux::Connections { plugin, runtime, carrier } = mux::connections(trunk);
            let fake = Fake { name, manners: manners.clone(), heard: Arc::clone(&heard) };
            // It has no method for StopContainer.
            let services = create_plugin(Arc::new(fake));
            let mut server = Server::new()
                .add_listener(Listener::new(register::Once(Some(plugin))))
                .register_service(services);
            server.start().await.unwrap();
            let client = RuntimeClient::new(Client::new(Socket::new(runtime)));
            let request = RegisterPluginRequest {
                plugin_name: name.into(),
                plugin_idx: index.clone(),
                ..RegisterPluginRequest::default()
            };
            client.register_plugin(ttrpc::context::with_timeout(0), &request).await.unwrap();
            all.push((server, carrier, client));
        }
    });
    path
}

fn settings(plugins: Vec<PathBuf>, folder: &Path) -> Settings {
    Settings { plugins, conf_dir: folder.into(), timeout: Duration::from_secs(20) }
}

async fn announcer(settings: &Settings, known: bool) -> Announcer {
    let pod = Pod { id: "pod".into(), ..Pod::default() };
    let reaper = Reaper::start().unwrap();
    Announcer::start(&pod, settings, &reaper, ("MOORING_NRI_POD", "test/pod"), known).await
}

fn heard(heard: &Heard) -> Vec<String> {
    std::mem::take(&mut *heard.lock().unwrap())
}

fn variable(key: &str, value: &str) -> ContainerAdjustment {
    let env = vec![KeyValue { key: key.into(), value: value.into(), ..KeyValue::default() }];
    ContainerAdjustment { env, ..ContainerAdjustment::default() }
}

fn spec() -> Value {
    json!({"process": {"env": ["A=1"]}})
}

#[tokio::test]
async fn plugins_hear_of_a_pods_life_in_the_order_of_their_index() {
    let folder = tempfile::tempdir().unwrap();
    let log = Heard::default();
    std::fs::write(folder.path().join("10-first.conf"), "own").unwrap();
    let second = Manners { adjust: variable("C", "3"), ..Manners::default() };
    let first = Manners { adjust: variable("B", "2"), ..Manners::default() };
    let plugins = vec![
        plugin(folder.path(), "20", "second", second, &log),
        plugin(folder.path(), "10", "first", first, &log),
    ];
    let announcer = announcer(&settings(plugins, folder.path()), false).await;
    let mut begun = heard(&log);
    begun.sort();
    assert_eq!(
        begun,
        ["first Configure own", "first Synchronize 0", "second Configure ", "second Synchronize 0"]
    );
    announcer.pod(Event::RunPodSandbox).await.unwrap();
    let adjusted = announcer.create("c", spec()).await.unwrap();
    assert_eq!(adjusted["process"]["env"], json!(["A=1", "B=2", "C=3"]));
    announcer.container(Event::PostCreateContainer, "c", 7);
    announcer.starting("c").await.unwrap();
    announcer.container(Event::PostStartContainer, "c", 7);
    announcer.container(Event::StopContainer, "c", 137);
    announcer.container(Event::RemoveContainer, "c", 0);
    announcer.container(Event::RemoveContainer, "unknown", 0);
    announcer.pod(Event::StopPodSandbox).await.unwrap();
    announcer.pod(Event::RemovePodSandbox).await.unwrap();
    announcer.end(Instant::now() + Duration::from_secs(5)).await;
    assert_eq!(
        heard(&log),
        [
            "first RunPodSandbox",
            "second RunPodSandbox",
            "first CreateContainer c 0",
            "first sees A=1",
            "second CreateContainer c 0",
            "second sees A=1,B=2",
            "first judges 2 of 2 by Some(1)",
            "second judges 2 of 2 by Some(1)",
            "first PostCreateContainer c 1",
            "second PostCreateContainer c 1",
            "first StartContainer c 1",
            "second StartContainer c 1",
            "first PostStartContainer c 3",
            "second PostStartContainer c 3",
            "first RemoveContainer c 4",
            "second RemoveContainer c 4",
            "first StopPodSandbox",
            "second StopPodSandbox",
            "first RemovePodSandbox",
            "second RemovePodSandbox",
        ]
    );
}

#[tokio::test]
async fn a_plugin_hears_of_what_it_asked_for_and_an_older_one_by_the_older_call() {
    let folder = tempfile::tempdir().unwrap();
    let log = Heard::default();
    let events = Event::RunPodSandbox.bit() | Event::StopPodSandbox.bit();
    let manners = Manners { events, unknown: "StopPodSandbox", ..Manners::default() };
    let plugins = vec![plugin(folder.path(), "10", "x", manners, &log)];
    let announcer = announcer(&settings(plugins, folder.path()), true).await;
    for event in [Event::RunPodSandbox, Event::StopPodSandbox, Event::RemovePodSandbox] {
        announcer.pod(event).await.unwrap();
    }
    assert_eq!(
        heard(&log),
        ["x Configure ", "x Synchronize 1", "x RunPodSandbox", "x StateChange 2"]
    );
}

#[tokio::test]
async fn what_a_plugin_refuses_does_not_happen_and_an_end_is_not_for_it_to_refuse() {
    let folder = tempfile::tempdir().unwrap();
    for (call, event) in
        [("RunPodSandbox", Event::RunPodSandbox), ("StopPodSandbox", Event::StopPodSandbox)]
    {
        let log = Heard::default();
        let manners = Manners { refuses: call, ..Manners::default() };
        let name = if event == Event::RunPodSandbox { "run" } else { "stop" };
        let plugins = vec![plugin(folder.path(), "10", name, manners, &log)];
        let announcer = announcer(&settings(plugins, folder.path()), false).await;
        let told = announcer.pod(event).await.map_err(|error| error.to_string());
        let wanted = match event {
            Event::RunPodSandbox => {
                Err("NRI plugin \"10-run\": RunPodSandbox: not this one".to_owned())
            }
            _ => Ok(()),
        };
        assert_eq!(told, wanted);
        // It is asked on: it has answered.
        announcer.pod(Event::RemovePodSandbox).await.unwrap();
        assert_eq!(heard(&log).last().unwrap(), &format!("{name} RemovePodSandbox"));
    }
}

#[tokio::test]
async fn a_plugin_that_hangs_is_asked_no_more_and_the_others_are() {
    let folder = tempfile::tempdir().unwrap();
    for hangs in ["Synchronize", "RunPodSandbox", "CreateContainer"] {
        let log = Heard::default();
        let folder = folder.path().join(hangs);
        std::fs::create_dir(&folder).unwrap();
        let manners = Manners { hangs, ..Manners::default() };
        let plugins = vec![
            plugin(&folder, "10", "hangs", manners, &log),
            plugin(
                &folder,
                "20",
                "other",
                Manners { adjust: variable("B", "2"), ..Manners::default() },
                &log,
            ),
        ];
        let settings = Settings { timeout: Duration::from_secs(2), ..settings(plugins, &folder) };
        let announcer = announcer(&settings, false).await;
        announcer.pod(Event::RunPodSandbox).await.unwrap();
        let adjusted = announcer.create("c", spec()).await.unwrap();
        assert_eq!(adjusted["process"]["env"], json!(["A=1", "B=2"]), "{hangs}");
        heard(&log);
        announcer.pod(Event::StopPodSandbox).await.unwrap();
        assert_eq!(heard(&log), ["other StopPodSandbox"], "{hangs}");
    }
}

#[tokio::test]
async fn what_is_not_done_is_the_creations_error_and_those_asked_before_hear_of_its_end() {
    let folder = tempfile::tempdir().unwrap();
    let log = Heard::default();
    let update = ContainerUpdate { container_id: "other".into(), ..ContainerUpdate::default() };
    let plugins = vec![
        plugin(folder.path(), "10", "first", Manners::default(), &log),
        plugin(
            folder.path(),
            "20",
            "asks",
            Manners { update: Some(update), ..Manners::default() },
            &log,
        ),
    ];
    let announcer = announcer(&settings(plugins, folder.path()), false).await;
    let error = announcer.create("c", spec()).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "NRI plugin \"20-asks\": CreateContainer: it asks for an update of container \"other\", which Mooring does not do"
    );
    assert_eq!(crate::error::Coded::code(&error), crate::error::Code::Unimplemented);
    announcer.pod(Event::StopPodSandbox).await.unwrap();
    let heard = heard(&log);
    assert!(heard.contains(&"first RemoveContainer c 0".to_owned()), "{heard:?}");
}

#[tokio::test]
async fn a_plugin_that_judges_may_reject_what_others_ask_for() {
    let folder = tempfile::tempdir().unwrap();
    let log = Heard::default();
    let plugins = vec![
        plugin(
            folder.path(),
            "10",
            "asks",
            Manners { adjust: variable("B", "2"), ..Manners::default() },
            &log,
        ),
        plugin(folder.path(), "90", "judge", Manners { rejects: true, ..Manners::default() }, &log),
    ];
    let announcer = announcer(&settings(plugins, folder.path()), false).await;
    let error = announcer.create("c", spec()).await.unwrap_err();
    assert_eq!(error.to_string(), "NRI plugin \"90-judge\": ValidateContainerAdjustment: no");
}

#[tokio::test]
async fn what_cannot_be_started_or_does_not_register_is_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let script = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    };
    let environment = folder.path().join("environment");
    let log = Heard::default();
    let plugins = vec![
        folder.path().join("10-missing"),
        script("no-index", "exit 0"),
        // It shows what it was given: its socket too.
        script(
            "30-ends",
            &format!(
                "env >{0}.new; readlink /proc/$$/fd/3 >>{0}.new; mv {0}.new {0}; exit 1",
                environment.display()
            ),
        ),
        plugin(folder.path(), "40", "good", Manners::default(), &log),
    ];
    let announcer = announcer(&settings(plugins, folder.path()), false).await;
    announcer.pod(Event::RunPodSandbox).await.unwrap();
    assert_eq!(heard(&log).last().unwrap(), "good RunPodSandbox");
    let seen = std::fs::read_to_string(environment).unwrap();
    for wanted in [
        "NRI_PLUGIN_NAME=ends",
        "NRI_PLUGIN_IDX=30",
        "NRI_PLUGIN_SOCKET=3",
        "MOORING_NRI_POD=test/pod",
        "socket:[",
    ] {
        assert!(seen.contains(wanted), "{wanted} in {seen}");
    }
}

#[tokio::test]
async fn without_the_shim_other_plugins_hear_of_the_pod_and_its_end() {
    let folder = tempfile::tempdir().unwrap();
    let log = Heard::default();
    let plugins = vec![plugin(folder.path(), "10", "x", Manners::default(), &log)];
    let record = NriRecord {
        settings: settings(plugins, folder.path()),
        pod: Pod { id: "pod".into(), ..Pod::default() },
        mark: "test/pod".into(),
    };
    assert_eq!(record.variable(), "MOORING_NRI_POD=test/pod");
    let text = serde_json::to_string(&record).unwrap();
    let record: NriRecord = serde_json::from_str(&text).unwrap();
    let reaper = Reaper::start().unwrap();
    record.release(&reaper, Instant::now() + Duration::from_secs(10)).await;
    assert_eq!(
        heard(&log),
        ["x Configure ", "x Synchronize 1", "x StopPodSandbox", "x RemovePodSandbox"]
    );
}

#[tokio::test]
async fn plugins_that_hang_keep_no_release_beyond_its_time() {
    let folder = tempfile::tempdir().unwrap();
    let log = Heard::default();
    let manners = Manners { hangs: "StopPodSandbox", ..Manners::default() };
    let plugins = vec![plugin(folder.path(), "10", "x", manners, &log)];
    let settings =
        Settings { timeout: Duration::from_hours(1), ..settings(plugins, folder.path()) };
    let record = NriRecord { settings, pod: Pod::default(), mark: String::new() };
    let reaper = Reaper::start().unwrap();
    // It ends at all. On a busy machine the plugin may not have come to its end by then.
    for tenths in [3, 30, 300] {
        record.release(&reaper, Instant::now() + Duration::from_millis(tenths * 100)).await;
        if heard(&log).last().is_some_and(|last| last == "x StopPodSandbox") {
            return;
        }
    }
    panic!("the plugin was not told: {:?}", heard(&log));
}
