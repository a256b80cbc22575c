//! Which servers there are, and how they are treated.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::http::{HeaderValue, Uri};
use serde::Deserialize;

use super::health::Condition;
use crate::{Error, Result};

/// The most servers behind a front.
const MAX_SERVERS: usize = 64;

/// Settings of a front: servers of OpenAI's protocol to which it passes requests on.
///
/// # File
/// TOML, with a table for each server; all but `url` may be left out:
/// ```
/// # let text = r#"
/// load_factor = 1.5
/// load_slack = 4
/// attempts = 3
///
/// [[upstream]]
/// url = "http://10.0.0.5:8080"
/// name = "left"
/// key_file = "left.key"
///
/// [[upstream]]
/// url = "http://10.0.0.6:8000/v1"
/// pass_keys = true
/// # "#;
/// # let text = text.replace("key_file = \"left.key\"\n", "");
/// # let config = breakers_serve::upstreams::UpstreamsConfig::parse(&text)?;
/// # assert_eq!(config.upstreams.len(), 2);
/// # Ok::<(), breakers_serve::Error>(())
/// ```
/// A key comes from a file (`key_file`) or an environment variable (`key_env`) and is never shown.
#[derive(Clone)]
#[non_exhaustive]
pub struct UpstreamsConfig {
    /// The servers.
    pub upstreams: Vec<Upstream>,
    /// A server that knows the beginning of a request may have this many times the requests of the least
    /// loaded one; at least 1.
    pub load_factor: f64,
    /// Or so many more; at least 1.
    pub load_slack: usize,
    /// Beginnings of requests that are remembered; twice as many at most, about 50 bytes each.
    pub remembered: usize,
    /// Servers that a request is tried on.
    pub attempts: usize,
    /// Further tries that are allowed at once, for all requests together.
    pub retry_burst: usize,
    /// Further tries that each request earns; 0 to 1.
    pub retry_share: f64,
    /// Time from check to check of a healthy server.
    pub check_interval: Duration,
    /// Time that a check may take.
    pub check_time: Duration,
    /// How long the first failure keeps a server out; each further one twice as long.
    pub backoff: Duration,
    /// The longest that failures keep a server out.
    pub max_backoff: Duration,
    /// Time to connect.
    pub connect_time: Duration,
    /// Time until an answer begins.
    pub head_time: Duration,
    /// Time in which a stream that has begun must say something, if only a comment.
    pub idle_time: Duration,
    /// Bytes of an answer that is not streamed, and of one event of a stream.
    pub answer_bytes: usize,
    /// Told of the servers at the start, and of changes.
    pub observer: Option<Observer>,
}

/// Who is told how servers are.
pub type Observer = Arc<dyn Fn(UpstreamNews<'_>) + Send + Sync>;

/// News for an [`Observer`].
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum UpstreamNews<'a> {
    /// All servers have been checked once.
    Start(&'a [UpstreamStatus]),
    /// The condition of one has changed.
    Changed(&'a UpstreamStatus),
}

/// How a server is.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct UpstreamStatus {
    /// Its name.
    pub name: String,
    /// Where it is.
    pub url: String,
    /// Whether it is asked.
    pub condition: Condition,
    /// What was wrong last.
    pub reason: Option<String>,
    /// The models that it named last.
    pub models: Vec<String>,
}

impl fmt::Debug for UpstreamsConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UpstreamsConfig").field("upstreams", &self.upstreams).finish_non_exhaustive()
    }
}

/// A server of OpenAI's protocol.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Upstream {
    /// `http://HOST[:PORT][/PATH]`, with or without `/v1` at the end.
    pub url: String,
    /// What logs and metrics call it.
    pub name: String,
    /// The key for requests, and for checks.
    pub key: Option<Secret>,
    /// Send the key of each client instead, so that the server knows its tenants. Checks use `key`.
    pub pass_keys: bool,
}

impl Upstream {
    /// A server that needs no key, called after its address.
    pub fn new(url: impl Into<String>) -> Self {
        let url = url.into();
        let name = url.split_once("://").map_or(&*url, |(_, rest)| rest).trim_end_matches('/');
        let name = name.strip_suffix("/v1").unwrap_or(name).to_owned();
        Self { name, url, key: None, pass_keys: false }
    }
}

/// A key that is not shown.
#[derive(Clone)]
pub struct Secret(HeaderValue);

