use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use crate::{Error, Keys, Result};

/// Settings of a [`Server`](crate::Server).
///
/// # Example
/// ```
/// use breakers_serve::ServeConfig;
///
/// let mut config = ServeConfig::default();
/// config.address = "127.0.0.1:0".parse().unwrap();
/// config.limits.max_texts = 4;
/// assert!(config.address.ip().is_loopback());
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ServeConfig {
    /// Where to listen; port 0 takes a free one.
    pub address: SocketAddr,
    /// Who may use the server; `None`: everybody who can reach it.
    pub keys: Option<Keys>,
    /// Allow an address that other machines can reach although there are no keys.
    pub allow_no_keys: bool,
    /// Names by which clients may call this server, beside `localhost` and any IP address. Without keys, or
    /// on the loopback address, other names are refused: a web page could point a name of its own here (DNS
    /// rebinding).
    pub hosts: Vec<String>,
    /// Ask each model for one token at the start, and call the server ready only when all have answered.
    pub canary: bool,
    /// Limits on everything that a client could use too much of.
    pub limits: Limits,
    /// Where files, batches and jobs are kept; `None`: there are none.
    #[cfg(feature = "batches")]
    pub batches: Option<crate::BatchConfig>,
}

impl Default for ServeConfig {
    /// Port 8080 of the loopback address, without keys.
    fn default() -> Self {
        Self {
            address: (Ipv4Addr::LOCALHOST, 8080).into(),
            keys: None,
            allow_no_keys: false,
            hosts: Vec::new(),
            canary: true,
            limits: Limits::default(),
            #[cfg(feature = "batches")]
            batches: None,
        }
    }
}

impl ServeConfig {
    /// Checks all settings. Starting a server does this too.
    ///
    /// # Errors
    /// [`Error::Parameter`] for a limit out of its range, [`Error::Unprotected`] for an address that other
    /// machines can reach although there are no keys.
    pub fn validate(&self) -> Result<()> {
        let Limits { max_texts, max_connections, json_depth, stream_bytes, .. } = self.limits;
        for (name, value, max) in [
            ("max_texts", max_texts, 4096),
            ("max_connections", max_connections, 1 << 20),
            ("json_depth", json_depth, 128),
            ("stream_bytes", stream_bytes, 1 << 28),
        ] {
            if value == 0 || value > max {
                let expected = match name {
                    "max_texts" => "1 to 4,096",
                    "max_connections" => "1 to 1,048,576",
                    "json_depth" => "1 to 128",
                    _ => "1 byte to 256 MiB",
                };
                return Err(Error::Parameter { name, expected, found: value.to_string() });
            }
        }
        if !self.address.ip().is_loopback() && self.keys.is_none() && !self.allow_no_keys {
            return Err(Error::Unprotected { address: self.address });
        }
        #[cfg(feature = "batches")]
        if let Some(batches) = &self.batches {
            batches.validate(max_texts)?;
        }
        Ok(())
    }
}

/// The most that clients may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Texts that are generated at a time. More than the engine runs at a time only moves the queue there.
    pub max_texts: usize,
    /// Texts that wait. When so many wait, further requests are refused with the estimated wait.
    pub max_waiting: usize,
    /// Answers to one request: `n`, times the number of prompts.
    pub max_choices: usize,
    /// Bytes of a body.
    pub body_bytes: usize,
    /// Brackets within brackets in a body.
    pub json_depth: usize,
    /// Messages of a conversation.
    pub messages: usize,
    /// Functions of a request.
    pub tools: usize,
    /// Bytes of a JSON Schema.
    pub schema_bytes: usize,
    /// Stop strings.
    pub stops: usize,
    /// Bytes of a stop string.
    pub stop_bytes: usize,
    /// Texts of a request for vectors.
    pub inputs: usize,
    /// Responses that are kept for later ones; the oldest go first.
    pub stored_responses: usize,
    /// Bytes of all those.
    pub stored_bytes: usize,
    /// Open connections; further ones wait until one closes.
    pub max_connections: usize,
    /// Time for the head of a request, on a new or an idle connection.
    pub head_time: Duration,
    /// Time for a body.
    pub body_time: Duration,
    /// Time in which a client must take some of what is written to it; otherwise its connection is closed and
    /// its answer cancelled.
    pub write_time: Duration,
    /// Bytes of a stream that wait for a slow client before its text pauses.
    pub stream_bytes: usize,
    /// How long a stream waits for the first piece of its answer before it begins anyway. An error before
    /// that has a status of its own; afterwards it is an event in the stream.
    pub status_time: Duration,
    /// Time between the comments that keep a silent stream open.
    pub ping_time: Duration,
    /// Time for running answers to end when the server stops.
    pub drain_time: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_texts: 8,
            max_waiting: 32,
            max_choices: 128,
            body_bytes: 8 << 20,
            json_depth: 64,
            messages: 10_000,
            tools: 1024,
            schema_bytes: 1 << 20,
            stops: 4,
            stop_bytes: 256,
            inputs: 2048,
            stored_responses: 1024,
            stored_bytes: 64 << 20,
            max_connections: 1024,
            head_time: Duration::from_secs(10),
            body_time: Duration::from_secs(30),
            write_time: Duration::from_secs(60),
            stream_bytes: 256 << 10,
            status_time: Duration::from_millis(500),
            ping_time: Duration::from_secs(5),
            drain_time: Duration::from_secs(30),
        }
    }
}
