//! What each route does.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State as Shared};
use axum::http::{HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use serde::Serialize;

use crate::answer::{self, ChoiceWriter, Head};
use crate::api_error::ApiError;
use crate::edge::Caller;
use crate::environment::new_id;
use crate::metrics;
use crate::page;
use crate::request::{Completion, Route};
use crate::responses;
use crate::state::{Hosted, State};
use crate::stream::{EventStream, Tail};
use crate::texts::{self, Event, Texts, Writer};
use crate::vectors;

type Answer = Result<Response, ApiError>;

/// How long the rest of a body that is too large is read, and thrown away.
const REST_TIME: Duration = Duration::from_secs(1);

/// All routes, without the checks that come before them.
pub(crate) fn router(state: Arc<State>) -> Router {
    #[cfg(feature = "upstreams")]
    if state.front.is_some() {
        return crate::upstreams::router(state);
    }
    let router = Router::new();
    #[cfg(feature = "registry")]
    let router = if state.registry.is_some() { router.merge(crate::registry::routes()) } else { router };
    let router = router
        .route("/v1/chat/completions", post(chat))
        .route("/v1/completions", post(text))
        .route("/v1/embeddings", post(vectors::embeddings))
        .route("/v1/responses", post(responses::create))
        .route("/v1/responses/{id}", get(responses::get).delete(responses::delete))
        .route("/v1/models", get(models))
        .route("/v1/models/{*id}", get(model))
        .route("/", get(page::page))
        .route("/health", get(health))
        .route("/ready", get(ready))
        .route("/metrics", get(show_metrics));
    #[cfg(feature = "batches")]
    let router = router.merge(crate::batches::routes());
    // Last, because it is for the routes that are there already.
    router.fallback(no_route).method_not_allowed_fallback(no_method).with_state(state)
}

async fn chat(Shared(state): Shared<Arc<State>>, request: Request) -> Answer {
    complete(&state, Route::Chat, request).await
}

async fn text(Shared(state): Shared<Arc<State>>, request: Request) -> Answer {
    complete(&state, Route::Text, request).await
}

/// Reads a body within its limits.
pub(crate) async fn read_body(state: &State, body: Body) -> Result<bytes::Bytes, ApiError> {
    let limits = &state.config.limits;
    let mut body = body;
    let collect = Limited::new(&mut body, limits.body_bytes).collect();
    match tokio::time::timeout(limits.body_time, collect).await {
        Err(_) => Err(ApiError::body_timeout()),
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            // A client that is still sending would find its connection broken, and not the answer.
            let rest = async { while let Some(Ok(_)) = body.frame().await {} };
            let _ = tokio::time::timeout(REST_TIME, rest).await;
            Err(ApiError::body_too_large(limits.body_bytes))
        }
        Ok(Err(_)) => Err(ApiError::body("the body broke off")),
    }
}

