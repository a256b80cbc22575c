//! What layers of one shape share on a GPU: how pages are coded, and tables for the kernels.

use breakers_core::StepError;
use std::ops::Range;

use breakers_cpu::hadamard::Rotation;
use burn::tensor::{DType, Device, Int, Tensor, TensorData, f16};

use super::format::DeviceFormat;
use crate::coders::{Coder, CodingKind, PackedCoding};
use crate::pages::packed::{Coded, Tile, TileCoder};
use crate::pages::page::PAGE_TOKENS;
use crate::{Error, LayerShape, Result};

/// What layers of one shape share.
pub(crate) struct Packing {
    pub(crate) n_kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) format: DeviceFormat,
    pub(crate) keys: Box<dyn TileCoder>,
    pub(crate) values: Box<dyn TileCoder>,
    pub(crate) lag: usize,
    pub(crate) n_exact: usize,
    pub(crate) weighs_channels: bool,
    pub(crate) meta: Tensor<1, Int>,
    pub(crate) tables: Tensor<1>,
    /// The matrix that keys, and queries, are multiplied by.
    pub(crate) turn_keys: Option<Tensor<2>>,
    /// The matrix that queries are multiplied by for coded keys, if it differs: a sketch after the rotation.
    pub(crate) turn_queries: Option<Tensor<2>>,
    pub(crate) turn_values: Option<Tensor<2>>,
    /// The matrix that undoes the rotation of values.
    pub(crate) turn_outputs: Option<Tensor<2>>,
}

/// The matrix `[dim, n_columns]` that does what `apply` does to a row, which it puts after what `row` holds.
fn matrix(dim: usize, device: &Device, apply: impl Fn(&[f32], &mut Vec<f32>)) -> Tensor<2> {
    let mut rows = Vec::new();
    for i in 0..dim {
        let unit: Vec<f32> = (0..dim).map(|j| if i == j { 1.0 } else { 0.0 }).collect();
        apply(&unit, &mut rows);
    }
    let n_columns = rows.len() / dim;
    Tensor::from_data(TensorData::new(rows, [dim, n_columns]), device)
}

fn turned(rotation: &Rotation, row: &[f32], back: bool) -> Vec<f32> {
    let mut row = row.to_vec();
    // The row is as long as the rotation.
    let turned = if back { rotation.inverse(&mut row) } else { rotation.forward(&mut row) };
    debug_assert!(turned.is_ok());
    row
}

impl Packing {
    pub(crate) fn new(
        shape: &LayerShape,
        coder: &dyn Coder,
        n_exact: usize,
        lag: usize,
        device: &Device,
    ) -> Result<Self> {
        let dim = shape.head_dim;
        let CodingKind::Packed(coding) = coder.coding(dim)?.0 else {
            return Err(Error::CoderDevice { coder: coder.name(), device: format!("{device:?}") });
        };
        let PackedCoding { keys, values, key_rotation, value_rotation, sketch, weighs_channels } = coding;
        let format = DeviceFormat::new(dim, keys.format(), values.format());
        let forward = |rotation: &Option<Rotation>, back: bool| {
            let rotation = rotation.as_ref()?;
            Some(matrix(dim, device, |unit, rows| rows.extend(turned(rotation, unit, back))))
        };
        let with_sketch = || {
            matrix(dim, device, |unit, rows| {
                let row = key_rotation.as_ref().map_or_else(|| unit.to_vec(), |r| turned(r, unit, false));
                // A sketch alone has no codes of the elements themselves.
                if format.spec.n_coded > dim {
                    rows.extend(&row);
                }
                let product = |of: &[f32]| of.iter().zip(&row).map(|(a, b)| a * b).sum::<f32>();
                rows.extend(sketch.chunks_exact(dim).map(product));
            })
        };
        let numbers: Vec<i32> = format.meta.iter().map(|number| number.cast_signed()).collect();
        let meta = TensorData::new(numbers, [format.meta.len()]);
        let tables = if format.tables.is_empty() { vec![0.0] } else { format.tables.clone() };
        let n_tables = tables.len();
        Ok(Self {
            n_kv_heads: shape.n_kv_heads,
            head_dim: dim,
            lag,
            n_exact,
            weighs_channels,
            meta: Tensor::from_data(meta, (device, DType::I32)),
            tables: Tensor::from_data(TensorData::new(tables, [n_tables]), device),
            turn_keys: forward(&key_rotation, false),
            turn_queries: (!sketch.is_empty()).then(with_sketch),
            turn_values: forward(&value_rotation, false),
            turn_outputs: forward(&value_rotation, true),
            format,
            keys,
            values,
        })
    }

    pub(crate) fn page_words(&self) -> usize {
        self.n_kv_heads * self.format.spec.region_words
    }

    /// Fails for a NaN or an infinity among tokens `[2, n_slots, n_kv_heads, head_dim]`.
    pub(crate) fn check(&self, tokens: &[f16], slots: Range<usize>) -> Result<()> {
        let width = self.n_kv_heads * self.head_dim;
        if tokens.len() != 2 * slots.len() * width {
            let (requested, available) = (slots.len(), tokens.len() / (2 * width).max(1));
            return Err(StepError::OutOfRange { what: "pack", requested, available }.into());
        }
        match tokens.iter().position(|x| !x.is_finite()) {
            None => Ok(()),
            Some(at) => {
                let row = at / width;
                let tensor = if row < slots.len() { "k" } else { "v" };
                let (row, value) = (slots.start + row % slots.len(), tokens[at].to_f32());
                Err(Error::NotFinite { tensor, row, value })
            }
        }
    }

    /// Codes one head of page number `page` among the tokens' `n_pages`.
    pub(crate) fn code(
        &self,
        region: &mut [u32],
        [keys, values]: [&[f16]; 2],
        (page, n_pages): (usize, usize),
        head: usize,
        n_exact: usize,
        weights: Option<&[f32]>,
    ) {
        let dim = self.head_dim;
        let width = self.n_kv_heads * dim;
        debug_assert!(page < n_pages);
        let rows = |tokens: &[f16]| -> Vec<f32> {
            let page = &tokens[page * PAGE_TOKENS * width..][..PAGE_TOKENS * width];
            page.chunks_exact(width).flat_map(|row| &row[head * dim..][..dim]).map(|x| x.to_f32()).collect()
        };
        let ones = vec![1.0; dim];
        let weights = weights.map_or(ones.as_slice(), |weights| &weights[head * dim..][..dim]);
        let side = |coder: &dyn TileCoder, tokens: &[f16], weights: &[f32]| {
            let mut coded = Coded::new(coder.format());
            coder.code(&Tile { rows: &rows(tokens), head_dim: dim, n_exact, weights }, &mut coded);
            coded
        };
        let keys = side(&*self.keys, keys, weights);
        let values = side(&*self.values, values, &ones);
        self.format.write(region, &keys, &values);
    }
}
