//! An endpoint's error report as a [`CallError`].

use std::time::Duration;

use breakers_core::CallError;
use ureq::http::HeaderMap;

use crate::date;
use crate::wire::{Chunk, ErrorBody, ErrorObject};

/// How many characters of a message are kept.
const MAX_MESSAGE: usize = 1000;

/// An HTTP status other than success.
#[derive(Debug, thiserror::Error)]
#[error("HTTP {status}: {message}")]
struct HttpStatus {
    status: u16,
    message: String,
}

/// The error for an answer whose status is not success.
pub(crate) fn of_status(status: u16, headers: &HeaderMap, body: &[u8], model: &str) -> CallError {
    let object = match serde_json::from_slice::<Chunk>(body) {
        Ok(Chunk { error: Some(error), .. }) => Some(object(error)),
        // FastAPI's format, and a bare object.
        _ => serde_json::from_slice::<serde_json::Value>(body).ok().and_then(|value| {
            let text = ["message", "detail"].iter().find_map(|key| value.get(key)).map(|text| match text {
                serde_json::Value::String(text) => text.clone(),
                other => other.to_string(),
            });
            text.map(|message| ErrorObject { message: Some(message), ..ErrorObject::default() })
        }),
    };
    let error = object.unwrap_or_else(|| ErrorObject {
        message: Some(String::from_utf8_lossy(body).trim().to_owned()),
        ..ErrorObject::default()
    });
    let never_again = headers.get("x-should-retry").is_some_and(|value| value == "false");
    classify(Some(status), error, retry_after(headers), never_again, model)
}

/// The error for an error event in the middle of an answer.
pub(crate) fn of_event(error: ErrorBody, model: &str) -> CallError {
    let error = object(error);
    let status = error.code.as_ref().and_then(serde_json::Value::as_u64).and_then(|n| u16::try_from(n).ok());
    classify(status, error, None, false, model)
}

fn object(error: ErrorBody) -> ErrorObject {
    match error {
        ErrorBody::Object(object) => object,
        ErrorBody::Text(text) => ErrorObject { message: Some(text), ..ErrorObject::default() },
        ErrorBody::Other(_) => ErrorObject::default(),
    }
}

fn classify(
    status: Option<u16>,
    error: ErrorObject,
    retry_after: Option<Duration>,
    never_again: bool,
    model: &str,
) -> CallError {
    let code = error.code.as_ref().and_then(serde_json::Value::as_str).unwrap_or_default();
    let kind = error.r#type.as_deref().unwrap_or_default();
    let is = |word: &str| code.contains(word) || kind.contains(word);
    let message: String =
        error.message.as_deref().unwrap_or("no message").chars().take(MAX_MESSAGE).collect();
    let failed = |status: u16, message: String| HttpStatus { status, message };

    // Error codes in words are more reliable than status numbers, which gateways change.
    if is("context_length_exceeded") || is("exceed_context_size") || names_context(&message) {
        let (needed, limit) = context_numbers(&message);
        return CallError::ContextTooLong { needed, limit };
    }
    if is("content_filter") || is("content_policy") {
        return CallError::ContentFiltered { message };
    }
    if is("insufficient_quota") || is("billing") {
        return CallError::Auth { message };
    }
    if is("model_not_found") {
        return CallError::ModelNotFound { model: model.to_owned() };
    }
    if is("rate_limit") {
        return CallError::RateLimited { retry_after };
    }
    if is("overloaded") {
        return CallError::Overloaded { retry_after };
    }
    match status {
        Some(401 | 403 | 407) => CallError::Auth { message },
        // A server with many models mentions an unknown model in its message; otherwise the address is wrong.
        Some(404) if message.to_ascii_lowercase().contains("model") => {
            CallError::ModelNotFound { model: model.to_owned() }
        }
        Some(429) => CallError::RateLimited { retry_after },
        Some(status @ 500..) if never_again => CallError::failed(failed(status, message)),
        Some(408 | 409 | 425 | 503 | 529) => CallError::Overloaded { retry_after },
        Some(status @ 500..) => CallError::transport(failed(status, message)),
        Some(status) => {
            let message = if status == 400 { message } else { failed(status, message).to_string() };
            CallError::BadRequest { param: error.param, message }
        }
        None if is("invalid_request") => CallError::BadRequest { param: error.param, message },
        None if is("authentication") || is("permission") => CallError::Auth { message },
        None => CallError::failed(failed(500, message)),
    }
}

/// Whether a message says that the context is too small. vLLM and llama.cpp send such messages without a
/// code.
fn names_context(message: &str) -> bool {
    let message = message.to_ascii_lowercase();
    ["maximum context length", "context size", "context length", "context window"]
        .iter()
        .any(|words| message.contains(words))
        && ["exceed", "too long", "maximum", "longer than", "however"]
            .iter()
            .any(|words| message.contains(words))
}

/// The tokens needed and the tokens that fit, taken from the numbers above 15 in a message.
fn context_numbers(message: &str) -> (Option<usize>, Option<usize>) {
    let words = message.split(|c: char| !c.is_ascii_digit() && c != ',');
    let numbers = words.filter_map(|word| word.replace(',', "").parse::<usize>().ok()).filter(|&n| n > 15);
    let numbers: Vec<usize> = numbers.collect();
    let lower = message.to_ascii_lowercase();
    // "maximum context length is 4097 tokens. However, you requested 5000 tokens (3000 in the
    // messages, 2000 …)"
    let limit =
        ["context length is", "context size (", "context size of", "context length of", "context window of"];
    let limit = limit.iter().find_map(|words| {
        let after = &lower[lower.find(words)? + words.len()..];
        let digits: String =
            after.trim_start().chars().take_while(|c| c.is_ascii_digit() || *c == ',').collect();
        digits.replace(',', "").parse::<usize>().ok()
    });
    let needed = limit.and_then(|limit| numbers.iter().copied().find(|&n| n > limit));
    (needed, limit)
}

/// How long to wait before trying again, given in milliseconds, in seconds or as a date.
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    let number = |text: &str| text.parse::<f64>().ok();
    if let Some(ms) = text("retry-after-ms").and_then(number) {
        return Duration::try_from_secs_f64(ms / 1000.0).ok();
    }
    let after = text("retry-after")?;
    match number(after) {
        Some(seconds) => Duration::try_from_secs_f64(seconds).ok(),
        None => date::until(after),
    }
}
