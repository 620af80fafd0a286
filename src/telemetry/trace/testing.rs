//! Spans that tests look at.

use std::{
    mem,
    sync::{Arc, Mutex, PoisonError},
};

use super::{Sampler, Sink, SpanData, Tracer};

/// Keeps what has ended.
#[derive(Default)]
pub(crate) struct Kept(Mutex<Vec<SpanData>>);

impl Kept {
    /// A tracer whose spans are kept.
    pub(crate) fn tracer(sampler: Sampler) -> (Tracer, Arc<Self>) {
        let kept = Arc::new(Self::default());
        (Tracer::new(sampler, Arc::clone(&kept) as Arc<dyn Sink>), kept)
    }

    /// What has ended since the last look, in that order.
    pub(crate) fn take(&self) -> Vec<SpanData> {
        mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Sink for Kept {
    fn ended(&self, span: SpanData, _: bool) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(span);
    }
}
