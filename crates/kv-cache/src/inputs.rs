//! Queries, keys and values on their way into a cache: checked, as rows of numbers, and shown to hooks.

use breakers_backend::flex;
use burn::tensor::{Device, Tensor};
use burn_flex::FlexTensor;

use crate::attention::{check_heads, check_scale, not_finite, primitive};
use crate::ledger::Step;
use crate::{CacheHook, Error, LayerShape, Result};

const NAMES: [&str; 3] = ["q", "k", "v"];

/// Where a NaN or an infinity was found: 0, 1 or 2 for queries, keys or values, and the row.
pub(crate) type BadRow = (usize, usize);

/// Fails unless queries, keys and values fit the step, the layer and the cache's device; returns the number of query
/// heads.
pub(crate) fn check(
    step: &Step,
    shape: &LayerShape,
    device: &Device,
    tensors: [&Tensor<3>; 3],
    scale: f32,
) -> Result<usize> {
    let n_heads = tensors[0].dims()[1];
    check_scale(scale)?;
    check_heads(n_heads, shape.n_kv_heads)?;
    let n_heads_of = [n_heads, shape.n_kv_heads, shape.n_kv_heads];
    for ((tensor, values), n_heads) in NAMES.into_iter().zip(tensors).zip(n_heads_of) {
        let (expected, found) = ([step.n_rows, n_heads, shape.head_dim], values.dims());
        if found != expected {
            return Err(Error::TensorShape { tensor, expected, found });
        }
        if values.device() != *device {
            let (expected, found) = (format!("{device:?}"), format!("{:?}", values.device()));
            return Err(Error::Device { tensor, expected, found });
        }
    }
    Ok(n_heads)
}

/// Queries, keys and values in the host's memory, row after row.
pub(crate) struct HostRows([FlexTensor; 3]);

impl HostRows {
    pub(crate) fn new(q: Tensor<3>, k: Tensor<3>, v: Tensor<3>) -> Result<Self> {
        let [q_name, k_name, v_name] = NAMES;
        Ok(Self::of([primitive(q_name, q)?, primitive(k_name, k)?, primitive(v_name, v)?]))
    }

    pub(crate) fn of(tensors: [FlexTensor; 3]) -> Self {
        Self(tensors.map(flex::contiguous_f32))
    }

    pub(crate) fn slices(&self) -> [&[f32]; 3] {
        self.0.each_ref().map(flex::as_slice)
    }

    /// The error that names the number which is not finite.
    pub(crate) fn not_finite(&self, (at, row): BadRow) -> Error {
        not_finite(NAMES[at], &self.0[at], row)
    }
}

/// Shows hooks what was appended to a layer behind the first `first` tokens.
pub(crate) fn show(
    hooks: &mut [Box<dyn CacheHook>],
    layer: usize,
    [q, k, v]: &[Tensor<3>; 3],
    first: usize,
    depths: &[usize],
) {
    let positions: Vec<usize> = depths.iter().map(|depth| first + depth).collect();
    for hook in hooks {
        hook.appended(layer, q, k, v, &positions);
    }
}
