use std::io::{self, Read};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use breakers_core::{
    CallError, ChatModel, ChatReply, ChatRequest, Delta, ModelCard, OnDelta, TimeoutPhase, Timings,
};
use ureq::http::Response;
use ureq::unversioned::{resolver::DefaultResolver, transport::Connector as _, transport::DefaultConnector};
use ureq::{Agent, Body};

use crate::config::{RemoteConfig, Timeouts};
use crate::deadline::{Deadline, Limits, Scope};
use crate::failure;
use crate::reply::{Reply, malformed};
use crate::request::{self, Route};
use crate::sse::SseParser;
use crate::{Error, Result};

/// How many bytes of an error's body are read.
const MAX_ERROR: u64 = 1 << 20;
/// How long to wait for the end of a complete answer, so that the connection can be reused.
const DRAIN: Duration = Duration::from_millis(50);
const PIECE: usize = 1 << 14;

/// A model behind an OpenAI-compatible endpoint.
///
/// Calls are blocking, share connections, and may come from any number of threads. If a receiver returns
/// `Break`, the connection is closed, which tells the server that nobody is waiting.
///
/// ```no_run
/// use breakers_core::{ChatModel, ChatRequest, Delta, Message};
/// use breakers_remote::{RemoteConfig, RemoteModel};
/// use std::ops::ControlFlow;
///
/// let model = RemoteModel::new(RemoteConfig::from_env("gpt-4.1-mini")?)?;
/// let request = ChatRequest::new(vec![Message::user("Why is the sky blue?")]).with_max_tokens(100);
/// let reply = model.chat(&request, &mut |delta| {
///     if let Delta::Text(text) = delta {
///         print!("{text}");
///     }
///     ControlFlow::Continue(())
/// })?;
/// println!("\n{:?}", reply.usage);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct RemoteModel {
    config: RemoteConfig,
    agent: Agent,
}

impl RemoteModel {
    /// A model behind an endpoint. Nothing is sent yet.
    ///
    /// # Errors
    /// [`Error`] for an invalid config.
    pub fn new(config: RemoteConfig) -> Result<Self, Error> {
        config.check()?;
        // Once connected, `Limits` handles all time limits.
        let connect = config.timeouts.connect.min(config.timeouts.total);
        let mut http = Agent::config_builder()
            .http_status_as_error(false)
            // A redirect must not send the key to another host.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("breakers-remote/", env!("CARGO_PKG_VERSION")))
            // A compressed stream would arrive in blocks and not token by token.
            .accept_encoding("")
            .max_idle_connections_per_host(config.max_concurrent)
            .timeout_resolve(Some(connect))
            .timeout_connect(Some(connect));
        if config.is_local() {
            http = http.proxy(None);
        }
        let connector = DefaultConnector::new().chain(Limits);
        let agent = Agent::with_parts(http.build(), connector, DefaultResolver::default());
        Ok(Self { config, agent })
    }

    /// The config that was passed to [`new`](Self::new).
    pub fn config(&self) -> &RemoteConfig {
        &self.config
    }

    fn send(&self, route: Route, body: &[u8]) -> Result<Response<Body>, ureq::Error> {
        let mut request = self.agent.post(self.config.url(route.path())).content_type("application/json");
        if self.config.stream {
            request = request.header("Accept", "text/event-stream, application/json");
        }
        if let Some(key) = &self.config.api_key {
            request = request.header("Authorization", format!("Bearer {}", key.secret()));
        }
        for (name, value) in &self.config.headers {
            request = request.header(name, value);
        }
        request.send(body)
    }
}

impl ChatModel for RemoteModel {
    fn card(&self) -> &ModelCard {
        &self.config.card
    }

    fn chat(&self, request: &ChatRequest, on_delta: &mut OnDelta<'_>) -> Result<ChatReply, CallError> {
        let begun = Instant::now();
        let (route, body) = request::body(&self.config, request)?;
        let body = serde_json::to_vec(&body).map_err(|error| malformed(error.to_string()))?;
        let clock = Clock::new(begun, self.config.timeouts);
        let response = match self.send(route, &body) {
            Ok(response) => response,
            Err(error) => return Err(clock.failed(error, &self.config.card.id)),
        };
        let status = response.status().as_u16();
        if !response.status().is_success() {
            let (parts, body) = response.into_parts();
            let mut text = Vec::new();
            // The part that arrives says more than the reason why the rest did not.
            let _ = body.into_reader().take(MAX_ERROR).read_to_end(&mut text);
            return Err(failure::of_status(status, &parts.headers, &text, &self.config.card.id));
        }
        let is_stream = response.body().mime_type().is_some_and(|mime| {
            // Everything else is read as one piece of JSON, even if a stream was asked for.
            mime.eq_ignore_ascii_case("text/event-stream")
        });
        let reply = Reply::new(request, &self.config.card.id);
        let answer = Answer { reply, clock, first: None, left: self.config.max_answer };
        answer.read_all(is_stream, response.into_body().into_reader(), on_delta)
    }

