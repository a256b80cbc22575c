//! The other side of batches and jobs: hands requests in, waits for them, fetches their answers.
//!
//! A job survives what happens to its server. If the server cannot be reached, the job is put into the spool
//! folder, from which the server takes it when it starts. Its ticket names it in both places, so that a job
//! that was handed in twice is one job.
//!
//! # Example
//! ```no_run
//! use breakers_serve::client::{Client, ClientConfig};
//!
//! let mut config = ClientConfig::new("http://127.0.0.1:8080/v1");
//! config.data = Some("/var/lib/breakers".into());
//! let client = Client::new(config);
//! let body = r#"{"model": "smollm2-135m", "messages": [{"role": "user", "content": "Sum up the night."}]}"#;
//! let ticket = client.submit("/v1/chat/completions", body)?;
//! let answer = client.wait(&ticket.name, None)?;
//! println!("{}", answer.text().unwrap_or_default());
//! # Ok::<(), breakers_serve::client::ClientError>(())
//! ```

use std::fmt;
use std::fs::File;
use std::io::{self, Cursor, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use breakers_files::Replacement;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use ureq::http::Response;
use ureq::{Agent, Body, SendBody};

use crate::environment::{SystemEnvironment, new_id};
use crate::spool::{JobDocument, file_name, is_ticket};

/// How long the server is asked to keep a call open for a job.
const WAIT: Duration = Duration::from_secs(20);
/// Between looks at a server that cannot be reached, or at a batch.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// How long a server has to begin to answer, beside the time it was asked to wait.
const ANSWER_TIME: Duration = Duration::from_secs(60);

/// Where a server is.
#[derive(Clone)]
#[non_exhaustive]
pub struct ClientConfig {
    /// The address of its routes: `http://127.0.0.1:8080/v1`.
    pub url: String,
    /// The API key, if it needs one.
    pub key: Option<String>,
    /// The folder of its files and batches, if this is the same machine: jobs are put there if the server
    /// cannot be reached. Without it such a job is an error.
    pub data: Option<PathBuf>,
}

impl ClientConfig {
    /// A server without keys, and no folder.
    pub fn new(url: impl Into<String>) -> Self {
        Self { url: url.into(), key: None, data: None }
    }
}

impl fmt::Debug for ClientConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Keys are in no log.
        let Self { url, key, data } = self;
        f.debug_struct("ClientConfig")
            .field("url", url)
            .field("has_key", &key.is_some())
            .field("data", data)
            .finish()
    }
}

/// What can go wrong with a job or a batch.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The server cannot be reached, and there is no folder for jobs.
    #[error("cannot reach {url}: {message}")]
    Unreachable {
        /// The address.
        url: String,
        /// What the system says.
        message: String,
    },
    /// The server cannot be reached, and the folder for jobs is none that a server has used.
    #[error(
        "cannot reach the server, and {} is not the folder of one: start `breakers serve --data {}` once",
        folder.display(),
        folder.display()
    )]
    NoServerFolder {
        /// The folder.
        folder: PathBuf,
    },
    /// The server refuses the request.
    #[error("the server refuses the request ({status}): {message}")]
    Refused {
        /// The status of its answer.
        status: u16,
        /// Which field is wrong, if it is one.
        param: Option<String>,
        /// What is wrong.
        message: String,
    },
    /// The request is no JSON.
    #[error("the request is no JSON: {message}")]
    NotJson {
        /// What is wrong.
        message: String,
    },
    /// A text that should be a ticket is none.
    #[error("{found:?} is no ticket")]
    NoTicket {
        /// The text.
        found: String,
    },
    /// There is no job of this ticket: its answer was fetched long ago, or it was never handed in.
    #[error("there is no job {ticket}")]
    NoJob {
        /// The ticket.
        ticket: String,
    },
    /// The job has no answer yet; it goes on.
    #[error("the job {ticket} has no answer after {}; it goes on, and its ticket stays good", seconds(*.waited))]
    TimedOut {
        /// The ticket.
        ticket: String,
        /// How long it was waited for.
        waited: Duration,
    },
    /// The batch was refused as a whole, expired or was cancelled.
    #[error("the batch {id} is {status}{}", listed(.errors))]
    Batch {
        /// Its name.
        id: String,
        /// Its status.
        status: String,
        /// What is wrong with its lines.
        errors: Vec<String>,
    },
    /// A file cannot be read or written.
    #[error(transparent)]
    Files(#[from] breakers_files::Error),
    /// The server's answer is not what it should be.
    #[error("the server's answer cannot be understood: {message}")]
    Malformed {
        /// What is wrong with it.
        message: String,
    },
}

