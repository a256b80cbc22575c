//! The block that causal architectures share: norm, attention, norm, gated feed-forward.

use breakers_backend::norm::rms_norm;
use breakers_gguf as gguf;
use breakers_gguf::{MatrixFile, QuantizedMatrix};
use breakers_kv_cache::{CacheShape, LayerShape, Segment, attend_many};
use breakers_linear::{QuantizedEmbedding, QuantizedLinear};
use burn::tensor::{Device, Tensor, TensorData};
use tracing::trace_span;

use super::DecoderSpec;
use crate::ops::{HeadLayout, Heads, RopeTable, gated_activation, split_heads};
use crate::{Error, InputSite};

/// A causal transformer's weights on a device.
pub(crate) struct Decoder {
    pub(crate) spec: DecoderSpec,
    pub(crate) vocab_size: usize,
    embedding: QuantizedEmbedding,
    blocks: Vec<Block>,
    final_norm: Tensor<1>,
    head: QuantizedLinear,
    /// Llama 3's frequency divisors; empty in other models.
    rope_factors: Vec<f32>,
    device: Device,
}

pub(crate) struct Block {
    attention_norm: Tensor<1>,
    qkv: QuantizedLinear,
    qkv_bias: Tensor<1>,
    q_norm: Tensor<1>,
    k_norm: Tensor<1>,
    attention_out: QuantizedLinear,
    attention_out_bias: Option<Tensor<1>>,
    post_attention_norm: Option<Tensor<1>>,
    feed_forward_norm: Tensor<1>,
    gate_up: QuantizedLinear,
    gate_up_bias: Option<Tensor<1>>,
    down: QuantizedLinear,
    down_bias: Option<Tensor<1>>,
    post_feed_forward_norm: Option<Tensor<1>>,
}

/// Hidden states that a forward pass keeps.
pub(crate) struct Hidden {
    /// After the final norm, only the rows asked for: `[n_kept, width]`.
    pub(crate) last: Option<Tensor<2>>,
    /// After the blocks asked for, all rows: `[n_rows, width]` each.
    pub(crate) taps: Vec<Tensor<2>>,
}

impl Decoder {
    pub(crate) fn load(
        file: &gguf::File,
        store: Option<&MatrixFile>,
        spec: DecoderSpec,
        device: &Device,
    ) -> Result<Self, Error> {
        let weights = Weights { file, store, device };
        check_tensors(file, &spec)?;
        let embedding_view = file.require("token_embd.weight")?;
        let vocab_size = embedding_view.n_rows();
        expect_shape(&embedding_view, &[vocab_size, spec.width])?;
        let shape = [vocab_size, spec.width];
        let laid_over = |name: &str| -> Result<_, Error> {
            let table = weights.stored_table(name)?;
            table.map(|table| checked(table, name, shape)).transpose()
        };
        let embedding = match laid_over("token_embd.weight")? {
            Some(table) => Some((QuantizedEmbedding::from_quantized(&table)?, table)),
            None => None,
        };
        let head = match (laid_over("output.weight")?, file.tensor("output.weight"), &embedding) {
            (Some(table), ..) => Some(QuantizedLinear::from_quantized(&[table], device)?),
            (None, Some(view), _) => {
                expect_shape(&view, &shape)?;
                Some(QuantizedLinear::new(vec![view], device)?)
            }
            (None, None, Some((_, table))) => {
                Some(QuantizedLinear::from_quantized(std::slice::from_ref(table), device)?)
            }
            (None, None, None) => None,
        };
        let (embedding, head) = match (embedding, head) {
            (Some((embedding, _)), Some(head)) => (embedding, head),
            (_, Some(head)) => (QuantizedEmbedding::new(embedding_view, device)?, head),
            (_, None) => {
                let head = QuantizedLinear::new(vec![embedding_view], device)?;
                (QuantizedEmbedding::from_linear(&head)?, head)
            }
        };
        let blocks =
            (0..spec.layers.len()).map(|i| Block::load(&weights, &spec, i)).collect::<Result<_, _>>()?;
        let rope_factors = match file.tensor("rope_freqs.weight") {
            Some(view) => {
                expect_shape(&view, &[spec.n_rotated / 2])?;
                view.to_f32()
            }
            None => Vec::new(),
        };
        let final_norm = weights.vector("output_norm.weight", spec.width)?;
        Ok(Self {
            vocab_size,
            embedding,
            blocks,
            final_norm,
            head,
            rope_factors,
            spec,
            device: device.clone(),
        })
    }

