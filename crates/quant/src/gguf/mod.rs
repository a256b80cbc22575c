//! The GGUF container: reading (versions 2 and 3, little endian) and writing (version 3).
//!
//! A [`File`] maps a file into memory, checks the whole of its header once, and hands out views of its
//! tensors that borrow the mapped bytes. Nothing that a file announces is trusted: counts are held
//! against the bytes that are left before anything is allocated, and every tensor is checked to lie
//! aligned within the file, to consist of whole blocks and to share no byte with another. Whatever
//! the bytes are, the answer is a [`File`] or a typed [`Error`](crate::Error).
//!
//! Decisions where the specification leaves room or files in the wild stray from it:
//! - strings must be UTF-8, as the specification says, also each string of an array; a vocabulary with
//!   raw bytes in it is refused (models spell such tokens `<0xE2>` or in the byte-level alphabet);
//! - arrays of arrays are refused;
//! - booleans are 0 or 1;
//! - the alignment is a power of two;
//! - tensors have one to four dimensions, none of them zero;
//! - one file is one model: shards of a split model are refused with an error that says so.
//!
//! # Source
//! The GGUF specification, `docs/gguf.md` in the repository ggml-org/ggml.

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

/// Alignment of tensors where the metadata does not set another.
pub const DEFAULT_ALIGNMENT: u32 = 32;

/// Most dimensions that a tensor can have.
pub const MAX_DIMENSIONS: usize = 4;
