//! GGUF containers, packed weight formats and the quantized matrix product.
//!
//! - [`gguf`] reads and writes the container: memory-mapped, zero-copy, safe on hostile files;
//! - [`Format`] names the formats that weights are stored in and decodes their rows bit-exactly;
//! - [`store`] is a file for matrices in formats that GGUF lacks;
//! - [`quantizers`] are methods that make such weights, from [`statistics`] of a layer's inputs.
//!
//! ```
//! use breakers_quant::{Format, gguf};
//!
//! # fn main() -> Result<(), breakers_quant::Error> {
//! // A file with one tensor of two rows, written to memory and read back.
//! let mut plan = gguf::Writer::new();
//! plan.insert("general.architecture", "llama")?;
//! plan.declare("token_embd.weight", Format::F32, &[2, 3])?;
//! let mut data = plan.write_to(Vec::new())?;
//! let values = [1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0];
//! data.write("token_embd.weight", &values.map(f32::to_le_bytes).concat())?;
//!
//! let file = gguf::File::from_bytes(data.finish()?)?;
//! assert_eq!(file.metadata().require_str("general.architecture")?, "llama");
//! let tensor = file.require("token_embd.weight")?;
//! assert_eq!(tensor.shape(), [2, 3]);
//! assert_eq!(tensor.to_f32(), values);
//! # Ok(())
//! # }
//! ```

mod encode;
mod error;
mod feedback;
mod format;
pub mod gguf;
mod grid;
mod groups;
mod kernels;
mod linalg;
pub mod linear;
mod matrix;
mod product;
pub mod quantizer;
pub mod quantizers;
mod repack;
pub mod statistics;
pub mod store;

pub use error::{Error, Result};
pub use format::Format;
pub use groups::{E2M1_LEVELS, GroupFormat, NF4_LEVELS};
pub use matrix::{Activations, PackedMatrix};
