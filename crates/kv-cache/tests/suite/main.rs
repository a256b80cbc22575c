//! The crate's tests: plain, quantized and evicting caches, on the CPU and on GPUs.
//!
//! One program, because each one links all of Burn.

mod attention;
mod cache;
mod common;
mod compressed;
mod compressed_device;
mod distortion;
mod many;
mod own_coder;
mod presses;
mod sharing;
