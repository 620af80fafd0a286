//! Events are sent to containerd in the order in which they were published, and kept until it has them, within the
//! bounds of [`queue`].

mod queue;

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use containerd_shim_protos::{
    protobuf::{
        self, CodedOutputStream, MessageDyn, MessageField,
        well_known_types::{any::Any, timestamp::Timestamp},
    },
    shim::{event::Envelope, events::ForwardRequest, events_ttrpc_async::EventsClient},
    ttrpc::{self, Code, asynchronous::Client, asynchronous::transport::Socket},
};
use mooring::id::Id;
use tokio::{
    net::UnixStream,
    sync::{Notify, watch},
    time::timeout,
};

use self::queue::Queue;
use crate::{events::Events, memory};

/// How long containerd may take for one event.
const ANSWER: Duration = Duration::from_secs(5);
/// How long a connection without events is kept.
const IDLE: Duration = Duration::from_secs(3);
/// The pauses between attempts while containerd is away grow from the first to the last.
const PAUSES: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));
/// How often an event is sent again that containerd answers with an error that says nothing certain.
const DOUBTS: u32 = 10;

#[derive(Clone)]
pub struct Publisher {
    shared: Arc<Shared>,
}

struct Shared {
    namespace: String,
    queue: Mutex<Queue>,
    /// How many events are not sent yet.
    waiting: watch::Sender<usize>,
    retry: Notify,
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sent(&self) {
        let mut queue = self.queue();
        let dropped = queue.pop();
        self.waiting.send_replace(queue.len());
        drop(queue);
        if let Some(dropped) = dropped {
            log::warn!(
                "{dropped} events were dropped while containerd was away, none of them an exit"
            );
        }
    }
}

impl Publisher {
    /// Sends to the ttrpc socket at `address`, for as long as the tokio runtime that this is called in lives.
    pub fn start(address: PathBuf, namespace: &Id) -> Self {
        let shared = Arc::new(Shared {
            namespace: namespace.to_string(),
            queue: Mutex::default(),
            waiting: watch::Sender::new(0),
            retry: Notify::new(),
        });
        tokio::spawn(send_all(Arc::clone(&shared), address));
        Self { shared }
    }

    /// Says that containerd may be there again: what waits is tried at once.
    pub fn retry(&self) {
        self.shared.retry.notify_one();
    }

    /// Waits until everything is sent, at most for `limit`. Returns how many events are left.
    pub async fn drain(&self, limit: Duration) -> usize {
        let mut waiting = self.shared.waiting.subscribe();
        // The sender of the number lives as long as this publisher.
        let _ = timeout(limit, waiting.wait_for(|waiting| *waiting == 0)).await;
        self.shared.queue().len()
    }
}

impl Events for Publisher {
    fn publish(&self, topic: &'static str, event: &dyn MessageDyn) {
        let request = match envelope(&self.shared.namespace, topic, event) {
            Ok(request) => request,
            // Only a message with required fields can fail, and proto3 has none.
            Err(error) => return log::error!("encode the event {topic}: {error}"),
        };
        let mut queue = self.shared.queue();
        let first_dropped = queue.push(request);
        self.shared.waiting.send_replace(queue.len());
        drop(queue);
        if first_dropped {
            log::warn!(
                "too many events wait for containerd: the oldest are dropped, no exit among them"
            );
        }
    }
}

/// An event, as it is sent.
fn envelope(
    namespace: &str,
    topic: &'static str,
    event: &dyn MessageDyn,
) -> protobuf::Result<ForwardRequest> {
    let event = Any { type_url: type_of(topic, event), value: encode(event)?, ..Any::default() };
    let envelope = Envelope {
        timestamp: MessageField::some(Timestamp::now()),
        namespace: namespace.to_owned(),
        topic: topic.to_owned(),
        event: MessageField::some(event),
        ..Envelope::default()
    };
    Ok(ForwardRequest { envelope: MessageField::some(envelope), ..ForwardRequest::default() })
}

/// What `write_to_bytes_dyn` does, without asking reflection for a name to put into an error.
fn encode(event: &dyn MessageDyn) -> protobuf::Result<Vec<u8>> {
    // Also puts the sizes of inner messages where the writing finds them.
    event.compute_size_dyn();
    let mut value = Vec::new();
    let mut stream = CodedOutputStream::vec(&mut value);
    event.write_to_with_cached_sizes_dyn(&mut stream)?;
    stream.flush()?;
    drop(stream);
    Ok(value)
}

