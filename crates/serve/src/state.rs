//! What all requests share.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use breakers_core::{ChatModel, Embedder, Priority, Tokenizer};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};

use crate::api_error::ApiError;
use crate::metrics::Metrics;
#[cfg(feature = "registry")]
use crate::registry::{Counts, Registry, Shadow, ShadowCounts, ShadowKey, UsageKey};
use crate::request::Completion;
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
    #[cfg(feature = "registry")]
    pub(crate) registry: Option<Arc<Registry>>,
    pub(crate) slots: Arc<Slots>,
    pub(crate) responses: Store,
    pub(crate) metrics: Metrics,
    pub(crate) environment: Arc<dyn Environment>,
    pub(crate) phase: watch::Sender<Phase>,
    /// When the server started, in seconds since 1970.
    pub(crate) started: u64,
    /// The servers to which requests are passed on, if this is a front.
    #[cfg(feature = "upstreams")]
    pub(crate) front: Option<Arc<crate::upstreams::Front>>,
    /// Files, batches and jobs, if the server keeps any.
    #[cfg(feature = "batches")]
    pub(crate) batches: Option<Arc<crate::batches::Batches>>,
}

impl State {
    pub(crate) fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// The model for a request. Where several versions share a name, who asks decides, or else the seed, or
    /// else chance.
    pub(crate) fn choose(&self, completion: &Completion) -> Result<Arc<Hosted>, ApiError> {
        let id = &completion.model;
        if let Some(hosted) = self.models.get(id) {
            return Ok(Arc::clone(hosted));
        }
        #[cfg(feature = "registry")]
        if let Some(registry) = &self.registry {
            let seed = completion.prompts.first().and_then(|request| request.seed);
            let key = match (&completion.user, seed) {
                (Some(user), _) => user.as_bytes().to_vec(),
                (None, Some(seed)) => seed.to_le_bytes().to_vec(),
                (None, None) => self.environment.random().to_le_bytes().to_vec(),
            };
            match registry.choose(id, &key) {
                Some(Ok(hosted)) => return Ok(hosted),
                Some(Err(())) => return Err(ApiError::absent_model(id)),
                None => {}
            }
        }
        if self.embedders.contains_key(id) {
            return Err(ApiError::unsupported("model", format!("`{id}` makes vectors and no texts")));
        }
        Err(ApiError::no_model(id))
    }

    /// Whether `user` decides which version answers.
    pub(crate) fn is_shared(&self, id: &str) -> bool {
        #[cfg(feature = "registry")]
        return self.registry.as_ref().is_some_and(|registry| registry.n_shares(id) > 1);
        #[cfg(not(feature = "registry"))]
        return {
            let _ = id;
            false
        };
    }

    /// The names of models, how each is, and the length of its context.
    pub(crate) fn chat_models(&self) -> Vec<(String, Health, Option<usize>)> {
        let fixed = self.models.iter().map(|(id, hosted)| {
            let card = hosted.model.card();
            (id.clone(), hosted.health(), card.max_context)
        });
        #[cfg(feature = "registry")]
        let fixed = fixed.chain(self.registry.iter().flat_map(|registry| registry.aliases()));
        fixed.collect()
    }

    /// All models, each once.
    pub(crate) fn hosted(&self) -> Vec<Arc<Hosted>> {
        let fixed = self.models.values().cloned();
        #[cfg(feature = "registry")]
        let fixed = fixed.chain(self.registry.iter().flat_map(|registry| registry.hosted()));
        fixed.collect()
    }

    /// Whether every model has answered, those that make vectors included, and nothing is ending.
    pub(crate) fn is_ready(&self) -> bool {
        let are_good = || {
            self.chat_models().iter().all(|(_, health, _)| *health == Health::Good)
                && self.embedders.values().all(|hosted| hosted.health() == Health::Good)
        };
        self.phase() == Phase::Serving && are_good()
    }

    /// The server has ended; threads of texts that were cut off may still hold this.
    pub(crate) fn finish(&self) {
        #[cfg(feature = "registry")]
        if let Some(registry) = &self.registry
            && let Err(error) = registry.flush()
        {
            tracing::warn!(%error, "what was used last is not written");
        }
    }

    /// Keeps what a text used. `day` is set here.
    #[cfg(feature = "registry")]
    pub(crate) fn count_usage(&self, mut key: UsageKey, counts: Counts) {
        let Some(registry) = &self.registry else { return };
        let now = self.environment.unix_time();
        key.day = now - now % 86_400;
        registry.count(key, counts);
    }

    #[cfg(feature = "registry")]
    pub(crate) fn count_shadow(&self, key: ShadowKey, counts: ShadowCounts) {
        if let Some(registry) = &self.registry {
            registry.count_shadow(key, counts);
        }
    }
}

/// Whether a model answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Health {
    Unknown = 0,
    Good = 1,
    Bad = 2,
}

impl Health {
    fn of(value: &AtomicU8) -> Self {
        match value.load(Ordering::Relaxed) {
            0 => Self::Unknown,
            1 => Self::Good,
            _ => Self::Bad,
        }
    }
}