    fn chat_batch(&self, requests: &[ChatRequest]) -> Vec<Result<ChatReply, CallError>> {
        let next = Mutex::new(requests.iter().enumerate());
        let replies = Mutex::new(Vec::with_capacity(requests.len()));
        let work = || {
            let keep = &mut |_: Delta| std::ops::ControlFlow::Continue(());
            loop {
                // A separate statement, so that the lock is not held during the call.
                let Some((i, request)) = crate::lock(&next).next() else { break };
                let reply = self.chat(request, keep);
                crate::lock(&replies).push((i, reply));
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..self.config.max_concurrent.min(requests.len()) {
                scope.spawn(work);
            }
            work();
        });
        let mut replies = replies.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        replies.sort_by_key(|(i, _)| *i);
        replies.into_iter().map(|(_, reply)| reply).collect()
    }
}

/// Reads an answer from any reader.
#[cfg(feature = "testing")]
pub(crate) fn read_answer(
    request: &ChatRequest,
    is_stream: bool,
    reader: impl Read,
    on_delta: &mut OnDelta<'_>,
) -> Result<ChatReply, CallError> {
    let clock = Clock::new(Instant::now(), Timeouts::default());
    let answer = Answer { reply: Reply::new(request, "test"), clock, first: None, left: 1 << 20 };
    answer.read_all(is_stream, reader, on_delta)
}

/// The time limits of one call.
struct Clock {
    begun: Instant,
    timeouts: Timeouts,
    total: Deadline,
    scope: Scope,
}

impl Clock {
    fn new(begun: Instant, timeouts: Timeouts) -> Self {
        let total = Deadline::after(begun, timeouts.total, TimeoutPhase::Total);
        let first = Deadline::after(begun, timeouts.first_token, TimeoutPhase::FirstToken);
        Self { begun, timeouts, total, scope: Scope::new(first.or(total)) }
    }

    /// Notes that a piece has arrived; the next one has its own limit.
    fn piece(&self) {
        let limit = self.timeouts.next_token;
        let next = Deadline::after(Instant::now(), limit, TimeoutPhase::NextToken);
        self.scope.set(next.or(self.total));
    }

    /// The time limit that was exceeded, if any.
    fn timeout(&self) -> Option<CallError> {
        let Deadline { phase, limit, .. } = self.scope.missed()?;
        Some(CallError::Timeout { phase, limit })
    }

    /// Why there is no answer.
    fn failed(&self, error: ureq::Error, model: &str) -> CallError {
        if let Some(timeout) = self.timeout() {
            return timeout;
        }
        match error {
            ureq::Error::Timeout(reason) => {
                let (phase, limit) = match reason {
                    ureq::Timeout::Resolve | ureq::Timeout::Connect => {
                        (TimeoutPhase::Connect, self.timeouts.connect)
                    }
                    _ => (TimeoutPhase::Total, self.timeouts.total),
                };
                CallError::Timeout { phase, limit }
            }
            ureq::Error::Protocol(error) => malformed(format!("no HTTP: {error}")),
            ureq::Error::LargeResponseHeader(found, limit) => {
                malformed(format!("headers of {found} bytes; at most {limit} are read"))
            }
            error @ (ureq::Error::BadUri(_) | ureq::Error::Http(_)) => {
                CallError::BadRequest { param: None, message: format!("{model}: {error}") }
            }
            error => CallError::transport(error),
        }
    }
}

/// An answer that is being received.
struct Answer<'a> {
    reply: Reply<'a>,
    clock: Clock,
    /// The time from the call to the first piece.
    first: Option<Duration>,
    /// How many more bytes are accepted.
    left: usize,
}

/// Why an answer ended early.
enum Broken {
    Call(CallError),
    Read(io::Error),
}

impl From<CallError> for Broken {
    fn from(error: CallError) -> Self {
        Broken::Call(error)
    }
}

