//! What all crates with a Burn kernel share: devices by name, norms, and the pattern for adding a custom
//! operation to Burn. Code that does not need Burn (threads, instruction sets, SIMD) is in `breakers-cpu`.
//!
//! | module | what it is for |
//! |---|---|
//! | [`device`] | devices by name (`flex`, `vulkan:1`, `cuda:0`), with errors that say what is missing |
//! | [`norm`] | RMS and layer normalization, and an example of how to write an operation |
//! | [`flex`] | converting between Burn's CPU tensors and slices |
//! | `cube` | what CubeCL kernels share; with a GPU feature only |
//! | [`harness`] | tests that compare all implementations of an operation |
//!
//! # Adding an operation
//! [`norm`] shows each part: a trait with `#[backend_extension(Flex, Cube: cfg(feature = "cube"))]` whose
//! default body is the reference in tensor operations; an implementation for `Flex` that calls a function
//! over slices; one for `CubeBackend` that launches a CubeCL kernel; a free function over `Tensor<D>`; and a
//! test with [`harness::Operation`].
//!
//! # Promises of every kernel
//! - A row's result depends neither on the other rows of a call nor on the number of threads
//!   ([`harness::check_rows`] tests it). On a GPU this holds for calls of 1 to 32 rows.
//! - The CPU paths give the same bits wherever that costs little; `same_bits` of [`harness::Operation`] tests
//!   it.
//! - All work goes through the [pool](breakers_cpu::pool); no kernel starts threads.
//!
//! # Features
//! The CPU backend is always there. `wgpu`, `vulkan`, `metal` and `cuda` add GPU backends under Burn's own
//! names; the default build has none of them and pulls in no GPU stack.
//!
//! # Environment
//! Tests read `BREAKERS_REQUIRE_DEVICES` (devices whose absence is a failure). [`breakers_cpu`] has variables
//! of its own.
//!
//! # Example
//! ```
//! use breakers_backend::{device, norm::rms_norm};
//! use burn::tensor::Tensor;
//!
//! let device = device::open("flex").unwrap();
//! let rows = Tensor::<2>::from_floats([[3.0, 4.0], [0.0, 1.0]], &device);
//! let weight = Tensor::<1>::ones([2], &device);
//! println!("{}", rms_norm(rows, weight, 1e-6));
//! ```

#[cfg(feature = "cube")]
pub mod cube;
pub mod device;
mod error;
pub mod flex;
pub mod harness;
pub mod norm;

pub use error::{Error, Result};
