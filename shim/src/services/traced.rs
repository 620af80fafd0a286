//! A span for each call, under its client's.

use std::{collections::HashMap, sync::Arc};

use async_trait::async_trait;
use containerd_shim_protos::ttrpc::{
    self, Code,
    asynchronous::{MethodHandler, Service, TtrpcContext},
    proto::{Request, Response},
};
use mooring::telemetry::trace::{Kind, Open, SpanContext};

use crate::traces::Traces;

/// The key of the first field of every request, a text: the sandbox's id or the container's.
const FIRST: u8 = 0x0a;

/// Whoever looks at a pod by the inspection service is no part of its life; whoever stops it is.
const OPERATORS: &str = "mooring.";
const STOP: &str = "Stop";

/// The same services, whose calls are traced. As they are where there are no traces.
pub fn traced(
    mut services: HashMap<String, Service>,
    traces: Option<&Traces>,
) -> HashMap<String, Service> {
    let Some(traces) = traces else { return services };
    for (name, service) in &mut services {
        for (method, handler) in std::mem::take(&mut service.methods) {
            if name.starts_with(OPERATORS) && method != STOP {
                service.methods.insert(method, handler);
                continue;
            }
            let wrapped = Traced {
                traces: traces.clone(),
                name: format!("{name}/{method}").into(),
                service: name.as_str().into(),
                method: method.as_str().into(),
                handler,
            };
            service.methods.insert(method, Box::new(wrapped));
        }
    }
    services
}

struct Traced {
    traces: Traces,
    name: Arc<str>,
    service: Arc<str>,
    method: Arc<str>,
    handler: Box<dyn MethodHandler + Send + Sync>,
}

impl Traced {
    fn open(&self, context: &TtrpcContext, payload: &[u8]) -> Open {
        let above = if self.traces.heeds_parent { parent(&context.metadata) } else { None };
        let span = self.traces.tracer.entry(self.name.to_string(), Kind::Server, above);
        if span.is_recorded() {
            span.set("rpc.system", "ttrpc");
            span.set("rpc.service", &*self.service);
            span.set("rpc.method", &*self.method);
            if let Some(id) = id(payload) {
                let of_sandbox = self.service.ends_with(".Sandbox");
                span.set(if of_sandbox { "sandbox.id" } else { "container.id" }, id);
            }
        }
        span
    }
}

#[async_trait]
impl MethodHandler for Traced {
    async fn handler(&self, context: TtrpcContext, request: Request) -> ttrpc::Result<Response> {
        let span = self.open(&context, &request.payload);
        let answer = span.within(self.handler.handler(context, request)).await;
        let code = match &answer {
            Ok(response) => {
                if response.status.code() != Code::OK {
                    span.fail(response.status.message());
                }
                response.status.code.value()
            }
            Err(error) => {
                span.fail(error);
                i32::from(Code::UNKNOWN as u8)
            }
        };
        span.set("rpc.ttrpc.status_code", i64::from(code));
        answer
    }
}

/// The span that the client made the call under.
fn parent(metadata: &HashMap<String, Vec<String>>) -> Option<SpanContext> {
    let [traceparent] = &metadata.get("traceparent")?[..] else { return None };
    let state = metadata.get("tracestate").map(|all| all.join(","));
    SpanContext::parse(traceparent, state.as_deref())
}

/// The text that a request begins with.
fn id(payload: &[u8]) -> Option<&str> {
    let [FIRST, length, rest @ ..] = payload else { return None };
    // Of ids one byte holds the length.
    let id = rest.get(..usize::from(*length)).filter(|_| *length < 0x80)?;
    std::str::from_utf8(id).ok().filter(|id| !id.is_empty())
}

#[cfg(test)]
mod tests {
    use containerd_shim_protos::{
        api::KillRequest, protobuf::Message, sandbox_api::StopSandboxRequest,
    };

    use super::*;

    #[test]
    fn the_parent_is_what_the_metadata_says() {
        let traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let of = |all: &[(&str, &[&str])]| {
            let owned = |(key, values): &(&str, &[&str])| {
                ((*key).to_owned(), values.iter().map(|one| (*one).to_owned()).collect())
            };
            parent(&all.iter().map(owned).collect())
        };
        let one = of(&[("traceparent", &[traceparent]), ("tracestate", &["a=b", "c=d"])]);
        assert_eq!(one.as_ref().unwrap().traceparent(), traceparent);
        assert_eq!(one.unwrap().state.as_deref(), Some("a=b,c=d"));
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[("traceparent", &["garbage"])]), None);
        // Nobody can tell which counts.
        assert_eq!(of(&[("traceparent", &[traceparent, traceparent])]), None);
    }

    #[test]
    fn the_id_is_what_the_request_begins_with() {
        let stop = StopSandboxRequest { sandbox_id: "web".into(), ..Default::default() };
        assert_eq!(id(&stop.write_to_bytes().unwrap()), Some("web"));
        let kill = KillRequest { id: "one".into(), exec_id: "two".into(), ..Default::default() };
        assert_eq!(id(&kill.write_to_bytes().unwrap()), Some("one"));
        for none in
            [&b""[..], b"\x0a", b"\x0a\x05ab", b"\x0a\xff\x01", b"\x0a\x01\xff", b"\x12\x01a"]
        {
            assert_eq!(id(none), None, "{none:?}");
        }
        let nobody = KillRequest { exec_id: "two".into(), ..Default::default() };
        assert_eq!(id(&nobody.write_to_bytes().unwrap()), None);
    }
}
