use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use breakers_core::{CallError, ChatModel, ChatReply, ChatRequest, ModelCard, ModelLoad, OnDelta};

use crate::{Error, Result};

/// When and how often a failed call is retried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RetryConfig {
    /// The most retries after the first attempt.
    pub max_retries: u32,
    /// The first pause. Each further pause is twice as long.
    pub first_pause: Duration,
    /// The upper limit for these pauses.
    pub longest_pause: Duration,
    /// If an endpoint asks for a longer pause than this, its error is returned at once.
    pub longest_wait: Duration,
}

impl Default for RetryConfig {
    fn default() -> Self {
        Self {
            max_retries: 3,
            first_pause: Duration::from_millis(500),
            longest_pause: Duration::from_secs(8),
            longest_wait: Duration::from_secs(60),
        }
    }
}

impl RetryConfig {
    /// The pause before retry number `retry` (counted from 0), or `None` to return the error. `random`
    /// spreads the pauses of many callers over the upper half of their length. Pauses that the endpoint asks
    /// for are not shortened.
    pub fn pause(&self, retry: u32, error: &CallError, random: u64) -> Option<Duration> {
        if retry >= self.max_retries || !error.is_retryable() {
            return None;
        }
        let factor = 2u32.checked_pow(retry).unwrap_or(u32::MAX);
        let pause = self.first_pause.saturating_mul(factor).min(self.longest_pause);
        let spread = 0.5 + 0.5 * (random as f64 / u64::MAX as f64);
        let pause = pause.mul_f64(spread);
        match error.retry_after() {
            Some(wait) if wait > self.longest_wait => None,
            Some(wait) => Some(wait.max(pause)),
            None => Some(pause),
        }
    }
}

/// Waits for a time.
type Sleep = dyn Fn(Duration) + Send + Sync;

/// A model whose calls are retried after temporary failures: rate limits, overload, timeouts, broken
/// connections.
///
/// A call is never retried once a piece of its answer has been handed out, since the receiver would get it
/// twice.
///
/// ```
/// use breakers_core::{CallError, ChatModel, ChatRequest, Message, ScriptedModel};
/// use breakers_remote::{RetryConfig, Retrying};
/// use std::ops::ControlFlow;
///
/// let busy = CallError::Overloaded { retry_after: None };
/// let script = ScriptedModel::new("test", [busy.into(), "Hello.".into()]);
/// let mut config = RetryConfig::default();
/// config.first_pause = std::time::Duration::from_millis(1);
/// let model = Retrying::new(script, config)?;
/// let request = ChatRequest::new(Message::user("Hi!"));
/// let reply = model.chat(&request, &mut |_| ControlFlow::Continue(())).unwrap();
/// assert_eq!(reply.text, "Hello.");
/// # Ok::<(), breakers_remote::Error>(())
/// ```
pub struct Retrying<M> {
    model: M,
    config: RetryConfig,
    sleep: Arc<Sleep>,
}

impl<M: ChatModel> Retrying<M> {
    /// Wraps a model.
    ///
    /// # Errors
    /// [`Error::Parameter`] if the first pause is longer than the longest.
    pub fn new(model: M, config: RetryConfig) -> Result<Self> {
        if config.first_pause > config.longest_pause {
            let (expected, found) = ("at most `longest_pause`", format!("{:?}", config.first_pause));
            return Err(Error::Parameter { name: "first_pause", expected, found });
        }
        Ok(Self { model, config, sleep: Arc::new(std::thread::sleep) })
    }

    /// The same model with another way to wait, for tests or for a program that must not sleep.
    pub fn with_sleep(mut self, sleep: impl Fn(Duration) + Send + Sync + 'static) -> Self {
        self.sleep = Arc::new(sleep);
        self
    }

    /// The wrapped model.
    pub fn inner(&self) -> &M {
        &self.model
    }

    /// Waits before a retry, and returns whether there is to be one.
    fn wait(&self, retry: u32, error: &CallError) -> bool {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        // The mixing step of SplitMix64, because only the clock's low bits are random.
        let mut x = (now.as_nanos() as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let pause = self.config.pause(retry, error, x ^ (x >> 27));
        pause.map(|pause| (self.sleep)(pause)).is_some()
    }
}

impl<M: std::fmt::Debug> std::fmt::Debug for Retrying<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { model, config, .. } = self;
        f.debug_struct("Retrying").field("model", model).field("config", config).finish_non_exhaustive()
    }
}

impl<M: ChatModel> ChatModel for Retrying<M> {
    fn card(&self) -> &ModelCard {
        self.model.card()
    }

    fn load(&self) -> Option<ModelLoad> {
        self.model.load()
    }

    fn chat(&self, request: &ChatRequest, on_delta: &mut OnDelta<'_>) -> Result<ChatReply, CallError> {
        self.chat_as("", request, on_delta)
    }

    fn chat_as(
        &self,
        tenant: &str,
        request: &ChatRequest,
        on_delta: &mut OnDelta<'_>,
    ) -> Result<ChatReply, CallError> {
        let mut retry = 0;
        loop {
            let mut begun = false;
            let result = self.model.chat_as(tenant, request, &mut |delta| {
                begun = true;
                on_delta(delta)
            });
            match result {
                Err(error) if !begun && self.wait(retry, &error) => retry += 1,
                result => return result,
            }
        }
    }

    fn chat_batch(&self, requests: &[ChatRequest]) -> Vec<Result<ChatReply, CallError>> {
        let mut replies = self.model.chat_batch(requests);
        for retry in 0..self.config.max_retries {
            let failed = |reply: &Result<ChatReply, CallError>| {
                reply.as_ref().err().filter(|error| self.config.pause(retry, error, 0).is_some()).cloned()
            };
            let again: Vec<(usize, CallError)> =
                replies.iter().enumerate().filter_map(|(i, reply)| Some((i, failed(reply)?))).collect();
            // One pause for all of them: the longest that any of them needs.
            let Some((_, worst)) = again.iter().max_by_key(|(_, error)| error.retry_after()) else { break };
            if !self.wait(retry, worst) {
                break;
            }
            let requests: Vec<ChatRequest> = again.iter().map(|(i, _)| requests[*i].clone()).collect();
            for ((i, _), reply) in again.into_iter().zip(self.model.chat_batch(&requests)) {
                replies[i] = reply;
            }
        }
        replies
    }
}
