//! Methods that quantize the weights of language models.
//!
//! | you want to | use |
//! |---|---|
//! | quantize one matrix | a method of [`quantizers`], which are all a [`Quantizer`](quantizer::Quantizer) |
//! | collect what a method wants to know of a layer's inputs | [`statistics::Statistics`] |
//!
//! ```
//! use breakers_gguf::{Encoding, GroupFormat};
//! use breakers_quant::quantizer::{Quantizer, WeightMatrix};
//! use breakers_quant::quantizers::RoundToNearest;
//!
//! # fn main() -> Result<(), breakers_quant::Error> {
//! let values: Vec<f32> = (0..2 * 64).map(|i| (i as f32 * 0.1).sin()).collect();
//! let weights = WeightMatrix::new(&values, 2, 64)?;
//! let method = RoundToNearest::new(Encoding::Groups(GroupFormat::Affine { bits: 4, group: 32 }));
//! let quantized = method.quantize(&weights, None)?;
//! assert_eq!(quantized.matrix.bytes(), 2 * 64 / 2 + 4 * 4);
//! assert!(quantized.report.weight_error < 0.01);
//! # Ok(())
//! # }
//! ```

mod encode;
mod error;
mod feedback;
mod grid;
mod linalg;
pub mod quantizer;
pub mod quantizers;
pub mod statistics;

pub use error::{Error, Result};
