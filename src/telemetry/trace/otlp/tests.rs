//! What is written is read by OpenTelemetry's own messages.

use std::time::{Duration, SystemTime};

use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{KeyValue, any_value::Value as Any},
    trace::v1::Span,
};
use proptest::prelude::*;
use prost::Message;

use super::*;
use crate::telemetry::trace::{Kind, Sampler, SpanContext, Value, span::Event, testing::Kept};

fn value(attribute: &KeyValue) -> Value {
    match attribute.value.as_ref().and_then(|any| any.value.clone()) {
        Some(Any::StringValue(text)) => Value::Text(text),
        Some(Any::IntValue(number)) => Value::Integer(number),
        other => panic!("{other:?}"),
    }
}

fn same(written: &[Attribute], read: &[KeyValue]) {
    let read: Vec<_> = read.iter().map(|one| (one.key.clone().into(), value(one))).collect();
    assert_eq!(written, read);
}

fn check(resource: &[Attribute], written: &[SpanData], request: &ExportTraceServiceRequest) {
    let [all] = &request.resource_spans[..] else { panic!("{request:?}") };
    same(resource, &all.resource.as_ref().unwrap().attributes);
    let [scope] = &all.scope_spans[..] else { panic!("{request:?}") };
    assert_eq!(scope.scope.as_ref().unwrap().name, "mooring");
    assert_eq!(scope.spans.len(), written.len());
    for (written, read) in written.iter().zip(&scope.spans) {
        check_span(written, read);
    }
}

fn check_span(written: &SpanData, read: &Span) {
    assert_eq!(read.trace_id, written.context.trace.bytes());
    assert_eq!(read.span_id, written.context.span.bytes());
    assert_eq!(read.trace_state, written.context.state.as_deref().unwrap_or_default());
    let parent = written.parent.as_ref().map_or(&[][..], |parent| parent.bytes());
    assert_eq!(read.parent_span_id, parent);
    assert_eq!(read.name, written.name);
    assert_eq!(read.kind, written.kind as i32);
    assert_eq!(read.start_time_unix_nano, nanos(written.begun));
    assert_eq!(read.end_time_unix_nano, end_of(written));
    assert_eq!(read.flags, flags(written));
    same(&written.attributes, &read.attributes);
    assert_eq!(read.events.len(), written.events.len());
    for (written, read) in written.events.iter().zip(&read.events) {
        assert_eq!((&*read.name, read.time_unix_nano), (written.name, nanos(written.at)));
        same(&written.attributes, &read.attributes);
    }
    let status = read.status.as_ref().map(|status| (status.code, status.message.clone()));
    assert_eq!(status, written.error.clone().map(|error| (2, error)));
}

fn attributes() -> impl Strategy<Value = Vec<Attribute>> {
    let value =
        prop_oneof![".{0,20}".prop_map(Value::Text), any::<i64>().prop_map(Value::Integer),];
    proptest::collection::vec(("[a-z.]{1,9}", value), 0..5)
        .prop_map(|all| all.into_iter().map(|(key, value)| (key.into(), value)).collect())
}

prop_compose! {
    fn spans()(
        server in any::<bool>(), state in any::<bool>(), remote in any::<bool>(),
        begun in 0_u64..4_000_000_000, took in any::<u32>(), name in ".{0,20}",
        attributes in attributes(), more in attributes(), error in proptest::option::of(".{0,20}"),
    ) -> SpanData {
        let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let above = SpanContext::parse(parent, state.then_some("a=b"));
        let (tracer, kept) = Kept::tracer(Sampler::Always);
        drop(tracer.entry(name, Kind::Internal, above.filter(|_| remote)));
        let mut span = kept.take().remove(0);
        let begun = SystemTime::UNIX_EPOCH + Duration::from_secs(begun);
        span.kind = if server { Kind::Server } else { Kind::Internal };
        (span.begun, span.took) = (begun, Duration::from_nanos(took.into()));
        span.events = vec![Event { name: "it happened", at: begun, attributes: more }];
        (span.attributes, span.error) = (attributes, error);
        span
    }
}

proptest! {
    #[test]
    fn both_forms_are_what_opentelemetry_reads(
        resource in attributes(), spans in proptest::collection::vec(spans(), 0..4),
    ) {
        let bytes = Format::Protobuf.encode(&resource, &spans);
        check(&resource, &spans, &ExportTraceServiceRequest::decode(&bytes[..]).unwrap());
        let text = Format::Json.encode(&resource, &spans);
        check(&resource, &spans, &serde_json::from_slice(&text).unwrap());
    }
}