impl Secret {
    /// A key.
    ///
    /// # Errors
    /// [`Error::UpstreamKey`] for an empty key and for one that no header can hold.
    pub fn new(key: &str) -> Result<Self> {
        let wrong = |message| Error::UpstreamKey { origin: "a text".to_owned(), message };
        let key = key.trim();
        if key.is_empty() {
            return Err(wrong("it is empty"));
        }
        let mut header = HeaderValue::from_str(&format!("Bearer {key}"))
            .map_err(|_| wrong("it has characters that no header can hold"))?;
        header.set_sensitive(true);
        Ok(Self(header))
    }

    /// The key in an environment variable.
    ///
    /// # Errors
    /// [`Error::UpstreamKey`].
    pub fn from_env(name: &str) -> Result<Self> {
        let origin = || format!("the environment variable {name}");
        let key = std::env::var(name)
            .map_err(|_| Error::UpstreamKey { origin: origin(), message: "it is not set, or not UTF-8" })?;
        Self::new(&key).map_err(|error| of(error, origin()))
    }

    /// The key in a file. White space around it is left out.
    ///
    /// # Errors
    /// [`Error::ReadUpstreams`] and [`Error::UpstreamKey`].
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        Self::new(&read(path)?).map_err(|error| of(error, path.display().to_string()))
    }

    pub(super) fn header(&self) -> &HeaderValue {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// The same error with where the key came from.
fn of(error: Error, origin: String) -> Error {
    match error {
        Error::UpstreamKey { message, .. } => Error::UpstreamKey { origin, message },
        error => error,
    }
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path)
        .map_err(|source| Error::ReadUpstreams { path: path.to_owned(), source: Arc::new(source) })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    upstream: Vec<Entry>,
    load_factor: Option<f64>,
    load_slack: Option<usize>,
    attempts: Option<usize>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    url: String,
    name: Option<String>,
    key_env: Option<String>,
    key_file: Option<PathBuf>,
    #[serde(default)]
    pass_keys: bool,
}

impl UpstreamsConfig {
    /// The usual settings for these servers.
    pub fn new(upstreams: impl IntoIterator<Item = Upstream>) -> Self {
        Self {
            upstreams: upstreams.into_iter().collect(),
            load_factor: 1.5,
            load_slack: 4,
            remembered: 1 << 16,
            attempts: 3,
            retry_burst: 128,
            retry_share: 0.2,
            check_interval: Duration::from_secs(5),
            check_time: Duration::from_secs(5),
            backoff: Duration::from_secs(1),
            max_backoff: Duration::from_secs(30),
            connect_time: Duration::from_secs(3),
            head_time: Duration::from_secs(600),
            idle_time: Duration::from_secs(300),
            answer_bytes: 64 << 20,
            observer: None,
        }
    }

    /// Reads a file.
    ///
    /// # Errors
    /// [`Error::ReadUpstreams`] and the errors of [`Self::parse`].
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        Self::parse(&read(path.as_ref())?)
    }

    /// Reads a file's text, and the keys that it names.
    ///
    /// # Errors
    /// [`Error::Upstreams`], [`Error::UpstreamKey`], [`Error::ReadUpstreams`] for a key's file, and the
    /// errors of [`Self::validate`].
    pub fn parse(text: &str) -> Result<Self> {
        let file: File =
            toml::from_str(text).map_err(|error| Error::Upstreams { message: error.message().to_owned() })?;
        let mut upstreams = Vec::with_capacity(file.upstream.len());
        for entry in file.upstream {
            let mut upstream = Upstream::new(entry.url);
            upstream.name = entry.name.unwrap_or(upstream.name);
            upstream.pass_keys = entry.pass_keys;
            upstream.key = match (&entry.key_env, &entry.key_file) {
                (Some(_), Some(_)) => {
                    let message = format!("{} has both `key_env` and `key_file`", upstream.name);
                    return Err(Error::Upstreams { message });
                }
                (Some(name), None) => Some(Secret::from_env(name)?),
                (None, Some(path)) => Some(Secret::from_file(path)?),
                (None, None) => None,
            };
            upstreams.push(upstream);
        }
        let mut config = Self::new(upstreams);
        config.load_factor = file.load_factor.unwrap_or(config.load_factor);
        config.load_slack = file.load_slack.unwrap_or(config.load_slack);
        config.attempts = file.attempts.unwrap_or(config.attempts);
        config.validate()?;
        Ok(config)
    }

    /// Checks all settings. Starting a server does this too.
    ///
    /// # Errors
    /// [`Error::Parameter`] for a setting out of its range, [`Error::Upstreams`] for names that are there
    /// twice, [`Error::UpstreamUrl`].
    pub fn validate(&self) -> Result<()> {
        let wrong = |name, expected, found: String| Err(Error::Parameter { name, expected, found });
        let n = self.upstreams.len();
        if n == 0 || n > MAX_SERVERS {
            return wrong("upstreams", "1 to 64 servers", n.to_string());
        }
        if !(1.0..=1e6).contains(&self.load_factor) {
            return wrong("load_factor", "1 to 1,000,000", self.load_factor.to_string());
        }
        if !(0.0..=1.0).contains(&self.retry_share) {
            return wrong("retry_share", "0 to 1", self.retry_share.to_string());
        }
        for (name, value, most) in [
            ("load_slack", self.load_slack, 1_000_000),
            ("remembered", self.remembered, 100_000_000),
            ("attempts", self.attempts, MAX_SERVERS),
            ("answer_bytes", self.answer_bytes, 1 << 30),
        ] {
            if value == 0 || value > most {
                return wrong(name, "1 or more, within bounds", value.to_string());
            }
        }
        for (name, time) in [
            ("check_interval", self.check_interval),
            ("check_time", self.check_time),
            ("backoff", self.backoff),
            ("max_backoff", self.max_backoff),
            ("connect_time", self.connect_time),
            ("head_time", self.head_time),
            ("idle_time", self.idle_time),
        ] {
            if time.is_zero() || time > Duration::from_secs(86_400) {
                return wrong(name, "more than 0 and at most a day", format!("{time:?}"));
            }
        }
        for (i, upstream) in self.upstreams.iter().enumerate() {
            base(&upstream.url)?;
            if self.upstreams[..i].iter().any(|other| other.name == upstream.name) {
                return Err(Error::Upstreams {
                    message: format!("two servers are called {:?}", upstream.name),
                });
            }
        }
        Ok(())
    }
}

