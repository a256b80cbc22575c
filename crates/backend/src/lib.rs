//! What every crate with a kernel shares: devices, CPU features, the one thread pool, bit packing, rotations,
//! quantized activations, and the three-legged pattern that ties a custom operation to Burn.

pub mod activations;
pub mod cpu;
mod error;
pub mod flex;
pub mod math;
pub mod pool;

pub use error::{Error, Result};
