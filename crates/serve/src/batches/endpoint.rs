//! Answers to requests of batches and jobs. They are what the routes of the same name would answer, but for
//! three things that would change from one try to the next: names and times follow from where the request
//! stands, a request without a seed gets one that follows from it too, and what was cached of a prompt is not
//! in it.

use std::sync::Arc;

use breakers_core::{ChatReply, Usage};
use sha2::{Digest as _, Sha256};
use tokio::task::JoinSet;

use crate::answer::{self, Head};
use crate::api_error::ApiError;
use crate::request::{Completion, EmbeddingRequest, Route};
use crate::routes::{fingerprint, rename};
use crate::state::{Slot, State};
use crate::texts::{self, Record};
use crate::vectors;

/// A route that batches and jobs may ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Endpoint {
    Chat,
    Text,
    Embeddings,
}

impl Endpoint {
    pub(crate) const ALL: [Self; 3] = [Self::Chat, Self::Text, Self::Embeddings];

    pub(crate) fn path(self) -> &'static str {
        match self {
            Self::Chat => "/v1/chat/completions",
            Self::Text => "/v1/completions",
            Self::Embeddings => "/v1/embeddings",
        }
    }

    /// The route of a path.
    ///
    /// # Errors
    /// The paths there are.
    pub(crate) fn of(path: &str) -> Result<Self, ApiError> {
        Self::ALL.into_iter().find(|endpoint| endpoint.path() == path).ok_or_else(|| {
            let paths = Self::ALL.map(Self::path).join(", ");
            ApiError::field("endpoint", format!("`endpoint`: {path:.100?} is none of {paths}"))
        })
    }

    /// The field that holds what the model reads.
    pub(crate) fn text_field(self) -> &'static str {
        match self {
            Self::Chat => "messages",
            Self::Text => "prompt",
            Self::Embeddings => "input",
        }
    }
}

/// A request as its route reads it.
pub(crate) enum Parsed {
    Completion(Completion),
    Embedding(EmbeddingRequest),
}

impl Parsed {
    /// Reads a body and checks that its model can do what is asked.
    ///
    /// # Errors
    /// What is wrong with it, by field.
    pub(crate) fn read(state: &State, endpoint: Endpoint, body: &[u8]) -> Result<Self, ApiError> {
        let limits = &state.config.limits;
        let route = match endpoint {
            Endpoint::Chat => Route::Chat,
            Endpoint::Text => Route::Text,
            Endpoint::Embeddings => {
                let request = EmbeddingRequest::read(body, limits)?;
                vectors::find(state, &request)?;
                return Ok(Self::Embedding(request));
            }
        };
        let completion = Completion::read(route, body, limits)?;
        if completion.stream {
            return Err(ApiError::unsupported("stream", "`stream`: batches and jobs have whole answers"));
        }
        completion.check(state.choose(&completion)?.model.card())?;
        Ok(Self::Completion(completion))
    }

    pub(crate) fn model(&self) -> &str {
        match self {
            Self::Completion(completion) => &completion.model,
            Self::Embedding(request) => &request.model,
        }
    }
}

/// Where a request stands: what all that is made up for its answer follows from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Origin {
    hash: [u8; 32],
    /// When it was accepted, in seconds since 1970.
    created: u64,
}

impl Origin {
    /// A line of a batch.
    pub(crate) fn line(batch: &str, line: u64, created: u64) -> Self {
        Self::of("line", batch, line, created)
    }

    /// A job.
    pub(crate) fn job(ticket: &str, created: u64) -> Self {
        Self::of("job", ticket, 0, created)
    }

    fn of(kind: &str, owner: &str, line: u64, created: u64) -> Self {
        let hash = Sha256::new().chain_update(kind).chain_update([0]).chain_update(owner).chain_update([0]);
        Self { hash: hash.chain_update(line.to_le_bytes()).finalize().into(), created }
    }

    /// A name that begins with `prefix`, which says what it names.
    pub(crate) fn id(&self, prefix: &str) -> String {
        self.id_of(prefix, prefix)
    }

    /// A name that begins with `prefix`; `what` tells it from others that begin so.
    pub(crate) fn id_of(&self, prefix: &str, what: &str) -> String {
        let hash = Sha256::new().chain_update(self.hash).chain_update(what).finalize();
        hash.iter().take(16).fold(prefix.to_owned(), |out, byte| format!("{out}{byte:02x}"))
    }

    /// The seed of a request that has none.
    pub(crate) fn seed(&self) -> u64 {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&self.hash[..8]);
        u64::from_le_bytes(bytes)
    }
}

