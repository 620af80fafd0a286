//! Traces: spans of what happens in a shim, for OpenTelemetry. `docs/traces.md` has what there is to see.
//!
//! Work finds the span that it is a part of by [`Span::current`]. Where nobody wants traces that is an empty one, and
//! nothing is allocated. Whoever runs the process makes a [`Tracer`] from its [`Settings`] and opens a span for each call
//! from outside.

mod context;
pub mod otlp;
mod sampler;
mod settings;
mod span;
#[cfg(test)]
pub(crate) mod testing;

pub use context::{SpanContext, SpanId, TraceId};
pub use sampler::Sampler;
pub use settings::{Endpoint, Found, Settings};
pub use span::{Attribute, Event, Kind, Open, Sink, Span, SpanData, Tracer, Value, carried};