    pub(crate) fn cache_shape(&self) -> CacheShape {
        let layer =
            |window| LayerShape { n_kv_heads: self.spec.n_kv_heads, head_dim: self.spec.head_dim, window };
        CacheShape {
            layers: self.spec.layers.iter().map(|l| layer(l.window)).collect(),
            max_tokens: self.spec.max_context,
        }
    }

    /// Bytes of packed weights.
    pub(crate) fn bytes(&self) -> usize {
        let blocks = self
            .blocks
            .iter()
            .map(|b| b.qkv.bytes() + b.attention_out.bytes() + b.gate_up.bytes() + b.down.bytes());
        self.head.bytes() + blocks.sum::<usize>()
    }

    /// Runs the blocks over rows that belong to the segments, in their order. The caches have been told
    /// of the step by `begin`; `kept` are the rows whose final hidden state is wanted, ascending.
    pub(crate) fn forward(
        &self,
        tokens: &[u32],
        positions: &[usize],
        segments: &mut [Segment<'_>],
        kept: &[usize],
        taps: &[usize],
    ) -> Result<Hidden, Error> {
        let spec = &self.spec;
        let mut x = trace_span!("embedding").in_scope(|| self.embedding.lookup(tokens, &self.device))?;
        if spec.embedding_scale != 1.0 {
            x = x.mul_scalar(spec.embedding_scale);
        }
        // Layers of one kind share their angles.
        let mut tables: Vec<(f32, f32, RopeTable)> = Vec::new();
        let mut unobserved = |_: InputSite, _: &Tensor<2>| Ok(());
        let mut tapped = vec![None; taps.len()];
        let last = self.blocks.len() - 1;
        let only_kept = kept.len() < tokens.len() && !taps.contains(&last);
        for (i, (block, layer)) in self.blocks.iter().zip(&spec.layers).enumerate() {
            let key = (layer.rope_base, layer.rope_scale);
            let table = match tables.iter().position(|t| (t.0, t.1) == key) {
                Some(at) => at,
                None => {
                    let table = RopeTable::new(
                        positions,
                        spec.n_rotated,
                        key.0,
                        key.1,
                        &self.rope_factors,
                        &self.device,
                    );
                    tables.push((key.0, key.1, table));
                    tables.len() - 1
                }
            };
            let heads = block.heads(&x, spec, &tables[table].2, &mut unobserved)?;
            let mut attended =
                trace_span!("attention").in_scope(|| attend(segments, i, heads, spec.attention_scale))?;
            if i == last && only_kept {
                // Behind the last attention rows are independent, and the others are not asked for.
                if kept.is_empty() {
                    return Ok(Hidden { last: None, taps: collect(tapped) });
                }
                attended = rows(attended, kept);
                x = rows(x, kept);
            }
            x = block.finish(x, attended, spec, &mut unobserved)?;
            for (at, _) in taps.iter().enumerate().filter(|t| *t.1 == i) {
                tapped[at] = Some(x.clone());
            }
        }
        if kept.is_empty() {
            return Ok(Hidden { last: None, taps: collect(tapped) });
        }
        if !only_kept && kept.len() < tokens.len() {
            x = rows(x, kept);
        }
        let hidden = norm(x, &self.final_norm, spec);
        Ok(Hidden { last: Some(hidden), taps: collect(tapped) })
    }

    /// Logits `[rows, vocab]` of final hidden states `[rows, width]`.
    pub(crate) fn logits(&self, hidden: Tensor<2>) -> Tensor<2> {
        trace_span!("head").in_scope(|| {
            let mut logits = self.head.forward(hidden);
            // Rows of the table beyond the vocabulary stand for nothing and are never chosen.
            if self.vocab_size < self.head.n_outputs() {
                logits = logits.narrow(1, 0, self.vocab_size);
            }
            match self.spec.logit_cap {
                Some(cap) => logits.div_scalar(cap).tanh().mul_scalar(cap),
                None => logits,
            }
        })
    }

    /// What the products with weights cost, in the order of their first run.
    pub(crate) fn products(&self) -> Vec<ProductCost> {
        [
            ProductCost::new("qkv", self.blocks.iter().map(|block| &block.qkv)),
            ProductCost::new("attention_out", self.blocks.iter().map(|block| &block.attention_out)),
            ProductCost::new("gate_up", self.blocks.iter().map(|block| &block.gate_up)),
            ProductCost::new("down", self.blocks.iter().map(|block| &block.down)),
            ProductCost::new("head", std::iter::once(&self.head)),
        ]
        .into()
    }

    /// Multiplications of attention, scores and weighted sums, for rows behind `n_past` tokens.
    pub(crate) fn attention_multiplications(&self, n_past: usize, n_rows: usize) -> usize {
        let end = n_past.saturating_add(n_rows).min(self.spec.max_context);
        let seen = |window: Option<usize>| -> usize {
            (n_past.saturating_add(1)..=end).map(|n_seen| n_seen.min(window.unwrap_or(usize::MAX))).sum()
        };
        let n_seen: usize = self.spec.layers.iter().map(|layer| seen(layer.window)).sum();
        2 * n_seen * self.spec.n_heads * self.spec.head_dim
    }

    /// Elements of the cache that attention of `n_rows` rows behind `n_past` tokens reads, each once.
    pub(crate) fn attention_reads(&self, n_past: usize, n_rows: usize) -> usize {
        let end = n_past.saturating_add(n_rows).min(self.spec.max_context);
        let seen = |window: Option<usize>| {
            end - window.map_or(0, |window| n_past.saturating_add(1).saturating_sub(window)).min(end)
        };
        let n_seen: usize = self.spec.layers.iter().map(|layer| seen(layer.window)).sum();
        2 * n_seen * self.spec.n_kv_heads * self.spec.head_dim
    }
}

/// What the products of one kind cost in a forward pass, over all blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ProductCost {
    /// The name of the `tracing` span that they run in: `qkv`, `attention_out`, `gate_up`, `down`, `head`.
    pub name: &'static str,
    /// Bytes of weights, which a pass over any number of rows reads once.
    pub bytes: usize,
    /// Multiplications for each row.
    pub multiplications: usize,
}

