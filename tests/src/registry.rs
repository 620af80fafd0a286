//! A registry of one image, on the machine's loopback: what containerd pulls by itself, such as the image that a
//! checkpoint was made of.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io::Read;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, JoinSet};

/// Registries of this name need no configuration: they are asked without TLS.
const PORT: u16 = 5000;

/// Serves until it is dropped.
pub struct Registry(JoinHandle<()>);

impl Registry {
    /// What containerd calls the image that is served.
    pub const IMAGE: &str = "localhost:5000/mooring/test:1";

    /// Serves the image of an OCI layout's archive under every name.
    pub async fn start(archive: &Path) -> Result<Self> {
        let image = Arc::new(Image::read(archive)?);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, PORT)).await.context("listen")?;
        Ok(Self(tokio::spawn(async move {
            // Connections end with the registry.
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let image = Arc::clone(&image);
                connections.spawn(async move {
                    let answer =
                        |request| std::future::ready(Ok::<_, Infallible>(image.answer(&request)));
                    let http = hyper::server::conn::http1::Builder::new();
                    // Who hangs up has what it wanted.
                    let _ = http.serve_connection(TokioIo::new(stream), service_fn(answer)).await;
                });
            }
        })))
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.0.abort();
    }
}

struct Image {
    /// By their digests.
    blobs: HashMap<String, Bytes>,
    /// Its manifest's digest and type.
    manifest: (String, String),
}

impl Image {
    fn read(archive: &Path) -> Result<Self> {
        let file =
            std::fs::File::open(archive).with_context(|| format!("open {}", archive.display()))?;
        let (mut blobs, mut index) = (HashMap::new(), Value::Null);
        for entry in tar::Archive::new(file).entries()? {
            let mut entry = entry?;
            let path = entry.path()?.display().to_string();
            let mut content = Vec::new();
            entry.read_to_end(&mut content)?;
            if path == "index.json" {
                index = serde_json::from_slice(&content)?;
            } else if let Some(digest) = path.strip_prefix("blobs/sha256/") {
                blobs.insert(format!("sha256:{digest}"), content.into());
            }
        }
        let of = |key: &str| index.pointer(key).and_then(Value::as_str).map(str::to_owned);
        let manifest = of("/manifests/0/digest").zip(of("/manifests/0/mediaType"));
        Ok(Self { blobs, manifest: manifest.context("no manifest")? })
    }

    /// As the distribution specification has it: a tag is asked for like a digest.
    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let path = request.uri().path();
        let wanted = path.rsplit('/').next().unwrap_or_default();
        let (of_manifest, kind) = (&self.manifest.0, &self.manifest.1);
        let digest = if wanted.contains(':') { wanted } else { of_manifest };
        let mut answer = Response::new(Full::default());
        let Some(blob) = self.blobs.get(digest) else {
            *answer.status_mut() = StatusCode::NOT_FOUND;
            return answer;
        };
        let headers = answer.headers_mut();
        let texts = [
            ("content-type", if digest == of_manifest { kind } else { "application/octet-stream" }),
            ("docker-content-digest", digest),
            ("content-length", &blob.len().to_string()),
        ];
        for (name, value) in texts {
            if let Ok(value) = value.parse() {
                headers.insert(name, value);
            }
        }
        if request.method() == Method::GET {
            *answer.body_mut() = Full::new(blob.clone());
        }
        answer
    }
}
