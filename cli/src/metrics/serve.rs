//! Answers scrapes over HTTP.

use std::{convert::Infallible, sync::Arc, time::Duration};

use anyhow::Result;
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{ACCEPT, CONTENT_TYPE, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpListener, sync::Mutex};

use super::{
    Places,
    expose::{self, Format},
    samples, scrape,
    sums::Kept,
};

/// How long a client may take for the head of its request.
const HEAD: Duration = Duration::from_secs(10);
/// How long to wait before connections are taken again after the kernel had no room for one.
const NO_ROOM: Duration = Duration::from_millis(100);

/// What is told, one scrape after the other.
pub struct Source {
    places: Places,
    pods: bool,
    kept: Mutex<Kept>,
}

impl Source {
    pub fn new(places: Places, pods: bool) -> Self {
        Self { places, pods, kept: Mutex::default() }
    }

    async fn text(&self, format: Format) -> Result<String> {
        // Counters must not overtake one another.
        let mut kept = self.kept.lock().await;
        let seen = scrape::scrape(&self.places, self.pods).await?;
        let sums = kept.after(&seen);
        Ok(expose::text(samples::of(&seen, &sums, self.pods), format)?)
    }
}

/// Serves for ever.
pub async fn serve(listener: TcpListener, source: Arc<Source>) {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                eprintln!("mooring: accept a connection: {error}");
                tokio::time::sleep(NO_ROOM).await;
                continue;
            }
        };
        let source = Arc::clone(&source);
        tokio::spawn(async move {
            let answering = service_fn(move |request| answer(request, Arc::clone(&source)));
            let mut server = http1::Builder::new();
            server.timer(TokioTimer::new()).header_read_timeout(HEAD);
            // A client that goes away is its own affair.
            let _ = server.serve_connection(TokioIo::new(stream), answering).await;
        });
    }
}

async fn answer(
    request: Request<Incoming>,
    source: Arc<Source>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let plain = |status, text: &str| {
        let mut response = Response::new(Full::from(text.to_owned()));
        *response.status_mut() = status;
        response
    };
    if request.uri().path() != "/metrics" {
        return Ok(plain(StatusCode::NOT_FOUND, "the metrics are at /metrics\n"));
    }
    if request.method() != Method::GET {
        return Ok(plain(StatusCode::METHOD_NOT_ALLOWED, "GET is all there is\n"));
    }
    let accept = request.headers().get(ACCEPT).and_then(|header| header.to_str().ok());
    let format = Format::accepted(accept);
    Ok(match source.text(format).await {
        Ok(text) => {
            let mut response = Response::new(Full::from(text));
            let kind = HeaderValue::from_static(format.content_type());
            response.headers_mut().insert(CONTENT_TYPE, kind);
            response
        }
        Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, &format!("{error:#}\n")),
    })
}
