//! What stands between shims and containerd, where it is told to: it answers every second call with Unavailable, or takes
//! its time. Whoever knew containerd's sockets finds this behind them; connections that were made before stay.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use async_trait::async_trait;
use containerd_client::tonic::Status;
use containerd_client::tonic::body::Body;
use containerd_client::tonic::transport::Channel;
use containerd_shim_protos::api::Empty;
use containerd_shim_protos::shim::events::ForwardRequest;
use containerd_shim_protos::shim::events_ttrpc_async::{Events, EventsClient, create_events};
use containerd_shim_protos::ttrpc::asynchronous::{Client, Server, TtrpcContext};
use containerd_shim_protos::ttrpc::{self, Code};
use hyper::body::Incoming;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::UnixListener;
use tokio::task::{JoinHandle, JoinSet};
use tower::Service;

use crate::node::{Node, channel_to};

/// How both sockets behave.
#[derive(Default)]
struct Mood {
    refuses: AtomicBool,
    delay: AtomicU64,
    calls: AtomicUsize,
    /// Calls since it refuses.
    since: AtomicUsize,
    refused: AtomicUsize,
    events: Mutex<Vec<(String, String)>>,
}

impl Mood {
    /// Whether this call is to be passed on, after its delay.
    async fn lets_through(&self) -> bool {
        self.calls.fetch_add(1, Ordering::SeqCst);
        if self.refuses.load(Ordering::SeqCst) {
            let number = self.since.fetch_add(1, Ordering::SeqCst);
            if number.is_multiple_of(2) {
                self.refused.fetch_add(1, Ordering::SeqCst);
                return false;
            }
        }
        tokio::time::sleep(Duration::from_millis(self.delay.load(Ordering::SeqCst))).await;
        true
    }
}

/// The stand-in, until it is dropped.
pub struct Between {
    // Moved back when this is dropped.
    _sockets: [Moved; 2],
    mood: Arc<Mood>,
    grpc: JoinHandle<()>,
    _ttrpc: Mutex<Server>,
}

/// A socket of containerd's under another name.
struct Moved {
    known: PathBuf,
    real: PathBuf,
}

impl Moved {
    fn new(known: PathBuf) -> Result<Self> {
        let mut real = known.clone().into_os_string();
        real.push(".real");
        let real = PathBuf::from(real);
        fs::rename(&known, &real).with_context(|| format!("move {}", known.display()))?;
        Ok(Self { known, real })
    }
}

impl Drop for Moved {
    fn drop(&mut self) {
        let _ = fs::rename(&self.real, &self.known);
    }
}

impl Between {
    /// Steps between. At first everything is passed on.
    pub async fn install(node: &Node) -> Result<Self> {
        let grpc = Moved::new(node.socket())?;
        let ttrpc = Moved::new(node.folder().join("c.sock.ttrpc"))?;
        let mood = Arc::new(Mood::default());
        let serve = serve_grpc(&grpc, Arc::clone(&mood))?;
        let events = Passing { real: ttrpc.real.clone(), mood: Arc::clone(&mood) };
        let address = format!("unix://{}", ttrpc.known.display());
        let mut server = Server::new()
            .bind(&address)
            .map_err(|error| anyhow!("bind {address}: {error}"))?
            .register_service(create_events(Arc::new(events)));
        server.start().await.map_err(|error| anyhow!("serve {address}: {error}"))?;
        Ok(Self {
            _sockets: [grpc, ttrpc],
            mood,
            grpc: tokio::spawn(serve),
            _ttrpc: Mutex::new(server),
        })
    }

    /// From now on every second call is answered with Unavailable, the first one too; or none any more.
    pub fn refuse(&self, refuse: bool) {
        self.mood.since.store(0, Ordering::SeqCst);
        self.mood.refuses.store(refuse, Ordering::SeqCst);
    }

    /// From now on calls are passed on after this time.
    pub fn delay(&self, delay: Duration) {
        let millis = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
        self.mood.delay.store(millis, Ordering::SeqCst);
    }

    /// How many calls came, and how many were refused.
    pub fn calls(&self) -> (usize, usize) {
        (self.mood.calls.load(Ordering::SeqCst), self.mood.refused.load(Ordering::SeqCst))
    }

    /// The events that containerd took of a container, in order.
    pub fn events_of(&self, container: &str) -> Vec<String> {
        let events = self.mood.events.lock().unwrap_or_else(PoisonError::into_inner);
        events.iter().filter(|(_, id)| id == container).map(|(topic, _)| topic.clone()).collect()
    }
}

impl Drop for Between {
    fn drop(&mut self) {
        self.grpc.abort();
    }
}

fn serve_grpc(socket: &Moved, mood: Arc<Mood>) -> Result<impl Future<Output = ()> + use<>> {
    let listener = UnixListener::bind(&socket.known).context("stand in for containerd")?;
    let real = channel_to(&socket.real)?;
    Ok(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            let (real, mood) = (real.clone(), Arc::clone(&mood));
            connections.spawn(async move {
                let pass = hyper::service::service_fn(move |request| {
                    pass_on(real.clone(), Arc::clone(&mood), request)
                });
                let http = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                let _ = http.serve_connection(TokioIo::new(stream), pass).await;
            });
        }
    })
}

async fn pass_on(
    mut real: Channel,
    mood: Arc<Mood>,
    request: Request<Incoming>,
) -> Result<Response<Body>, std::convert::Infallible> {
    if !mood.lets_through().await {
        return Ok(Status::unavailable("told to be").into_http());
    }
    let ready = std::future::poll_fn(|context| real.poll_ready(context)).await;
    let answer = match ready {
        Ok(()) => real.call(request.map(Body::new)).await,
        Err(error) => Err(error),
    };
    Ok(answer.unwrap_or_else(|error| Status::unavailable(error.to_string()).into_http()))
}

/// containerd's event service.
struct Passing {
    real: PathBuf,
    mood: Arc<Mood>,
}

#[async_trait]
impl Events for Passing {
    async fn forward(&self, _: &TtrpcContext, request: ForwardRequest) -> ttrpc::Result<Empty> {
        if !self.mood.lets_through().await {
            let status = ttrpc::get_status(Code::UNAVAILABLE, "told to be");
            return Err(ttrpc::Error::RpcStatus(status));
        }
        let address = format!("unix://{}", self.real.display());
        let client = EventsClient::new(Client::connect(&address).await?);
        let limit = ttrpc::context::with_duration(Duration::from_secs(5));
        let answer = client.forward(limit, &request).await?;
        if let Some(envelope) = request.envelope.as_ref() {
            let content = envelope.event.as_ref().map(|event| event.value.as_slice());
            let id = first_text(content.unwrap_or_default());
            let mut events = self.mood.events.lock().unwrap_or_else(PoisonError::into_inner);
            events.push((envelope.topic.clone(), id));
        }
        Ok(answer)
    }
}

/// The first field of a message where that is a text: in every event of a task, the container's id.
fn first_text(message: &[u8]) -> String {
    let text = match message {
        [0x0a, length, rest @ ..] if *length < 0x80 => rest.get(..usize::from(*length)),
        _ => None,
    };
    String::from_utf8_lossy(text.unwrap_or_default()).into_owned()
}