/// The full name of an event's type. Reflection knows it too, at the price of holding all descriptors in memory.
fn type_of(topic: &str, event: &dyn MessageDyn) -> String {
    let name = match topic {
        "/tasks/create" => "TaskCreate",
        "/tasks/start" => "TaskStart",
        "/tasks/oom" => "TaskOOM",
        "/tasks/exit" => "TaskExit",
        "/tasks/delete" => "TaskDelete",
        "/tasks/exec-added" => "TaskExecAdded",
        "/tasks/exec-started" => "TaskExecStarted",
        "/tasks/paused" => "TaskPaused",
        "/tasks/resumed" => "TaskResumed",
        "/tasks/checkpointed" => "TaskCheckpointed",
        _ => return event.descriptor_dyn().full_name().to_owned(),
    };
    format!("containerd.events.{name}")
}

/// What became of an attempt to send.
enum Attempt {
    Sent,
    /// containerd will never take it.
    Refused(ttrpc::Error),
    /// containerd answered something that may be different the next time.
    Doubtful(ttrpc::Error),
    Away(String),
}

async fn send_all(shared: Arc<Shared>, address: PathBuf) {
    let mut waiting = shared.waiting.subscribe();
    let mut line = None;
    let (mut pause, mut doubts) = (PAUSES.0, 0);
    loop {
        let Some(request) = shared.queue().front().cloned() else {
            let news = waiting.wait_for(|waiting| *waiting > 0);
            if line.is_none() {
                let _ = news.await;
            } else if timeout(IDLE, news).await.is_err() {
                line = None;
                memory::worked();
            }
            continue;
        };
        let topic = request.envelope.as_ref().map_or("", |envelope| &envelope.topic);
        match attempt(&mut line, &address, &request).await {
            Attempt::Sent => {}
            Attempt::Refused(error) => {
                log::error!("containerd refuses the event {topic}, it is dropped: {error}");
            }
            Attempt::Doubtful(error) if doubts >= DOUBTS => {
                log::error!("containerd does not take the event {topic}, it is dropped: {error}");
            }
            other => {
                let reason = match other {
                    Attempt::Doubtful(error) => {
                        doubts += 1;
                        error.to_string()
                    }
                    Attempt::Away(reason) => reason,
                    Attempt::Sent | Attempt::Refused(_) => String::new(),
                };
                if pause == PAUSES.0 {
                    log::warn!(
                        "event {topic} waits for containerd at {}: {reason}",
                        address.display()
                    );
                }
                line = None;
                // Either ends the pause.
                let _ = timeout(pause, shared.retry.notified()).await;
                pause = (pause * 2).min(PAUSES.1);
                continue;
            }
        }
        shared.sent();
        (pause, doubts) = (PAUSES.0, 0);
    }
}

async fn attempt(
    line: &mut Option<EventsClient>,
    address: &Path,
    request: &ForwardRequest,
) -> Attempt {
    let client = match line {
        Some(client) => client,
        None => match connect(address).await {
            Ok(client) => line.insert(client),
            Err(error) => return Attempt::Away(error.to_string()),
        },
    };
    let context = ttrpc::context::with_duration(ANSWER);
    // The client bounds the answer, not the way into its own queue.
    let error = match timeout(ANSWER * 2, client.forward(context, request)).await {
        Ok(Ok(_)) => return Attempt::Sent,
        Ok(Err(error)) => error,
        Err(_) => return Attempt::Away("no answer".into()),
    };
    let ttrpc::Error::RpcStatus(status) = &error else {
        return Attempt::Away(error.to_string());
    };
    match status.code() {
        Code::INVALID_ARGUMENT | Code::OUT_OF_RANGE => Attempt::Refused(error),
        Code::UNAVAILABLE | Code::DEADLINE_EXCEEDED | Code::CANCELLED | Code::ABORTED => {
            Attempt::Away(error.to_string())
        }
        _ => Attempt::Doubtful(error),
    }
}