impl ProductCost {
    fn new<'a>(name: &'static str, layers: impl Iterator<Item = &'a QuantizedLinear>) -> Self {
        layers.fold(Self { name, bytes: 0, multiplications: 0 }, |sum, layer| Self {
            name,
            bytes: sum.bytes + layer.bytes(),
            multiplications: sum.multiplications + layer.n_inputs() * layer.n_outputs(),
        })
    }
}

pub(crate) fn norm(x: Tensor<2>, weight: &Tensor<1>, spec: &DecoderSpec) -> Tensor<2> {
    trace_span!("norm").in_scope(|| rms_norm(x, weight.clone(), spec.norm_eps))
}

fn collect(taps: Vec<Option<Tensor<2>>>) -> Vec<Tensor<2>> {
    taps.into_iter().flatten().collect()
}

/// Attention of each segment over its own cache.
fn attend(segments: &mut [Segment<'_>], layer: usize, heads: Heads, scale: f32) -> Result<Tensor<2>, Error> {
    let attended = attend_many(segments, layer, heads.q, heads.k, heads.v, scale);
    attended.map_err(|error| Error::from(error.source).at_step(error.segment))
}

/// The rows at the given indices, which ascend.
fn rows(x: Tensor<2>, indices: &[usize]) -> Tensor<2> {
    let (first, n) = (indices[0], indices.len());
    if indices[n - 1] - first + 1 == n {
        return x.narrow(0, first, n);
    }
    let device = x.device();
    let indices: Vec<i32> = indices.iter().map(|&i| i as i32).collect();
    x.select(0, Tensor::from_data(TensorData::new(indices, [n]), &device))
}

/// Told of the inputs of a block's matrices.
pub(crate) type Observe<'a> = dyn FnMut(InputSite, &Tensor<2>) -> Result<(), Error> + 'a;

impl Block {
    /// Rotated heads of the rows `x`.
    pub(crate) fn heads(
        &self,
        x: &Tensor<2>,
        spec: &DecoderSpec,
        table: &RopeTable,
        observe: &mut Observe<'_>,
    ) -> Result<Heads, Error> {
        let layout = HeadLayout {
            n_heads: spec.n_heads,
            n_kv_heads: spec.n_kv_heads,
            head_dim: spec.head_dim,
            rope: spec.rope,
            norm_eps: spec.head_norms.then_some(spec.norm_eps),
        };
        let normed = norm(x.clone(), &self.attention_norm, spec);
        observe(InputSite::Attention, &normed)?;
        let qkv = trace_span!("qkv").in_scope(|| self.qkv.forward(normed));
        Ok(trace_span!("heads").in_scope(|| {
            let (bias, q_norm, k_norm) = (&self.qkv_bias, &self.q_norm, &self.k_norm);
            split_heads(qkv, bias.clone(), q_norm.clone(), k_norm.clone(), table, layout)
        }))
    }

    /// What the block makes of the rows `x`, given what attention has found.
    pub(crate) fn finish(
        &self,
        mut x: Tensor<2>,
        attended: Tensor<2>,
        spec: &DecoderSpec,
        observe: &mut Observe<'_>,
    ) -> Result<Tensor<2>, Error> {
        observe(InputSite::AttentionOut, &attended)?;
        let mut out = trace_span!("attention_out").in_scope(|| self.attention_out.forward(attended));
        out = biased(out, &self.attention_out_bias);
        if let Some(weight) = &self.post_attention_norm {
            out = norm(out, weight, spec);
        }
        x = trace_span!("residual").in_scope(|| x + out);
        let normed = norm(x.clone(), &self.feed_forward_norm, spec);
        observe(InputSite::FeedForward, &normed)?;
        let gate_up = trace_span!("gate_up").in_scope(|| self.gate_up.forward(normed));
        let gate_up = biased(gate_up, &self.gate_up_bias);
        let activated = trace_span!("activation").in_scope(|| gated_activation(gate_up, spec.activation));
        observe(InputSite::FeedForwardOut, &activated)?;
        let mut out = trace_span!("down").in_scope(|| self.down.forward(activated));
        out = biased(out, &self.down_bias);
        if let Some(weight) = &self.post_feed_forward_norm {
            out = norm(out, weight, spec);
        }
        Ok(trace_span!("residual").in_scope(|| x + out))
    }

    pub(crate) fn load(weights: &Weights<'_>, spec: &DecoderSpec, i: usize) -> Result<Self, Error> {
        let name = |part: &str| format!("blk.{i}.{part}");
        let (q, kv) = (spec.n_heads * spec.head_dim, spec.n_kv_heads * spec.head_dim);
        let width = spec.width;
        let has = |part: &str| weights.has(&name(part));
        // A bias that the file has is added; one that the architecture needs must be there.
        let bias_or_zeros = |part: &str, n: usize| match spec.qkv_bias || has(part) {
            true => weights.vector(&name(part), n),
            false => Ok(Tensor::zeros([n], weights.device)),
        };
        let bias = |part: &str, n: usize| match has(part) {
            true => weights.vector(&name(part), n).map(Some),
            false => Ok(None),
        };
        let qkv_bias = Tensor::cat(
            vec![
                bias_or_zeros("attn_q.bias", q)?,
                bias_or_zeros("attn_k.bias", kv)?,
                bias_or_zeros("attn_v.bias", kv)?,
            ],
            0,
        );
        let gate_up_bias = match has("ffn_gate.bias") || has("ffn_up.bias") {
            true => Some(Tensor::cat(
                vec![
                    bias_or_zeros("ffn_gate.bias", spec.feed_forward)?,
                    bias_or_zeros("ffn_up.bias", spec.feed_forward)?,
                ],
                0,
            )),
            false => None,
        };
        let head_norm = |part: &str| match spec.head_norms {
            true => weights.vector(&name(part), spec.head_dim),
            false => Ok(Tensor::ones([spec.head_dim], weights.device)),
        };
        let post_norm = |part: &str| match spec.post_norms {
            true => weights.vector(&name(part), width).map(Some),
            false => Ok(None),
        };
        Ok(Self {
            attention_norm: weights.vector(&name("attn_norm.weight"), width)?,
            qkv: weights.linear(
                &[(&name("attn_q.weight"), q), (&name("attn_k.weight"), kv), (&name("attn_v.weight"), kv)],
                width,
            )?,
            qkv_bias,
            q_norm: head_norm("attn_q_norm.weight")?,
            k_norm: head_norm("attn_k_norm.weight")?,
            attention_out: weights.linear(&[(&name("attn_output.weight"), width)], q)?,
            attention_out_bias: bias("attn_output.bias", width)?,
            post_attention_norm: post_norm("post_attention_norm.weight")?,
            feed_forward_norm: weights.vector(&name("ffn_norm.weight"), width)?,
            gate_up: weights.linear(
                &[(&name("ffn_gate.weight"), spec.feed_forward), (&name("ffn_up.weight"), spec.feed_forward)],
                width,
            )?,
            gate_up_bias,
            down: weights.linear(&[(&name("ffn_down.weight"), width)], spec.feed_forward)?,
            down_bias: bias("ffn_down.bias", width)?,
            post_feed_forward_norm: post_norm("post_ffw_norm.weight")?,
        })
    }
}

/// Reads tensors and checks their shapes.
pub(crate) struct Weights<'a> {
    pub(crate) file: &'a gguf::File,
    /// Tensors that take the place of those of the file.
    pub(crate) store: Option<&'a MatrixFile>,
    pub(crate) device: &'a Device,
}

