//! Spans as OTLP has them: `ExportTraceServiceRequest`, in protobuf or in JSON.
//!
//! Written here and not by the crate `opentelemetry-otlp`, for what that would cost in every shim: see `docs/traces.md`.

mod json;
mod protobuf;
#[cfg(test)]
mod tests;

use std::time::{SystemTime, UNIX_EPOCH};

use super::span::{Attribute, SpanData};

/// The name of what records the spans.
const SCOPE: &str = "mooring";
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// OTLP's code of a failure.
const STATUS_ERROR: u64 = 2;
/// The trace is sampled, and that its parent is of another process is known.
const FLAGS: u32 = 0x101;
const REMOTE: u32 = 0x200;

/// How a request is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Protobuf,
    Json,
}

impl Format {
    /// The request's content type.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Protobuf => "application/x-protobuf",
            Self::Json => "application/json",
        }
    }

    /// One request with these spans, of what `resource` says.
    pub fn encode(self, resource: &[Attribute], spans: &[SpanData]) -> Vec<u8> {
        match self {
            Self::Protobuf => protobuf::request(resource, spans),
            Self::Json => json::request(resource, spans).to_string().into_bytes(),
        }
    }
}

fn flags(span: &SpanData) -> u32 {
    let remote = span.parent.is_some() && span.kind == super::Kind::Server;
    FLAGS | if remote { REMOTE } else { 0 }
}

#[expect(clippy::disallowed_methods, reason = "a time to be shown, of no wait")]
fn nanos(at: SystemTime) -> u64 {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

fn end_of(span: &SpanData) -> u64 {
    nanos(span.begun).saturating_add(u64::try_from(span.took.as_nanos()).unwrap_or(u64::MAX))
}
