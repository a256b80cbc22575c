//! One streamed request, timed event by event.

use std::io::Read as _;
use std::time::{Duration, Instant};

use breakers_remote::sse::SseParser;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use ureq::Agent;

use super::{Counted, LoadPrompt, Outcome, Record};
use crate::{Error, Result};

/// The most bytes of an event.
const MAX_EVENT: usize = 1 << 20;
/// How much of an error's body is read.
const MAX_ERROR: u64 = 1 << 14;

/// Which route is asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum TargetRoute {
    /// `/chat/completions`: prompts are a user's message.
    #[default]
    Chat,
    /// `/completions`: prompts are continued as they are.
    Text,
}

/// An endpoint under load.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Target {
    /// What it is called in tables.
    pub name: String,
    /// Up to `/v1`.
    pub url: String,
    /// The model, as the endpoint names it.
    pub model: String,
    /// The key, if one is needed.
    pub api_key: Option<String>,
    /// Which route is asked.
    pub route: TargetRoute,
    /// Fields that are added to each body or replace those in it, such as vLLM's `ignore_eos`.
    pub extra: Map<String, Value>,
}

impl Target {
    /// An endpoint without a key whose chats are asked.
    pub fn new(name: impl Into<String>, url: impl Into<String>, model: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            url: url.into(),
            model: model.into(),
            api_key: None,
            route: TargetRoute::Chat,
            extra: Map::new(),
        }
    }

    /// The names of the models that an endpoint has: `GET /models`.
    ///
    /// # Errors
    /// [`Error::Endpoint`] if it does not answer with a list.
    pub fn models(url: &str, api_key: Option<&str>) -> Result<Vec<String>> {
        #[derive(Deserialize)]
        struct List {
            data: Vec<One>,
        }
        #[derive(Deserialize)]
        struct One {
            id: String,
        }
        let failed = |reason: String| Error::Endpoint { url: url.to_owned(), reason };
        let mut request = agent(url, Duration::from_secs(10), 1).get(format!("{}/models", base(url)));
        if let Some(key) = api_key {
            request = request.header("Authorization", format!("Bearer {key}"));
        }
        let mut response = request.call().map_err(|error| failed(error.to_string()))?;
        let status = response.status().as_u16();
        let text = response.body_mut().read_to_string().map_err(|error| failed(error.to_string()))?;
        if status != 200 {
            return Err(failed(format!("HTTP {status}: {}", message(&text))));
        }
        let list: List = serde_json::from_str(&text).map_err(|error| failed(error.to_string()))?;
        Ok(list.data.into_iter().map(|one| one.id).collect())
    }

    fn body(&self, prompt: &LoadPrompt, max_tokens: usize) -> Vec<u8> {
        let mut body = json!({
            "model": self.model,
            "max_tokens": prompt.max_tokens.unwrap_or(max_tokens),
            "temperature": 0,
            "stream": true,
            "stream_options": {"include_usage": true},
        });
        match self.route {
            TargetRoute::Chat => body["messages"] = prompt.messages(),
            TargetRoute::Text => body["prompt"] = prompt.text().into(),
        }
        for (name, value) in &self.extra {
            body[name] = value.clone();
        }
        body.to_string().into_bytes()
    }
}

fn base(url: &str) -> &str {
    url.trim_end_matches('/')
}

/// A client whose requests end after a while.
pub(super) fn agent(url: &str, limit: Duration, n_connections: usize) -> Agent {
    let mut config = Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .user_agent(concat!("breakers-eval/", env!("CARGO_PKG_VERSION")))
        // A compressed stream would arrive in blocks and not token by token.
        .accept_encoding("")
        .max_idle_connections(n_connections)
        .max_idle_connections_per_host(n_connections)
        .timeout_global(Some(limit));
    let host = url.split_once("://").map_or(url, |(_, rest)| rest);
    if ["127.", "localhost", "[::1]"].iter().any(|local| host.starts_with(local)) {
        config = config.proxy(None);
    }
    config.build().into()
}

