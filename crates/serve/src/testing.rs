//! Reads requests without a server, for fuzz targets.

use breakers_core::ChatRequest;

use crate::Limits;
use crate::request::{Completion, EmbeddingRequest, ResponseRequest, Route};

/// What a body asks of a model: the requests of `/v1/chat/completions`, or of `/v1/completions` if `is_chat`
/// is false. With it comes the seed of each.
///
/// # Errors
/// The body that a client would get.
pub fn read_completion(is_chat: bool, body: &[u8]) -> Result<Vec<ChatRequest>, String> {
    let route = if is_chat { Route::Chat } else { Route::Text };
    let completion = Completion::read(route, body, &Limits::default()).map_err(|error| error.to_json())?;
    let choices = (0..completion.n_choices()).map(|index| {
        let (request, seed) = completion.choice(index);
        let mut request = std::sync::Arc::unwrap_or_clone(request);
        request.seed = seed;
        request
    });
    Ok(choices.collect())
}

/// Whether a body is a request for vectors.
///
/// # Errors
/// The body that a client would get.
pub fn read_embedding(body: &[u8]) -> Result<(), String> {
    EmbeddingRequest::read(body, &Limits::default()).map(|_| ()).map_err(|error| error.to_json())
}

/// Whether a body is a request for a response.
///
/// # Errors
/// The body that a client would get.
pub fn read_response(body: &[u8]) -> Result<(), String> {
    ResponseRequest::read(body, &Limits::default()).map(|_| ()).map_err(|error| error.to_json())
}
