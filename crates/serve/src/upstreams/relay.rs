//! One request on its way to a server, and to another one if the first does not answer.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::http::response::Parts;
use axum::http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use serde::de::IgnoredAny;

use super::events::Events;
use super::front::{Front, Running, describe};
use super::prefix::Chain;
use crate::api_error::ApiError;

/// Headers that concern one connection, and those that this front sets itself.
const OWN: [&str; 13] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "content-length",
    "host",
    "expect",
    "via",
];
/// Headers of clients that are for the front: keys, and what pages of browsers send.
const CLIENTS: [&str; 11] = [
    "authorization",
    "api-key",
    "x-api-key",
    "cookie",
    "origin",
    "referer",
    // Streams are read on their way, so they must not be compressed.
    "accept-encoding",
    "forwarded",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-real-ip",
];

/// A request that is passed on.
pub(super) struct Relay {
    pub(super) front: Arc<Front>,
    pub(super) method: Method,
    /// Path and query.
    pub(super) path: String,
    /// Those of the client.
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    pub(super) model: String,
    pub(super) chain: Chain,
    /// Whether asking two servers the same does no harm.
    pub(super) is_repeatable: bool,
    /// Whether it goes on from something that one of the servers keeps.
    pub(super) follows: bool,
    /// The head of a stream whose first event has not come yet.
    pub(super) early: Arc<Mutex<Option<HeaderMap>>>,
}

/// What a server answered.
pub(super) enum Answered {
    Whole(Parts, Bytes),
    Stream(Box<Passing>),
}

/// A stream that has begun.
pub(super) struct Passing {
    pub(super) parts: Parts,
    /// The events so far.
    pub(super) first: Bytes,
    pub(super) events: Events,
    pub(super) body: Incoming,
    pub(super) running: Running,
}

/// No answer: that of a server, or why there is none.
pub(super) enum Refusal {
    Reply(Box<Parts>, Bytes),
    Own(Box<ApiError>),
}

/// Why a try failed.
struct Failure {
    /// Of several failures, the client is told the one that says most.
    rank: u8,
    refusal: Refusal,
    /// Whether the server got nothing of the request.
    is_unsent: bool,
}

impl Failure {
    fn own(error: ApiError) -> Self {
        Self { rank: 0, refusal: Refusal::Own(Box::new(error)), is_unsent: false }
    }

    fn reply(rank: u8, parts: Parts, body: Bytes) -> Self {
        Self { rank, refusal: Refusal::Reply(Box::new(parts), body), is_unsent: false }
    }
}

pub(super) type Answering = Pin<Box<dyn Future<Output = Result<Answered, Refusal>> + Send>>;

impl Relay {
    /// Asks servers until one answers.
    pub(super) async fn run(self) -> Result<Answered, Refusal> {
        let front = &self.front;
        front.earn();
        let attempts = if self.follows { front.n_servers() } else { front.config.attempts };
        let mut tried = 0;
        let mut worst: Option<Failure> = None;
        for attempt in 0..attempts {
            let Some(pick) = front.pick(&self.model, &self.chain, tried) else { break };
            // What is busy everywhere is not asked everywhere.
            if attempt > 0 && (pick.is_busy || !front.may_retry()) {
                break;
            }
            tried |= 1 << pick.server;
            let running = front.begin(&pick, &self.chain, attempt == 0);
            match self.ask(running).await {
                Ok(answered) => return Ok(answered),
                Err(failure) => {
                    let is_over = !failure.is_unsent && !self.is_repeatable;
                    let is_worse = worse(&worst, &failure);
                    if is_worse {
                        worst = Some(failure);
                    }
                    if is_over {
                        break;
                    }
                }
            }
        }
        match worst.map(|failure| failure.refusal) {
            Some(Refusal::Reply(mut parts, body)) => {
                if parts.status == StatusCode::TOO_MANY_REQUESTS
                    && let Some(wait) = front.shortest_wait(&self.model)
                {
                    let ms = wait.as_millis().clamp(1, 3_600_000) as u64;
                    parts.headers.insert(header::RETRY_AFTER, HeaderValue::from(ms.div_ceil(1000)));
                    parts.headers.insert("retry-after-ms", HeaderValue::from(ms));
                }
                Err(Refusal::Reply(parts, body))
            }
            Some(refusal) => Err(refusal),
            None => Err(Refusal::Own(Box::new(ApiError::no_upstream(&self.model)))),
        }
    }

