//! Models and calls for the tests.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use breakers_core::{
    CallError, ChatModel, ChatReply, ChatRequest, Delta, FinishReason, ModelCard, OnDelta, Usage,
};
use breakers_serve::{Environment, ServeConfig, Server, ServerHandle};
use serde_json::Value;

/// A clock that stands still where bodies show it, and numbers in order.
pub(crate) struct Fixed {
    start: Instant,
    n: AtomicU64,
}

pub(crate) const NOW: u64 = 1_800_000_000;

impl Environment for Fixed {
    fn unix_time(&self) -> u64 {
        NOW
    }
    fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }
    fn random(&self) -> u64 {
        self.n.fetch_add(1, Ordering::SeqCst)
    }
}

/// As [`Fixed`], with a time that moves when it is told to.
pub(crate) struct Adjustable {
    fixed: Fixed,
    pub(crate) passed: AtomicU64,
}

impl Adjustable {
    pub(crate) fn new() -> Arc<Self> {
        let fixed = Fixed { start: Instant::now(), n: AtomicU64::new(0) };
        Arc::new(Self { fixed, passed: AtomicU64::new(0) })
    }
}

impl Environment for Adjustable {
    fn unix_time(&self) -> u64 {
        NOW + self.passed.load(Ordering::SeqCst)
    }
    fn elapsed(&self) -> Duration {
        self.fixed.elapsed()
    }
    fn random(&self) -> u64 {
        self.fixed.random()
    }
}

pub(crate) fn config() -> ServeConfig {
    let mut config = ServeConfig::default();
    config.address = "127.0.0.1:0".parse().unwrap();
    config
}

pub(crate) fn server(model: Arc<dyn ChatModel>, config: ServeConfig) -> ServerHandle {
    prepared(Server::new(config).with_model(model))
}

pub(crate) fn prepared(server: Server) -> ServerHandle {
    server.with_environment(Arc::new(Fixed { start: Instant::now(), n: AtomicU64::new(0) })).spawn().unwrap()
}

/// An answer of the server.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) text: String,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }

    /// The data of a stream's events but for the last, which must be the end.
    pub(crate) fn events(&self) -> Vec<Value> {
        let mut data: Vec<&str> =
            self.text.split("\n\n").filter_map(|event| event.strip_prefix("data: ")).collect();
        assert_eq!(data.pop(), Some("[DONE]"), "{}", self.text);
        data.iter().map(|data| serde_json::from_str(data).unwrap()).collect()
    }
}

pub(crate) struct Client {
    agent: ureq::Agent,
    base: String,
}

impl Client {
    pub(crate) fn new(server: &ServerHandle) -> Self {
        // A server that does not answer is a failure and no test without end.
        let limit = Some(Duration::from_secs(20));
        let config = ureq::Agent::config_builder().http_status_as_error(false).timeout_global(limit).build();
        Self { agent: config.into(), base: format!("http://{}", server.address()) }
    }

    pub(crate) fn post(&self, path: &str, body: &str) -> Answer {
        self.post_with(path, body, &[])
    }

    pub(crate) fn post_with(&self, path: &str, body: &str, headers: &[(&str, &str)]) -> Answer {
        let mut request = self.agent.post(format!("{}{path}", self.base)).content_type("application/json");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        answer(request.send(body).unwrap())
    }

    /// Any method. Without a body if it is empty, as `DELETE` must be.
    pub(crate) fn send(&self, method: &str, path: &str, content_type: &str, body: &[u8]) -> Answer {
        let request = ureq::http::Request::builder().method(method).uri(format!("{}{path}", self.base));
        if body.is_empty() {
            return answer(self.agent.run(request.body(()).unwrap()).unwrap());
        }
        let request = request.header("content-type", content_type).body(body.to_vec()).unwrap();
        answer(self.agent.run(request).unwrap())
    }

    pub(crate) fn delete(&self, path: &str) -> Answer {
        answer(self.agent.delete(format!("{}{path}", self.base)).call().unwrap())
    }

    /// Uploads a file of requests and returns its name.
    pub(crate) fn upload(&self, content: &str) -> String {
        let answer =
            self.post_form(&form(&[("purpose", None, "batch"), ("file", Some("in.jsonl"), content)]));
        assert_eq!(answer.status, 200, "{}", answer.text);
        answer.json()["id"].as_str().unwrap().to_owned()
    }

    pub(crate) fn post_form(&self, body: &str) -> Answer {
        let request = self.agent.post(format!("{}/v1/files", self.base));
        answer(request.content_type("multipart/form-data; boundary=XX").send(body).unwrap())
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        self.get_with(path, &[])
    }