fn seconds(time: Duration) -> String {
    format!("{:.0} s", time.as_secs_f64())
}

fn listed(errors: &[String]) -> String {
    errors.iter().map(|error| format!("\n  {error}")).collect()
}

/// Result of this module's functions.
pub type Result<T, E = ClientError> = std::result::Result<T, E>;

/// A job that was handed in.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Ticket {
    /// Its name.
    pub name: String,
    /// Whether it is in the spool folder, because the server could not be reached.
    pub is_spooled: bool,
}

/// The answer of a job.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct JobAnswer {
    /// The status that its route answered with; 200 if all went well.
    pub status: u16,
    /// The body, JSON.
    pub body: Box<RawValue>,
}

impl JobAnswer {
    /// The text of the first answer; `None` if there is none, as with calls of functions and vectors.
    pub fn text(&self) -> Option<String> {
        let body: Value = serde_json::from_str(self.body.get()).ok()?;
        let choice = body.get("choices")?.get(0)?;
        let text = choice.pointer("/message/content").or_else(|| choice.get("text"))?;
        text.as_str().map(str::to_owned)
    }

    /// The message of an error; `None` if there is none.
    pub fn error(&self) -> Option<String> {
        let body: Value = serde_json::from_str(self.body.get()).ok()?;
        body.pointer("/error/message").and_then(Value::as_str).map(str::to_owned)
    }
}

/// A request for an answer to one message, for those who write no JSON.
///
/// # Example
/// ```
/// use breakers_serve::client::ChatJob;
///
/// let mut job = ChatJob::new("smollm2-135m", "Sum up the night.");
/// job.max_tokens = Some(64);
/// assert!(job.to_json().contains(r#""max_completion_tokens":64"#));
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ChatJob {
    /// The model.
    pub model: String,
    /// Instructions that stand before the message.
    pub system: Option<String>,
    /// The message.
    pub prompt: String,
    /// The most tokens of the answer.
    pub max_tokens: Option<u64>,
    /// The temperature; `None`: the server's default, 1.
    pub temperature: Option<f64>,
    /// The seed; `None`: one that belongs to the request.
    pub seed: Option<i64>,
}

impl ChatJob {
    /// A request without options.
    pub fn new(model: impl Into<String>, prompt: impl Into<String>) -> Self {
        let (model, prompt) = (model.into(), prompt.into());
        Self { model, system: None, prompt, max_tokens: None, temperature: None, seed: None }
    }

    /// The body that `/v1/chat/completions` reads.
    pub fn to_json(&self) -> String {
        let system = self.system.as_ref().map(|text| json!({"role": "system", "content": text}));
        let user = json!({"role": "user", "content": self.prompt});
        let messages: Vec<Value> = system.into_iter().chain([user]).collect();
        let mut body = json!({"model": self.model, "messages": messages});
        let options = [
            ("max_completion_tokens", self.max_tokens.map(Value::from)),
            ("temperature", self.temperature.map(Value::from)),
            ("seed", self.seed.map(Value::from)),
        ];
        for (name, value) in options {
            if let Some(value) = value {
                body[name] = value;
            }
        }
        body.to_string()
    }
}

/// How far a batch has got.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// Its status, in OpenAI's words.
    pub status: String,
    /// Lines; 0 as long as they are being checked.
    pub total: usize,
    /// Lines with an answer.
    pub completed: usize,
    /// Lines that failed.
    pub failed: usize,
}