async fn connect(address: &Path) -> io::Result<EventsClient> {
    // Not the client's own `connect`, which blocks when the queue of a stopped containerd is full.
    let stream = UnixStream::connect(address).await?;
    Ok(EventsClient::new(Client::new(Socket::from(stream))))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use containerd_shim_protos::{
        api::Empty,
        events::task::{TaskExit, TaskOOM},
        shim::events_ttrpc_async::{Events as Service, create_events},
        ttrpc::asynchronous::{Server, TtrpcContext},
    };

    use super::*;

    /// A containerd that refuses OOM events for good, and answers the first `failures` others with an error.
    #[derive(Default)]
    struct Fake {
        failures: AtomicUsize,
        got: Mutex<Vec<Envelope>>,
    }

    struct Handle(Arc<Fake>);

    #[async_trait::async_trait]
    impl Service for Handle {
        async fn forward(&self, _: &TtrpcContext, request: ForwardRequest) -> ttrpc::Result<Empty> {
            let envelope = request.envelope.unwrap();
            let status = |code| Err(ttrpc::Error::RpcStatus(ttrpc::get_status(code, "no")));
            if envelope.topic == "/tasks/oom" {
                return status(Code::INVALID_ARGUMENT);
            }
            let left = |left: usize| left.checked_sub(1);
            if self.0.failures.fetch_update(Ordering::SeqCst, Ordering::SeqCst, left).is_ok() {
                return status(Code::UNKNOWN);
            }
            self.0.got.lock().unwrap().push(envelope);
            Ok(Empty::new())
        }
    }

    async fn serve(path: &Path, fake: &Arc<Fake>) -> Server {
        let address = format!("unix://{}", path.display());
        let service = create_events(Arc::new(Handle(Arc::clone(fake))));
        let mut server = Server::new().bind(&address).unwrap().register_service(service);
        server.start().await.unwrap();
        server
    }

    fn exit(publisher: &Publisher, pid: u32) {
        publisher.publish("/tasks/exit", &TaskExit { pid, ..TaskExit::default() });
    }

    fn pids(fake: &Fake) -> Vec<u32> {
        use containerd_shim_protos::protobuf::Message;
        let pid =
            |envelope: &Envelope| TaskExit::parse_from_bytes(&envelope.event.value).unwrap().pid;
        fake.got.lock().unwrap().iter().map(pid).collect()
    }

    fn publisher(path: &Path) -> Publisher {
        Publisher::start(path.into(), &Id::new("k8s.io").unwrap())
    }

    #[tokio::test]
    async fn events_are_kept_in_order_until_containerd_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c");
        let publisher = publisher(&path);
        (0..50).for_each(|pid| exit(&publisher, pid));
        assert_eq!(publisher.drain(Duration::from_millis(50)).await, 50);
        let fake = Arc::new(Fake::default());
        let _server = serve(&path, &fake).await;
        publisher.retry();
        (50..60).for_each(|pid| exit(&publisher, pid));
        assert_eq!(publisher.drain(Duration::from_secs(5)).await, 0);
        assert_eq!(pids(&fake), (0..60).collect::<Vec<_>>());
        let got = fake.got.lock().unwrap();
        assert_eq!(got[0].namespace, "k8s.io");
        assert_eq!(got[0].topic, "/tasks/exit");
        assert_eq!(got[0].event.type_url, "containerd.events.TaskExit");
        assert!(got[0].timestamp.seconds > 0);
    }

    #[tokio::test]
    async fn a_restart_of_containerd_loses_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c");
        let publisher = publisher(&path);
        let fake = Arc::new(Fake::default());
        let mut server = serve(&path, &fake).await;
        exit(&publisher, 1);
        assert_eq!(publisher.drain(Duration::from_secs(5)).await, 0);
        server.shutdown().await.unwrap();
        std::fs::remove_file(&path).unwrap();
        exit(&publisher, 2);
        exit(&publisher, 3);
        assert_eq!(publisher.drain(Duration::from_millis(50)).await, 2);
        let _server = serve(&path, &fake).await;
        assert_eq!(publisher.drain(Duration::from_secs(5)).await, 0);
        assert_eq!(pids(&fake), [1, 2, 3]);
    }

    #[tokio::test]
    async fn only_a_certain_no_drops_an_event() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c");
        let fake = Arc::new(Fake { failures: AtomicUsize::new(3), ..Fake::default() });
        let _server = serve(&path, &fake).await;
        let publisher = publisher(&path);
        publisher.publish("/tasks/oom", &TaskOOM::default());
        exit(&publisher, 1);
        exit(&publisher, 2);
        assert_eq!(publisher.drain(Duration::from_secs(5)).await, 0);
        assert_eq!(pids(&fake), [1, 2]);
    }

    #[test]
    fn events_are_encoded_as_reflection_would() {
        let event = TaskExit {
            container_id: "c".into(),
            pid: 7,
            exited_at: MessageField::some(Timestamp::now()),
            ..TaskExit::default()
        };
        assert_eq!(
            encode(&event).unwrap(),
            (&event as &dyn MessageDyn).write_to_bytes_dyn().unwrap()
        );
    }

    #[test]
    fn the_names_of_types_are_the_messages_own() {
        use containerd_shim_protos::events::task as api;
        let events: [(&str, Box<dyn MessageDyn>); 10] = [
            ("/tasks/create", Box::new(api::TaskCreate::new())),
            ("/tasks/start", Box::new(api::TaskStart::new())),
            ("/tasks/oom", Box::new(api::TaskOOM::new())),
            ("/tasks/exit", Box::new(api::TaskExit::new())),
            ("/tasks/delete", Box::new(api::TaskDelete::new())),
            ("/tasks/exec-added", Box::new(api::TaskExecAdded::new())),
            ("/tasks/exec-started", Box::new(api::TaskExecStarted::new())),
            ("/tasks/paused", Box::new(api::TaskPaused::new())),
            ("/tasks/resumed", Box::new(api::TaskResumed::new())),
            ("/tasks/checkpointed", Box::new(api::TaskCheckpointed::new())),
        ];
        for (topic, event) in &events {
            assert_eq!(type_of(topic, &**event), event.descriptor_dyn().full_name());
        }
    }
}
