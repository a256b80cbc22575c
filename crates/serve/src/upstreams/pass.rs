//! The routes of a front.

use std::convert::Infallible;
use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State as Shared};
use axum::http::response::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::Response;
use axum::routing::{get, post};
use bytes::Bytes;
use futures_core::Stream;
use http_body_util::{BodyExt as _, Limited};
use serde::de::{Deserializer as _, MapAccess, Visitor};
use serde_json::value::RawValue;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::events::number;
use super::front::{Front, describe};
use super::prefix::Chain;
use super::relay::{Answered, Answering, Passing, Refusal, Relay, request as make_request};
use crate::api_error::{ApiError, Code};
use crate::edge::Caller;
use crate::keys::Visit;
use crate::state::{Phase, State};
use crate::{page, routes};

type Answer = Result<Response, ApiError>;

/// The routes that make something new each time, so that asking two servers does no harm.
const REPEATABLE: [&str; 4] = ["chat/completions", "completions", "embeddings", "responses"];
/// Events that wait for a client; then the server's stream waits, too.
const WAITING_EVENTS: usize = 8;

/// All routes of a front, without the checks that come before them.
pub(crate) fn router(state: Arc<State>) -> Router {
    Router::new()
        .route("/v1/models", get(models))
        .route("/v1/models/{*id}", get(model))
        .route("/v1/responses/{id}", get(stored).delete(stored))
        .route("/v1/{*path}", post(pass))
        .route("/", get(page::page))
        .route("/health", get(routes::health))
        .route("/ready", get(ready))
        .route("/metrics", get(routes::show_metrics))
        .fallback(routes::no_route)
        .method_not_allowed_fallback(routes::no_method)
        .with_state(state)
}

fn front(state: &State) -> Result<&Arc<Front>, ApiError> {
    state.front.as_ref().ok_or_else(|| ApiError::failed("there are no servers"))
}

fn caller(request: &Request) -> Caller {
    request.extensions().get::<Caller>().cloned().unwrap_or_default()
}

/// The models that a caller may use, with their entries in the servers' lists.
fn allowed(front: &Front, caller: &Caller) -> Vec<(String, Box<RawValue>)> {
    front.models().into_iter().filter(|(id, _)| caller.check_model(id).is_ok()).collect()
}

async fn models(Shared(state): Shared<Arc<State>>, request: Request) -> Answer {
    let entries = allowed(front(&state)?, &caller(&request));
    let entries: Vec<&str> = entries.iter().map(|(_, entry)| entry.get()).collect();
    Ok(routes::json(format!(r#"{{"object":"list","data":[{}]}}"#, entries.join(","))))
}

async fn model(
    Shared(state): Shared<Arc<State>>,
    id: Result<Path<String>, PathRejection>,
    request: Request,
) -> Answer {
    let Path(id) = id.map_err(|_| ApiError::no_model("?"))?;
    let found = allowed(front(&state)?, &caller(&request)).into_iter().find(|(name, _)| *name == id);
    found.map(|(_, entry)| routes::json(entry.get().to_owned())).ok_or_else(|| ApiError::no_model(&id))
}

async fn ready(Shared(state): Shared<Arc<State>>) -> Answer {
    let front = front(&state)?;
    let (n_usable, n_all) = (front.n_usable(), front.n_servers());
    let word = |is_usable: bool| if is_usable { "ok" } else { "no usable server" };
    let models: std::collections::BTreeMap<_, _> =
        front.usable_models().into_iter().map(|(id, usable)| (id, word(usable))).collect();
    let is_ready = n_usable > 0 && state.phase() == Phase::Serving;
    let body = serde_json::json!({
        "status": if is_ready { "ready" } else { "not ready" },
        "upstreams": {"usable": n_usable, "all": n_all},
        "models": models,
    });
    let mut response = routes::json(body.to_string());
    if !is_ready {
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    Ok(response)
}

/// What a front reads of a request.
struct Peek<'a> {
    fields: Vec<(String, &'a RawValue)>,
}

impl<'a> Peek<'a> {
    fn read(body: &'a [u8]) -> Result<Self, ApiError> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = Vec<(String, &'de RawValue)>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(fields)
            }
        }
        let wrong = |error: serde_json::Error| ApiError::body(format!("the body is not JSON: {error}"));
        let mut reader = serde_json::Deserializer::from_slice(body);
        let fields = reader.deserialize_map(Fields).map_err(wrong)?;
        reader.end().map_err(wrong)?;
        Ok(Self { fields })
    }

    fn get(&self, name: &str) -> Option<&'a RawValue> {
        let found = self.fields.iter().find(|(field, _)| field == name).map(|(_, value)| *value);
        found.filter(|value| value.get() != "null")
    }

    /// The model. Servers differ in which of two they take, and some read names in any case, so only one is
    /// let through: otherwise a key could reach models that it may not use.
    fn model(&self) -> Result<String, ApiError> {
        let mut named = self.fields.iter().filter(|(name, _)| name.eq_ignore_ascii_case("model"));
        let (Some((name, value)), None) = (named.next(), named.next()) else {
            return Err(ApiError::field("model", "a front needs to know the model, once"));
        };
        let model = serde_json::from_str(value.get()).ok().filter(|_| name == "model");
        model.ok_or_else(|| ApiError::field("model", "expected a text"))
    }

    /// What stands behind each other in the prompt.
    fn chain(&self, scope: &[&[u8]]) -> Chain {
        let mut parts: Vec<&[u8]> = Vec::new();
        for name in ["tools", "instructions", "system", "messages", "prompt", "input"] {
            let Some(value) = self.get(name) else { continue };
            match serde_json::from_str::<Vec<&RawValue>>(value.get()) {
                Ok(items) if matches!(name, "messages" | "input") => {
                    parts.extend(items.iter().map(|item| item.get().as_bytes()));
                }
                _ => parts.push(value.get().as_bytes()),
            }
        }
        Chain::new(scope, parts)
    }
}