/// Hands in jobs and batches.
#[derive(Debug)]
pub struct Client {
    config: ClientConfig,
    agent: Agent,
}

/// A part of an answer of `/v1/jobs`.
#[derive(Deserialize)]
struct WireJob {
    response: Option<WireResponse>,
}

#[derive(Deserialize)]
struct WireResponse {
    status_code: u16,
    body: Box<RawValue>,
}

/// How a call failed.
enum Failure {
    /// It did not get through, or only in part.
    Unreachable(String),
    /// The server is busy, or about to end.
    Busy(ClientError),
    Final(ClientError),
}

impl Client {
    /// A client of a server. Nothing is sent yet.
    pub fn new(config: ClientConfig) -> Self {
        let settings = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_connect(Some(Duration::from_secs(5)))
            .timeout_recv_response(Some(WAIT + ANSWER_TIME));
        Self { config, agent: settings.build().into() }
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.config.url.trim_end_matches('/'))
    }

    fn authorization(&self) -> String {
        // A server without keys does not look at it.
        format!("Bearer {}", self.config.key.as_deref().unwrap_or("none"))
    }

    fn get(&self, path: &str) -> Result<Response<Body>, Failure> {
        let request = self.agent.get(self.url(path)).header("authorization", self.authorization());
        judge(request.call())
    }

    fn post(
        &self,
        path: &str,
        kind: &str,
        extra: Option<(&str, &str)>,
        body: SendBody<'_>,
    ) -> Result<Response<Body>, Failure> {
        let request = self.agent.post(self.url(path)).header("authorization", self.authorization());
        let request = request.content_type(kind);
        let request = match extra {
            Some((name, value)) => request.header(name, value),
            None => request,
        };
        judge(request.send(body))
    }

    /// Turns a failure of a call that is not repeated into an error.
    fn give_up(&self, failure: Failure) -> ClientError {
        match failure {
            Failure::Unreachable(message) => {
                ClientError::Unreachable { url: self.config.url.clone(), message }
            }
            Failure::Busy(error) | Failure::Final(error) => error,
        }
    }

    /// Hands in a request. `endpoint` is the route that is to answer it, such as `/v1/chat/completions`, and
    /// `body` is what it is to read.
    ///
    /// # Errors
    /// [`ClientError::Refused`] if something is wrong with the request; [`ClientError::Unreachable`] if the
    /// server cannot be reached and there is no folder; [`ClientError::NoServerFolder`] if no server has used
    /// that; [`ClientError::NotJson`], [`ClientError::Files`].
    pub fn submit(&self, endpoint: &str, body: &str) -> Result<Ticket> {
        let name = new_id(&SystemEnvironment::default(), "job_");
        let body = RawValue::from_string(body.trim().to_owned())
            .map_err(|error| ClientError::NotJson { message: error.to_string() })?;
        let job = JobDocument { ticket: name.clone(), endpoint: endpoint.to_owned(), body };
        let text = serde_json::to_string(&job)
            .map_err(|error| ClientError::NotJson { message: error.to_string() })?;
        let sent = self.post("/jobs", "application/json", None, SendBody::from_reader(&mut text.as_bytes()));
        let failure = match sent {
            Ok(_) => return Ok(Ticket { name, is_spooled: false }),
            Err(Failure::Final(error)) => return Err(error),
            Err(failure) => failure,
        };
        let Some(data) = &self.config.data else { return Err(self.give_up(failure)) };
        // If the server did get it, the same ticket makes it the same job.
        let spool = data.join("spool");
        // Made by the first server; in a folder that none looks at, a job would be lost without a word.
        if !spool.is_dir() {
            return Err(ClientError::NoServerFolder { folder: data.clone() });
        }
        breakers_files::replace(spool.join(file_name(&name)), text.as_bytes())?;
        Ok(Ticket { name, is_spooled: true })
    }

    /// Asks one of the server's routes under `/admin`: with a body it is told to do something, without one it
    /// is asked. The key has to be one that may.
    ///
    /// # Errors
    /// [`ClientError::Refused`], [`ClientError::Unreachable`], [`ClientError::Malformed`].
    pub fn admin(&self, path: &str, body: Option<&Value>) -> Result<Value> {
        let base = self.config.url.trim_end_matches('/');
        let url = format!("{}{path}", base.strip_suffix("/v1").unwrap_or(base));
        let authorization = self.authorization();
        let answer = match body {
            None => judge(self.agent.get(url).header("authorization", authorization).call()),
            Some(body) => {
                let request = self.agent.post(url).header("authorization", authorization);
                judge(request.content_type("application/json").send(body.to_string()))
            }
        };
        read_json(answer.map_err(|failure| self.give_up(failure))?)
    }

    /// The answer of a job; `None` if it has none yet.
    ///
    /// # Errors
    /// [`ClientError::NoJob`], [`ClientError::NoTicket`], [`ClientError::Unreachable`],
    /// [`ClientError::Refused`].
    pub fn fetch(&self, ticket: &str) -> Result<Option<JobAnswer>> {
        match self.ask(ticket, Duration::ZERO) {
            Ok(answer) => Ok(answer),
            Err(Failure::Unreachable(_)) if self.is_spooled(ticket) => Ok(None),
            Err(failure) => Err(self.give_up(failure)),
        }
    }

    /// Waits for the answer of a job, also while the server is down, for `limit` at most.
    ///
    /// # Errors
    /// [`ClientError::TimedOut`]: the job goes on, and can be waited for again; [`ClientError::NoJob`],
    /// [`ClientError::NoTicket`], [`ClientError::Refused`].
    pub fn wait(&self, ticket: &str, limit: Option<Duration>) -> Result<JobAnswer> {
        let begun = Instant::now();
        let mut pause = FIRST_PAUSE;
        loop {
            let left = limit.map(|limit| limit.saturating_sub(begun.elapsed()));
            let wait = left.unwrap_or(WAIT).min(WAIT);
            match self.ask(ticket, wait) {
                Ok(Some(answer)) => return Ok(answer),
                Ok(None) => {}
                Err(Failure::Final(error)) => return Err(error),
                // It may be about to start.
                Err(Failure::Unreachable(_) | Failure::Busy(_)) => {}
            }
            if left.is_some_and(|left| left.is_zero()) {
                return Err(ClientError::TimedOut { ticket: ticket.to_owned(), waited: begun.elapsed() });
            }
            // A server that waits itself answers late, and one that cannot be reached answers at once.
            std::thread::sleep(pause.min(left.unwrap_or(pause)));
            pause = (2 * pause).min(LONGEST_PAUSE);
        }
    }

    /// Asks for a job, which the server is to wait for.
    fn ask(&self, ticket: &str, wait: Duration) -> Result<Option<JobAnswer>, Failure> {
        if !is_ticket(ticket) {
            return Err(Failure::Final(ClientError::NoTicket { found: ticket.to_owned() }));
        }
        // Looked at first: when the file is gone, the server has the job.
        let is_spooled = self.is_spooled(ticket);
        let path = format!("/jobs/{ticket}?wait={}", wait.as_secs());
        let job: WireJob = match self.get(&path) {
            Ok(response) => read_json(response).map_err(Failure::Final)?,
            Err(Failure::Final(ClientError::Refused { status: 404, .. })) if is_spooled => return Ok(None),
            Err(Failure::Final(ClientError::Refused { status: 404, .. })) => {
                return Err(Failure::Final(ClientError::NoJob { ticket: ticket.to_owned() }));
            }
            Err(failure) => return Err(failure),
        };
        Ok(job.response.map(|response| JobAnswer { status: response.status_code, body: response.body }))
    }

    fn is_spooled(&self, ticket: &str) -> bool {
        let path = self.config.data.as_ref().map(|data| data.join("spool").join(file_name(ticket)));
        path.is_some_and(|path| path.exists())
    }

    /// Runs a file of requests as a batch: uploads it, waits until all lines have results, and writes the
    /// answers to `output` and what failed to `errors`; a file for which there are no results is not written.
    /// `on_progress` is told again and again how far it has got.
    ///
    /// # Errors
    /// [`ClientError::Batch`] for a file that is wrong, [`ClientError::Unreachable`],
    /// [`ClientError::Refused`], [`ClientError::Files`].
    pub fn run_batch(
        &self,
        input: &Path,
        endpoint: &str,
        window: &str,
        output: &Path,
        errors: &Path,
        on_progress: &mut dyn FnMut(&Progress),
    ) -> Result<Progress> {
        let file = self.upload(input)?;
        let body = json!({"input_file_id": file, "endpoint": endpoint, "completion_window": window});
        let key = new_id(&SystemEnvironment::default(), "run_");
        let created: Value = self.insist(|| {
            let body = body.to_string();
            let header = Some(("idempotency-key", &*key));
            self.post("/batches", "application/json", header, SendBody::from_reader(&mut body.as_bytes()))
                .and_then(parsed)
        })?;
        let id = text_of(&created, "id")?;
        let mut pause = FIRST_PAUSE;
        let batch = loop {
            let batch: Value = self.insist(|| self.get(&format!("/batches/{id}")).and_then(parsed))?;
            let progress = progress_of(&batch)?;
            on_progress(&progress);
            if matches!(&*progress.status, "completed" | "failed" | "expired" | "cancelled") {
                break batch;
            }
            std::thread::sleep(pause);
            pause = (2 * pause).min(LONGEST_PAUSE);
        };
        for (name, path) in [("output_file_id", output), ("error_file_id", errors)] {
            if let Some(file) = batch.get(name).and_then(Value::as_str) {
                self.download(file, path)?;
            }
        }
        let progress = progress_of(&batch)?;
        if progress.status != "completed" {
            let listed = batch.pointer("/errors/data").and_then(Value::as_array).cloned().unwrap_or_default();
            let describe = |error: &Value| {
                let line = error.get("line").and_then(Value::as_u64);
                let place = line.map_or_else(String::new, |line| format!("line {line}: "));
                let word = |name| error.get(name).and_then(Value::as_str).unwrap_or_default();
                format!("{place}{} ({})", word("message"), word("code"))
            };
            let errors = listed.iter().map(describe).collect();
            return Err(ClientError::Batch { id, status: progress.status, errors });
        }
        Ok(progress)
    }

    fn upload(&self, path: &Path) -> Result<String> {
        let boundary = new_id(&SystemEnvironment::default(), "breakers");
        let name = path.file_name().unwrap_or_default().to_string_lossy().replace(['"', '\r', '\n'], "_");
        let head = format!(
            "--{boundary}\r\nContent-Disposition: form-data; name=\"purpose\"\r\n\r\nbatch\r\n--{boundary}\r\n\
             Content-Disposition: form-data; name=\"file\"; filename=\"{name}\"\r\n\
             Content-Type: application/jsonl\r\n\r\n"
        );
        let tail = format!("\r\n--{boundary}--\r\n");
        let kind = format!("multipart/form-data; boundary={boundary}");
        let mut broken = None;
        let uploaded: Result<Value, ClientError> = self.insist(|| {
            let file: File = match breakers_files::open(path) {
                Ok(file) => file,
                Err(error) => {
                    broken = Some(error);
                    let message = "the file cannot be opened".to_owned();
                    return Err(Failure::Final(ClientError::Malformed { message }));
                }
            };
            let mut body = Cursor::new(&head).chain(file).chain(Cursor::new(&tail));
            self.post("/files", &kind, None, SendBody::from_reader(&mut body)).and_then(parsed)
        });
        match broken {
            Some(error) => Err(error.into()),
            None => text_of(&uploaded?, "id"),
        }
    }

    fn download(&self, file: &str, path: &Path) -> Result<()> {
        let mut broken = None;
        let done = self.insist(|| {
            let mut response = self.get(&format!("/files/{file}/content"))?;
            let write = |response: &mut Response<Body>| -> Result<(), CopyError> {
                let mut out = Replacement::new(path)?;
                let mut body = response.body_mut().as_reader();
                let mut piece = vec![0; 64 << 10];
                loop {
                    match body.read(&mut piece) {
                        Ok(0) => break,
                        Ok(n) => out.put(&piece[..n])?,
                        Err(error) => return Err(CopyError::Read(error)),
                    }
                }
                Ok(out.commit()?)
            };
            match write(&mut response) {
                Ok(()) => Ok(()),
                Err(CopyError::Read(error)) => Err(Failure::Unreachable(error.to_string())),
                Err(CopyError::Write(error)) => {
                    broken = Some(error);
                    let message = "the file cannot be written".to_owned();
                    Err(Failure::Final(ClientError::Malformed { message }))
                }
            }
        });
        match broken {
            Some(error) => Err(error.into()),
            None => done,
        }
    }

    /// Makes a call that may be repeated, for a minute while the server is busy or restarts.
    fn insist<T>(&self, mut call: impl FnMut() -> Result<T, Failure>) -> Result<T> {
        let begun = Instant::now();
        let mut pause = FIRST_PAUSE;
        loop {
            match call() {
                Err(Failure::Unreachable(_) | Failure::Busy(_)) if begun.elapsed() < ANSWER_TIME => {}
                result => return result.map_err(|failure| self.give_up(failure)),
            }
            std::thread::sleep(pause);
            pause = (2 * pause).min(LONGEST_PAUSE);
        }
    }
}