async fn complete(state: &Arc<State>, route: Route, request: Request) -> Answer {
    let (parts, body) = request.into_parts();
    let caller = parts.extensions.get::<Caller>().cloned().unwrap_or_default();
    let body = read_body(state, body).await?;
    let mut completion = Completion::read(route, &body, &state.config.limits)?;
    drop(body);
    caller.check_model(&completion.model)?;
    let hosted = &state.choose(&completion)?;
    let card = hosted.model.card();
    completion.check(card)?;
    if state.is_shared(&completion.model) {
        completion.ignored.retain(|name| !matches!(*name, "safety_identifier" | "user"));
    }
    let visit = caller.visit(state.environment.elapsed())?.map(Arc::new);

    let prefix = if route == Route::Chat { "chatcmpl-" } else { "cmpl-" };
    let head = Arc::new(Head {
        id: new_id(&*state.environment, prefix),
        object: answer::object(route, completion.stream),
        created: state.environment.unix_time(),
        model: hosted.name.clone(),
        system_fingerprint: card.revision.as_deref().or(hosted.version.as_deref()).map(fingerprint),
    });
    let is_scored = completion.prompts.iter().any(|prompt| prompt.top_logprobs.is_some());
    let writer =
        |index| ChoiceWriter::new(route, Arc::clone(&head), index, completion.include_usage, is_scored);
    let boxed = |index| Box::new(writer(index)) as Box<dyn Writer>;
    let boxed: Option<&(dyn Fn(usize) -> Box<dyn Writer> + Sync)> =
        if completion.stream { Some(&boxed) } else { None };
    let mut texts = texts::start(state, hosted, &completion, visit, boxed)?;
    let mut response = if completion.stream {
        // First the beginnings of all choices in their order, as clients need it.
        let begin = (0..completion.n_choices()).filter_map(|i| {
            let echo = completion.echo.get(i / completion.n).map(String::as_str);
            writer(i).begin(echo)
        });
        let begin = begin.collect();
        let Completion { include_usage, n, .. } = completion;
        let tail = Tail::Choices { head: Arc::clone(&head), include_usage, n };
        stream(state, texts, tail, begin, completion.n_choices()).await
    } else {
        whole(&mut texts, &completion, &head, is_scored).await
    }
    .map_err(|error| rename(error, &completion))?;
    name_ignored(&mut response, &completion.ignored_by(card));
    name_version(&mut response, hosted);
    Ok(response)
}

/// Models name the fields of a [`ChatRequest`](breakers_core::ChatRequest); clients know those of the
/// protocol.
pub(crate) fn rename(mut error: ApiError, completion: &Completion) -> ApiError {
    let param = match (error.param.as_deref(), completion.route) {
        (Some("prompt" | "messages"), Route::Chat) => "messages",
        (Some("prompt" | "messages"), Route::Text) => "prompt",
        (Some("prompt" | "messages"), Route::Responses) => "input",
        (Some("logprobs"), Route::Responses) => "include",
        // Other servers have other words for it.
        (Some("response" | "schema" | "response_format"), _) => completion.form_field,
        _ => return error,
    };
    error.param = Some(param.to_owned());
    error
}

