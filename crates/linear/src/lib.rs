//! Products of activations with quantized weights: packed matrices, linear layers, embeddings.
//!
//! | to | use |
//! |---|---|
//! | have a linear layer over weights of a GGUF file or of [`QuantizedMatrix`](breakers_gguf::QuantizedMatrix), on any device | [`QuantizedLinear`] |
//! | add a low-rank adapter (LoRA) to a layer | [`QuantizedLinear::with_adapter`] |
//! | compute some outputs of a layer, with the bits that they have among all | [`QuantizedLinear::forward_tiles`] |
//! | look up embeddings | [`QuantizedEmbedding`] |
//! | multiply slices, without tensors | [`PackedMatrix`], [`Activations`], [`matmul_parts`] |
//! | call the operation that Burn dispatches, or its reference | [`QuantizedLinearOps`], [`linear_reference`] |
//!
//! For integer weights, activations are quantized to signed bytes with a scale for every 32. A row's result
//! has the same bits whatever else is in the call, whatever the number of threads and the instruction set.
//!
//! ```
//! use breakers_gguf::{Format, QuantizedMatrix};
//! use breakers_linear::{Activations, PackedMatrix};
//!
//! # fn main() -> Result<(), breakers_linear::Error> {
//! // Two rows of 32 columns in Q8_0: a scale of 1 in half precision, then signed bytes.
//! let row = |value: i8| [&[0x00, 0x3c][..], &[value as u8; 32]].concat();
//! let matrix = QuantizedMatrix::from_bytes(Format::Q8_0, 2, 32, [row(1), row(-2)].concat())?;
//! let packed = PackedMatrix::from_quantized(&matrix)?;
//!
//! let mut out = [0.0; 2];
//! packed.matmul(&Activations::new(&[0.5; 32], 32)?, &mut out, 2)?;
//! assert!((out[0] - 16.0).abs() < 1e-3 && (out[1] + 32.0).abs() < 1e-3);
//! # Ok(())
//! # }
//! ```

mod adapter;
#[cfg(feature = "cube")]
mod cube;
mod error;
mod input_rotation;
mod kernels;
mod layer;
mod on_device;
mod ops;
mod output_tiles;
mod packed_matrix;
mod product;
mod records;
mod repack;

pub use adapter::LowRank;
pub use error::{Error, Result};
pub use layer::{QuantizedEmbedding, QuantizedLinear, matmul_parts};
pub use ops::{HostMatrices, MatrixSpec, QuantizedLinearOps, linear_on_device_reference, linear_reference};
pub use output_tiles::OutputTiles;
pub use packed_matrix::{Activations, PackedMatrix};
