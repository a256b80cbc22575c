//! The GGUF container and the row decoders.

mod allocations;
mod formats;
mod hostile;
mod mutations;
mod round_trip;
mod sample;
