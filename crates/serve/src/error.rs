use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

/// Result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a server cannot start. What goes wrong with a request is told to its client in OpenAI's form.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        source: Arc<std::io::Error>,
    },
    /// The threads or the signals of the server cannot be set up.
    #[error("cannot set up {what}: {source}")]
    Setup {
        /// What was to be set up.
        what: &'static str,
        /// What the system says.
        source: Arc<std::io::Error>,
    },
    /// Other machines could reach the server, and it has no keys.
    #[error(
        "{address} can be reached from other machines and there are no API keys; \
         add keys, listen on 127.0.0.1, or allow access without keys"
    )]
    Unprotected {
        /// The address.
        address: SocketAddr,
    },
    /// Two models have the same name.
    #[error("two models are called {id:?}")]
    SameName {
        /// The name.
        id: String,
    },
    /// There is nothing to serve.
    #[error("there is no model to serve")]
    NoModel,
    /// A setting is out of its range.
    #[error("{name} is {found}; expected {expected}")]
    Parameter {
        /// The setting.
        name: &'static str,
        /// What is allowed.
        expected: &'static str,
        /// What was given.
        found: String,
    },
    /// A file with API keys cannot be read.
    #[error("cannot read the keys in {path}: {source}")]
    ReadKeys {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: Arc<std::io::Error>,
    },
    /// A file with API keys is wrong. Its text is not shown, since it may hold keys.
    #[error("the keys are wrong{}: {message}", place(.entry))]
    Keys {
        /// Which entry, counted from 1.
        entry: Option<usize>,
        /// What is wrong.
        message: String,
    },
    /// The registry cannot be read.
    #[cfg(feature = "registry")]
    #[error("the registry: {source}")]
    Registry {
        /// What it says.
        source: Arc<crate::registry::RegistryError>,
    },
    /// The folder of files and batches cannot be used.
    #[cfg(feature = "batches")]
    #[error("cannot use {} for files and batches: {source}", folder.display())]
    Data {
        /// The folder.
        folder: PathBuf,
        /// What is wrong with it: another server uses it, or it cannot be read or written.
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// Servers behind a front and models of its own: a front has none.
    #[cfg(feature = "upstreams")]
    #[error("a front serves no models, files or batches of its own")]
    MixedFront,
    /// The address of a server behind a front is wrong.
    #[cfg(feature = "upstreams")]
    #[error(
        "{url:?} is no address of a server; expected http://HOST[:PORT][/PATH] (https is left to a proxy)"
    )]
    UpstreamUrl {
        /// The address, without a password.
        url: String,
    },
    /// The key for a server behind a front is wrong. It is not shown.
    #[cfg(feature = "upstreams")]
    #[error("the key in {origin} is wrong: {message}")]
    UpstreamKey {
        /// Where it is.
        origin: String,
        /// What is wrong.
        message: &'static str,
    },
    /// A file about servers behind a front cannot be read.
    #[cfg(feature = "upstreams")]
    #[error("cannot read {}: {source}", path.display())]
    ReadUpstreams {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: Arc<std::io::Error>,
    },
    /// A file about servers behind a front is wrong.
    #[cfg(feature = "upstreams")]
    #[error("the servers are described wrongly: {message}")]
    Upstreams {
        /// What is wrong.
        message: String,
    },
    /// The server's thread has panicked.
    #[error("the server has panicked")]
    Panicked,
}

fn place(entry: &Option<usize>) -> String {
    entry.map_or_else(String::new, |entry| format!(" (entry {entry})"))
}