/// The address of a server without `/v1`: scheme and authority, and the path before it.
pub(super) fn base(url: &str) -> Result<(String, String)> {
    let wrong = || {
        // What stands before an @ may be a password.
        let url = url.rsplit_once('@').map_or_else(|| url.to_owned(), |(_, rest)| format!("…@{rest}"));
        Error::UpstreamUrl { url }
    };
    let uri: Uri = url.parse().map_err(|_| wrong())?;
    let authority =
        uri.authority().filter(|authority| !authority.as_str().contains('@')).ok_or_else(wrong)?;
    if uri.scheme_str() != Some("http") || uri.query().is_some() || authority.host().is_empty() {
        return Err(wrong());
    }
    let path = uri.path().trim_end_matches('/');
    let path = path.strip_suffix("/v1").unwrap_or(path);
    Ok((format!("http://{authority}"), path.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        for (url, expected) in [
            ("http://a:1", ("http://a:1", "")),
            ("http://a/v1/", ("http://a", "")),
            ("http://[::1]:80/x/v1", ("http://[::1]:80", "/x")),
        ] {
            let (base, path) = base(url).unwrap();
            assert_eq!((&*base, &*path), expected, "{url}");
        }
        for url in ["", "a:1", "https://a", "http://", "http://u:hush@a", "http://a?b", "/v1"] {
            let error = base(url).unwrap_err().to_string();
            assert!(!error.contains("hush"), "{error}");
        }
    }

    #[test]
    fn wrong_files_are_refused() {
        for (text, expected) in [
            ("", "upstream"),
            ("upstream = []", "1 to 64"),
            ("[[upstream]]\nurl = \"http://a\"\nkey = \"hush\"", "unknown field"),
            ("[[upstream]]\nurl = \"http://a\"\n[[upstream]]\nurl = \"http://a/v1\"", "two servers"),
            ("load_factor = 0.5\n[[upstream]]\nurl = \"http://a\"", "load_factor"),
            ("attempts = 0\n[[upstream]]\nurl = \"http://a\"", "attempts"),
            ("[[upstream]]\nurl = \"ftp://a\"", "ftp"),
            (
                "[[upstream]]\nurl = \"http://a\"\nkey_env = \"BREAKERS_NO_SUCH_NAME\"",
                "BREAKERS_NO_SUCH_NAME",
            ),
            ("[[upstream]]\nurl = \"http://a\"\nkey_env = \"A\"\nkey_file = \"b\"", "both"),
        ] {
            let error = UpstreamsConfig::parse(text).unwrap_err().to_string();
            assert!(error.contains(expected) && !error.contains("hush"), "{text}: {error}");
        }
        assert!(Secret::new("a\nb").is_err() && Secret::new(" ").is_err());
        assert!(!format!("{:?}", Secret::new("hush").unwrap()).contains("hush"));
    }
}
