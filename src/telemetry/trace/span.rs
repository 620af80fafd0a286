//! Spans while they are open, and the one that a task works under.
//!
//! Where nothing is recorded a [`Span`] is empty: it allocates nothing, and neither do its children. The span that a task
//! works under is found by [`Span::current`]; a task that is spawned has none, unless its future is [`carried`].

use std::{
    borrow::Cow,
    future::Future,
    mem,
    ops::Deref,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use tokio::{task::futures::TaskLocalFuture, task_local};

use super::{
    context::{SpanContext, SpanId, TraceId},
    sampler::Sampler,
};

/// The most of an error, and the most attributes and events, that a span keeps.
const MESSAGE_LIMIT: usize = 1024;
const LIST_LIMIT: usize = 64;

task_local! {
    static CURRENT: Span;
}

/// What a span is on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Something that is done here.
    Internal = 1,
    /// The answer to a call from outside.
    Server = 2,
}

/// What is said of a span or an event.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Text(String),
    Integer(i64),
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<i64> for Value {
    fn from(number: i64) -> Self {
        Self::Integer(number)
    }
}

/// A name and a value.
pub type Attribute = (Cow<'static, str>, Value);

/// Something that happened within a span.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    pub name: &'static str,
    pub at: SystemTime,
    pub attributes: Vec<Attribute>,
}

/// A span that has ended.
#[derive(Clone, Debug, PartialEq)]
pub struct SpanData {
    pub context: SpanContext,
    pub parent: Option<SpanId>,
    pub name: Cow<'static, str>,
    pub kind: Kind,
    pub begun: SystemTime,
    /// By the monotonic clock: a machine's clock that jumps makes no span longer.
    pub took: Duration,
    pub attributes: Vec<Attribute>,
    pub events: Vec<Event>,
    /// Why it failed, if it did.
    pub error: Option<String>,
}

/// Takes spans that have ended. It is called wherever a span ends, and may not block.
pub trait Sink: Send + Sync {
    /// With `operation` a whole piece of work has ended with it, and there is no more to wait for.
    fn ended(&self, span: SpanData, operation: bool);
}

/// Decides what is recorded, and has a sink for it.
#[derive(Clone)]
pub struct Tracer(Arc<Recording>);

struct Recording {
    sampler: Sampler,
    sink: Arc<dyn Sink>,
}

impl Tracer {
    /// Spans for `sink`, of what `sampler` chooses.
    pub fn new(sampler: Sampler, sink: Arc<dyn Sink>) -> Self {
        Self(Arc::new(Recording { sampler, sink }))
    }

    /// The first span here of what somebody outside began, or nobody.
    pub fn entry(
        &self,
        name: impl Into<Cow<'static, str>>,
        kind: Kind,
        above: Option<SpanContext>,
    ) -> Open {
        let parent = above.as_ref().map(|above| above.span);
        let trace = above.as_ref().map_or_else(TraceId::random, |above| above.trace);
        if !self.0.sampler.chooses(trace, above.as_ref().map(|above| above.sampled)) {
            return Open(Span::default());
        }
        let state = above.and_then(|above| above.state);
        let context = SpanContext { trace, span: SpanId::random(), sampled: true, state };
        self.open(context, parent, name.into(), kind, true)
    }

    fn open(
        &self,
        context: SpanContext,
        parent: Option<SpanId>,
        name: Cow<'static, str>,
        kind: Kind,
        operation: bool,
    ) -> Open {
        let data = SpanData {
            context: context.clone(),
            parent,
            name,
            kind,
            begun: SystemTime::now(),
            took: Duration::ZERO,
            attributes: Vec::new(),
            events: Vec::new(),
            error: None,
        };
        Open(Span(Some(Arc::new(Shared {
            tracer: self.clone(),
            context,
            operation,
            begun: Instant::now(),
            data: Mutex::new(Some(data)),
        }))))
    }
}

struct Shared {
    tracer: Tracer,
    context: SpanContext,
    /// Whether a whole piece of work ends with it.
    operation: bool,
    begun: Instant,
    /// Until it ends.
    data: Mutex<Option<SpanData>>,
}

impl Shared {
    fn data(&self) -> MutexGuard<'_, Option<SpanData>> {
        self.data.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A span, for whoever works under it; empty where nothing is recorded. What is said of it after its end is lost, its
/// children are not.
#[derive(Clone, Default)]
pub struct Span(Option<Arc<Shared>>);

impl Span {
    /// The span that this task works under.
    pub fn current() -> Self {
        CURRENT.try_with(Clone::clone).unwrap_or_default()
    }

    /// Whether anything is recorded.
    pub fn is_recorded(&self) -> bool {
        self.0.is_some()
    }

    /// Who it is, for whoever is asked to do a part of it.
    pub fn context(&self) -> Option<&SpanContext> {
        self.0.as_ref().map(|shared| &shared.context)
    }

    /// A part of it.
    pub fn child(&self, name: impl Into<Cow<'static, str>>) -> Open {
        self.below(name, false)
    }

    /// A part of it that may outlast it: it is sent by itself when it ends.
    pub fn operation(&self, name: impl Into<Cow<'static, str>>) -> Open {
        self.below(name, true)
    }

    fn below(&self, name: impl Into<Cow<'static, str>>, operation: bool) -> Open {
        let Some(shared) = &self.0 else { return Open(Self::default()) };
        let context = SpanContext { span: SpanId::random(), ..shared.context.clone() };
        let parent = Some(shared.context.span);
        shared.tracer.open(context, parent, name.into(), Kind::Internal, operation)
    }

