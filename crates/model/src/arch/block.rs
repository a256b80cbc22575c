//! The block that causal architectures share: norm, attention, norm, feed-forward.

use breakers_backend::norm::rms_norm;
use breakers_linear::QuantizedLinear;
use burn::tensor::Tensor;
use tracing::trace_span;

use super::feed_forward::FeedForward;
use super::spec::{DecoderSpec, LayerSpec};
use super::tensors::Weights;
use crate::ops::{Heads, RopeTable, split_heads};
use crate::{Error, InputSite};

/// The weights of a layer, and its row in the table.
pub(crate) struct Block {
    pub(super) spec: LayerSpec,
    norm_eps: f32,
    attention_norm: Tensor<1>,
    pub(super) qkv: QuantizedLinear,
    qkv_bias: Option<Tensor<1>>,
    q_norm: Option<Tensor<1>>,
    k_norm: Option<Tensor<1>>,
    pub(super) attention_out: QuantizedLinear,
    attention_out_bias: Option<Tensor<1>>,
    post_attention_norm: Option<Tensor<1>>,
    feed_forward_norm: Tensor<1>,
    pub(super) feed_forward: FeedForward,
    post_feed_forward_norm: Option<Tensor<1>>,
}

/// A callback that sees the inputs of a block's matrices.
pub(crate) type Observe<'a> = dyn FnMut(InputSite, &Tensor<2>) -> Result<(), Error> + 'a;

pub(crate) fn norm(x: Tensor<2>, weight: &Tensor<1>, eps: f32) -> Tensor<2> {
    trace_span!("norm").in_scope(|| rms_norm(x, weight.clone(), eps))
}

/// Adds a bias to each row, if there is one.
pub(super) fn biased(rows: Tensor<2>, bias: &Option<Tensor<1>>) -> Tensor<2> {
    match bias {
        Some(bias) => rows + bias.clone().unsqueeze(),
        None => rows,
    }
}

impl Block {
    pub(crate) fn load(weights: &Weights<'_>, spec: &DecoderSpec, i: usize) -> Result<Self, Error> {
        let layer = &spec.layers[i];
        let name = |part: &str| format!("blk.{i}.{part}");
        let (q, kv, width) = (layer.q_width(), layer.kv_width(), spec.width);
        let biases = [("attn_q.bias", q), ("attn_k.bias", kv), ("attn_v.bias", kv)];
        if layer.qkv_bias {
            // Biases that the architecture requires must be there.
            for (part, _) in biases.iter().filter(|(part, _)| !weights.has(&name(part))) {
                weights.file.require(&name(part))?;
            }
        }
        let norm_if = |is_there: bool, part: &str, len: usize| {
            is_there.then(|| weights.vector(&name(part), len)).transpose()
        };
        Ok(Self {
            attention_norm: weights.vector(&name("attn_norm.weight"), width)?,
            qkv: weights.linear(
                &[(&name("attn_q.weight"), q), (&name("attn_k.weight"), kv), (&name("attn_v.weight"), kv)],
                width,
            )?,
            qkv_bias: weights.joint_bias(&biases.map(|(part, len)| (name(part), len)))?,
            q_norm: norm_if(layer.head_norms, "attn_q_norm.weight", layer.key_dim)?,
            k_norm: norm_if(layer.head_norms, "attn_k_norm.weight", layer.key_dim)?,
            attention_out: weights.linear(&[(&name("attn_output.weight"), width)], q)?,
            attention_out_bias: weights.optional_vector(&name("attn_output.bias"), width)?,
            post_attention_norm: norm_if(layer.post_norms, "post_attention_norm.weight", width)?,
            feed_forward_norm: weights.vector(&name("ffn_norm.weight"), width)?,
            feed_forward: FeedForward::load(weights, layer, width, i)?,
            post_feed_forward_norm: norm_if(layer.post_norms, "post_ffw_norm.weight", width)?,
            norm_eps: spec.norm_eps,
            spec: layer.clone(),
        })
    }

    /// Rotated heads of the rows `x`.
    pub(crate) fn heads(
        &self,
        x: &Tensor<2>,
        table: &RopeTable,
        observe: &mut Observe<'_>,
    ) -> Result<Heads, Error> {
        let normed = norm(x.clone(), &self.attention_norm, self.norm_eps);
        observe(InputSite::Attention, &normed)?;
        let qkv = trace_span!("qkv").in_scope(|| self.qkv.forward(normed));
        Ok(trace_span!("heads").in_scope(|| {
            let norms = [self.q_norm.clone(), self.k_norm.clone()];
            split_heads(qkv, self.qkv_bias.clone(), norms, table, self.spec.heads(self.norm_eps))
        }))
    }

    /// The block's output for the rows `x`, given the result of attention.
    pub(crate) fn finish(
        &self,
        mut x: Tensor<2>,
        attended: Tensor<2>,
        observe: &mut Observe<'_>,
    ) -> Result<Tensor<2>, Error> {
        observe(InputSite::AttentionOut, &attended)?;
        let mut out = trace_span!("attention_out").in_scope(|| self.attention_out.forward(attended));
        out = biased(out, &self.attention_out_bias);
        if let Some(weight) = &self.post_attention_norm {
            out = norm(out, weight, self.norm_eps);
        }
        x = trace_span!("residual").in_scope(|| x + out);
        let normed = norm(x.clone(), &self.feed_forward_norm, self.norm_eps);
        let mut out = self.feed_forward.forward(normed, self.spec.activation, observe)?;
        if let Some(weight) = &self.post_feed_forward_norm {
            out = norm(out, weight, self.norm_eps);
        }
        Ok(trace_span!("residual").in_scope(|| x + out))
    }

    /// Bytes of packed weights.
    pub(super) fn bytes(&self) -> usize {
        self.qkv.bytes() + self.attention_out.bytes() + self.feed_forward.bytes()
    }
}
