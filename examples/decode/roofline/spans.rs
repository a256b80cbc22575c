//! Times of `tracing` spans, summed by name.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

/// Collects the time between entering and leaving each span of the model.
#[derive(Default)]
pub(crate) struct Spans {
    next: AtomicU64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Open spans: name and time of entering.
    open: BTreeMap<u64, (&'static str, Instant)>,
    sums: BTreeMap<&'static str, Duration>,
}

impl Spans {
    /// The sums since the last call.
    pub(crate) fn take(&self) -> BTreeMap<&'static str, Duration> {
        std::mem::take(&mut self.state().sums)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Subscriber for Spans {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_span() && metadata.target().starts_with("breakers_model")
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        let id = 1 + self.next.fetch_add(1, Ordering::Relaxed);
        self.state().open.insert(id, (span.metadata().name(), Instant::now()));
        Id::from_u64(id)
    }

    fn enter(&self, span: &Id) {
        let mut state = self.state();
        if let Some((_, entered)) = state.open.get_mut(&span.into_u64()) {
            *entered = Instant::now();
        }
    }

    fn exit(&self, span: &Id) {
        let now = Instant::now();
        let mut state = self.state();
        if let Some((name, entered)) = state.open.get(&span.into_u64()).copied() {
            *state.sums.entry(name).or_default() += now - entered;
        }
    }

    fn try_close(&self, span: Id) -> bool {
        self.state().open.remove(&span.into_u64()).is_some()
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn event(&self, _: &Event<'_>) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn times_are_summed_by_name() {
        let spans = Arc::new(Spans::default());
        tracing::subscriber::with_default(Arc::clone(&spans), || {
            for _ in 0..2 {
                tracing::trace_span!(target: "breakers_model", "nap")
                    .in_scope(|| std::thread::sleep(Duration::from_millis(5)));
            }
            tracing::trace_span!(target: "elsewhere", "nap")
                .in_scope(|| std::thread::sleep(Duration::from_millis(5)));
        });
        let sums = spans.take();
        assert!(sums["nap"] >= Duration::from_millis(10) && sums.len() == 1);
        assert!(spans.take().is_empty());
    }
}
