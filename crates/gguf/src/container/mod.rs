//! The GGUF container: reading (versions 2 and 3, little endian) and writing (version 3).

mod file;
mod metadata;
mod parse;
mod value;
mod writer;

pub use file::{File, SharedTensor, TensorView};
pub use metadata::Metadata;
pub use value::{Array, StringArray, Value};
pub use writer::{FileWriter, TensorWriter, Writer};

/// The first four bytes of every file.
pub const MAGIC: [u8; 4] = *b"GGUF";

/// Alignment of tensors unless the metadata sets another.
pub const DEFAULT_ALIGNMENT: u32 = 32;

/// The most dimensions that a tensor can have.
pub const MAX_DIMENSIONS: usize = 4;