/// A model under the name that requests use, and how it is.
pub(crate) struct Hosted {
    pub(crate) model: Arc<dyn ChatModel>,
    pub(crate) name: String,
    /// The version that the registry knows it by.
    pub(crate) version: Option<Arc<str>>,
    /// A version that is asked the same in secret.
    #[cfg(feature = "registry")]
    pub(crate) shadow: Option<Arc<Shadow>>,
    /// Shared by all names of a model.
    health: Arc<AtomicU8>,
}

impl Hosted {
    /// A model under the name on its card.
    pub(crate) fn new(model: Arc<dyn ChatModel>) -> Self {
        let name = model.card().id.clone();
        #[cfg(feature = "registry")]
        return Self { model, name, version: None, shadow: None, health: Arc::default() };
        #[cfg(not(feature = "registry"))]
        return Self { model, name, version: None, health: Arc::default() };
    }

    /// A version of the registry.
    #[cfg(feature = "registry")]
    pub(crate) fn of_version(
        model: Arc<dyn ChatModel>,
        name: &str,
        version: Arc<str>,
        health: Arc<AtomicU8>,
        shadow: Option<Arc<Shadow>>,
    ) -> Self {
        Self { model, name: name.to_owned(), version: Some(version), shadow, health }
    }

    /// Whether it belongs to the same loaded model.
    #[cfg(feature = "registry")]
    pub(crate) fn shares_health(&self, health: &Arc<AtomicU8>) -> bool {
        Arc::ptr_eq(&self.health, health)
    }

    pub(crate) fn health(&self) -> Health {
        Health::of(&self.health)
    }

    pub(crate) fn set_health(&self, health: Health) {
        self.health.store(health as u8, Ordering::Relaxed);
    }
}

/// Something that makes vectors, with the tokenizer that counts their tokens and spells out token ids.
#[derive(Clone)]
pub(crate) struct HostedEmbedder {
    pub(crate) embedder: Arc<dyn Embedder>,
    pub(crate) tokenizer: Arc<dyn Tokenizer>,
    health: Arc<AtomicU8>,
}

impl HostedEmbedder {
    pub(crate) fn new(embedder: Arc<dyn Embedder>, tokenizer: Arc<dyn Tokenizer>) -> Self {
        Self { embedder, tokenizer, health: Arc::default() }
    }

    pub(crate) fn health(&self) -> Health {
        Health::of(&self.health)
    }

    pub(crate) fn set_health(&self, health: Health) {
        self.health.store(health as u8, Ordering::Relaxed);
    }
}

/// The places for texts that run at a time, and the queue before them. Who comes first gets a place first;
/// texts of batches take what nobody waits for. Texts that can wait have as many places of their own: a model
/// that knows priorities lets them pause while others run.
pub(crate) struct Slots {
    permits: Arc<Semaphore>,
    patient: Arc<Semaphore>,
    /// Told when a place becomes free.
    freed: Arc<Notify>,
    /// Held by the text of a batch that is next to get a place.
    #[cfg(feature = "batches")]
    turn: tokio::sync::Mutex<()>,
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
        Self {
            permits: Arc::new(Semaphore::new(n_slots)),
            patient: Arc::new(Semaphore::new(n_slots)),
            freed: Arc::default(),
            #[cfg(feature = "batches")]
            turn: tokio::sync::Mutex::default(),
            n_slots,
            max_waiting,
            n_waiting: AtomicUsize::new(0),
            mean: Mutex::new(None),
        }
    }

    /// Waits for a place, behind those who came before.
    pub(crate) async fn acquire(&self, priority: Priority) -> Slot {
        // If the wait is given up when the place was just granted, dropping this tells of it.
        let mut slot = Slot { permit: None, freed: Arc::clone(&self.freed) };
        let permits = if priority == Priority::Background { &self.patient } else { &self.permits };
        slot.permit = Arc::clone(permits).acquire_owned().await.ok();
        slot
    }

    /// Waits for a place that nobody else waits for, while `reserve` others stay free.
    #[cfg(feature = "batches")]
    pub(crate) async fn acquire_spare(&self, reserve: usize) -> Slot {
        let _turn = self.turn.lock().await;
        loop {
            // Registered before the look, so that a place that is freed in between is not missed.
            let mut freed = std::pin::pin!(self.freed.notified());
            freed.as_mut().enable();
            // A place that is freed while others wait is theirs and never counts as available.
            if self.permits.available_permits() > reserve
                && let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned()
            {
                return Slot { permit: Some(permit), freed: Arc::clone(&self.freed) };
            }
            freed.await;
        }
    }

    /// Counts a text of a batch as waiting. It has a place already, so that no limit applies.
    #[cfg(feature = "batches")]
    pub(crate) fn enter_queue(&self) {
        self.n_waiting.fetch_add(1, Ordering::SeqCst);
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

/// A place of a running text; free again when this is dropped.
pub(crate) struct Slot {
    permit: Option<OwnedSemaphorePermit>,
    freed: Arc<Notify>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        // First free, then told.
        drop(self.permit.take());
        self.freed.notify_waiters();
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
