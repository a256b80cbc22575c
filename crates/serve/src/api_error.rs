//! Errors as OpenAI's clients understand them.

use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use breakers_core::{CallError, TimeoutPhase};
use serde::Serialize;

/// An answer that says what is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    pub(crate) kind: &'static str,
    pub(crate) code: Option<&'static str>,
    /// The field of the request that is wrong.
    pub(crate) param: Option<String>,
    pub(crate) message: String,
    pub(crate) retry_after: Option<Duration>,
    /// Whether repeating the request is useless, though its status suggests otherwise.
    pub(crate) is_final: bool,
}

/// The code of an error, for those that count errors.
#[derive(Clone, Copy)]
pub(crate) struct Code(pub(crate) &'static str);

const INVALID: &str = "invalid_request_error";

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, code: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            kind,
            code: Some(code),
            param: None,
            message: message.into(),
            retry_after: None,
            is_final: false,
        }
    }

    /// A field has a value that is not allowed, or one that cannot be honored.
    pub(crate) fn field(param: impl Into<String>, message: impl Into<String>) -> Self {
        let param = Some(param.into());
        Self { param, ..Self::new(StatusCode::BAD_REQUEST, INVALID, "invalid_value", message) }
    }

    /// A field asks for something that this server or its model does not do.
    pub(crate) fn unsupported(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self { code: Some("unsupported_parameter"), ..Self::field(param, message) }
    }

    /// The body is not what the route reads.
    pub(crate) fn body(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, INVALID, "invalid_json", message)
    }

    pub(crate) fn body_too_large(limit: usize) -> Self {
        let message = format!("the body has more than {limit} bytes");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, INVALID, "request_too_large", message)
    }

    pub(crate) fn body_timeout() -> Self {
        Self::new(StatusCode::REQUEST_TIMEOUT, INVALID, "timeout", "the body did not arrive in time")
    }

    pub(crate) fn no_model(model: &str) -> Self {
        let message = format!("The model `{model}` does not exist.");
        let error = Self::new(StatusCode::NOT_FOUND, INVALID, "model_not_found", message);
        Self { param: Some("model".to_owned()), ..error }
    }

    /// What was asked for by its id is not there.
    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, INVALID, "not_found", message)
    }

    /// The same error with another code.
    pub(crate) fn with_code(self, code: &'static str) -> Self {
        Self { code: Some(code), ..self }
    }

    #[cfg(feature = "registry")]
    pub(crate) fn absent_model(model: &str) -> Self {
        let message = format!("The model `{model}` is not available now.");
        let code = "model_unavailable";
        let error = Self::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", code, message);
        Self { param: Some("model".to_owned()), ..error }
    }

    #[cfg(feature = "registry")]
    pub(crate) fn registry(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        let kind = if status.is_server_error() { "server_error" } else { INVALID };
        Self::new(status, kind, code, message)
    }

    /// As [`no_model`](Self::no_model), with the models that there are.
    #[cfg(feature = "upstreams")]
    pub(crate) fn no_model_of(model: &str, all: &[String]) -> Self {
        let there = if all.is_empty() { "none".to_owned() } else { all.join(", ") };
        let error = Self::no_model(model);
        Self { message: format!("{} There are: {there}.", error.message), ..error }
    }

    /// A server behind this front failed.
    #[cfg(feature = "upstreams")]
    pub(crate) fn upstream(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self::new(status, "server_error", code, message)
    }

    /// No server behind this front can be asked for a model.
    #[cfg(feature = "upstreams")]
    pub(crate) fn no_upstream(model: &str) -> Self {
        let message = format!("no server that has the model `{model}` can be asked now");
        let error = Self::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", "no_upstream", message);
        Self { retry_after: Some(Duration::from_secs(1)), ..error }
    }

    pub(crate) fn no_route(method: &str, path: &str) -> Self {
        let path: String = path.chars().take(200).collect();
        let message = format!("Unknown request URL: {method} {path}.");
        Self::new(StatusCode::NOT_FOUND, INVALID, "unknown_url", message)
    }

    pub(crate) fn no_method(method: &str, path: &str) -> Self {
        let message = format!("{path} does not know the method {method}");
        Self::new(StatusCode::METHOD_NOT_ALLOWED, INVALID, "method_not_supported", message)
    }

    pub(crate) fn no_key(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "authentication_error", "invalid_api_key", message)
    }

    pub(crate) fn forbidden(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, INVALID, code, message)
    }

    pub(crate) fn rate_limited(message: impl Into<String>, retry_after: Duration) -> Self {
        let error = Self::new(StatusCode::TOO_MANY_REQUESTS, "requests", "rate_limit_exceeded", message);
        Self { retry_after: Some(retry_after), ..error }
    }

    pub(crate) fn queue_full(n_waiting: usize, wait: Duration) -> Self {
        let message =
            format!("{n_waiting} texts wait already; the estimated wait is {:.1} s", wait.as_secs_f64());
        let error = Self::new(StatusCode::TOO_MANY_REQUESTS, "server_error", "overloaded", message);
        Self { retry_after: Some(wait), ..error }
    }

    pub(crate) fn stopping() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", "overloaded", "the server is stopping")
    }

    /// There is no file, batch or job of this name, or none that the caller may see.
    #[cfg(feature = "batches")]
    pub(crate) fn no_object(kind: &str, id: &str) -> Self {
        let message = format!("there is no {kind} {id:.100?}");
        Self::new(StatusCode::NOT_FOUND, INVALID, "not_found", message)
    }

    /// What is asked for contradicts what is there.
    #[cfg(feature = "batches")]
    pub(crate) fn conflict(message: impl Into<String>) -> Self {
        Self { is_final: true, ..Self::new(StatusCode::CONFLICT, INVALID, "conflict", message) }
    }

    /// There is no room for a file.
    #[cfg(feature = "batches")]
    pub(crate) fn no_room(limit: u64) -> Self {
        let message = format!("all files together would have more than {limit} bytes; delete some");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, INVALID, "storage_full", message)
    }

    /// As many are open as may be.
    #[cfg(feature = "batches")]
    pub(crate) fn too_many(what: &str, limit: usize) -> Self {
        Self::rate_limited(format!("{limit} {what} are open already"), Duration::from_secs(60))
    }

    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", "failed", message)
    }

    /// The body, `{"error": {…}}`.
    pub(crate) fn to_json(&self) -> String {
        #[derive(Serialize)]
        struct Wire<'a> {
            message: &'a str,
            r#type: &'a str,
            param: Option<&'a str>,
            code: Option<&'a str>,
        }
        #[derive(Serialize)]
        struct Wrapped<'a> {
            error: Wire<'a>,
        }
        let Self { message, kind, param, code, .. } = self;
        let error = Wire { message, r#type: kind, param: param.as_deref(), code: *code };
        serde_json::to_string(&Wrapped { error }).unwrap_or_default()
    }
}

