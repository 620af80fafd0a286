//! OTLP's JSON: ids in hexadecimal digits, numbers of 64 bits as text.

use serde_json::{Map, Value as Json, json};

use super::{SCOPE, STATUS_ERROR, VERSION, end_of, flags, nanos};
use crate::telemetry::trace::span::{Attribute, Event, SpanData, Value};

pub(super) fn request(resource: &[Attribute], spans: &[SpanData]) -> Json {
    let spans: Vec<Json> = spans.iter().map(span).collect();
    json!({"resourceSpans": [{
        "resource": {"attributes": attributes(resource)},
        "scopeSpans": [{"scope": {"name": SCOPE, "version": VERSION}, "spans": spans}],
    }]})
}

fn span(span: &SpanData) -> Json {
    let mut all = Map::new();
    let mut set = |key: &str, value: Json| drop(all.insert(key.to_owned(), value));
    set("traceId", span.context.trace.to_string().into());
    set("spanId", span.context.span.to_string().into());
    if let Some(state) = &span.context.state {
        set("traceState", state.as_ref().into());
    }
    if let Some(parent) = &span.parent {
        set("parentSpanId", parent.to_string().into());
    }
    set("flags", flags(span).into());
    set("name", span.name.as_ref().into());
    set("kind", (span.kind as u32).into());
    set("startTimeUnixNano", nanos(span.begun).to_string().into());
    set("endTimeUnixNano", end_of(span).to_string().into());
    set("attributes", attributes(&span.attributes));
    set("events", span.events.iter().map(event).collect());
    if let Some(error) = &span.error {
        set("status", json!({"code": STATUS_ERROR, "message": error}));
    }
    Json::Object(all)
}

fn event(event: &Event) -> Json {
    json!({
        "timeUnixNano": nanos(event.at).to_string(),
        "name": event.name,
        "attributes": attributes(&event.attributes),
    })
}

fn attributes(all: &[Attribute]) -> Json {
    let one = |(key, value): &Attribute| {
        let value = match value {
            Value::Text(text) => json!({"stringValue": text}),
            Value::Integer(number) => json!({"intValue": number.to_string()}),
        };
        json!({"key": key, "value": value})
    };
    all.iter().map(one).collect()
}
