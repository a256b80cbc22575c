use std::ops::ControlFlow;
use std::sync::Arc;

use crate::{CallError, ChatReply, ChatRequest, Delta, ModelCard};

/// A callback that receives an answer piece by piece and can end it.
pub type OnDelta<'a> = dyn FnMut(Delta) -> ControlFlow<()> + 'a;

/// Something that answers conversations and continues texts: a local model, a remote one, a router over
/// several.
///
/// Calls may come from several threads at once.
pub trait ChatModel: Send + Sync {
    /// What is known of the model.
    fn card(&self) -> &ModelCard;

    /// Answers a request. `on_delta` receives the answer as it grows; if it returns `Break`, the answer ends
    /// there with [`FinishReason::Cancelled`](crate::FinishReason::Cancelled).
    ///
    /// No part of a request is silently ignored: what the model cannot do is refused.
    ///
    /// # Errors
    /// [`CallError`]. What `on_delta` received before the error is part of an unfinished answer.
    fn chat(&self, request: &ChatRequest, on_delta: &mut OnDelta<'_>) -> Result<ChatReply, CallError>;

    /// Answers a request of one of several tenants: of a tenant's requests, nothing shows in another one's
    /// answers, nor in the time that they take. A model that remembers nothing of its requests, as the
    /// default has it, does not tell tenants apart; [`chat`](Self::chat) is that of the tenant `""`.
    ///
    /// # Errors
    /// As [`chat`](Self::chat).
    fn chat_as(
        &self,
        tenant: &str,
        request: &ChatRequest,
        on_delta: &mut OnDelta<'_>,
    ) -> Result<ChatReply, CallError> {
        let _ = tenant;
        self.chat(request, on_delta)
    }

    /// Answers several requests. Each answer is the one that the request would get alone. The default answers
    /// one request after the other; an engine that can batch forward passes is faster.
    ///
    /// # Errors
    /// Each request has a result of its own.
    fn chat_batch(&self, requests: &[ChatRequest]) -> Vec<Result<ChatReply, CallError>> {
        let keep = &mut |_: Delta| ControlFlow::Continue(());
        requests.iter().map(|request| self.chat(request, keep)).collect()
    }

    /// What the model is busy with; `None` for a model that does not know, such as a remote one. It does not
    /// wait for anything.
    fn load(&self) -> Option<ModelLoad> {
        None
    }
}

/// What a model that runs here is busy with, for those who watch it. Counters only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ModelLoad {
    /// Texts that take part in passes.
    pub n_running: usize,
    /// Texts that have begun and pause.
    pub n_pausing: usize,
    /// Sequences of ended texts that are kept for others.
    pub n_kept: usize,
    /// Bytes of all sequences.
    pub held_bytes: usize,
    /// Bytes that they may take.
    pub max_bytes: Option<usize>,
    /// Passes of the model.
    pub n_passes: u64,
    /// Tokens fed in passes.
    pub n_rows: u64,
    /// How often a text has paused.
    pub n_pauses: u64,
    /// Kept sequences that were given up for room.
    pub n_evicted: u64,
    /// Beginnings of texts that were written to a file.
    pub n_saved: u64,
    /// Texts that began with what a file held.
    pub n_restored: u64,
}

/// Something that says how likely given texts are.
pub trait Likelihood: Send + Sync {
    /// What is known of the model.
    fn card(&self) -> &ModelCard;

    /// For each pair of a context and its continuation, how likely the continuation is. Pairs with the same
    /// context should be adjacent, so that an engine reads the context once.
    ///
    /// # Errors
    /// [`CallError`]; [`CallError::Unsupported`] if an endpoint does not report likelihoods.
    fn loglikelihood(&self, pairs: &[(&str, &str)]) -> Result<Vec<ScoredText>, CallError>;

    /// How likely each text is as a whole, from its first token on. Texts longer than the context are read in
    /// windows that do not overlap.
    ///
    /// # Errors
    /// As [`loglikelihood`](Self::loglikelihood).
    fn rolling(&self, texts: &[&str]) -> Result<Vec<ScoredText>, CallError>;
}

/// How likely a text is.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct ScoredText {
    /// Natural logarithm of the text's probability: the sum over its tokens.
    pub logprob: f64,
    /// Whether each token is the most likely one in its place.
    pub is_greedy: bool,
    /// Natural logarithm of each token's probability.
    pub tokens: Vec<f32>,
}

impl ScoredText {
    /// The score of a text, from the log-probabilities of its tokens.
    pub fn new(tokens: Vec<f32>, is_greedy: bool) -> Self {
        Self { logprob: tokens.iter().map(|&logprob| f64::from(logprob)).sum(), is_greedy, tokens }
    }
}

/// Something that scores pairs of texts: whether the first implies the second, how relevant one is to the
/// other, and so on.
pub trait PairScorer: Send + Sync {
    /// Names of the scores, in the order in which [`score`](Self::score) returns them.
    fn labels(&self) -> &[String];

    /// Scores `[labels]` of each pair.
    ///
    /// # Errors
    /// [`CallError`].
    fn score(&self, pairs: &[(&str, &str)]) -> Result<Vec<Vec<f32>>, CallError>;
}

/// Something that turns texts into vectors.
pub trait Embedder: Send + Sync {
    /// Length of the vectors.
    fn dimension(&self) -> usize;

    /// One vector `[dimension]` for each text.
    ///
    /// # Errors
    /// [`CallError`].
    fn embed(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>, CallError>;
}

/// Passes every call on to what the pointer points to.
macro_rules! forward_to_pointee {
    ($($pointer:ty),*) => { $(
        impl<M: ChatModel + ?Sized> ChatModel for $pointer {
            fn card(&self) -> &ModelCard {
                (**self).card()
            }
            fn chat(&self, request: &ChatRequest, on_delta: &mut OnDelta<'_>) -> Result<ChatReply, CallError> {
                (**self).chat(request, on_delta)
            }
            fn chat_as(
                &self,
                tenant: &str,
                request: &ChatRequest,
                on_delta: &mut OnDelta<'_>,
            ) -> Result<ChatReply, CallError> {
                (**self).chat_as(tenant, request, on_delta)
            }
            fn chat_batch(&self, requests: &[ChatRequest]) -> Vec<Result<ChatReply, CallError>> {
                (**self).chat_batch(requests)
            }
            fn load(&self) -> Option<ModelLoad> {
                (**self).load()
            }
        }
        impl<M: Likelihood + ?Sized> Likelihood for $pointer {
            fn card(&self) -> &ModelCard {
                (**self).card()
            }
            fn loglikelihood(&self, pairs: &[(&str, &str)]) -> Result<Vec<ScoredText>, CallError> {
                (**self).loglikelihood(pairs)
            }
            fn rolling(&self, texts: &[&str]) -> Result<Vec<ScoredText>, CallError> {
                (**self).rolling(texts)
            }
        }
        impl<M: PairScorer + ?Sized> PairScorer for $pointer {
            fn labels(&self) -> &[String] {
                (**self).labels()
            }
            fn score(&self, pairs: &[(&str, &str)]) -> Result<Vec<Vec<f32>>, CallError> {
                (**self).score(pairs)
            }
        }
        impl<M: Embedder + ?Sized> Embedder for $pointer {
            fn dimension(&self) -> usize {
                (**self).dimension()
            }
            fn embed(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>, CallError> {
                (**self).embed(texts)
            }
        }
    )* };
}

forward_to_pointee!(&M, Box<M>, Arc<M>);
