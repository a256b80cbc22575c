//! The operations of a transformer block that are neither a matrix product, a norm nor attention.
//!
//! Each follows the pattern of all operations: a reference in tensor operations, a CPU kernel over slices,
//! and a CubeCL kernel.

pub mod best;
#[cfg(feature = "cube")]
mod cube;
pub mod gated;
pub mod heads;
#[cfg(test)]
mod tests;

pub use best::best;
pub use gated::{Activation, gated_activation};
pub use heads::{HeadLayout, Heads, RopeStyle, RopeTable, split_heads};
