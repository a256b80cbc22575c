//! The forward pass that causal architectures share: embeddings, blocks, norm, head.

use std::ops::Range;

use breakers_gguf as gguf;
use breakers_gguf::MatrixFile;
use breakers_kv_cache::{CacheShape, LayerShape, Segment, attend_many};
use breakers_linear::{OutputTiles, QuantizedEmbedding, QuantizedLinear};
use burn::tensor::{Device, Tensor, TensorData};
use tracing::trace_span;

use super::block::{Block, norm};
use super::spec::{DecoderSpec, LayerSpec, RopeSpec};
use super::tensors::{Weights, check_tensors, checked, expect_shape, rope_divisors};
use crate::ops::{Heads, RopeTable};
use crate::{Error, InputSite};

/// A causal transformer's weights on a device.
pub(crate) struct Decoder {
    pub(crate) spec: DecoderSpec,
    pub(crate) vocab_size: usize,
    /// What comes before and after the blocks; only where the first block is.
    ends: Option<Ends>,
    /// Those of `layers`.
    blocks: Vec<Block>,
    layers: Range<usize>,
    /// Llama 3's frequency divisors; empty in other models.
    rope_divisors: Vec<f32>,
    device: Device,
}

struct Ends {
    embedding: QuantizedEmbedding,
    final_norm: Tensor<1>,
    head: QuantizedLinear,
}

/// Hidden states that a forward pass keeps.
pub(crate) struct Hidden {
    /// After the final norm, only the rows asked for: `[n_kept, width]`.
    pub(crate) last: Option<Tensor<2>>,
    /// After the blocks asked for, all rows: `[n_rows, width]` each.
    pub(crate) taps: Vec<Tensor<2>>,
}

/// What blocks have made of rows.
pub(crate) struct Passed {
    /// Behind the model's last block those that are kept, if there are any; else all.
    pub(crate) last: Option<Tensor<2>>,
    /// After the blocks asked for, all rows: `[n_rows, width]` each.
    pub(crate) taps: Vec<Tensor<2>>,
}

impl Decoder {
    pub(crate) fn load(
        file: &gguf::File,
        store: Option<&MatrixFile>,
        spec: DecoderSpec,
        layers: Option<Range<usize>>,
        device: &Device,
    ) -> Result<Self, Error> {
        let weights = Weights { file, store, device };
        check_tensors(file, &spec)?;
        let embedding_view = file.require("token_embd.weight")?;
        let vocab_size = embedding_view.n_rows();
        expect_shape(&embedding_view, &[vocab_size, spec.width])?;
        let layers = match layers {
            Some(layers) if layers.is_empty() || layers.end > spec.layers.len() => {
                let (found, limit) = (layers, spec.layers.len());
                return Err(Error::Layers { found, limit });
            }
            Some(layers) => layers,
            None => 0..spec.layers.len(),
        };
        let ends = (layers.start == 0).then(|| Ends::load(&weights, &spec, embedding_view)).transpose()?;
        let blocks = layers.clone().map(|i| Block::load(&weights, &spec, i)).collect::<Result<_, _>>()?;
        let rope_divisors = rope_divisors(file, &spec)?;
        Ok(Self { vocab_size, ends, blocks, layers, rope_divisors, spec, device: device.clone() })
    }

    /// The blocks that are here.
    pub(crate) fn layers(&self) -> Range<usize> {
        self.layers.clone()
    }

    pub(crate) fn cache_shape(&self) -> CacheShape {
        // The table was checked: values are as wide as keys, and every layer keeps its own.
        let layer = |layer: &LayerSpec| LayerShape {
            n_kv_heads: layer.n_kv_heads,
            head_dim: layer.key_dim,
            window: layer.window,
        };
        let layers = self.spec.layers[self.layers.clone()].iter().map(layer).collect();
        CacheShape { layers, max_tokens: self.spec.max_context }
    }

    /// Bytes of packed weights.
    pub(crate) fn bytes(&self) -> usize {
        self.ends.as_ref().map_or(0, |ends| ends.head.bytes())
            + self.blocks.iter().map(Block::bytes).sum::<usize>()
    }

