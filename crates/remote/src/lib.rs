#![doc = include_str!("../README.md")]

mod config;
mod date;
mod deadline;
mod error;
mod failure;
mod model;
mod reply;
mod request;
mod retry;
pub mod sse;
#[cfg(feature = "testing")]
pub mod testing;
mod wire;

use std::sync::{Mutex, MutexGuard, PoisonError};

pub use config::{ApiKey, Dialect, RemoteConfig, Timeouts};
pub use error::{Error, Result};
pub use model::RemoteModel;
pub use retry::{RetryConfig, Retrying};

/// Data behind the locks of this crate is consistent after every step, so a poisoned lock can be used.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
