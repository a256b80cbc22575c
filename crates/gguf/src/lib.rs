//! GGUF files, packed weight formats, and quantized matrices as stored in files.
//!
//! | you want to | use |
//! |---|---|
//! | read a GGUF file: its metadata, its tensors | [`File`], [`Metadata`], [`TensorView`] |
//! | write or change one | [`Writer`] |
//! | decode rows of a format bit for bit as ggml does | [`Format::decode_row`] |
//! | hold a quantized matrix in memory, of blocks or of groups of any size | [`QuantizedMatrix`], [`GroupMatrix`] |
//! | keep matrices that no GGUF block can hold in a file | [`MatrixFile`], [`matrix_file`] |
//!
//! Nothing here multiplies: matrix products are in `breakers-linear`, and the methods that choose codes in
//! `breakers-quant`.
//!
//! ```
//! use breakers_gguf::{File, Format, Writer};
//!
//! # fn main() -> Result<(), breakers_gguf::Error> {
//! // A file with one tensor of two rows, written to memory and read back.
//! let mut plan = Writer::new();
//! plan.insert("general.architecture", "llama")?;
//! plan.declare("token_embd.weight", Format::F32, &[2, 3])?;
//! let mut data = plan.write_to(Vec::new())?;
//! let values = [1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0];
//! data.write("token_embd.weight", &values.map(f32::to_le_bytes).concat())?;
//!
//! let file = File::from_bytes(data.finish()?)?;
//! assert_eq!(file.metadata().require_str("general.architecture")?, "llama");
//! let tensor = file.require("token_embd.weight")?;
//! assert_eq!(tensor.shape(), [2, 3]);
//! assert_eq!(tensor.to_f32(), values);
//! # Ok(())
//! # }
//! ```
//!
//! # GGUF files
//! A [`File`] maps a file into memory, checks the whole of its header once, and hands out views of its
//! tensors that borrow the mapped bytes. Nothing in a file is trusted: counts are compared with the bytes
//! that are left before anything is allocated, and every tensor is checked to be aligned, to be within the
//! file, to consist of whole blocks and to share no byte with another. Whatever the bytes are, the result is
//! a [`File`] or a typed [`Error`].
//!
//! Decisions where the specification is open, or where real files depart from it:
//! - strings must be UTF-8, as the specification says, including each string of an array; a vocabulary with
//!   raw bytes is refused (models spell such tokens `<0xE2>` or in the byte-level alphabet);
//! - arrays of arrays are refused;
//! - booleans are 0 or 1;
//! - the alignment is a power of two;
//! - tensors have one to four dimensions, none of them zero;
//! - one file is one model: shards of a split model are refused with an error that says so.
//!
//! # Source
//! The GGUF specification, `docs/gguf.md` in the repository ggml-org/ggml.

mod container;
mod encoding;
mod error;
mod format;
mod groups;
mod levels;
mod matrix;
pub mod matrix_file;

pub use container::{
    Array, DEFAULT_ALIGNMENT, File, FileWriter, MAGIC, MAX_DIMENSIONS, Metadata, SharedTensor, StringArray,
    TensorView, TensorWriter, Value, Writer,
};
pub use encoding::Encoding;
pub use error::{Error, Result};
pub use format::{Format, IQ4_NL_LEVELS, MXFP4_LEVELS, half_power_of_two};
pub use groups::{E2M1_LEVELS, GroupFormat, GroupMatrix, GroupScales, NF4_LEVELS, from_e4m3};
pub use levels::Levels;
pub use matrix::{Parts, QuantizedMatrix};
pub use matrix_file::MatrixFile;
