//! `/v1/embeddings`.

use std::sync::Arc;

use axum::extract::{Request, State as Shared};
use axum::response::Response;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use breakers_core::{EncodeOptions, Priority, TokenId, Tokenizer, Usage};
use serde::Serialize;

use crate::answer;
use crate::api_error::ApiError;
use crate::edge::Caller;
use crate::keys::Visit;
use crate::request::{EmbeddingRequest, Encoding, Inputs};
use crate::routes::{json, name_ignored, read_body};
use crate::state::{Health, HostedEmbedder, Slot, State};
use crate::texts::Record;

#[derive(Serialize)]
struct List {
    object: &'static str,
    data: Vec<Vector>,
    model: String,
    usage: WireUsage,
}

#[derive(Serialize)]
struct Vector {
    object: &'static str,
    index: usize,
    embedding: Numbers,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Numbers {
    Floats(Vec<f32>),
    /// Little-endian bytes of the floats, in base64.
    Base64(String),
}

#[derive(Serialize)]
struct WireUsage {
    prompt_tokens: u64,
    total_tokens: u64,
}

pub(crate) async fn embeddings(
    Shared(state): Shared<Arc<State>>,
    request: Request,
) -> Result<Response, ApiError> {
    let (parts, body) = request.into_parts();
    let caller = parts.extensions.get::<Caller>().cloned().unwrap_or_default();
    let body = read_body(&state, body).await?;
    let request = EmbeddingRequest::read(&body, &state.config.limits)?;
    caller.check_model(&request.model)?;
    let hosted = find(&state, &request)?;
    let visit = caller.visit(state.environment.elapsed())?;
    state.slots.admit(1)?;
    let record = Record::accept(&state, &request.model);
    #[cfg(feature = "registry")]
    let record = record.of(caller.tenant(), None, true, true);
    // If the client goes away, this future is dropped here, and the record with it.
    let slot = state.slots.acquire(Priority::Normal).await;
    let ignored = request.ignored.clone();
    let (text, _) = run(slot, record, hosted, request, visit).await?;
    let mut response = json(text);
    name_ignored(&mut response, &ignored);
    Ok(response)
}

/// What makes the vectors that a request asks for.
///
/// # Errors
/// If there is no such model, or its vectors have another length.
pub(crate) fn find(state: &State, request: &EmbeddingRequest) -> Result<HostedEmbedder, ApiError> {
    let hosted = match state.embedders.get(&request.model) {
        Some(hosted) => hosted.clone(),
        None if state.chat_models().iter().any(|(id, ..)| *id == request.model) => {
            return Err(ApiError::unsupported("model", format!("`{}` makes no vectors", request.model)));
        }
        None => return Err(ApiError::no_model(&request.model)),
    };
    let dimension = hosted.embedder.dimension();
    if request.dimensions.is_some_and(|wanted| wanted != dimension) {
        let message =
            format!("`dimensions`: the model's vectors have {dimension} numbers and cannot be shortened");
        return Err(ApiError::unsupported("dimensions", message));
    }
    Ok(hosted)
}

/// Makes vectors in a slot. The result is the answer's body and the number of tokens.
///
/// # Errors
/// What is wrong with the input, or with the model.
pub(crate) async fn run(
    slot: Slot,
    mut record: Record,
    hosted: HostedEmbedder,
    request: EmbeddingRequest,
    visit: Option<Visit>,
) -> Result<(String, u64), ApiError> {
    record.start();
    let EmbeddingRequest { model, inputs, encoding, .. } = request;
    let work = tokio::task::spawn_blocking(move || {
        let _slot = slot;
        let result = embed(&hosted, inputs);
        match &result {
            Ok((_, tokens)) => {
                record.usage = Usage::new(*tokens, 0);
                if let Some(visit) = visit {
                    visit.charge(*tokens);
                }
                if hosted.health() == Health::Bad {
                    hosted.set_health(Health::Good);
                }
                record.end("stop");
            }
            Err(error) if error.status.is_client_error() => record.end("refused"),
            Err(error) => {
                // One that is only busy is well.
                if error.status.as_u16() == 500 {
                    hosted.set_health(Health::Bad);
                }
                record.end("failed");
            }
        }
        result
    });
    let (vectors, tokens) = work.await.map_err(|_| ApiError::failed("the model panicked"))??;
    let data = vectors.into_iter().enumerate().map(|(index, vector)| {
        let embedding = match encoding {
            Encoding::Float => Numbers::Floats(vector),
            Encoding::Base64 => {
                let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
                Numbers::Base64(BASE64_STANDARD.encode(bytes))
            }
        };
        Vector { object: "embedding", index, embedding }
    });
    let usage = WireUsage { prompt_tokens: tokens, total_tokens: tokens };
    let list = List { object: "list", data: data.collect(), model, usage };
    Ok((answer::json(&list), tokens))
}

/// The vectors of all inputs, and how many tokens the inputs have.
fn embed(hosted: &HostedEmbedder, inputs: Inputs) -> Result<(Vec<Vec<f32>>, u64), ApiError> {
    let tokenizer = &*hosted.tokenizer;
    let texts = match inputs {
        Inputs::Texts(texts) => texts,
        Inputs::Tokens(all) => {
            let texts = all.iter().enumerate().map(|(i, tokens)| spell(tokenizer, tokens, i));
            texts.collect::<Result<_, _>>()?
        }
    };
    let mut n_tokens = 0;
    for (i, text) in texts.iter().enumerate() {
        let tokens = tokenizer.encode(text, EncodeOptions::default());
        let tokens = tokens.map_err(|error| ApiError::field("input", format!("`input[{i}]`: {error}")))?;
        n_tokens += tokens.len() as u64;
    }
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let vectors = hosted.embedder.embed(&texts).map_err(ApiError::from)?;
    if vectors.len() != texts.len() || vectors.iter().flatten().any(|x| !x.is_finite()) {
        return Err(ApiError::failed("the model's vectors are not what they should be"));
    }
    Ok((vectors, n_tokens))
}

/// The text of tokens.
fn spell(tokenizer: &dyn Tokenizer, tokens: &[TokenId], index: usize) -> Result<String, ApiError> {
    let mut bytes = Vec::new();
    for &token in tokens {
        match tokenizer.token_bytes(token) {
            Some(_) if tokenizer.is_control(token) => {}
            Some(spelling) => bytes.extend_from_slice(spelling),
            None => {
                let message = format!("`input[{index}]`: {token} is no token of the model");
                return Err(ApiError::field("input", message));
            }
        }
    }
    String::from_utf8(bytes)
        .map_err(|_| ApiError::field("input", format!("`input[{index}]`: the tokens are no text")))
}
