//! The GGUF container, the row decoders, and files of matrices.

mod allocations;
mod formats;
mod hostile;
mod matrix_file;
mod models;
mod mutations;
mod round_trip;
mod sample;