async fn pass(Shared(state): Shared<Arc<State>>, request: Request) -> Answer {
    let front = Arc::clone(front(&state)?);
    let caller = caller(&request);
    let (parts, body) = request.into_parts();
    check_loop(&front, &parts.headers)?;
    let route = parts.uri.path().trim_start_matches("/v1/").to_owned();
    if matches!(route.split('/').next(), Some("files" | "batches" | "jobs")) {
        let message = "a front keeps no files, batches or jobs: hand them to one of its servers";
        return Err(ApiError::not_found(message));
    }
    let body = routes::read_body(&state, body).await?;
    let peek = Peek::read(&body)?;
    let model = peek.model()?;
    if caller.check_model(&model).is_err() || !front.knows(&model) {
        let names: Vec<String> = allowed(&front, &caller).into_iter().map(|(id, _)| id).collect();
        return Err(ApiError::no_model_of(&model, &names));
    }
    let follows = peek.get("previous_response_id").is_some();
    let shares_key = front.servers.iter().any(|server| !server.pass_keys);
    if follows && state.config.keys.is_some() && shares_key {
        let message = "what servers keep belongs to the front's key, and not to yours";
        return Err(ApiError::unsupported("previous_response_id", message));
    }
    let visit = caller.visit(state.environment.elapsed())?;
    // Whose caches are apart, whose beginnings are, too.
    let tenant = if shares_key { "" } else { caller.tenant() };
    let chain = peek.chain(&[tenant.as_bytes(), model.as_bytes()]);
    let is_stream = peek.get("stream").is_some_and(|value| value.get() == "true");
    let path = parts.uri.path_and_query().map_or_else(String::new, |path| path.to_string());
    let early = Arc::new(Mutex::new(None));
    let relay = Relay {
        front: Arc::clone(&front),
        method: parts.method,
        path,
        headers: parts.headers,
        body: body.clone(),
        model,
        chain,
        is_repeatable: REPEATABLE.contains(&&*route),
        follows,
        early: Arc::clone(&early),
    };
    let is_known = relay.is_repeatable;
    let mut answering: Answering = Box::pin(relay.run());
    // Servers begin their streams in this time even if they have nothing to say; a little more leaves them
    // their own heads.
    let patience = state.config.limits.status_time * 2;
    let soon = match is_stream {
        true => tokio::time::timeout(patience, answering.as_mut()).await.ok(),
        false => Some(answering.as_mut().await),
    };
    let (headers, begun) = match soon {
        Some(Ok(Answered::Whole(parts, body))) => {
            if let Some(visit) = visit {
                visit.charge(number(&body, b"\"total_tokens\":").unwrap_or(0));
            }
            return Ok(respond(parts, body));
        }
        Some(Err(Refusal::Reply(parts, body))) => return Ok(respond(*parts, body)),
        Some(Err(Refusal::Own(error))) => return Err(*error),
        Some(Ok(Answered::Stream(passing))) => (passing.parts.headers.clone(), Begun::Yes(passing)),
        None => {
            let early = early.lock().unwrap_or_else(PoisonError::into_inner).clone();
            (early.unwrap_or_default(), Begun::NotYet(answering))
        }
    };
    let (sender, events) = mpsc::channel(WAITING_EVENTS);
    let form = Form { is_responses: route == "responses", is_known };
    let feeder = Feeder { front, state: Arc::clone(&state), sender, form };
    tokio::spawn(async move { feeder.feed(begun, visit).await });
    let mut response = Response::new(Body::from_stream(Channel(events)));
    let out = response.headers_mut();
    *out = headers;
    for (name, value) in [
        (header::CONTENT_TYPE, "text/event-stream; charset=utf-8"),
        (header::CACHE_CONTROL, "no-cache"),
        (header::HeaderName::from_static("x-accel-buffering"), "no"),
    ] {
        out.entry(name).or_insert(HeaderValue::from_static(value));
    }
    Ok(response)
}

