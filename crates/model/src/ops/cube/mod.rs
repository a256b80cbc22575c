//! The GPU kernels of this module's operations.

mod best;
mod gated;
mod heads;
