//! The CPU kernel over keys and values in tensors, which are first copied into pages of 32-bit floats.

pub(crate) mod job;
pub(crate) mod packed;
pub(crate) mod page;
pub(crate) mod schedule;
mod workspace;

use std::borrow::Cow;
use std::sync::Arc;

use breakers_backend::flex;
use breakers_cpu as cpu;
use burn::tensor::Tensor;
use burn_flex::{Flex, FlexTensor};

use self::job::Job;
use super::AttentionOps;
use crate::checks::{HostRows, primitive};
use crate::pages::layer::LayerPages;
use crate::pages::meter::PageMeter;
use crate::{Element, LayerShape, Result, Visible};

impl AttentionOps for Flex {
    /// A NaN or an infinity anywhere in the input makes every element of the result a NaN.
    fn attention(q: FlexTensor, k: FlexTensor, v: FlexTensor, visible: Visible, scale: f32) -> FlexTensor {
        let shape = q.layout().shape().to_vec();
        let size = [shape[0], shape[1] * shape[2]];
        attention_flex(q, k, v, &visible, scale)
            .unwrap_or_else(|_| flex::from_vec(vec![f32::NAN; size[0] * size[1]], size))
    }
}

pub(super) fn attention_tensors(
    q: Tensor<3>,
    k: Tensor<3>,
    v: Tensor<3>,
    visible: &Visible,
    scale: f32,
) -> Result<Tensor<2>> {
    let out = attention_flex(primitive("q", q)?, primitive("k", k)?, primitive("v", v)?, visible, scale)?;
    Ok(Tensor::from_primitive::<Flex>(out))
}

fn attention_flex(
    q: FlexTensor,
    k: FlexTensor,
    v: FlexTensor,
    visible: &Visible,
    scale: f32,
) -> Result<FlexTensor> {
    let shape = q.layout().shape().to_vec();
    let (n_rows, n_heads, head_dim) = (shape[0], shape[1], shape[2]);
    let n_kv_heads = k.layout().shape()[1];
    let size = [n_rows, n_heads * head_dim];
    if n_rows * head_dim == 0 {
        return Ok(flex::from_vec(vec![0.0; n_rows * n_heads * head_dim], size));
    }
    let rows = HostRows::of([q, k, v]);
    let [q, k, v] = rows.slices();
    let isa = cpu::isa();
    let mut pages =
        LayerPages::new(&LayerShape::new(n_kv_heads, head_dim), Element::F32, &PageMeter::default());
    pages.append(isa, 0, k, v).map_err(|bad| rows.not_finite(bad))?;
    let job = Job {
        source: Box::new(&pages),
        q: q.into(),
        sketch: Cow::default(),
        n_heads,
        scale,
        visible: Arc::new(visible.clone()),
        turned: None,
        out_row: 0,
        out_column: 0,
    };
    let out = schedule::run(isa, &[job], size).map_err(|row| rows.not_finite((0, row)))?;
    Ok(flex::from_vec(out, size))
}
