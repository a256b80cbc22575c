/// Result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an endpoint cannot be used. Errors during a call are a [`CallError`](breakers_core::CallError).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The address is not a URL.
    #[error("{url:?} is not the address of an endpoint: expected {expected}")]
    Url {
        /// What was given.
        url: String,
        /// What is needed.
        expected: &'static str,
    },
    /// A header cannot be sent. Its value is not shown, since it may be a secret.
    #[error("the header {name:?} cannot be sent: a name or value holds bytes that HTTP does not allow")]
    Header {
        /// Its name.
        name: String,
    },
    /// The address is https, and this build has no TLS.
    #[error("{url:?} needs TLS, which this build lacks: the Cargo feature `tls` of breakers-remote")]
    NoTls {
        /// The address.
        url: String,
    },
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
    /// An environment variable is not set.
    #[error("the environment variable {name} is not set")]
    NoVariable {
        /// Its name.
        name: &'static str,
    },
}
