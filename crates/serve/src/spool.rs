//! Jobs that come while the server is down: each is a file in a folder, which the server empties.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// The end of the names of such files; the rest is the ticket.
pub(crate) const ENDING: &str = ".job.json";

/// A job as it is handed in, by HTTP or in the folder.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct JobDocument {
    /// Its caller's name for it: long and random, because whoever knows it may have the answer.
    pub(crate) ticket: String,
    /// The route that is to answer it.
    pub(crate) endpoint: String,
    /// What the route is to read.
    pub(crate) body: Box<RawValue>,
}

/// Whether a text can be a ticket. It becomes the name of a file.
pub(crate) fn is_ticket(text: &str) -> bool {
    let is_known = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    (16..=64).contains(&text.len()) && text.bytes().all(is_known)
}

/// The name of a job's file.
#[cfg(feature = "client")]
pub(crate) fn file_name(ticket: &str) -> String {
    format!("{ticket}{ENDING}")
}
