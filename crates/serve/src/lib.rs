#![doc = include_str!("../README.md")]

mod answer;
mod api_error;
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
mod state;
mod stream;
#[cfg(feature = "testing")]
pub mod testing;
mod texts;
mod vectors;

pub use config::{Limits, ServeConfig};
pub use environment::{Environment, SystemEnvironment};
pub use error::{Error, Result};
pub use keys::Keys;
pub use server::{Ended, Server, ServerHandle};
