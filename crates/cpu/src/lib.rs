//! What CPU kernels share, without a tensor library: detection of instruction sets, one thread pool, and
//! arithmetic that gives the same bits everywhere.
//!
//! | use | to |
//! |---|---|
//! | [`Isa`], [`isa()`], [`with_isa`], [`force`] | know, or choose, the instruction set of the kernels |
//! | [`simd`] | write a kernel once, over registers of sixteen lanes |
//! | [`per_isa!`] | compile a plain loop once for each instruction set |
//! | [`pool`] | use all cores for pieces of work of a few microseconds |
//! | [`math`] | compute elementary functions with the same bits on every instruction set |
//! | [`float16`] | round to sixteen-bit floats that do not overflow |
//! | [`matrix`] | transpose a matrix on all cores |
//! | [`hadamard`] | rotate vectors so that outliers disappear |
//! | [`activations`] | quantize rows to eight bits, once for every product that reads them |
//! | [`random`] | draw random numbers that are the same for a seed in every version |
//!
//! # Promises
//! - Every function gives the same bits on every instruction set and for every number of threads.
//! - All work goes through the [`pool`]; nothing else starts threads.
//!
//! # Instruction sets
//! A kernel reads [`isa()`] once, on the thread that calls it and before it forks into the [`pool`], and
//! passes it on to its tasks. That is why [`with_isa`], which overrides the choice for the current thread
//! only, reaches all of the kernel's tasks.
//!
//! # Environment
//! `BREAKERS_THREADS` sets the threads of the pool, `BREAKERS_ISA` (`scalar`, `avx2`, `avx512`, `neon`) the
//! instruction set of the whole process. A value that is unknown, or that the machine does not support, is
//! reported through `tracing` and ignored.
//!
//! # Example
//! ```
//! use breakers_cpu::{Isa, pool};
//!
//! pool::set_threads(2).unwrap();
//! println!("{} threads, {} kernels", pool::threads(), breakers_cpu::isa());
//!
//! assert!(breakers_cpu::available().contains(&Isa::Scalar));
//! let chosen = breakers_cpu::with_isa(Isa::Scalar, breakers_cpu::isa).unwrap();
//! assert_eq!(chosen, Isa::Scalar);
//! ```

pub mod activations;
mod error;
pub mod float16;
pub mod hadamard;
mod isa;
pub mod math;
pub mod matrix;
pub mod pool;
pub mod random;
pub mod simd;

pub use error::{Error, Result};
pub use isa::{Isa, available, detect, force, has_avx_vnni, has_avx512_bf16, isa, with_isa};