enum CopyError {
    Read(io::Error),
    Write(breakers_files::Error),
}

impl From<breakers_files::Error> for CopyError {
    fn from(error: breakers_files::Error) -> Self {
        Self::Write(error)
    }
}

/// Tells calls that may be repeated from those that may not.
fn judge(result: Result<Response<Body>, ureq::Error>) -> Result<Response<Body>, Failure> {
    let mut response = match result {
        Ok(response) => response,
        Err(ureq::Error::BadUri(message)) => {
            return Err(Failure::Final(ClientError::Unreachable {
                url: message,
                message: "no address".into(),
            }));
        }
        Err(error) => return Err(Failure::Unreachable(error.to_string())),
    };
    let status = response.status().as_u16();
    if status == 200 {
        return Ok(response);
    }
    let should_retry = response.headers().get("x-should-retry").is_none_or(|value| value != "false");
    let text = response.body_mut().read_to_string().unwrap_or_default();
    let body: Value = serde_json::from_str(&text).unwrap_or_default();
    let word = |name: &str| body.pointer(name).and_then(Value::as_str).map(str::to_owned);
    let message = word("/error/message").unwrap_or_else(|| text.chars().take(200).collect());
    let error = ClientError::Refused { status, param: word("/error/param"), message };
    let is_busy = matches!(status, 408 | 429 | 503) && should_retry;
    Err(if is_busy { Failure::Busy(error) } else { Failure::Final(error) })
}

fn read_json<T: for<'de> Deserialize<'de>>(mut response: Response<Body>) -> Result<T> {
    let malformed = |message: String| ClientError::Malformed { message };
    let text = response.body_mut().with_config().limit(1 << 30).read_to_string();
    let text = text.map_err(|error| malformed(error.to_string()))?;
    serde_json::from_str(&text).map_err(|error| malformed(error.to_string()))
}

fn parsed(response: Response<Body>) -> Result<Value, Failure> {
    read_json(response).map_err(Failure::Final)
}

fn text_of(value: &Value, name: &str) -> Result<String> {
    let found = value.get(name).and_then(Value::as_str).map(str::to_owned);
    found.ok_or_else(|| ClientError::Malformed { message: format!("`{name}` is missing") })
}

fn progress_of(batch: &Value) -> Result<Progress> {
    let count = |name: &str| {
        let n = batch.pointer(name).and_then(Value::as_u64);
        n.and_then(|n| usize::try_from(n).ok()).unwrap_or(0)
    };
    Ok(Progress {
        status: text_of(batch, "status")?,
        total: count("/request_counts/total"),
        completed: count("/request_counts/completed"),
        failed: count("/request_counts/failed"),
    })
}