    /// A part of it that has just ended after `took`.
    pub fn ended_child(&self, name: impl Into<Cow<'static, str>>, took: Duration) -> Open {
        let child = self.child(name);
        if let Some(data) = child.data().as_mut() {
            data.begun = data.begun.checked_sub(took).unwrap_or(data.begun);
            data.took = took;
        }
        child
    }

    /// Says something of it.
    pub fn set(&self, key: impl Into<Cow<'static, str>>, value: impl Into<Value>) {
        if let Some(data) = self.data().as_mut()
            && data.attributes.len() < LIST_LIMIT
        {
            data.attributes.push((key.into(), value.into()));
        }
    }

    /// Something happens within it.
    pub fn event(&self, name: &'static str) {
        self.event_with(name, || None);
    }

    /// The same, with something said of it.
    pub fn event_with(&self, name: &'static str, more: impl FnOnce() -> Option<Attribute>) {
        if let Some(data) = self.data().as_mut()
            && data.events.len() < LIST_LIMIT
        {
            let attributes = more().into_iter().collect();
            data.events.push(Event { name, at: SystemTime::now(), attributes });
        }
    }

    /// It has failed.
    pub fn fail(&self, error: &(impl ToString + ?Sized)) {
        if let Some(data) = self.data().as_mut() {
            let mut text = error.to_string();
            text.truncate(text.floor_char_boundary(MESSAGE_LIMIT));
            data.error = Some(text);
        }
    }

    /// Does `work` under it.
    pub fn within<F: Future>(&self, work: F) -> TaskLocalFuture<Self, F> {
        CURRENT.scope(self.clone(), work)
    }

    fn data(&self) -> Data<'_> {
        Data(self.0.as_ref().map(|shared| shared.data()))
    }
}

/// The open data of a span, if there is any.
struct Data<'a>(Option<MutexGuard<'a, Option<SpanData>>>);

impl Data<'_> {
    fn as_mut(&mut self) -> Option<&mut SpanData> {
        self.0.as_mut().and_then(|data| data.as_mut())
    }
}

/// The same work in a task of its own, under the span that it is spawned from.
pub fn carried<F: Future>(work: F) -> TaskLocalFuture<Span, F> {
    Span::current().within(work)
}

/// A span that ends when this is dropped.
#[must_use]
pub struct Open(Span);

impl Deref for Open {
    type Target = Span;

    fn deref(&self) -> &Span {
        &self.0
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let Some(shared) = mem::take(&mut self.0).0 else { return };
        let Some(mut data) = shared.data().take() else { return };
        if data.took.is_zero() {
            data.took = shared.begun.elapsed();
        }
        shared.tracer.0.sink.ended(data, shared.operation);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::trace::testing::Kept;

    #[test]
    fn where_nothing_is_recorded_nothing_is_said() {
        let none = Span::default();
        let child = none.child("a");
        child.set("key", "value");
        child.event_with("never", || unreachable!());
        assert!(!child.is_recorded() && child.context().is_none());
        let (tracer, kept) = Kept::tracer(Sampler::Never);
        drop(tracer.entry("a", Kind::Server, None).child("b"));
        assert!(kept.take().is_empty());
    }

    #[tokio::test]
    async fn children_are_found_in_spawned_tasks_that_are_carried() {
        let (tracer, kept) = Kept::tracer(Sampler::Always);
        let root = tracer.entry("root", Kind::Server, None);
        let work = async {
            let with = carried(async { drop(Span::current().child("with")) });
            tokio::spawn(with).await.unwrap();
            tokio::spawn(async { assert!(!Span::current().is_recorded()) }).await.unwrap();
        };
        root.within(work).await;
        root.fail(&"x".repeat(2000));
        let id = root.context().unwrap().span;
        drop(root);
        let spans = kept.take();
        assert_eq!(spans.iter().map(|span| &*span.name).collect::<Vec<_>>(), ["with", "root"]);
        assert_eq!((spans[0].parent, spans[1].parent), (Some(id), None));
        assert_eq!(spans[0].context.trace, spans[1].context.trace);
        assert_eq!(spans[1].error.as_ref().unwrap().len(), MESSAGE_LIMIT);
    }

    #[test]
    fn a_span_is_in_its_callers_trace() {
        let (tracer, kept) = Kept::tracer(Sampler::OfParent(Box::new(Sampler::Never)));
        let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let above = SpanContext::parse(parent, Some("a=b"));
        drop(tracer.entry("chosen", Kind::Server, above.clone()));
        drop(tracer.entry("not", Kind::Server, None));
        let spans = kept.take();
        assert_eq!(spans.len(), 1);
        assert_eq!(spans[0].parent, above.as_ref().map(|above| above.span));
        assert_eq!(spans[0].context.trace, above.unwrap().trace);
        assert_eq!(spans[0].context.state.as_deref(), Some("a=b"));
    }

    #[test]
    fn what_has_ended_is_where_it_was_and_lists_are_bounded() {
        let (tracer, kept) = Kept::tracer(Sampler::Always);
        let root = tracer.entry("root", Kind::Internal, None);
        drop(root.ended_child("call", Duration::from_secs(2)));
        (0..100).for_each(|_| root.event("again"));
        let handle = root.0.clone();
        drop(root);
        // After the end.
        handle.set("late", "lost");
        drop(handle.child("late"));
        let spans = kept.take();
        assert_eq!(spans[0].took, Duration::from_secs(2));
        assert!(spans[0].begun < spans[1].begun);
        assert_eq!((spans[1].events.len(), spans[1].attributes.len()), (LIST_LIMIT, 0));
        assert_eq!(&*spans[2].name, "late");
    }
}