/// A request that has been here before would go on forever.
fn check_loop(front: &Front, headers: &HeaderMap) -> Result<(), ApiError> {
    let mut vias = headers.get_all(header::VIA).iter().filter_map(|via| via.to_str().ok());
    match vias.any(|via| via.contains(&front.id)) {
        true => Err(ApiError::upstream(
            StatusCode::LOOP_DETECTED,
            "loop_detected",
            "a server of this front is the front itself",
        )),
        false => Ok(()),
    }
}

fn respond(parts: Parts, body: Bytes) -> Response {
    let mut response = Response::from_parts(parts, Body::from(body));
    response.extensions_mut().insert(Code("upstream"));
    response
}

/// What a server keeps by its name. Any of them may have it.
async fn stored(Shared(state): Shared<Arc<State>>, request: Request) -> Answer {
    let front = front(&state)?;
    let (parts, _) = request.into_parts();
    check_loop(front, &parts.headers)?;
    let path = parts.uri.path_and_query().map_or_else(String::new, |path| path.to_string());
    let mut last = Err(ApiError::not_found("no server that can be asked keeps this response"));
    // With a key for all, servers cannot tell whose it is.
    let may = |server: &usize| state.config.keys.is_none() || front.servers[*server].pass_keys;
    for server in front.usable().into_iter().filter(may) {
        let request = make_request(front, server, &parts.method, &path, &parts.headers, Bytes::new())?;
        let running = front.begin_plain(server, true);
        let call = async {
            let (parts, body) = front.client.request(request).await.map_err(|e| describe(&e))?.into_parts();
            let body = Limited::new(body, front.config.answer_bytes).collect().await;
            Ok::<_, String>((parts, body.map_err(|error| error.to_string())?.to_bytes()))
        };
        match tokio::time::timeout(front.config.check_time, call).await {
            Ok(Ok((mut parts, body))) => {
                running.end("answered");
                parts.headers.remove(header::TRANSFER_ENCODING);
                parts.headers.remove(header::CONNECTION);
                parts.headers.remove(header::CONTENT_LENGTH);
                let is_found = parts.status != StatusCode::NOT_FOUND;
                last = Ok(respond(parts, body));
                if is_found {
                    break;
                }
            }
            failed => {
                running.end("failed");
                let reason =
                    failed.map_or_else(|_| "no answer in time".to_owned(), |r| r.err().unwrap_or_default());
                front.failed(server, reason);
            }
        }
    }
    last
}

/// Whether a stream has begun.
enum Begun {
    Yes(Box<Passing>),
    NotYet(Answering),
}

/// How a stream's errors look and how it ends.
#[derive(Clone, Copy)]
struct Form {
    is_responses: bool,
    /// Whether it is known how such a stream says that it ends.
    is_known: bool,
}

impl Form {
    /// The event of an error, which is the last one.
    fn error(self, error: &ApiError, next: u64) -> Bytes {
        if !self.is_responses {
            return format!("data: {}\n\n", error.to_json()).into();
        }
        let data = serde_json::json!({
            "type": "error", "code": error.code, "message": error.message, "param": error.param,
            "sequence_number": next,
        });
        format!("event: error\ndata: {data}\n\n").into()
    }

    /// The event of a server's refusal.
    fn refusal(self, refusal: Refusal) -> Bytes {
        let (parts, body) = match refusal {
            Refusal::Own(error) => return self.error(&error, 0),
            Refusal::Reply(parts, body) => (parts, body),
        };
        let value: Option<serde_json::Value> = serde_json::from_slice(&body).ok();
        match value.filter(|value| value.get("error").is_some()) {
            Some(value) if !self.is_responses => format!("data: {value}\n\n").into(),
            Some(value) => {
                let message = value["error"]["message"].as_str().unwrap_or("the server refuses this");
                self.error(&ApiError::upstream(parts.status, "upstream", message), 0)
            }
            None => {
                let message = format!("the server answers {}", parts.status.as_u16());
                self.error(&ApiError::upstream(parts.status, "upstream", message), 0)
            }
        }
    }
}

