#![doc = include_str!("../README.md")]

mod answer;
mod api_error;
#[cfg(feature = "batches")]
mod batches;
#[cfg(feature = "client")]
pub mod client;
mod config;
mod connection;
mod edge;
mod environment;
mod error;
mod keys;
mod metrics;
mod page;
#[cfg(feature = "registry")]
pub mod registry;
mod request;
mod responses;
mod routes;
mod server;
#[cfg(any(feature = "batches", feature = "client"))]
mod spool;
mod state;
mod stream;
#[cfg(feature = "testing")]
pub mod testing;
mod texts;
#[cfg(feature = "upstreams")]
pub mod upstreams;
mod vectors;

#[cfg(feature = "batches")]
pub use batches::BatchConfig;
pub use config::{Limits, ServeConfig};
pub use environment::{Environment, SystemEnvironment};
pub use error::{Error, Result};
pub use keys::Keys;
pub use server::{Ended, Server, ServerHandle};
