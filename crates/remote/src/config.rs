use std::fmt;
use std::time::Duration;

use breakers_core::{Capabilities, Json, ModelCard};

use crate::{Error, Result};

/// Which parameters beyond OpenAI's an endpoint knows, and what it calls them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Dialect {
    /// OpenAI's own. It has no `top_k`, `min_p` or repetition penalty, and no forms of answers but JSON, so
    /// a request that uses one is refused.
    #[default]
    OpenAi,
    /// llama.cpp's server and compatible ones: `top_k`, `min_p`, `repeat_penalty`, `repeat_last_n`, and
    /// `grammar` for choices. Its grammars are neither Lark's nor regular expressions, so these are refused.
    LlamaCpp,
    /// vLLM and compatible servers, such as `breakers serve`: `top_k`, `min_p`, `structured_outputs`. Their
    /// repetition penalty looks at the whole text and not at a window, so a request that uses it is refused.
    Vllm,
}

/// How long to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Timeouts {
    /// For a connection, including the name lookup and the TLS handshake.
    pub connect: Duration,
    /// From the call to the first piece of the answer. A server is silent while it reads a long prompt.
    pub first_token: Duration,
    /// From one piece of the answer to the next.
    pub next_token: Duration,
    /// From the call to the end of the answer.
    pub total: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            first_token: Duration::from_secs(120),
            next_token: Duration::from_secs(60),
            total: Duration::from_secs(600),
        }
    }
}

/// A key that is sent to an endpoint and never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey(String);

impl ApiKey {
    /// A key from its text.
    pub fn new(key: impl Into<String>) -> Self {
        Self(key.into())
    }

    pub(crate) fn secret(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(…)")
    }
}

/// An endpoint, and one of its models.
///
/// ```
/// use breakers_remote::{ApiKey, Dialect, RemoteConfig};
/// use std::time::Duration;
///
/// let mut config = RemoteConfig::new("http://127.0.0.1:8080/v1", "qwen2.5-coder");
/// config.dialect = Dialect::LlamaCpp;
/// config.timeouts.first_token = Duration::from_secs(300);
/// config.api_key = Some(ApiKey::new("secret"));
/// assert!(!format!("{config:?}").contains("secret"));
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct RemoteConfig {
    /// The address to which `/chat/completions` is appended, such as `https://api.openai.com/v1`.
    pub base_url: String,
    /// The model's card. Its id is the name that the endpoint knows. A request that needs a capability that
    /// the card lacks is refused without being sent.
    pub card: ModelCard,
    /// Sent as `Authorization: Bearer`.
    pub api_key: Option<ApiKey>,
    /// Further headers.
    pub headers: Vec<(String, String)>,
    /// More fields for the body of each request. They override those of the request.
    pub body: Vec<(String, Json)>,
    /// Which parameters the endpoint knows.
    pub dialect: Dialect,
    /// How long to wait.
    pub timeouts: Timeouts,
    /// Whether answers are streamed. If not, the first piece is the whole answer, and
    /// [`Timeouts::first_token`] is the time until it arrives.
    pub stream: bool,
    /// How many calls of a batch run at a time.
    pub max_concurrent: usize,
    /// The longest answer in bytes, over all events as they are sent.
    pub max_answer: usize,
}

impl RemoteConfig {
    /// An endpoint that supports chats with tools, JSON and log-probabilities, as OpenAI's does.
    pub fn new(base_url: impl Into<String>, model: impl Into<String>) -> Self {
        let mut card = ModelCard::new(model);
        let mut capabilities = Capabilities::default();
        capabilities.chat = true;
        capabilities.tools = true;
        capabilities.json = true;
        capabilities.logprobs = true;
        card.capabilities = capabilities;
        Self {
            base_url: base_url.into(),
            card,
            api_key: None,
            headers: Vec::new(),
            body: Vec::new(),
            dialect: Dialect::OpenAi,
            timeouts: Timeouts::default(),
            stream: true,
            max_concurrent: 8,
            max_answer: 64 << 20,
        }
    }

    /// The endpoint in `OPENAI_BASE_URL`, or else OpenAI's, with the key in `OPENAI_API_KEY`.
    ///
    /// # Errors
    /// [`Error::NoVariable`] if there is neither a key nor an address.
    pub fn from_env(model: impl Into<String>) -> Result<Self> {
        let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        let (url, key) = (variable("OPENAI_BASE_URL"), variable("OPENAI_API_KEY"));
        if url.is_none() && key.is_none() {
            return Err(Error::NoVariable { name: "OPENAI_API_KEY" });
        }
        let mut config = Self::new(url.unwrap_or_else(|| "https://api.openai.com/v1".to_owned()), model);
        config.api_key = key.map(ApiKey::new);
        Ok(config)
    }

    /// Checks what can be checked without a call.
    pub(crate) fn check(&self) -> Result<()> {
        let url = &self.base_url;
        let bad = |expected| Err(Error::Url { url: url.clone(), expected });
        let Some((scheme, rest)) = url.split_once("://") else {
            return bad("http:// or https:// and a host");
        };
        match scheme.to_ascii_lowercase().as_str() {
            "http" => {}
            "https" if cfg!(feature = "tls") => {}
            "https" => return Err(Error::NoTls { url: url.clone() }),
            _ => return bad("http:// or https://"),
        }
        if rest.contains(['?', '#']) {
            return bad("an address without a query");
        }
        // A password in an address would be shown along with it.
        if rest.split('/').next().is_none_or(|host| host.is_empty() || host.contains('@')) {
            return bad("a host, without a user; keys belong into `api_key`");
        }
        if url.parse::<ureq::http::Uri>().is_err() {
            return bad("an address by RFC 3986");
        }
        let key = self.api_key.iter().map(|key| ("Authorization", key.secret()));
        let headers = self.headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        for (name, value) in key.chain(headers) {
            let is_good = ureq::http::HeaderName::from_bytes(name.as_bytes()).is_ok()
                && ureq::http::HeaderValue::from_str(value).is_ok();
            if !is_good {
                return Err(Error::Header { name: name.to_owned() });
            }
        }
        let least = |name, found: usize| {
            let (expected, found) = ("at least 1", found.to_string());
            if found == "0" { Err(Error::Parameter { name, expected, found }) } else { Ok(()) }
        };
        least("max_concurrent", self.max_concurrent)?;
        least("max_answer", self.max_answer)?;
        let Timeouts { connect, first_token, next_token, total } = self.timeouts;
        let limits = [
            ("connect", connect),
            ("first_token", first_token),
            ("next_token", next_token),
            ("total", total),
        ];
        for (name, limit) in limits {
            if limit.is_zero() {
                return Err(Error::Parameter { name, expected: "more than 0 s", found: "0 s".to_owned() });
            }
        }
        Ok(())
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("{}/{path}", self.base_url.trim_end_matches('/'))
    }

    /// Whether the host is this machine, for which no proxy is needed.
    pub(crate) fn is_local(&self) -> bool {
        let uri = self.base_url.parse::<ureq::http::Uri>();
        let host = uri.as_ref().ok().and_then(|uri| uri.host()).unwrap_or_default();
        let ip = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
        host.eq_ignore_ascii_case("localhost") || ip.is_ok_and(|ip| ip.is_loopback())
    }
}