/// One event of a stream; fields that are not measured are not read.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Event {
    choices: Option<Vec<Choice>>,
    usage: Option<Usage>,
    error: Option<Value>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Choice {
    delta: Option<Delta>,
    text: Option<String>,
    finish_reason: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Delta {
    content: Option<String>,
    /// Thoughts, under the two names that servers give them.
    reasoning_content: Option<String>,
    reasoning: Option<String>,
    tool_calls: Option<Vec<Value>>,
}

impl Choice {
    fn has_text(&self) -> bool {
        let is_some = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
        let delta = self.delta.as_ref();
        is_some(&self.text)
            || delta.is_some_and(|delta| {
                [&delta.content, &delta.reasoning_content, &delta.reasoning].into_iter().any(is_some)
                    || delta.tool_calls.as_ref().is_some_and(|calls| !calls.is_empty())
            })
    }
}

#[derive(Deserialize)]
struct Usage {
    prompt_tokens: Option<u64>,
    completion_tokens: Option<u64>,
    prompt_tokens_details: Option<Details>,
}

#[derive(Deserialize)]
struct Details {
    cached_tokens: Option<u64>,
}

/// Sends a request and reads its stream to the end. `start` is when the round began.
pub(super) fn ask(
    agent: &Agent,
    target: &Target,
    prompt: &LoadPrompt,
    max_tokens: usize,
    start: Instant,
    planned: Option<f64>,
) -> Record {
    let body = target.body(prompt, max_tokens);
    let path = match target.route {
        TargetRoute::Chat => "chat/completions",
        TargetRoute::Text => "completions",
    };
    let mut request = agent
        .post(format!("{}/{path}", base(&target.url)))
        .content_type("application/json")
        .header("Accept", "text/event-stream");
    if let Some(key) = &target.api_key {
        request = request.header("Authorization", format!("Bearer {key}"));
    }
    let now = || start.elapsed().as_secs_f64();
    let sent = now();
    let mut record = Record {
        planned: planned.unwrap_or(sent),
        sent,
        events: Vec::new(),
        texts: Vec::new(),
        end: sent,
        outcome: Outcome::Done,
        prompt_tokens: None,
        cached_tokens: None,
        output_tokens: 0,
        counted: Counted::Chunks,
    };
    let outcome = match request.send(&body[..]) {
        Ok(response) => read(response, &mut record, now),
        Err(error) => Err(of_error(&error)),
    };
    record.end = now();
    if let Err(outcome) = outcome {
        record.outcome = outcome;
    }
    if record.counted == Counted::Chunks {
        record.output_tokens = record.texts.len() as u64;
    }
    record
}

fn read(
    response: ureq::http::Response<ureq::Body>,
    record: &mut Record,
    now: impl Fn() -> f64,
) -> Result<(), Outcome> {
    let status = response.status().as_u16();
    let is_stream = response.body().mime_type() == Some("text/event-stream");
    let mut reader = response.into_body().into_reader();
    if status != 200 || !is_stream {
        let mut text = Vec::new();
        let _ = reader.take(MAX_ERROR).read_to_end(&mut text);
        let text = message(&String::from_utf8_lossy(&text));
        return Err(match status {
            429 | 503 => Outcome::Refused(status),
            200 => Outcome::Failed("the answer is no stream of events".to_owned()),
            _ => Outcome::Failed(format!("HTTP {status}: {text}")),
        });
    }
    let mut parser = SseParser::new(MAX_EVENT);
    let mut piece = vec![0; 1 << 14];
    let mut is_finished = false;
    let failed = |reason: &dyn std::fmt::Display| Outcome::Failed(reason.to_string());
    loop {
        let n = match reader.read(&mut piece) {
            Ok(0) => break,
            Ok(n) => n,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) if error.kind() == std::io::ErrorKind::TimedOut => return Err(Outcome::TimedOut),
            Err(error) => {
                return Err(match error.get_ref().and_then(|inner| inner.downcast_ref::<ureq::Error>()) {
                    Some(error) => of_error(error),
                    None => failed(&error),
                });
            }
        };
        let at = now();
        parser.feed(&piece[..n]);
        while let Some(event) = parser.next_event().map_err(|error| failed(&error))? {
            if event.data.trim_start().starts_with("[DONE]") {
                // So that the connection can be used again.
                let _ = reader.read(&mut piece);
                return Ok(());
            }
            let event: Event = serde_json::from_str(&event.data).map_err(|error| failed(&error))?;
            if let Some(error) = event.error {
                return Err(Outcome::Failed(message(&json!({"error": error}).to_string())));
            }
            let choices = event.choices.unwrap_or_default();
            if let Some(first) = choices.first() {
                record.events.push(at);
                if first.has_text() {
                    record.texts.push(at);
                }
                is_finished |= first.finish_reason.is_some();
            }
            if let Some(usage) = event.usage {
                record.prompt_tokens = usage.prompt_tokens;
                record.cached_tokens = usage.prompt_tokens_details.and_then(|details| details.cached_tokens);
                if let Some(n) = usage.completion_tokens {
                    (record.output_tokens, record.counted) = (n, Counted::Usage);
                }
            }
        }
    }
    // Some servers leave out the last event.
    if is_finished { Ok(()) } else { Err(failed(&"the stream broke off")) }
}

fn of_error(error: &ureq::Error) -> Outcome {
    match error {
        ureq::Error::Timeout(_) => Outcome::TimedOut,
        ureq::Error::Io(io) if io.kind() == std::io::ErrorKind::TimedOut => Outcome::TimedOut,
        error => Outcome::Failed(error.to_string()),
    }
}

/// What an error's body says, in at most 200 characters.
fn message(body: &str) -> String {
    let value: Option<Value> = serde_json::from_str(body).ok();
    let text = value.as_ref().and_then(|value| value.pointer("/error/message")).and_then(Value::as_str);
    text.unwrap_or(body).chars().take(200).collect()
}
