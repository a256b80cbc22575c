//! Who may use the server, and how much.

use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use crate::{Error, Result};

/// API keys with their limits. Keys are held as salted hashes only.
///
/// # File
/// TOML, with a table for each key:
/// ```
/// # let text = r#"
/// [[key]]
/// tenant = "reports"
/// hash = "sha256:73616c74:4edb7ed0d35f1d4b5a1b6e2a36a7d4a6b6fe4d1df9c3f1a8b2f9a3d5c7e9f102"
/// requests_per_minute = 600
/// tokens_per_minute = 200000
/// concurrent = 8
/// models = ["smollm2-135m"]
/// # "#;
/// # assert_eq!(breakers_serve::Keys::parse(text)?.len(), 1);
/// # Ok::<(), breakers_serve::Error>(())
/// ```
/// `hash` is what [`Keys::hash`] makes of a key; `key = "…"` with the key itself is allowed in its place.
/// Limits that are not given do not apply. With `admin = true` a key also opens the routes under `/admin`.
///
/// # Example
/// ```
/// use breakers_serve::Keys;
///
/// let keys = Keys::from_plain(["a long and random text"])?;
/// assert_eq!(keys.len(), 1);
/// assert!(!format!("{keys:?}").contains("random"));
/// # Ok::<(), breakers_serve::Error>(())
/// ```
#[derive(Clone)]
pub struct Keys {
    entries: Vec<Arc<Key>>,
}

/// One key: whom it belongs to and what its holder may use.
pub(crate) struct Key {
    pub(crate) tenant: String,
    salt: Vec<u8>,
    hash: [u8; 32],
    models: Option<Vec<String>>,
    requests: Option<f64>,
    tokens: Option<f64>,
    concurrent: Option<usize>,
    /// Whether it opens the routes under `/admin`.
    pub(crate) is_admin: bool,
    use_: Mutex<Use>,
}

/// What a key's holder has used lately.
#[derive(Default)]
struct Use {
    requests: Bucket,
    tokens: Bucket,
    running: usize,
}

/// What a holder has taken of a limit per minute; it is given back as time passes.
#[derive(Default)]
struct Bucket {
    taken: f64,
    at: Duration,
}

impl Bucket {
    /// How long to wait until one more may be taken; zero if that is so now.
    fn wait(&mut self, limit: f64, now: Duration) -> Duration {
        let passed = now.saturating_sub(self.at).as_secs_f64();
        self.at = now;
        self.taken = (self.taken - passed * limit / 60.0).max(0.0);
        // A limit below one a minute allows one in more than a minute.
        let too_many = self.taken + limit.min(1.0) - limit;
        Duration::try_from_secs_f64(too_many.max(0.0) / limit * 60.0).unwrap_or(Duration::MAX)
    }
}

/// Why a key's holder has to wait.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Exceeded {
    pub(crate) what: &'static str,
    pub(crate) retry_after: Duration,
}

/// A request that counts against its key's limit of concurrent ones until this is dropped.
pub(crate) struct Visit {
    key: Arc<Key>,
}

impl Drop for Visit {
    fn drop(&mut self) {
        self.key.lock().running -= 1;
    }
}

impl Visit {
    /// Whose key it is.
    pub(crate) fn tenant(&self) -> &str {
        &self.key.tenant
    }

    /// Counts the tokens of an answer.
    pub(crate) fn charge(&self, tokens: u64) {
        self.key.lock().tokens.taken += tokens as f64;
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    key: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    tenant: String,
    hash: Option<String>,
    key: Option<String>,
    models: Option<Vec<String>>,
    requests_per_minute: Option<f64>,
    tokens_per_minute: Option<f64>,
    concurrent: Option<usize>,
    #[serde(default)]
    admin: bool,
}

impl Keys {
    /// Keys as they are, without limits. The tenant of each is its place in the list: `key-1` and so on.
    ///
    /// # Errors
    /// [`Error::Keys`] for a key that is empty or there twice, and for none at all.
    pub fn from_plain(keys: impl IntoIterator<Item = impl AsRef<str>>) -> Result<Self> {
        let entries = keys.into_iter().enumerate().map(|(i, key)| Entry {
            tenant: format!("key-{}", i + 1),
            hash: None,
            key: Some(key.as_ref().to_owned()),
            models: None,
            requests_per_minute: None,
            tokens_per_minute: None,
            concurrent: None,
            admin: false,
        });
        Self::new(entries.collect())
    }

