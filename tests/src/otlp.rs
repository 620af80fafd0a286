//! A receiver of traces, for containerd and its shims, on the machine's loopback.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value::Value};
use opentelemetry_proto::tonic::trace::v1::span::Event;
use prost::Message;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// The standard's port; the machine is the tests' own.
const PORT: u16 = 4318;
/// The header that everybody has to send, which is secret.
const HEADER: (&str, &str) = ("api-key", "not-for-the-log");

/// The variables that containerd is given.
pub fn variables() -> [(&'static str, String); 4] {
    [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://127.0.0.1:{PORT}")),
        ("OTEL_EXPORTER_OTLP_HEADERS", format!("{}={}", HEADER.0, HEADER.1)),
        // containerd's own spans would come after five seconds. Mooring does not know this one.
        ("OTEL_BSP_SCHEDULE_DELAY", "200".to_owned()),
        ("OTEL_RESOURCE_ATTRIBUTES", "test=traces".to_owned()),
    ]
}

/// What must not be in a log.
pub fn secret() -> &'static str {
    HEADER.1
}

/// How the receiver answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mood {
    /// It takes what comes.
    Takes,
    /// It never answers.
    Hangs,
    /// It answers what is no HTTP.
    Garbage,
}

/// A span as it came.
#[derive(Clone, Debug)]
pub struct Span {
    /// Of a shim of Mooring, or of containerd.
    pub ours: bool,
    /// The trace.
    pub trace: Vec<u8>,
    /// Its own id.
    pub id: Vec<u8>,
    /// The id of the one above; empty where there is none.
    pub parent: Vec<u8>,
    /// What it is.
    pub name: String,
    /// When it began, in nanoseconds.
    pub begun: u64,
    /// When it ended.
    pub ended: u64,
    /// What is said of it.
    pub attributes: BTreeMap<String, String>,
    /// What is said of the process.
    pub resource: BTreeMap<String, String>,
    /// Its events, each with what is said of it.
    pub events: Vec<(String, BTreeMap<String, String>)>,
    /// Why it failed.
    pub error: Option<String>,
}

/// Listens until it is dropped.
pub struct Receiver {
    spans: Arc<Mutex<Vec<Span>>>,
    task: JoinHandle<()>,
}

impl Receiver {
    /// Listens where [`variables`] say.
    pub async fn start(mood: Mood) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, PORT)).await.context("listen")?;
        let spans = Arc::default();
        let task = tokio::spawn(serve(listener, mood, Arc::clone(&spans)));
        Ok(Self { spans, task })
    }

    /// What has come so far.
    pub fn spans(&self) -> Vec<Span> {
        lock(&self.spans).clone()
    }

    /// Waits for what has to come.
    pub async fn until(&self, what: &str, so: impl Fn(&[Span]) -> bool) -> Result<Vec<Span>> {
        let end = Instant::now() + crate::patience(Duration::from_secs(15));
        loop {
            let spans = self.spans();
            if so(&spans) {
                return Ok(spans);
            }
            if Instant::now() > end {
                let names: Vec<_> = spans.iter().map(|one| (one.ours, &one.name)).collect();
                bail!("no {what} among {names:?}");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn lock(spans: &Mutex<Vec<Span>>) -> MutexGuard<'_, Vec<Span>> {
    spans.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn serve(listener: TcpListener, mood: Mood, spans: Arc<Mutex<Vec<Span>>>) {
    // Connections end with the receiver.
    let mut connections = tokio::task::JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        connections.spawn(connection(stream, mood, Arc::clone(&spans)));
    }
}

async fn connection(mut stream: TcpStream, mood: Mood, spans: Arc<Mutex<Vec<Span>>>) {
    match mood {
        Mood::Hangs => std::future::pending().await,
        Mood::Garbage => {
            let _ = stream.write_all(b"\xff\xfe this is no HTTP\n").await;
        }
        Mood::Takes => {
            let service = service_fn(move |request| take(request, Arc::clone(&spans)));
            let http = hyper::server::conn::http1::Builder::new();
            let _ = http.serve_connection(TokioIo::new(stream), service).await;
        }
    }
}

async fn take(
    request: Request<Incoming>,
    spans: Arc<Mutex<Vec<Span>>>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let headers = request.headers().clone();
    let has = |name: &str, value: &str| headers.get(name).is_some_and(|one| one == value);
    let path = request.uri().path() == "/v1/traces";
    let body = request
        .into_body()
        .collect()
        .await
        .map(http_body_util::Collected::to_bytes)
        .unwrap_or_default();
    let decoded = ExportTraceServiceRequest::decode(body);
    let known = path && has(HEADER.0, HEADER.1) && has("content-type", "application/x-protobuf");
    let mut answer = Response::new(Full::default());
    match decoded {
        Ok(request) if known => lock(&spans).extend(spans_of(request)),
        _ => *answer.status_mut() = hyper::StatusCode::BAD_REQUEST,
    }
    Ok(answer)
}

fn spans_of(request: ExportTraceServiceRequest) -> Vec<Span> {
    let mut spans = Vec::new();
    for all in request.resource_spans {
        let resource = texts(&all.resource.unwrap_or_default().attributes);
        for scope in all.scope_spans {
            let ours = scope.scope.is_some_and(|scope| scope.name == "mooring");
            for span in scope.spans {
                spans.push(Span {
                    ours,
                    trace: span.trace_id,
                    id: span.span_id,
                    parent: span.parent_span_id,
                    name: span.name,
                    begun: span.start_time_unix_nano,
                    ended: span.end_time_unix_nano,
                    attributes: texts(&span.attributes),
                    resource: resource.clone(),
                    events: span.events.iter().map(event).collect(),
                    error: span.status.filter(|status| status.code == 2).map(|one| one.message),
                });
            }
        }
    }
    spans
}

fn event(event: &Event) -> (String, BTreeMap<String, String>) {
    (event.name.clone(), texts(&event.attributes))
}

fn texts(all: &[KeyValue]) -> BTreeMap<String, String> {
    let text = |one: &KeyValue| match one.value.as_ref().and_then(|any| any.value.as_ref()) {
        Some(Value::StringValue(text)) => text.clone(),
        Some(Value::IntValue(number)) => number.to_string(),
        other => format!("{other:?}"),
    };
    all.iter().map(|one| (one.key.clone(), text(one))).collect()
}