    /// Asks one server. A stream counts as answered when its first event has come.
    async fn ask(&self, running: Running) -> Result<Answered, Failure> {
        let front = &self.front;
        let server = running.server;
        let mut gone = front.servers[server].gone.subscribe();
        let broken = |reason: String| {
            front.failed(server, reason);
            Failure::own(ApiError::upstream(StatusCode::BAD_GATEWAY, "bad_gateway", "the server broke off"))
        };
        let late = || {
            front.failed(server, "no answer in time".to_owned());
            let message = "the server did not answer in time";
            Failure::own(ApiError::upstream(StatusCode::GATEWAY_TIMEOUT, "timeout", message))
        };
        let request = request(front, server, &self.method, &self.path, &self.headers, self.body.clone());
        let request = request.map_err(|error| Failure { is_unsent: true, ..Failure::own(error) })?;
        let deadline = tokio::time::Instant::now() + front.config.head_time;
        let answer = tokio::select! {
            answer = front.client.request(request) => answer,
            _ = gone.changed() => {
                running.end("failed");
                return Err(broken("it went down".to_owned()));
            }
            _ = tokio::time::sleep_until(deadline) => {
                running.end("failed");
                return Err(late());
            }
        };
        let response = match answer {
            Ok(response) => response,
            Err(error) => {
                running.end("failed");
                let is_unsent = error.is_connect();
                return Err(Failure { is_unsent, ..broken(describe(&error)) });
            }
        };
        let (mut parts, body) = response.into_parts();
        for name in OWN {
            parts.headers.remove(name);
        }
        parts.headers.insert("x-breakers-upstream", HeaderValue::from(server + 1));
        let kind = parts.headers.get(header::CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
        let is_json = kind.is_empty() || kind.starts_with(b"application/json");
        if parts.status.is_success() && kind.starts_with(b"text/event-stream") {
            let early = parts.headers.clone();
            *self.early.lock().unwrap_or_else(PoisonError::into_inner) = Some(early);
            let mut passing =
                Passing { parts, first: Bytes::new(), events: Events::default(), body, running };
            let mut first = Vec::new();
            while passing.events.n_data == 0 && !passing.events.is_done {
                let frame = tokio::select! {
                    frame = passing.body.frame() => frame,
                    _ = gone.changed() => None,
                    _ = tokio::time::sleep_until(deadline) => {
                        passing.running.end("failed");
                        return Err(late());
                    }
                };
                let Some(Ok(frame)) = frame else {
                    passing.running.end("failed");
                    return Err(broken("a stream broke off before its first event".to_owned()));
                };
                first.extend_from_slice(&passing.events.push(frame.data_ref().map_or(&[][..], |data| data)));
                if passing.events.n_pending() + first.len() > front.config.answer_bytes {
                    passing.running.end("failed");
                    return Err(broken("a stream whose events do not end".to_owned()));
                }
            }
            passing.first = first.into();
            front.succeeded(server);
            return Ok(Answered::Stream(Box::new(passing)));
        }
        let body = tokio::select! {
            body = Limited::new(body, front.config.answer_bytes).collect() => body,
            _ = gone.changed() => {
                running.end("failed");
                return Err(broken("it went down".to_owned()));
            }
            _ = tokio::time::sleep_until(deadline) => {
                running.end("failed");
                return Err(late());
            }
        };
        let body = match body {
            Ok(body) => body.to_bytes(),
            Err(error) => {
                running.end("failed");
                let is_long = error.is::<LengthLimitError>();
                let reason = if is_long { "an answer that is too long" } else { "an answer broke off" };
                return Err(broken(reason.to_owned()));
            }
        };
        if parts.status.is_success() {
            if is_json && serde_json::from_slice::<IgnoredAny>(&body).is_err() {
                running.end("failed");
                return Err(broken("an answer that is not JSON".to_owned()));
            }
            running.end("answered");
            front.succeeded(server);
            return Ok(Answered::Whole(parts, body));
        }
        running.end(if parts.status.is_server_error() { "failed" } else { "refused" });
        self.judge(server, parts, body)
    }

    /// Whether an answer that is an error is the client's, or another server may do better.
    fn judge(&self, server: usize, parts: Parts, body: Bytes) -> Result<Answered, Failure> {
        let front = &self.front;
        let status = parts.status.as_u16();
        let said = || format!("it answers {status}");
        match status {
            429 => {
                front.defer(server, retry_after(&parts.headers).unwrap_or(Duration::from_secs(1)));
                Err(Failure::reply(3, parts, body))
            }
            503 => {
                match retry_after(&parts.headers) {
                    Some(wait) => front.defer(server, wait),
                    None => front.failed(server, said()),
                }
                Err(Failure::reply(2, parts, body))
            }
            502 | 504 => {
                front.failed(server, said());
                Err(Failure::reply(2, parts, body))
            }
            401 | 403 if !front.servers[server].pass_keys => {
                // The key is this front's, so its client cannot mend it.
                front.failed(server, said());
                let message = "the server for this model refuses this front";
                let error = ApiError::upstream(StatusCode::BAD_GATEWAY, "upstream_auth", message);
                Err(Failure::own(ApiError { is_final: true, ..error }))
            }
            // It does not have the model anymore, or not this route.
            404 => Err(Failure::reply(1, parts, body)),
            400 if self.follows && contains(&body, b"previous_response_not_found") => {
                Err(Failure::reply(1, parts, body))
            }
            _ => {
                if status >= 500 {
                    front.failed(server, said());
                }
                Ok(Answered::Whole(parts, body))
            }
        }
    }
}

/// Whether a failure says more than the worst one so far.
fn worse(worst: &Option<Failure>, failure: &Failure) -> bool {
    worst.as_ref().is_none_or(|worst| failure.rank >= worst.rank)
}

fn contains(body: &[u8], text: &[u8]) -> bool {
    body.windows(text.len()).any(|window| window == text)
}

/// How long a server wants to be left alone. Dates are not read.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let number = |name: &str| headers.get(name)?.to_str().ok()?.trim().parse::<f64>().ok();
    let seconds = number("retry-after-ms").map(|ms| ms / 1000.0).or_else(|| number("retry-after"))?;
    Duration::try_from_secs_f64(seconds).ok()
}