    /// Runs the model over rows that belong to the segments, in their order. `begin` must have been called on
    /// the caches. `kept` are the rows whose final hidden state is wanted, ascending. Blocks that are not
    /// here are `beyond`, which takes all rows and returns those that are kept.
    pub(crate) fn forward(
        &self,
        tokens: &[u32],
        positions: &[usize],
        segments: &mut [Segment<'_>],
        kept: &[usize],
        taps: &[usize],
        beyond: &mut dyn FnMut(Tensor<2>) -> Result<Option<Tensor<2>>, Error>,
    ) -> Result<Hidden, Error> {
        let ends = self.ends()?;
        let mut x = trace_span!("embedding").in_scope(|| ends.embedding.lookup(tokens, &self.device))?;
        if self.spec.embedding_scale != 1.0 {
            x = x.mul_scalar(self.spec.embedding_scale);
        }
        let Passed { mut last, taps } = self.pass(x, positions, segments, kept, taps)?;
        if let Some(x) = last.take_if(|_| self.layers.end < self.spec.layers.len()) {
            last = beyond(x)?;
        }
        Ok(Hidden { last: last.map(|x| norm(x, &ends.final_norm, self.spec.norm_eps)), taps })
    }

    fn ends(&self) -> Result<&Ends, Error> {
        self.ends
            .as_ref()
            .ok_or_else(|| Error::Layers { found: self.layers(), limit: self.spec.layers.len() })
    }

    /// Runs the blocks that are here over rows `[n_rows, width]`.
    pub(crate) fn pass(
        &self,
        mut x: Tensor<2>,
        positions: &[usize],
        segments: &mut [Segment<'_>],
        kept: &[usize],
        taps: &[usize],
    ) -> Result<Passed, Error> {
        // Layers of one kind share their angles.
        let mut tables: Vec<(RopeSpec, RopeTable)> = Vec::new();
        let mut unobserved = |_: InputSite, _: &Tensor<2>| Ok(());
        let mut tapped = vec![None; taps.len()];
        let last = self.spec.layers.len() - 1;
        let only_kept = kept.len() < positions.len() && !taps.contains(&last);
        for (i, block) in self.layers.clone().zip(&self.blocks) {
            let (rope, scale) = (block.spec.rope, block.spec.attention_scale);
            let table = match tables.iter().position(|table| table.0 == rope) {
                Some(at) => at,
                None => {
                    tables.push((rope, rope.table(positions, &self.rope_divisors, &self.device)));
                    tables.len() - 1
                }
            };
            let heads = block.heads(&x, &tables[table].1, &mut unobserved)?;
            let layer = i - self.layers.start;
            let mut attended = trace_span!("attention").in_scope(|| attend(segments, layer, heads, scale))?;
            if i == last && only_kept {
                // After the last attention rows are independent, so the rows that are not asked for can be
                // dropped.
                if kept.is_empty() {
                    return Ok(Passed { last: None, taps: collect(tapped) });
                }
                attended = rows(attended, kept);
                x = rows(x, kept);
            }
            x = block.finish(x, attended, &mut unobserved)?;
            for (at, _) in taps.iter().enumerate().filter(|t| *t.1 == i) {
                tapped[at] = Some(x.clone());
            }
        }
        let is_end = self.layers.end == last + 1;
        if is_end && kept.is_empty() {
            return Ok(Passed { last: None, taps: collect(tapped) });
        }
        if is_end && !only_kept && kept.len() < positions.len() {
            x = rows(x, kept);
        }
        Ok(Passed { last: Some(x), taps: collect(tapped) })
    }

    /// Logits `[rows, vocab]` of final hidden states `[rows, width]`, of all tokens or of those in some tiles
    /// at least.
    pub(crate) fn logits(&self, hidden: Tensor<2>, tiles: Option<&OutputTiles>) -> Result<Tensor<2>, Error> {
        let head = &self.ends()?.head;
        Ok(trace_span!("head").in_scope(|| {
            // Tiles are counted by tokens, as those of one matrix are.
            let is_one = head.matrices().is_some_and(|matrices| matrices.len() == 1);
            let outputs = match tiles.filter(|_| is_one) {
                Some(tiles) => head.forward_tiles(hidden, tiles),
                None => head.forward(hidden),
            };
            finish_logits(outputs, self.vocab_size, self.spec.logit_cap)
        }))
    }

    /// The cost of the products with weights, in the order in which they first run.
    pub(crate) fn products(&self) -> Vec<ProductCost> {
        let blocks = &self.blocks;
        let feed_forward: Vec<_> = blocks.iter().map(|block| block.feed_forward.products()).collect();
        let mut products = vec![
            ProductCost::new("qkv", blocks.iter().map(|block| &block.qkv)),
            ProductCost::new("attention_out", blocks.iter().map(|block| &block.attention_out)),
        ];
        if feed_forward.iter().any(|part| part.router.is_some()) {
            products.push(ProductCost::new("router", feed_forward.iter().filter_map(|part| part.router)));
        }
        products.extend([
            ProductCost::new("gate_up", feed_forward.iter().flat_map(|part| part.gate_up.iter().copied())),
            ProductCost::new("down", feed_forward.iter().flat_map(|part| part.down.iter().copied())),
            ProductCost::new("head", self.ends.iter().map(|ends| &ends.head)),
        ]);
        products
    }

    /// Multiplications of attention (scores and weighted sums) for rows after `n_past` tokens.
    pub(crate) fn attention_multiplications(&self, n_past: usize, n_rows: usize) -> usize {
        let end = n_past.saturating_add(n_rows).min(self.spec.max_context);
        let of_layer = |layer: &LayerSpec| {
            let most = layer.window.unwrap_or(usize::MAX);
            let n_seen: usize = (n_past.saturating_add(1)..=end).map(|n_seen| n_seen.min(most)).sum();
            n_seen * layer.n_heads * (layer.key_dim + layer.value_dim)
        };
        self.spec.layers.iter().map(of_layer).sum()
    }

    /// Elements of the cache that attention of `n_rows` rows after `n_past` tokens reads, each counted once.
    pub(crate) fn attention_reads(&self, n_past: usize, n_rows: usize) -> usize {
        let end = n_past.saturating_add(n_rows).min(self.spec.max_context);
        let of_layer = |layer: &LayerSpec| {
            let hidden = layer.window.map_or(0, |window| n_past.saturating_add(1).saturating_sub(window));
            (end - hidden.min(end)) * layer.n_kv_heads * (layer.key_dim + layer.value_dim)
        };
        self.spec.layers.iter().map(of_layer).sum()
    }
}

impl Ends {
    fn load(
        weights: &Weights<'_>,
        spec: &DecoderSpec,
        embedding_view: gguf::TensorView<'_>,
    ) -> Result<Self, Error> {
        let (file, device) = (weights.file, weights.device);
        let vocab_size = embedding_view.n_rows();
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
        let final_norm = weights.vector("output_norm.weight", spec.width)?;
        Ok(Self { embedding, final_norm, head })
    }
}

impl RopeSpec {
    /// The angles of rows at these positions.
    pub(crate) fn table(&self, positions: &[usize], divisors: &[f32], device: &Device) -> RopeTable {
        let divisors = if self.has_divisors { divisors } else { &[] };
        RopeTable::new(positions, self.n_rotated, self.base, self.scale, divisors, device)
    }
}

/// The cost of the products of one kind in a forward pass, over all blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ProductCost {
    /// The name of the `tracing` span that they run in: `qkv`, `attention_out`, `gate_up`, `down`, `head`,
    /// and in models with experts `router`.
    pub name: &'static str,
    /// Bytes of weights, which a pass over any number of rows reads once. For experts it is the bytes for one
    /// row; more rows read more.
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

/// Logits from the head's product: rows of its table beyond the vocabulary have no meaning and are never
/// chosen, and some models cap the rest.
pub(crate) fn finish_logits(mut outputs: Tensor<2>, vocab_size: usize, cap: Option<f32>) -> Tensor<2> {
    if vocab_size < outputs.dims()[1] {
        outputs = outputs.narrow(1, 0, vocab_size);
    }
    match cap {
        Some(cap) => {
            // A cap makes numbers of infinities, which are a fault to be seen: they become NaN here.
            let faults = outputs.clone() - outputs.clone();
            outputs.div_scalar(cap).tanh().mul_scalar(cap) + faults
        }
        None => outputs,
    }
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