/// Answers a request: the answer's body, and what it used. The first text runs in `slot`; if there are more,
/// each waits for a slot of its own.
///
/// # Errors
/// What is wrong with the request, or with the model.
pub(crate) async fn answer(
    state: &Arc<State>,
    endpoint: Endpoint,
    body: &[u8],
    origin: &Origin,
    tenant: &str,
    slot: Slot,
) -> Result<(String, Usage), ApiError> {
    match Parsed::read(state, endpoint, body)? {
        Parsed::Completion(completion) => complete(state, completion, origin, tenant, slot).await,
        Parsed::Embedding(request) => {
            let hosted = vectors::find(state, &request)?;
            state.slots.enter_queue();
            let record = Record::accept(state, &request.model);
            #[cfg(feature = "registry")]
            let record = record.of(tenant, None, true, true);
            let (body, tokens) = vectors::run(slot, record, hosted, request, None).await?;
            Ok((body, Usage::new(tokens, 0)))
        }
    }
}

async fn complete(
    state: &Arc<State>,
    mut completion: Completion,
    origin: &Origin,
    tenant: &str,
    slot: Slot,
) -> Result<(String, Usage), ApiError> {
    let route = completion.route;
    // Where nobody and no seed decides between versions of the model, the request's place does.
    if completion.prompts.iter().all(|request| request.seed.is_none()) {
        completion.user.get_or_insert_with(|| origin.id("user_"));
    }
    let hosted = state.choose(&completion)?;
    let card = hosted.model.card();
    if card.capabilities.seed {
        for prompt in &mut completion.prompts {
            let request = Arc::make_mut(prompt);
            request.seed = request.seed.or(Some(origin.seed()));
        }
    }
    let prefix = if route == Route::Chat { "chatcmpl-" } else { "cmpl-" };
    let head = Head {
        id: origin.id(prefix),
        object: answer::object(route, false),
        created: origin.created,
        model: hosted.name.clone(),
        system_fingerprint: card.revision.as_deref().or(hosted.version.as_deref()).map(fingerprint),
    };
    let completion = Arc::new(completion);
    let reserve =
        state.batches.as_ref().map_or(0, |batches| batches.config.reserve_of(state.config.limits.max_texts));
    // If this future is dropped, so are the texts, and they end.
    let mut texts = JoinSet::new();
    let mut first = Some(slot);
    for index in 0..completion.n_choices() {
        let (state, hosted, completion) = (Arc::clone(state), Arc::clone(&hosted), Arc::clone(&completion));
        let (slot, tenant) = (first.take(), tenant.to_owned());
        texts.spawn(async move {
            let slot = match slot {
                Some(slot) => slot,
                None => state.slots.acquire_spare(reserve).await,
            };
            (index, texts::run_in(slot, &state, &hosted, &completion, index, &tenant).await)
        });
    }
    let mut replies: Vec<Option<ChatReply>> = vec![None; completion.n_choices()];
    while let Some(ended) = texts.join_next().await {
        let (index, reply) = ended.map_err(|_| ApiError::failed("the answer broke off"))?;
        let mut reply = reply.map_err(|error| rename(error, &completion))?;
        for (i, call) in reply.tool_calls.iter_mut().enumerate() {
            call.id = origin.id(&format!("call_{index}_{i}_"));
        }
        replies[index] = Some(reply);
    }
    let replies: Option<Vec<_>> = replies.into_iter().collect();
    let replies = replies.ok_or_else(|| ApiError::failed("an answer is missing"))?;
    let Completion { n, echo, prompts, .. } = &*completion;
    let is_scored = prompts.iter().any(|prompt| prompt.top_logprobs.is_some());
    let body = answer::whole_alone(route, &head, &replies, *n, is_scored, echo);
    // A prompt counts once, however many answers it has.
    let mut usage: Usage = replies.iter().map(|reply| reply.usage).sum();
    let prompts: Usage = replies.iter().step_by((*n).max(1)).map(|reply| reply.usage).sum();
    (usage.prompt, usage.cached_prompt) = (prompts.prompt, prompts.cached_prompt);
    Ok((body, usage))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_made_up_follows_from_where_a_request_stands() {
        let one = Origin::line("batch_1", 1, 7);
        assert_eq!(one, Origin::line("batch_1", 1, 7));
        let others =
            [Origin::line("batch_1", 2, 7), Origin::line("batch_2", 1, 7), Origin::job("batch_1", 7)];
        for other in others {
            assert!(one.seed() != other.seed() && one.id("req_") != other.id("req_"));
        }
        assert!(one.id("a").strip_prefix('a') != one.id("b").strip_prefix('b'));
        assert_eq!(one.id("req_").len(), 36);
    }
}
