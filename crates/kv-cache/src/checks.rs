//! Queries, keys and values on their way into attention: checked, and as rows of numbers.

use breakers_backend::flex;
use burn::tensor::{Device, Tensor};
use burn_flex::{Flex, FlexTensor};

use crate::pages::layer::BadRow;
use crate::{Error, LayerShape, Result};

const NAMES: [&str; 3] = ["q", "k", "v"];

/// Fails unless queries, keys and values match `n_rows` rows, the layer and the cache's device; returns the
/// number of query heads.
pub(crate) fn check(
    n_rows: usize,
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
        let (expected, found) = ([n_rows, n_heads, shape.head_dim], values.dims());
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
    pub(crate) fn not_finite(&self, bad: BadRow) -> Error {
        self.not_finite_behind(0, bad)
    }

    /// The same, for a row that is counted after the first `first`.
    pub(crate) fn not_finite_behind(&self, first: usize, (at, row): BadRow) -> Error {
        match not_finite(NAMES[at], &self.0[at], first + row) {
            Error::NotFinite { tensor, value, .. } => Error::NotFinite { tensor, row, value },
            other => other,
        }
    }
}

/// The tensor's CPU primitive.
pub(crate) fn primitive(name: &'static str, tensor: Tensor<3>) -> Result<FlexTensor> {
    let device = tensor.device();
    tensor.try_into_primitive::<Flex>().map_err(|_| Error::Device {
        tensor: name,
        expected: "the CPU".to_owned(),
        found: format!("{device:?}"),
    })
}

/// The error for a row `[heads, head_dim]` of a tensor that holds a NaN or an infinity.
pub(crate) fn not_finite(tensor: &'static str, values: &FlexTensor, row: usize) -> Error {
    let n_rows = values.layout().shape()[0].max(1);
    let values = flex::as_slice(values);
    let width = values.len() / n_rows;
    let value = values.chunks_exact(width.max(1)).nth(row).unwrap_or(&[]).iter().find(|x| !x.is_finite());
    Error::NotFinite { tensor, row, value: value.copied().unwrap_or(f32::NAN) }
}

/// Fails for a device that the kernels do not run on.
pub(crate) fn require(device: &burn::tensor::Device) -> Result<()> {
    match breakers_backend::device::kind(device) {
        Some(_) => Ok(()),
        None => Err(Error::UnsupportedDevice { device: format!("{device:?}") }),
    }
}

/// Fails unless the query heads can share the key-value heads evenly.
pub(crate) fn check_heads(n_heads: usize, n_kv_heads: usize) -> Result<()> {
    if n_heads == 0 || n_kv_heads == 0 || !n_heads.is_multiple_of(n_kv_heads) {
        return Err(Error::HeadCount { n_heads, n_kv_heads });
    }
    Ok(())
}

pub(crate) fn check_scale(scale: f32) -> Result<()> {
    if scale.is_finite() { Ok(()) } else { Err(Error::NotFinite { tensor: "scale", row: 0, value: scale }) }
}