/// Fails for a file with tensors that a model of this kind does not use.
///
/// # Errors
/// [`Error::UnreadTensors`] with their names.
pub(crate) fn check_tensors(file: &gguf::File, spec: &DecoderSpec) -> Result<(), Error> {
    let n_blocks = spec.layers.len();
    let is_read = |name: &str| {
        let Some((block, part)) = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) else {
            return matches!(
                name,
                "token_embd.weight" | "output.weight" | "output_norm.weight" | "rope_freqs.weight"
            );
        };
        let is_block = block.parse::<usize>().is_ok_and(|i| i < n_blocks && i.to_string() == block);
        is_block
            && match part {
                "attn_norm.weight" | "attn_q.weight" | "attn_k.weight" | "attn_v.weight" => true,
                "attn_output.weight" | "ffn_norm.weight" | "ffn_gate.weight" | "ffn_up.weight" => true,
                "ffn_down.weight" | "attn_q.bias" | "attn_k.bias" | "attn_v.bias" => true,
                "attn_output.bias" | "ffn_gate.bias" | "ffn_up.bias" | "ffn_down.bias" => true,
                "attn_q_norm.weight" | "attn_k_norm.weight" => spec.head_norms,
                "post_attention_norm.weight" | "post_ffw_norm.weight" => spec.post_norms,
                // Angles that old converters wrote beside the hyperparameters that give them.
                "attn_rot_embd.inv_freq" | "attn_rot_embd" => true,
                _ => false,
            }
    };
    let unread: Vec<String> =
        file.tensors().map(|view| view.name().to_owned()).filter(|name| !is_read(name)).collect();
    if unread.is_empty() {
        return Ok(());
    }
    Err(Error::UnreadTensors { architecture: spec.architecture, n_blocks, names: unread })
}