impl From<CallError> for ApiError {
    fn from(error: CallError) -> Self {
        let retry_after = error.retry_after();
        let text = error.to_string();
        let mut api = match error {
            CallError::RateLimited { .. } => {
                Self::new(StatusCode::TOO_MANY_REQUESTS, "requests", "rate_limit_exceeded", text)
            }
            CallError::Overloaded { .. } => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", "overloaded", text)
            }
            CallError::Timeout { phase, .. } => {
                let status = match phase {
                    TimeoutPhase::Connect => StatusCode::BAD_GATEWAY,
                    _ => StatusCode::GATEWAY_TIMEOUT,
                };
                Self::new(status, "server_error", "timeout", text)
            }
            CallError::Transport(_) | CallError::Malformed { .. } | CallError::Truncated { .. } => {
                Self::new(StatusCode::BAD_GATEWAY, "server_error", "bad_gateway", text)
            }
            CallError::ContextTooLong { needed, limit } => {
                let message = match (needed, limit) {
                    (Some(needed), Some(limit)) => format!(
                        "This model's maximum context length is {limit} tokens. However, you requested {needed} \
                         tokens."
                    ),
                    _ => text,
                };
                Self { code: Some("context_length_exceeded"), ..Self::field("messages", message) }
            }
            CallError::ContentFiltered { message } => {
                Self::new(StatusCode::BAD_REQUEST, INVALID, "content_filter", message)
            }
            CallError::BadRequest { param, message } => Self { param, ..Self::field("", message) },
            CallError::Unsupported { .. } => Self { param: None, ..Self::unsupported("", text) },
            // The key is the one by which this server calls an endpoint, so its client cannot mend it.
            CallError::Auth { message } => {
                let message = format!("the model's endpoint refuses this server: {message}");
                Self {
                    is_final: true,
                    ..Self::new(StatusCode::BAD_GATEWAY, "server_error", "upstream_auth", message)
                }
            }
            CallError::ModelNotFound { model } => Self::no_model(&model),
            CallError::Failed(_) => Self::failed(text),
        };
        api.retry_after = retry_after;
        api
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::from(self.to_json()));
        *response.status_mut() = self.status;
        response.extensions_mut().insert(Code(self.code.unwrap_or("none")));
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(after) = self.retry_after {
            // Whole seconds, rounded up; the milliseconds are what OpenAI's clients look at first.
            let ms = after.as_millis().clamp(1, 3_600_000) as u64;
            headers.insert(header::RETRY_AFTER, HeaderValue::from(ms.div_ceil(1000)));
            headers.insert("retry-after-ms", HeaderValue::from(ms));
        }
        if self.is_final {
            headers.insert("x-should-retry", HeaderValue::from_static("false"));
        }
        // What is left of the body is in the way of the next request.
        if matches!(self.status, StatusCode::PAYLOAD_TOO_LARGE | StatusCode::REQUEST_TIMEOUT) {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}
