//! What every crate with a kernel shares: devices, CPU features, the one thread pool, bit packing, rotations,
//! quantized activations, and the three-legged pattern that ties a custom operation to Burn.

pub mod activations;
pub mod bits;
pub mod cpu;
pub mod device;
mod error;
pub mod flex;
pub mod hadamard;
pub mod harness;
pub mod math;
pub mod norm;
pub mod pool;
mod random;

pub use error::{Error, Result};
