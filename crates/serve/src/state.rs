//! What all requests share.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use breakers_core::{ChatModel, Embedder, Tokenizer};
use tokio::sync::{Semaphore, watch};

use crate::api_error::ApiError;
use crate::metrics::Metrics;
use crate::responses::Store;
use crate::{Environment, ServeConfig};

/// How far the server's life has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    Serving,
    /// Running answers end; nothing new begins.
    Draining,
    /// Everything ends.
    Ending,
}

pub(crate) struct State {
    pub(crate) config: ServeConfig,
    pub(crate) models: BTreeMap<String, Arc<Hosted>>,
    pub(crate) embedders: BTreeMap<String, HostedEmbedder>,
    pub(crate) slots: Slots,
    pub(crate) responses: Store,
    pub(crate) metrics: Metrics,
    pub(crate) environment: Arc<dyn Environment>,
    pub(crate) phase: watch::Sender<Phase>,
    /// When the server started, in seconds since 1970.
    pub(crate) started: u64,
}

impl State {
    pub(crate) fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// The model of a name.
    pub(crate) fn model(&self, id: &str) -> Result<&Arc<Hosted>, ApiError> {
        self.models.get(id).ok_or_else(|| ApiError::no_model(id))
    }

    /// Whether every model has answered, and nothing is ending.
    pub(crate) fn is_ready(&self) -> bool {
        self.phase() == Phase::Serving && self.models.values().all(|model| model.health() == Health::Good)
    }
}

/// Whether a model answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Health {
    Unknown,
    Good,
    Bad,
}

/// A model and how it is.
pub(crate) struct Hosted {
    pub(crate) model: Arc<dyn ChatModel>,
    health: AtomicU8,
}

impl Hosted {
    pub(crate) fn new(model: Arc<dyn ChatModel>) -> Self {
        Self { model, health: AtomicU8::new(0) }
    }

    pub(crate) fn health(&self) -> Health {
        match self.health.load(Ordering::Relaxed) {
            0 => Health::Unknown,
            1 => Health::Good,
            _ => Health::Bad,
        }
    }

    pub(crate) fn set_health(&self, health: Health) {
        let value = match health {
            Health::Unknown => 0,
            Health::Good => 1,
            Health::Bad => 2,
        };
        self.health.store(value, Ordering::Relaxed);
    }
}

/// Something that makes vectors, with the tokenizer that counts their tokens and spells out token ids.
#[derive(Clone)]
pub(crate) struct HostedEmbedder {
    pub(crate) embedder: Arc<dyn Embedder>,
    pub(crate) tokenizer: Arc<dyn Tokenizer>,
}

/// The places for texts that run at a time, and the queue before them. Who comes first gets a place first.
pub(crate) struct Slots {
    pub(crate) permits: Arc<Semaphore>,
    n_slots: usize,
    max_waiting: usize,
    n_waiting: AtomicUsize,
    /// Running mean of how long a text takes; `None` before the first has ended.
    mean: Mutex<Option<Duration>>,
}

/// Weight of the latest text in the running mean.
const LATEST: f64 = 0.2;
/// What a text is thought to take before one has ended.
const FIRST_GUESS: Duration = Duration::from_secs(1);

impl Slots {
    pub(crate) fn new(n_slots: usize, max_waiting: usize) -> Self {
        let permits = Arc::new(Semaphore::new(n_slots));
        Self { permits, n_slots, max_waiting, n_waiting: AtomicUsize::new(0), mean: Mutex::new(None) }
    }

    /// Lets `n` texts into the queue, unless it is full.
    pub(crate) fn admit(&self, n: usize) -> Result<(), ApiError> {
        // A request with several answers may overfill the queue once, or it could never be served.
        let admitted = self.n_waiting.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |waiting| {
            let has_room =
                waiting < self.max_waiting || (waiting == 0 && self.permits.available_permits() > 0);
            has_room.then_some(waiting + n)
        });
        admitted.map(|_| ()).map_err(|waiting| ApiError::queue_full(waiting, self.estimate(waiting)))
    }

    /// A text leaves the queue, for a slot or for good.
    pub(crate) fn leave_queue(&self) {
        self.n_waiting.fetch_sub(1, Ordering::SeqCst);
    }

    /// How long the next text would wait behind `n_waiting` others.
    pub(crate) fn estimate(&self, n_waiting: usize) -> Duration {
        let mean = self.mean.lock().unwrap_or_else(PoisonError::into_inner).unwrap_or(FIRST_GUESS);
        mean.mul_f64((n_waiting + 1) as f64 / self.n_slots as f64)
    }

    /// Counts how long a text took.
    pub(crate) fn took(&self, time: Duration) {
        let mut mean = self.mean.lock().unwrap_or_else(PoisonError::into_inner);
        *mean = Some(match *mean {
            Some(mean) => mean.mul_f64(1.0 - LATEST) + time.mul_f64(LATEST),
            None => time,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_queue_says_how_long_it_takes() {
        let slots = Slots::new(2, 3);
        assert!(slots.admit(2).is_ok());
        assert!(slots.admit(4).is_ok(), "the last one may overfill it");
        let error = slots.admit(1).unwrap_err();
        assert_eq!(error.status.as_u16(), 429);
        // Seven texts, two at a time, one second each.
        assert_eq!(error.retry_after, Some(Duration::from_millis(3500)));
        slots.took(Duration::from_secs(4));
        assert_eq!(slots.estimate(6), Duration::from_secs(14));
        slots.took(Duration::from_secs(9));
        assert_eq!(slots.estimate(1), Duration::from_secs(5));
        (0..4).for_each(|_| slots.leave_queue());
        assert!(slots.admit(1).is_ok());
    }

    #[test]
    fn a_server_without_a_queue_serves_when_it_is_free() {
        let slots = Slots::new(1, 0);
        assert!(slots.admit(1).is_ok());
        assert!(slots.admit(1).is_err(), "one waits for its slot");
        slots.leave_queue();
        let permit = slots.permits.try_acquire().unwrap();
        assert!(slots.admit(1).is_err(), "the slot is taken");
        drop(permit);
        assert!(slots.admit(1).is_ok());
    }
}