    pub(crate) fn get_with(&self, path: &str, headers: &[(&str, &str)]) -> Answer {
        let mut request = self.agent.get(format!("{}{path}", self.base));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        answer(request.call().unwrap())
    }
}

/// A form of fields: name, the file's name if it is a file, content. The boundary is `XX`.
pub(crate) fn form(fields: &[(&str, Option<&str>, &str)]) -> String {
    let field = |(name, file, content): &(&str, Option<&str>, &str)| {
        let file = file.map_or_else(String::new, |file| format!("; filename=\"{file}\""));
        format!("--XX\r\nContent-Disposition: form-data; name=\"{name}\"{file}\r\n\r\n{content}\r\n")
    };
    fields.iter().map(field).collect::<String>() + "--XX--\r\n"
}

fn answer(mut response: ureq::http::Response<ureq::Body>) -> Answer {
    let text = response.body_mut().read_to_string().unwrap();
    let headers = response.headers().iter();
    let headers =
        headers.map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned())).collect();
    Answer { status: response.status().as_u16(), headers, text }
}

/// Bytes on a connection of their own, and what comes back until it is closed.
pub(crate) fn raw(server: &ServerHandle, request: &str) -> String {
    let mut stream = TcpStream::connect(server.address()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut out = Vec::new();
    let _ = stream.read_to_end(&mut out);
    String::from_utf8_lossy(&out).into_owned()
}

/// A request on a connection of its own, whose answer is not read yet.
pub(crate) fn begin(server: &ServerHandle, path: &str, body: &str) -> TcpStream {
    let mut stream = TcpStream::connect(server.address()).unwrap();
    let length = body.len();
    let head = format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(body.as_bytes()).unwrap();
    stream
}

pub(crate) fn until(what: &str, condition: impl Fn() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < Duration::from_secs(20), "never: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A model that writes `word ` until it is stopped, or has written as many as it may, or is closed. It can be
/// made to wait before its first word.
#[derive(Default)]
pub(crate) struct Endless {
    card: Option<ModelCard>,
    pub(crate) holds: AtomicBool,
    pub(crate) n_running: AtomicUsize,
    pub(crate) n_cancelled: AtomicUsize,
    pub(crate) n_words: AtomicUsize,
    gate: Mutex<()>,
    open: Condvar,
}

impl Endless {
    pub(crate) fn new() -> Arc<Self> {
        let mut card = ModelCard::new("endless");
        card.capabilities.chat = true;
        card.capabilities.text = true;
        Arc::new(Self { card: Some(card), ..Self::default() })
    }

    /// Lets waiting texts go on.
    pub(crate) fn release(&self) {
        let _gate = self.gate.lock().unwrap();
        self.holds.store(false, Ordering::SeqCst);
        self.open.notify_all();
    }

    pub(crate) fn running(&self) -> usize {
        self.n_running.load(Ordering::SeqCst)
    }

    pub(crate) fn cancelled(&self) -> usize {
        self.n_cancelled.load(Ordering::SeqCst)
    }
}

impl ChatModel for Endless {
    fn card(&self) -> &ModelCard {
        self.card.as_ref().unwrap()
    }

    fn chat(&self, request: &ChatRequest, on_delta: &mut OnDelta<'_>) -> Result<ChatReply, CallError> {
        self.n_running.fetch_add(1, Ordering::SeqCst);
        let mut gate = self.gate.lock().unwrap();
        while self.holds.load(Ordering::SeqCst) {
            gate = self.open.wait(gate).unwrap();
        }
        drop(gate);
        let mut reply = ChatReply::new("", FinishReason::Length);
        reply.model = "endless".to_owned();
        let mut n = 0;
        while n < request.max_tokens.unwrap_or(usize::MAX) {
            n += 1;
            self.n_words.fetch_add(1, Ordering::SeqCst);
            reply.text += "word ";
            if on_delta(Delta::Text("word ".to_owned())) == ControlFlow::Break(()) {
                reply.finish = FinishReason::Cancelled;
                self.n_cancelled.fetch_add(1, Ordering::SeqCst);
                break;
            }
        }
        reply.usage = Usage::new(3, n as u64);
        self.n_running.fetch_sub(1, Ordering::SeqCst);
        Ok(reply)
    }
}

/// The value of a line of the metrics.
pub(crate) fn metric(text: &str, name: &str) -> f64 {
    let line = text.lines().find(|line| line.starts_with(name));
    line.and_then(|line| line.rsplit(' ').next()).map_or(0.0, |value| value.parse().unwrap())
}