/// Lists the fields that had no effect.
pub(crate) fn name_ignored(response: &mut Response, ignored: &[&'static str]) {
    if let (false, Ok(value)) = (ignored.is_empty(), HeaderValue::from_str(&ignored.join(", "))) {
        response.headers_mut().insert("x-breakers-ignored", value);
    }
}

/// Names the version of a model that answered.
pub(crate) fn name_version(response: &mut Response, hosted: &Hosted) {
    if let Some(version) = hosted.version.as_deref()
        && let Ok(version) = HeaderValue::from_str(version)
    {
        response.headers_mut().insert("x-breakers-version", version);
    }
}

/// A short name for all that determines a model's answers.
pub(crate) fn fingerprint(revision: &str) -> String {
    use sha2::{Digest as _, Sha256};
    let hash = Sha256::digest(revision);
    hash.iter().take(6).fold("fp_".to_owned(), |out, byte| format!("{out}{byte:02x}"))
}

async fn whole(texts: &mut Texts, completion: &Completion, head: &Head, is_scored: bool) -> Answer {
    let mut replies = vec![None; completion.n_choices()];
    for _ in 0..replies.len() {
        match texts.next().await {
            Some(Event::End(index, reply)) => replies[index] = Some(reply?),
            Some(Event::Chunk(..)) => {}
            None => break,
        }
    }
    let replies: Option<Vec<_>> = replies.into_iter().collect();
    let replies = replies.ok_or_else(|| ApiError::failed("an answer is missing"))?;
    let Completion { route, n, echo, .. } = completion;
    Ok(json(answer::whole(*route, head, &replies, *n, is_scored, echo)))
}

/// The texts of a request as a stream that begins with `begin`.
pub(crate) async fn stream(
    state: &State,
    mut texts: Texts,
    tail: Tail,
    begin: Vec<String>,
    n_choices: usize,
) -> Answer {
    let limits = &state.config.limits;
    // An error that comes soon has a status of its own.
    let first = tokio::time::timeout(limits.status_time, texts.next()).await;
    let first = match first {
        Ok(Some(Event::End(_, Err(error)))) => return Err(error),
        Ok(None) => return Err(ApiError::failed("an answer is missing")),
        Ok(news) => news,
        Err(_) => None,
    };
    let mut events = EventStream::new(texts, tail, begin, n_choices, limits.ping_time);
    if let Some(news) = first {
        events.take(news);
    }
    let mut response = Response::new(Body::from_stream(events));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // Proxies must not collect the events.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    Ok(response)
}

/// A body of JSON.
pub(crate) fn json(text: String) -> Response {
    let mut response = Response::new(Body::from(text));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

#[derive(Serialize)]
struct WireModel {
    id: String,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
    /// vLLM's name for the length of the context.
    #[serde(skip_serializing_if = "Option::is_none")]
    max_model_len: Option<usize>,
}

/// The models that a caller may use.
fn list(state: &State, caller: &Caller) -> Vec<WireModel> {
    let chat = state.chat_models().into_iter().map(|(id, _, max_context)| (id, max_context));
    let vectors = state.embedders.keys().map(|id| (id.clone(), None));
    let all = chat.chain(vectors).filter(|(id, _)| caller.check_model(id).is_ok());
    all.map(|(id, max_model_len)| WireModel {
        id,
        object: "model",
        created: state.started,
        owned_by: "breakers",
        max_model_len,
    })
    .collect()
}

async fn models(Shared(state): Shared<Arc<State>>, request: Request) -> Response {
    #[derive(Serialize)]
    struct List {
        object: &'static str,
        data: Vec<WireModel>,
    }
    let caller = request.extensions().get::<Caller>().cloned().unwrap_or_default();
    json(answer::json(&List { object: "list", data: list(&state, &caller) }))
}

async fn model(
    Shared(state): Shared<Arc<State>>,
    id: Result<Path<String>, PathRejection>,
    request: Request,
) -> Answer {
    let Path(id) = id.map_err(|_| ApiError::no_model("?"))?;
    let caller = request.extensions().get::<Caller>().cloned().unwrap_or_default();
    let found = list(&state, &caller).into_iter().find(|model| model.id == id);
    found.map(|model| json(answer::json(&model))).ok_or_else(|| ApiError::no_model(&id))
}

pub(crate) async fn health() -> Response {
    json(r#"{"status":"ok"}"#.to_owned())
}

async fn ready(Shared(state): Shared<Arc<State>>) -> Response {
    #[derive(Serialize)]
    struct Ready {
        status: &'static str,
        models: std::collections::BTreeMap<String, &'static str>,
    }
    use crate::state::Health;
    let chat = state.chat_models().into_iter().map(|(id, health, _)| (id, health));
    let vectors = state.embedders.iter().map(|(id, hosted)| (id.clone(), hosted.health()));
    let words = chat.chain(vectors).map(|(id, health)| {
        let word = match health {
            Health::Unknown => "not tested yet",
            Health::Good => "ok",
            Health::Bad => "failing",
        };
        (id, word)
    });
    let is_ready = state.is_ready();
    let status = if is_ready { "ready" } else { "not ready" };
    let mut response = json(answer::json(&Ready { status, models: words.collect() }));
    if !is_ready {
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    response
}

pub(crate) async fn show_metrics(Shared(state): Shared<Arc<State>>) -> Response {
    let mut response = Response::new(Body::from(state.metrics.encode(&state.hosted())));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(metrics::CONTENT_TYPE));
    response
}

pub(crate) async fn no_route(method: Method, uri: Uri) -> Response {
    ApiError::no_route(method.as_str(), uri.path()).into_response()
}

pub(crate) async fn no_method(method: Method, uri: Uri) -> Response {
    ApiError::no_method(method.as_str(), uri.path()).into_response()
}