/// Adds a bias to each row, if there is one.
fn biased(rows: Tensor<2>, bias: &Option<Tensor<1>>) -> Tensor<2> {
    match bias {
        Some(bias) => rows + bias.clone().unsqueeze(),
        None => rows,
    }
}

impl Weights<'_> {
    /// Whether the file, or the one laid over it, has a tensor.
    fn has(&self, name: &str) -> bool {
        self.file.tensor(name).is_some() || self.store.is_some_and(|store| store.contains(name))
    }

    pub(crate) fn vector(&self, name: &str, len: usize) -> Result<Tensor<1>, Error> {
        let values = match self.store.filter(|store| store.contains(name)) {
            Some(store) => checked(store.matrix(name)?, name, [1, len])?.to_f32(),
            None => {
                let view = self.file.require(name)?;
                expect_shape(&view, &[len])?;
                view.to_f32()
            }
        };
        Ok(Tensor::from_data(TensorData::new(values, [len]), self.device))
    }

    /// Embeddings or head, if they are laid over those of the file.
    pub(crate) fn stored_table(&self, name: &str) -> Result<Option<QuantizedMatrix>, Error> {
        Ok(self.store.filter(|store| store.contains(name)).map(|store| store.matrix(name)).transpose()?)
    }

    /// One product with several matrices, given as (name, rows).
    fn linear(&self, parts: &[(&str, usize)], n_cols: usize) -> Result<QuantizedLinear, Error> {
        let views = parts
            .iter()
            .map(|&(name, n_rows)| {
                let view = self.file.require(name)?;
                expect_shape(&view, &[n_rows, n_cols])?;
                Ok(view)
            })
            .collect::<Result<Vec<_>, Error>>()?;
        let Some(store) = self.store.filter(|store| parts.iter().any(|(name, _)| store.contains(name)))
        else {
            return Ok(QuantizedLinear::new(views, self.device)?);
        };
        let matrices = parts.iter().zip(&views).map(|(&(name, n_rows), view)| {
            if !store.contains(name) {
                return Ok(QuantizedMatrix::from_gguf(view));
            }
            checked(store.matrix(name)?, name, [n_rows, n_cols])
        });
        let matrices = matrices.collect::<Result<Vec<_>, Error>>()?;
        QuantizedLinear::from_quantized(&matrices, self.device).map_err(Error::in_tensor(parts[0].0))
    }
}

fn checked(matrix: QuantizedMatrix, name: &str, expected: [usize; 2]) -> Result<QuantizedMatrix, Error> {
    let found = [matrix.n_rows(), matrix.n_cols()];
    if found == expected {
        return Ok(matrix);
    }
    Err(Error::TensorShape { name: name.to_owned(), expected: expected.into(), found: found.into() })
}

pub(crate) fn expect_shape(view: &gguf::TensorView<'_>, expected: &[usize]) -> Result<(), Error> {
    if view.shape() == expected {
        return Ok(());
    }
    Err(Error::TensorShape {
        name: view.name().to_owned(),
        expected: expected.to_vec(),
        found: view.shape().to_vec(),
    })
}
