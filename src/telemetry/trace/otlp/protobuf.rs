//! OTLP's protobuf, field by field: a dozen of them in seven messages, which generated code would bring with all the
//! others of their kind.

use super::{SCOPE, STATUS_ERROR, VERSION, end_of, flags, nanos};
use crate::telemetry::trace::span::{Attribute, Event, SpanData, Value};

/// How a field's value is written.
const VARINT: u64 = 0;
const FIXED64: u64 = 1;
const BYTES: u64 = 2;
const FIXED32: u64 = 5;

/// `ExportTraceServiceRequest` with one `ResourceSpans` of one `ScopeSpans`.
pub(super) fn request(resource: &[Attribute], spans: &[SpanData]) -> Vec<u8> {
    let mut request = Message::default();
    request.message(1, |resource_spans| {
        resource_spans.message(1, |message| message.attributes(1, resource));
        resource_spans.message(2, |scope_spans| {
            scope_spans.message(1, |scope| {
                scope.bytes(1, SCOPE.as_bytes());
                scope.bytes(2, VERSION.as_bytes());
            });
            for one in spans {
                scope_spans.message(2, |message| span(message, one));
            }
        });
    });
    request.0
}

fn span(message: &mut Message, span: &SpanData) {
    message.bytes(1, span.context.trace.bytes());
    message.bytes(2, span.context.span.bytes());
    if let Some(state) = &span.context.state {
        message.bytes(3, state.as_bytes());
    }
    if let Some(parent) = &span.parent {
        message.bytes(4, parent.bytes());
    }
    message.bytes(5, span.name.as_bytes());
    message.number(6, span.kind as u64);
    message.fixed64(7, nanos(span.begun));
    message.fixed64(8, end_of(span));
    message.attributes(9, &span.attributes);
    for one in &span.events {
        message.message(11, |message| event(message, one));
    }
    if let Some(error) = &span.error {
        message.message(15, |status| {
            status.bytes(2, error.as_bytes());
            status.number(3, STATUS_ERROR);
        });
    }
    message.key(16, FIXED32);
    message.0.extend(flags(span).to_le_bytes());
}

fn event(message: &mut Message, event: &Event) {
    message.fixed64(1, nanos(event.at));
    message.bytes(2, event.name.as_bytes());
    message.attributes(3, &event.attributes);
}

/// A message while it is written.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.0.push(number.to_le_bytes()[0] | 0x80);
            number >>= 7;
        }
        self.0.push(number.to_le_bytes()[0]);
    }

    fn key(&mut self, field: u64, kind: u64) {
        self.varint(field << 3 | kind);
    }

    fn number(&mut self, field: u64, number: u64) {
        self.key(field, VARINT);
        self.varint(number);
    }

    fn fixed64(&mut self, field: u64, number: u64) {
        self.key(field, FIXED64);
        self.0.extend(number.to_le_bytes());
    }

    fn bytes(&mut self, field: u64, bytes: &[u8]) {
        self.key(field, BYTES);
        self.varint(bytes.len() as u64);
        self.0.extend(bytes);
    }

    fn message(&mut self, field: u64, write: impl FnOnce(&mut Self)) {
        let mut inner = Self::default();
        write(&mut inner);
        self.bytes(field, &inner.0);
    }

    /// `KeyValue`s, each with an `AnyValue`.
    fn attributes(&mut self, field: u64, all: &[Attribute]) {
        for (key, value) in all {
            self.message(field, |pair| {
                pair.bytes(1, key.as_bytes());
                pair.message(2, |any| match value {
                    Value::Text(text) => any.bytes(1, text.as_bytes()),
                    Value::Integer(number) => any.number(3, number.cast_unsigned()),
                });
            });
        }
    }
}
