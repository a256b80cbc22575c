//! Low-rank additions to a linear layer: LoRA (Hu et al., arXiv 2106.09685, section 4.1).

use std::ops::Range;

use burn::tensor::{Device, Tensor};

use crate::{Error, QuantizedLinear, Result};

/// A low-rank addition to some outputs of a [`QuantizedLinear`]: `y += scale · up (down x)`. It reads the
/// layer's inputs unchanged, before any rotation by the layer.
///
/// # Shapes
/// `down`: `[rank, n_inputs]`, LoRA's A; `up`: `[n_adapted, rank]`, LoRA's B, row-major both.
///
/// # Source
/// Hu et al., "LoRA", arXiv 2106.09685, section 4.1, where `scale` is α / rank.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LowRank<'a> {
    /// The first output that is changed. The outputs of a layer with several matrices are numbered through
    /// all of them.
    pub first_output: usize,
    /// Columns of `up` and rows of `down`, at least 1.
    pub rank: usize,
    /// The matrix that is applied to the inputs.
    pub down: &'a [f32],
    /// The matrix that produces the outputs.
    pub up: &'a [f32],
    /// Factor on the addition.
    pub scale: f32,
}

/// A low-rank addition on the device of its layer.
#[derive(Debug, Clone)]
pub(crate) struct Adapter {
    first_output: usize,
    down: QuantizedLinear,
    /// Times the scale.
    up: QuantizedLinear,
}

impl Adapter {
    pub(crate) fn new(
        adapter: LowRank<'_>,
        n_inputs: usize,
        n_outputs: usize,
        device: &Device,
    ) -> Result<Self> {
        let LowRank { first_output, rank, down, up, scale } = adapter;
        let expected = rank.saturating_mul(n_inputs);
        if rank == 0 || down.len() != expected {
            let (what, expected) = ("values of an adapter's lower matrix", expected.max(n_inputs));
            return Err(Error::Length { what, expected, found: down.len() });
        }
        let n_adapted = up.len() / rank;
        if n_adapted == 0 || n_adapted * rank != up.len() {
            let what = "values of an adapter's upper matrix";
            return Err(Error::Length { what, expected: rank * n_adapted.max(1), found: up.len() });
        }
        let end = first_output.saturating_add(n_adapted);
        if end > n_outputs {
            return Err(Error::AdapterOutputs { n_outputs, found: first_output..end });
        }
        let up: Vec<f32> = up.iter().map(|weight| weight * scale).collect();
        Ok(Self {
            first_output,
            down: QuantizedLinear::from_f32(rank, n_inputs, down, device)?,
            up: QuantizedLinear::from_f32(n_adapted, rank, &up, device)?,
        })
    }

    /// The layer's output `out` for `x`, plus the addition.
    pub(crate) fn add(&self, x: Tensor<2>, out: Tensor<2>) -> Tensor<2> {
        let [n_rows, n_outputs] = out.dims();
        let change = self.up.forward(self.down.forward(x));
        let columns: Range<usize> = self.first_output..self.first_output + self.up.n_outputs();
        if columns.len() == n_outputs {
            return out + change;
        }
        let part = out.clone().narrow(1, columns.start, columns.len());
        out.slice_assign([0..n_rows, columns], part + change)
    }

    pub(crate) fn bytes(&self) -> usize {
        self.down.bytes() + self.up.bytes()
    }
}