    /// Reads a file.
    ///
    /// # Errors
    /// [`Error::ReadKeys`] and [`Error::Keys`].
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let text = std::fs::read_to_string(path)
            .map_err(|source| Error::ReadKeys { path: path.to_owned(), source: Arc::new(source) })?;
        Self::parse(&text)
    }

    /// Reads a file's text.
    ///
    /// # Errors
    /// [`Error::Keys`].
    pub fn parse(text: &str) -> Result<Self> {
        let file: File = toml::from_str(text).map_err(|error| {
            // The whole message of the parser quotes the line, which may hold a key.
            let message = error.message().to_owned();
            Error::Keys { entry: None, message }
        })?;
        Self::new(file.key)
    }

    fn new(entries: Vec<Entry>) -> Result<Self> {
        if entries.is_empty() {
            return Err(Error::Keys { entry: None, message: "there is none".to_owned() });
        }
        let mut keys: Vec<Arc<Key>> = Vec::with_capacity(entries.len());
        for (i, entry) in entries.into_iter().enumerate() {
            let key = Key::new(entry).map_err(|message| Error::Keys { entry: Some(i + 1), message })?;
            if keys.iter().any(|other| other.salt == key.salt && other.hash == key.hash) {
                return Err(Error::Keys { entry: Some(i + 1), message: "the key is there twice".to_owned() });
            }
            keys.push(Arc::new(key));
        }
        Ok(Self { entries: keys })
    }

    /// What a file holds in place of a key: `sha256:SALT:HASH`, in hexadecimal digits. The salt is any text
    /// of 8 bytes or more that no other key has. Keys must be long and random: the hash is fast, so short
    /// ones can be guessed from it.
    pub fn hash(key: &str, salt: &[u8]) -> String {
        format!("sha256:{}:{}", hex(salt), hex(&digest(salt, key)))
    }

    /// Number of keys.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none; never so.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The entry of a key. The time it takes says nothing about the keys there are.
    pub(crate) fn find(&self, key: &str) -> Option<&Arc<Key>> {
        let mut found = None;
        for entry in &self.entries {
            if bool::from(digest(&entry.salt, key).ct_eq(&entry.hash)) {
                found = Some(entry);
            }
        }
        found
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.entries.iter().map(|key| &key.tenant)).finish()
    }
}

impl Key {
    fn new(entry: Entry) -> Result<Self, String> {
        let (salt, hash) = match (&entry.key, &entry.hash) {
            (Some(_), Some(_)) => return Err("it has both `key` and `hash`".to_owned()),
            (None, None) => return Err("it has neither `key` nor `hash`".to_owned()),
            (Some(key), None) if key.trim().is_empty() => return Err("the key is empty".to_owned()),
            (Some(key), None) => (Vec::new(), digest(&[], key)),
            (None, Some(text)) => parse_hash(text).ok_or("`hash` is not sha256:SALT:HASH")?,
        };
        for (name, limit) in [
            ("requests_per_minute", entry.requests_per_minute),
            ("tokens_per_minute", entry.tokens_per_minute),
        ] {
            if limit.is_some_and(|limit| !(limit.is_finite() && limit > 0.0)) {
                return Err(format!("`{name}` is not above 0"));
            }
        }
        if entry.concurrent == Some(0) {
            return Err("`concurrent` is 0".to_owned());
        }
        Ok(Self {
            tenant: entry.tenant,
            salt,
            hash,
            models: entry.models,
            requests: entry.requests_per_minute,
            tokens: entry.tokens_per_minute,
            concurrent: entry.concurrent,
            is_admin: entry.admin,
            use_: Mutex::default(),
        })
    }

    /// The counts are valid after every step.
    fn lock(&self) -> std::sync::MutexGuard<'_, Use> {
        self.use_.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the key's holder may use a model.
    pub(crate) fn allows(&self, model: &str) -> bool {
        self.models.as_ref().is_none_or(|models| models.iter().any(|allowed| allowed == model))
    }

