//! Dense linear algebra that quantizers need: products with a transposed operand, a Gram matrix, Cholesky
//! factors.
//!
//! Operands are *k-major*: a row holds one index of the sum, so that `P` `[k, m]` and `Q` `[k, n]` give
//! `C = PᵀQ` `[m, n]`. The Gram matrix of activations and the updates of a Cholesky factorization have that
//! form. They are copied into panels of [`MR`] and [`NR`] columns, and a kernel adds the product of two
//! panels to a tile that stays in registers.
//!
//! Every element has one accumulator, to which products are added in ascending order of `k` by fused
//! multiply-adds: results depend neither on the instruction set nor on the number of threads.
//!
//! # Source
//! Panels and tiles: Goto and van de Geijn, "Anatomy of high-performance matrix multiplication", ACM TOMS 34
//! (2008), section 4.

mod cholesky;
mod kernel;
mod product;

pub(crate) use cholesky::{cholesky, mirror};
pub(crate) use kernel::{MR, NR, kernel};
pub(crate) use product::{Operand, Part, add_product};

#[cfg(test)]
mod tests;