/// A request for one of the servers.
pub(super) fn request(
    front: &Front,
    server: usize,
    method: &Method,
    path: &str,
    headers: &HeaderMap,
    body: Bytes,
) -> Result<Request<Full<Bytes>>, ApiError> {
    let to = &front.servers[server];
    let wrong = |_| ApiError::failed("the request cannot be passed on");
    let mut request =
        Request::builder().method(method).uri(to.uri(path)).body(Full::new(body)).map_err(wrong)?;
    let out = request.headers_mut();
    let named: Vec<String> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|name| name.trim().to_ascii_lowercase())
        .collect();
    for (name, value) in headers {
        let is_own = OWN.contains(&name.as_str()) || CLIENTS.contains(&name.as_str());
        if !is_own && !named.iter().any(|other| other == name.as_str()) {
            out.append(name, value.clone());
        }
    }
    let via = headers.get(header::VIA).and_then(|via| via.to_str().ok());
    let via = via.map_or_else(String::new, |via| format!("{via}, "));
    out.insert(
        header::VIA,
        HeaderValue::from_str(&format!("{via}1.1 {}", front.id))
            .map_err(|_| ApiError::failed("the request cannot be passed on"))?,
    );
    if to.pass_keys {
        for name in ["authorization", "api-key", "x-api-key"] {
            if let Some(key) = headers.get(name) {
                out.insert(name, key.clone());
            }
        }
    } else if let Some(key) = &to.key {
        out.insert(header::AUTHORIZATION, key.clone());
    }
    Ok(request)
}
