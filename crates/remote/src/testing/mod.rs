//! An endpoint on this machine: it serves any [`ChatModel`] over HTTP, or whatever a test
//! writes to the connection.
//!
//! ```
//! use breakers_core::{ChatModel, ChatRequest, Message, ScriptedModel};
//! use breakers_remote::{RemoteConfig, RemoteModel, testing::FakeEndpoint};
//! use std::{ops::ControlFlow, sync::Arc};
//!
//! let endpoint = FakeEndpoint::serve(Arc::new(ScriptedModel::new("test", ["Hello there.".into()])));
//! let model = RemoteModel::new(RemoteConfig::new(endpoint.url(), "test"))?;
//! let request = ChatRequest::new(Message::user("Hi!"));
//! let reply = model.chat(&request, &mut |_| ControlFlow::Continue(())).unwrap();
//! assert_eq!(reply.text, "Hello there.");
//! # Ok::<(), breakers_remote::Error>(())
//! ```

mod serve;

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use breakers_core::{CallError, ChatModel, ChatReply, ChatRequest, OnDelta};
use serde_json::Value;
use ureq::http::{HeaderMap, HeaderValue};

use crate::lock;

/// The most bytes of a request's body.
const MAX_BODY: usize = 64 << 20;

/// Reads an answer from any reader, as [`RemoteModel`](crate::RemoteModel) reads it from an endpoint; at most
/// one mebibyte.
///
/// # Errors
/// [`CallError`].
pub fn read_answer(
    request: &ChatRequest,
    is_stream: bool,
    reader: impl io::Read,
    on_delta: &mut OnDelta<'_>,
) -> Result<ChatReply, CallError> {
    crate::model::read_answer(request, is_stream, reader, on_delta)
}

/// The error that [`RemoteModel`](crate::RemoteModel) returns for an answer with this status, headers and
/// body. Headers that HTTP does not allow are ignored.
///
/// ```
/// use breakers_core::CallError;
/// use breakers_remote::testing::read_failure;
/// use std::time::Duration;
///
/// let error = read_failure(429, &[("retry-after", b"20")], b"slow down");
/// assert_eq!(error.retry_after(), Some(Duration::from_secs(20)));
/// assert!(matches!(error, CallError::RateLimited { .. }));
/// ```
pub fn read_failure(status: u16, headers: &[(&'static str, &[u8])], body: &[u8]) -> CallError {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        if let Ok(value) = HeaderValue::from_bytes(value) {
            map.insert(*name, value);
        }
    }
    crate::failure::of_status(status, &map, body, "test")
}

/// A request as it arrived.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct HttpRequest {
    /// The method, such as `POST`.
    pub method: String,
    /// The path, such as `/v1/chat/completions`.
    pub path: String,
    /// Names in lower case, and values.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

impl HttpRequest {
    /// The value of a header, by its name in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    /// The body, if it is JSON.
    pub fn json(&self) -> Option<Value> {
        serde_json::from_slice(&self.body).ok()
    }
}

/// The connection that an answer is written to.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
}

impl Connection {
    /// Writes raw bytes. The connection ends after them, unless they are a complete answer that states its
    /// length.
    ///
    /// # Errors
    /// Those of the connection, for all methods: the client is gone.
    pub fn raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Writes a whole answer.
    ///
    /// # Errors
    /// As [`raw`](Self::raw).
    pub fn json(&mut self, status: u16, headers: &[(&str, &str)], body: &str) -> io::Result<()> {
        let mut text = format!("HTTP/1.1 {status} Status\r\nContent-Type: application/json\r\n");
        for (name, value) in headers {
            text += &format!("{name}: {value}\r\n");
        }
        text += &format!("Content-Length: {}\r\n\r\n{body}", body.len());
        self.raw(text.as_bytes())
    }

