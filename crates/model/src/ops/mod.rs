//! The operations of a transformer block that are neither a matrix product, a norm nor attention.
//!
//! Each follows the house pattern: a reference in tensor operations, which is also what a GPU runs, and a
//! CPU kernel over slices.

pub mod gated;
pub mod heads;

pub use gated::{Activation, gated_activation};
pub use heads::{HeadLayout, Heads, RopeStyle, RopeTable, split_heads};