/// Passes a stream on to a client.
struct Feeder {
    front: Arc<Front>,
    state: Arc<State>,
    /// Closed when the client has gone.
    sender: mpsc::Sender<Bytes>,
    form: Form,
}

impl Feeder {
    async fn feed(self, begun: Begun, visit: Option<Visit>) {
        let mut phase = self.state.phase.subscribe();
        let passing = match begun {
            Begun::Yes(passing) => Some(passing),
            Begun::NotYet(answering) => self.wait(answering, &mut phase).await,
        };
        let Some(mut passing) = passing else { return };
        self.relay(&mut passing, &mut phase).await;
        if let Some(visit) = visit {
            visit.charge(passing.events.tokens.unwrap_or(passing.events.n_data));
        }
    }

    /// Waits for a stream to begin, with comments for the client.
    async fn wait(
        &self,
        mut answering: Answering,
        phase: &mut watch::Receiver<Phase>,
    ) -> Option<Box<Passing>> {
        loop {
            let last = tokio::select! {
                answered = answering.as_mut() => match answered {
                    Ok(Answered::Stream(passing)) => return Some(passing),
                    Ok(Answered::Whole(parts, body)) => self.form.refusal(Refusal::Reply(Box::new(parts), body)),
                    Err(refusal) => self.form.refusal(refusal),
                },
                _ = tokio::time::sleep(self.state.config.limits.ping_time) => {
                    self.sender.send(Bytes::from_static(b": ping\n\n")).await.ok()?;
                    continue;
                }
                _ = self.sender.closed() => return None,
                _ = ending(phase) => self.form.error(&ApiError::stopping(), 0),
            };
            let _ = self.sender.send(last).await;
            return None;
        }
    }

    /// Passes events on until the stream ends or its client goes. However it ends, the client is told.
    async fn relay(&self, passing: &mut Passing, phase: &mut watch::Receiver<Phase>) {
        let mut out = std::mem::take(&mut passing.first);
        let config = &self.front.config;
        let mut idle_at = Instant::now() + config.idle_time;
        let (reason, error) = loop {
            if !out.is_empty() {
                tokio::select! {
                    sent = self.sender.send(std::mem::take(&mut out)) => if sent.is_err() { return },
                    _ = ending(phase) => break ("cancelled", Some(ApiError::stopping())),
                }
            }
            let frame = tokio::select! {
                frame = passing.body.frame() => frame,
                _ = self.sender.closed() => return,
                _ = ending(phase) => break ("cancelled", Some(ApiError::stopping())),
                _ = tokio::time::sleep_until(idle_at) => break ("cut", Some(cut("the stream stood still"))),
                _ = tokio::time::sleep(self.state.config.limits.ping_time) => {
                    out = Bytes::from_static(b": ping\n\n");
                    continue;
                }
            };
            idle_at = Instant::now() + config.idle_time;
            match frame {
                Some(Ok(frame)) => {
                    out = passing.events.push(frame.data_ref().map_or(&[][..], |data| data));
                    if passing.events.n_pending() > config.answer_bytes {
                        break ("cut", Some(cut("an event of the stream does not end")));
                    }
                }
                _ if passing.events.is_done => break ("answered", None),
                None if !self.form.is_known && passing.events.n_pending() == 0 => break ("answered", None),
                _ => break ("cut", Some(cut("the stream broke off"))),
            }
        };
        passing.running.set(reason);
        if reason == "cut" {
            self.front.failed(passing.running.server, "a stream was cut".to_owned());
        }
        if let Some(error) = error {
            let next = passing.events.number.map_or(0, |number| number + 1);
            let last = self.form.error(&error, next);
            // A client that reads nothing does not hold this up.
            let _ = tokio::time::timeout(Duration::from_secs(5), self.sender.send(last)).await;
        }
    }
}

fn cut(message: &str) -> ApiError {
    ApiError::upstream(StatusCode::BAD_GATEWAY, "bad_gateway", message)
}

/// Returns when everything ends.
async fn ending(phase: &mut watch::Receiver<Phase>) {
    let _ = phase.wait_for(|phase| *phase == Phase::Ending).await;
}

/// What comes from a task, as a body.
struct Channel(mpsc::Receiver<Bytes>);

impl Stream for Channel {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(context).map(|bytes| bytes.map(Ok))
    }
}