impl Answer<'_> {
    fn read_all(
        mut self,
        is_stream: bool,
        mut reader: impl Read,
        on_delta: &mut OnDelta<'_>,
    ) -> Result<ChatReply, CallError> {
        let result =
            if is_stream { self.stream(&mut reader, on_delta) } else { self.whole(&mut reader, on_delta) };
        self.finish(result)
    }

    fn read(&mut self, reader: &mut impl Read, piece: &mut [u8]) -> Result<usize, Broken> {
        let n = loop {
            match reader.read(piece) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => break result.map_err(Broken::Read)?,
            }
        };
        let too_long = || malformed("it is longer than `max_answer` allows");
        self.left = self.left.checked_sub(n).ok_or_else(too_long)?;
        Ok(n)
    }

    /// Reads events until the answer has ended.
    fn stream(&mut self, reader: &mut impl Read, on_delta: &mut OnDelta<'_>) -> Result<(), Broken> {
        let mut parser = SseParser::new(self.left);
        let mut piece = vec![0; PIECE];
        loop {
            while let Some(event) = parser.next_event().map_err(|error| malformed(error.to_string()))? {
                if event.data.trim_start().starts_with("[DONE]") {
                    // So that the connection can be used again.
                    let drained = Instant::now();
                    self.clock.scope.set(Deadline::after(drained, DRAIN, TimeoutPhase::NextToken));
                    let _ = reader.read(&mut piece);
                    return Ok(());
                }
                self.event(&event.event, &event.data, on_delta)?;
                if self.reply.is_cancelled() {
                    return Ok(());
                }
            }
            let n = match self.read(reader, &mut piece) {
                Ok(n) => n,
                // A connection that breaks after the answer is complete does no harm.
                Err(Broken::Read(_)) if self.reply.is_finished() && self.clock.timeout().is_none() => 0,
                Err(error) => return Err(error),
            };
            if n == 0 {
                break;
            }
            parser.feed(&piece[..n]);
        }
        match parser.finish().map_err(|error| malformed(error.to_string()))? {
            Some(event) if event.data.trim_start().starts_with("[DONE]") => Ok(()),
            // A truncated piece is not valid JSON, but the real error is that the stream ended.
            Some(event) if serde_json::from_str::<serde::de::IgnoredAny>(&event.data).is_ok() => {
                self.event(&event.event, &event.data, on_delta).map_err(Broken::Call)
            }
            _ => Ok(()),
        }
    }

    fn event(&mut self, kind: &str, data: &str, on_delta: &mut OnDelta<'_>) -> Result<(), CallError> {
        // Events of other types are extensions. Some servers use the type `error`.
        if !matches!(kind, "" | "message" | "error") || data.is_empty() {
            return Ok(());
        }
        let begun = self.reply.begun;
        self.reply.take(data, on_delta)?;
        if self.reply.begun {
            if !begun {
                self.first = Some(self.clock.begun.elapsed());
            }
            self.clock.piece();
        }
        Ok(())
    }

    /// Reads an answer that comes in one piece.
    fn whole(&mut self, reader: &mut impl Read, on_delta: &mut OnDelta<'_>) -> Result<(), Broken> {
        let mut bytes = Vec::new();
        let mut piece = vec![0; PIECE];
        loop {
            let n = self.read(reader, &mut piece)?;
            if n == 0 {
                break;
            }
            bytes.extend_from_slice(&piece[..n]);
        }
        let text = std::str::from_utf8(&bytes).map_err(|_| malformed("bytes that are no UTF-8"))?;
        if text.trim().is_empty() {
            return Err(CallError::Truncated { message: "it is empty".to_owned() }.into());
        }
        Ok(self.event("", text, on_delta)?)
    }

    fn finish(self, result: Result<(), Broken>) -> Result<ChatReply, CallError> {
        let begun = self.reply.begun;
        let result = match result {
            Ok(()) => self.reply.finish(),
            Err(Broken::Call(error)) => Err(error),
            Err(Broken::Read(error)) => Err(match self.clock.timeout() {
                Some(timeout) => timeout,
                None if begun => CallError::Truncated { message: error.to_string() },
                None => match error.downcast::<ureq::Error>() {
                    Ok(error) => self.clock.failed(error, ""),
                    Err(error) => CallError::transport(error),
                },
            }),
        };
        match result {
            Ok(mut reply) => {
                reply.timings = Timings::new(self.first, self.clock.begun.elapsed());
                Ok(reply)
            }
            // Trying again would hand out the beginning a second time.
            Err(error) if begun && error.is_retryable() && !matches!(error, CallError::Timeout { .. }) => {
                Err(CallError::Truncated { message: error.to_string() })
            }
            Err(error) => Err(error),
        }
    }
}