    /// Counts a request, unless a limit is reached.
    pub(crate) fn visit(self: &Arc<Self>, now: Duration) -> Result<Visit, Exceeded> {
        let mut used = self.lock();
        if self.concurrent.is_some_and(|limit| used.running >= limit) {
            return Err(Exceeded { what: "concurrent requests", retry_after: Duration::from_secs(1) });
        }
        for (what, limit) in [("tokens per minute", self.tokens), ("requests per minute", self.requests)] {
            let Some(limit) = limit else { continue };
            let bucket = if what.starts_with('t') { &mut used.tokens } else { &mut used.requests };
            let retry_after = bucket.wait(limit, now);
            if !retry_after.is_zero() {
                return Err(Exceeded { what, retry_after });
            }
        }
        used.requests.taken += 1.0;
        used.running += 1;
        drop(used);
        Ok(Visit { key: Arc::clone(self) })
    }
}

fn digest(salt: &[u8], key: &str) -> [u8; 32] {
    Sha256::new().chain_update(salt).chain_update(key).finalize().into()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let is_hex = text.len().is_multiple_of(2) && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let pairs = (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).ok());
    if is_hex { pairs.collect() } else { None }
}

fn parse_hash(text: &str) -> Option<(Vec<u8>, [u8; 32])> {
    let (salt, hash) = text.strip_prefix("sha256:")?.split_once(':')?;
    Some((unhex(salt)?, unhex(hash)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_found_by_their_hashes() {
        let hash = Keys::hash("secret", b"salt");
        let text =
            format!("[[key]]\ntenant = \"a\"\nhash = \"{hash}\"\n[[key]]\ntenant = \"b\"\nkey = \"plain\"\n");
        let keys = Keys::parse(&text).unwrap();
        let tenant = |key| keys.find(key).map(|key| key.tenant.as_str());
        assert_eq!((tenant("secret"), tenant("plain")), (Some("a"), Some("b")));
        assert_eq!((tenant("Secret"), tenant("")), (None, None));
    }

    #[test]
    fn wrong_files_are_refused_without_showing_them() {
        for (text, expected) in [
            ("", "missing field"),
            ("key = []", "there is none"),
            ("[[key]]\ntenant = \"a\"", "neither"),
            ("[[key]]\ntenant = \"a\"\nkey = \"\"", "empty"),
            ("[[key]]\ntenant = \"a\"\nkey = \"hush\"\nhash = \"x\"", "both"),
            ("[[key]]\ntenant = \"a\"\nhash = \"hush\"", "sha256"),
            ("[[key]]\ntenant = \"a\"\nkey = \"hush\"\nlimits = 3", "unknown field"),
            ("[[key]]\ntenant = \"a\"\nkey = \"hush\"\nrequests_per_minute = 0", "above 0"),
            ("[[key]]\ntenant = \"a\"\nkey = \"hush\"\n[[key]]\ntenant = \"b\"\nkey = \"hush\"", "twice"),
            ("[[key]]\nkey = \"hush", "key"),
        ] {
            let error = Keys::parse(text).unwrap_err().to_string();
            assert!(error.contains(expected) && !error.contains("hush"), "{text}: {error}");
        }
    }

    #[test]
    fn limits_are_given_back_with_time() {
        let text = "[[key]]\ntenant = \"a\"\nkey = \"k\"\nrequests_per_minute = 2\nconcurrent = 2\n";
        let keys = Keys::parse(text).unwrap();
        let key = keys.find("k").unwrap();
        let at = Duration::from_secs;
        let (one, two) = (key.visit(at(100)).ok(), key.visit(at(100)).ok());
        assert!(one.is_some() && two.is_some());
        assert_eq!(key.visit(at(100)).err().unwrap().what, "concurrent requests");
        drop((one, two));
        let wait = key.visit(at(100)).err().unwrap();
        assert_eq!((wait.what, wait.retry_after), ("requests per minute", at(30)));
        assert!(key.visit(at(129)).is_err());
        assert!(key.visit(at(131)).is_ok());
    }

    #[test]
    fn tokens_are_charged_afterwards() {
        let text = "[[key]]\ntenant = \"a\"\nkey = \"k\"\ntokens_per_minute = 60\n";
        let keys = Keys::parse(text).unwrap();
        let key = keys.find("k").unwrap();
        key.visit(Duration::ZERO).ok().unwrap().charge(600);
        let wait = key.visit(Duration::ZERO).err().unwrap();
        assert_eq!((wait.what, wait.retry_after), ("tokens per minute", Duration::from_secs(541)));
        assert!(key.visit(Duration::from_secs(542)).is_ok());
    }
}
