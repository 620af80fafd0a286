//! Sends what has ended, a moment after a piece of work has.
//!
//! A span costs its caller a place in a queue, which has a bound: nothing waits for a receiver, and whatever that does,
//! no more than [`QUEUE`] spans are kept for it. The rest is counted, and told once until it takes spans again.

use std::{
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use mooring::telemetry::trace::{Attribute, Settings, Sink, SpanData};
use tokio::{
    sync::{Notify, watch},
    time::{sleep, timeout},
};

use super::http;
use crate::memory;

/// The most spans that wait, and that go with one request.
const QUEUE: usize = 512;
const BATCH: usize = 256;
/// How long what has ended waits for what ends soon after.
const GATHER: Duration = Duration::from_millis(200);
/// How often a request is made that may be taken later, and the first pause between; the pauses double.
const ATTEMPTS: u32 = 3;
const PAUSE: Duration = Duration::from_secs(1);

pub struct Exporter {
    settings: Settings,
    resource: Vec<Attribute>,
    queue: Mutex<Queue>,
    work: Notify,
    /// The process ends: nothing is waited for any more.
    ending: Notify,
    /// How many spans are not sent yet, those of a request under way among them.
    waiting: watch::Sender<usize>,
}

#[derive(Default)]
struct Queue {
    spans: Vec<SpanData>,
    ending: bool,
    /// Since the receiver last took any, or ever.
    lost: usize,
    told: bool,
}

impl Exporter {
    /// Sends for as long as the tokio runtime that this is called in lives.
    pub fn start(settings: Settings, resource: Vec<Attribute>) -> Arc<Self> {
        let exporter = Arc::new(Self {
            settings,
            resource,
            queue: Mutex::default(),
            work: Notify::new(),
            ending: Notify::new(),
            waiting: watch::Sender::new(0),
        });
        tokio::spawn(Arc::clone(&exporter).send_all());
        exporter
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until everything is sent or given up, at most for `limit`.
    pub async fn drain(&self, limit: Duration) {
        self.queue().ending = true;
        self.ending.notify_one();
        self.work.notify_one();
        let mut waiting = self.waiting.subscribe();
        // The sender of the number lives as long as this.
        let _ = timeout(limit, waiting.wait_for(|waiting| *waiting == 0)).await;
        let left = *waiting.borrow();
        if left > 0 {
            log::warn!("traces: {left} spans could not be sent");
        }
    }

    async fn send_all(self: Arc<Self>) {
        loop {
            self.work.notified().await;
            self.pause(GATHER).await;
            loop {
                let batch = self.next();
                if batch.is_empty() {
                    break;
                }
                self.deliver(&batch).await;
                self.waiting.send_modify(|waiting| *waiting = waiting.saturating_sub(batch.len()));
            }
            memory::worked();
        }
    }

    /// What goes with one request. The queue keeps no room for what has left it.
    fn next(&self) -> Vec<SpanData> {
        let mut queue = self.queue();
        if queue.spans.len() <= BATCH {
            return mem::take(&mut queue.spans);
        }
        let rest = queue.spans.split_off(BATCH);
        mem::replace(&mut queue.spans, rest)
    }

    async fn deliver(&self, batch: &[SpanData]) {
        let body = self.settings.format.encode(&self.resource, batch);
        let mut pause = PAUSE;
        let mut attempt = 1;
        let why = loop {
            let why = match timeout(self.settings.timeout, http::post(&self.settings, &body)).await
            {
                Ok(Ok(())) => return self.taken(),
                Ok(Err(error)) if !error.passes() => break error.to_string(),
                Ok(Err(error)) => error.to_string(),
                Err(_) => format!("no answer within {} ms", self.settings.timeout.as_millis()),
            };
            let hopeless = {
                let queue = self.queue();
                queue.ending || queue.told
            };
            if hopeless || attempt == ATTEMPTS {
                break why;
            }
            self.pause(pause).await;
            pause *= 2;
            attempt += 1;
        };
        self.lost(batch.len(), &why);
    }

    /// Nothing is waited for once the process ends.
    async fn pause(&self, time: Duration) {
        if self.queue().ending {
            return;
        }
        tokio::select! {
            () = sleep(time) => {}
            () = self.ending.notified() => {}
        }
    }

    fn taken(&self) {
        let mut queue = self.queue();
        let lost = mem::take(&mut queue.lost);
        let told = mem::take(&mut queue.told);
        drop(queue);
        if told {
            log::info!("traces: spans are taken again, {lost} were lost");
        }
    }

    fn lost(&self, count: usize, why: &str) {
        let mut queue = self.queue();
        queue.lost += count;
        let (lost, told) = (queue.lost, mem::replace(&mut queue.told, true));
        drop(queue);
        if !told {
            let to = self.settings.endpoint.authority();
            log::warn!("traces: {lost} spans are lost, and more may be: send to {to}: {why}");
        }
    }
}

impl Sink for Exporter {
    fn ended(&self, span: SpanData, operation: bool) {
        let mut queue = self.queue();
        if queue.spans.len() >= QUEUE {
            drop(queue);
            self.lost(1, "too many wait");
            return;
        }
        queue.spans.push(span);
        let full = queue.spans.len() >= QUEUE / 2;
        drop(queue);
        self.waiting.send_modify(|waiting| *waiting += 1);
        if operation || full {
            self.work.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use mooring::telemetry::trace::{Found, Kind, Sampler, Tracer};
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
        sync::mpsc,
    };

    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);

    fn exporter(address: SocketAddr, more: &[(&str, &str)]) -> (Arc<Exporter>, Tracer) {
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", &*format!("http://{address}"));
        let all = [endpoint].into_iter().chain(more.iter().copied());
        let all = all.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let exporter = Exporter::start(Found::in_variables(all).settings.unwrap(), Vec::new());
        let tracer = Tracer::new(Sampler::Always, Arc::clone(&exporter) as Arc<dyn Sink>);
        (exporter, tracer)
    }

    /// Answers each request with the next of `answers`, and the last one for ever; hears what was sent.
    async fn receiver(answers: &'static [&str]) -> (SocketAddr, mpsc::UnboundedReceiver<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (heard, requests) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            for index in 0.. {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = Vec::new();
                let body = |all: &[u8]| {
                    let text = String::from_utf8_lossy(all).into_owned();
                    let (fields, body) = text.split_once("\r\n\r\n")?;
                    let length =
                        fields.lines().find_map(|one| one.strip_prefix("Content-Length: "));
                    (body.len() >= length?.parse().ok()?).then(|| text.clone())
                };
                let text = loop {
                    assert_ne!(stream.read_buf(&mut request).await.unwrap(), 0);
                    if let Some(text) = body(&request) {
                        break text;
                    }
                };
                let _ = heard.send(text);
                let answer = answers.get(index).or(answers.last()).unwrap();
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        (address, requests)
    }

    #[tokio::test]
    async fn what_has_ended_is_sent_with_its_headers() {
        let (address, mut hears) =
            receiver(&["HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"]).await;
        let (exporter, tracer) = exporter(
            address,
            &[
                ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"),
                ("OTEL_EXPORTER_OTLP_HEADERS", "api-key=abc"),
            ],
        );
        let root = tracer.entry("root", Kind::Server, None);
        drop(root.child("part"));
        drop(root);
        let request = timeout(LIMIT, hears.recv()).await.unwrap().unwrap();
        assert!(request.starts_with("POST /v1/traces HTTP/1.1\r\n"), "{request}");
        for part in
            ["api-key: abc\r\n", "Content-Type: application/json\r\n", "\"part\"", "\"root\""]
        {
            assert!(request.contains(part), "{part}: {request}");
        }
        exporter.drain(LIMIT).await;
        assert_eq!(exporter.queue().spans.capacity(), 0);
    }

    #[tokio::test]
    async fn what_may_be_taken_later_is_sent_again_and_what_may_not_is_lost() {
        let (address, mut hears) =
            receiver(&["HTTP/1.1 503 Not now\r\n\r\n", "HTTP/1.1 200 OK\r\n\r\n", "garbage\n"])
                .await;
        let (exporter, tracer) = exporter(address, &[]);
        drop(tracer.entry("one", Kind::Server, None));
        for _ in 0..2 {
            timeout(LIMIT, hears.recv()).await.unwrap().unwrap();
        }
        let mut waiting = exporter.waiting.subscribe();
        timeout(LIMIT, waiting.wait_for(|waiting| *waiting == 0)).await.unwrap().unwrap();
        assert_eq!(exporter.queue().lost, 0);
        drop(tracer.entry("two", Kind::Server, None));
        timeout(LIMIT, hears.recv()).await.unwrap().unwrap();
        timeout(LIMIT, waiting.wait_for(|waiting| *waiting == 0)).await.unwrap().unwrap();
        assert_eq!(exporter.queue().lost, 1);
    }

    #[tokio::test]
    async fn a_receiver_that_hangs_holds_up_nobody_and_keeps_a_bounded_number() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (exporter, tracer) = exporter(listener.local_addr().unwrap(), &[]);
        for _ in 0..3 * QUEUE {
            drop(tracer.entry("one", Kind::Server, None));
        }
        assert_eq!(exporter.queue().spans.len(), QUEUE);
        assert_eq!(exporter.queue().lost, 2 * QUEUE);
        // It ends after its limit, though nothing is ever answered.
        exporter.drain(Duration::from_millis(300)).await;
        assert!(*exporter.waiting.borrow() > 0);
    }

    #[tokio::test]
    async fn where_nobody_listens_spans_are_lost_and_the_end_does_not_wait() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let (exporter, tracer) = exporter(address, &[]);
        drop(tracer.entry("one", Kind::Server, None));
        exporter.drain(LIMIT).await;
        assert_eq!((*exporter.waiting.borrow(), exporter.queue().lost), (0, 1));
    }
}