    /// Begins a stream of events.
    ///
    /// # Errors
    /// As [`raw`](Self::raw).
    pub fn start_events(&mut self) -> io::Result<()> {
        self.raw(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n")
    }

    /// Writes bytes of the stream.
    ///
    /// # Errors
    /// As [`raw`](Self::raw).
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.raw(&[format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat())
    }

    /// Writes one event.
    ///
    /// # Errors
    /// As [`raw`](Self::raw).
    pub fn event(&mut self, data: &str) -> io::Result<()> {
        self.send(format!("data: {data}\n\n").as_bytes())
    }

    /// Ends the stream, so that the connection can take another request.
    ///
    /// # Errors
    /// As [`raw`](Self::raw).
    pub fn end(&mut self) -> io::Result<()> {
        self.raw(b"0\r\n\r\n")
    }

    /// Whether the client has closed the connection.
    pub fn is_closed(&self) -> bool {
        let mut byte = [0];
        let _ = self.stream.set_nonblocking(true);
        let peeked = self.stream.peek(&mut byte);
        let _ = self.stream.set_nonblocking(false);
        !matches!(peeked, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }
}

type Handler = dyn Fn(&HttpRequest, &mut Connection) -> io::Result<()> + Send + Sync;

struct Shared {
    handler: Box<Handler>,
    requests: Mutex<Vec<HttpRequest>>,
    n_connections: AtomicUsize,
    stopped: AtomicBool,
}

/// A server on a free port of the loopback address. It runs until it is dropped.
pub struct FakeEndpoint {
    address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for FakeEndpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FakeEndpoint").field("address", &self.address).finish_non_exhaustive()
    }
}

impl FakeEndpoint {
    /// Serves a model: chats and texts, streamed or whole.
    pub fn serve(model: Arc<dyn ChatModel>) -> Self {
        Self::start(move |request, connection| serve::answer(&*model, request, connection))
    }

    /// Answers each request with what the function writes, using one thread per connection. If the function
    /// returns an error, or writes less than the answer promises, the connection ends there.
    ///
    /// # Panics
    /// If no port is free.
    pub fn start(
        handler: impl Fn(&HttpRequest, &mut Connection) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        let address = listener.local_addr().expect("a bound listener has an address");
        let shared = Arc::new(Shared {
            handler: Box::new(handler),
            requests: Mutex::default(),
            n_connections: AtomicUsize::new(0),
            stopped: AtomicBool::new(false),
        });
        let inside = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if inside.stopped.load(Ordering::SeqCst) {
                    break;
                }
                inside.n_connections.fetch_add(1, Ordering::SeqCst);
                let inside = Arc::clone(&inside);
                std::thread::spawn(move || {
                    // To the client, an error is the end of the connection.
                    let _ = inside.converse(stream);
                });
            }
        });
        Self { address, shared, thread: Some(thread) }
    }

    /// The base address, which ends in `/v1`.
    pub fn url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    /// The requests so far, in the order of their arrival.
    pub fn requests(&self) -> Vec<HttpRequest> {
        lock(&self.shared.requests).clone()
    }

    /// Connections so far.
    pub fn n_connections(&self) -> usize {
        self.shared.n_connections.load(Ordering::SeqCst)
    }
}

impl Drop for FakeEndpoint {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        // Wakes the listener.
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn converse(&self, stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut connection = Connection { stream };
        while let Some(request) = read(&mut reader)? {
            lock(&self.requests).push(request.clone());
            (self.handler)(&request, &mut connection)?;
            if request.header("connection") == Some("close") {
                break;
            }
        }
        Ok(())
    }
}

/// Reads a request; `None` at the end of the connection.
fn read(reader: &mut BufReader<TcpStream>) -> io::Result<Option<HttpRequest>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut request = HttpRequest::default();
    let mut words = line.split_whitespace().map(str::to_owned);
    request.method = words.next().unwrap_or_default();
    request.path = words.next().unwrap_or_default();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 || line.trim().is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(':') {
            request.headers.push((name.trim().to_ascii_lowercase(), value.trim().to_owned()));
        }
    }
    let length = request.header("content-length").and_then(|value| value.parse::<usize>().ok()).unwrap_or(0);
    request.body = vec![0; length.min(MAX_BODY)];
    reader.read_exact(&mut request.body)?;
    Ok(Some(request))
}
