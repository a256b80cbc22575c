//! The forward pass of a small model in f64, written from the papers and independent of the engine: no
//! caches, no fused products, and nothing read from hyperparameters. Each test states what it expects a file
//! to mean.

use std::collections::BTreeMap;

/// What a file means.
#[derive(Clone, Debug)]
pub(crate) struct Meaning {
    pub(crate) n_heads: usize,
    pub(crate) n_kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) width: usize,
    pub(crate) eps: f64,
    /// Neighboring coordinates are rotated together; otherwise those half a head apart.
    pub(crate) interleaved: bool,
    pub(crate) n_rotated: usize,
    pub(crate) embedding_scale: f64,
    pub(crate) attention_scale: f64,
    pub(crate) gelu: bool,
    pub(crate) logit_cap: Option<f64>,
    pub(crate) layers: Vec<Layer>,
}

/// What may differ between blocks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layer {
    pub(crate) base: f64,
    /// Factor on positions.
    pub(crate) scale: f64,
    pub(crate) window: Option<usize>,
}

pub(crate) type Tensors = BTreeMap<String, Vec<f64>>;

impl Meaning {
    /// The logits of the last of some tokens.
    pub(crate) fn logits(&self, tensors: &Tensors, tokens: &[u32]) -> Vec<f64> {
        let embedding = &tensors["token_embd.weight"];
        let width = self.width;
        let mut rows: Vec<Vec<f64>> = tokens
            .iter()
            .map(|&token| {
                let row = &embedding[token as usize * width..][..width];
                row.iter().map(|x| x * self.embedding_scale).collect()
            })
            .collect();
        for (block, layer) in self.layers.iter().enumerate() {
            self.block(tensors, block, layer, &mut rows);
        }
        let last = self.norm(&rows[rows.len() - 1], &tensors["output_norm.weight"]);
        let head = tensors.get("output.weight").unwrap_or(embedding);
        let logits = product(head, &last);
        match self.logit_cap {
            Some(cap) => logits.into_iter().map(|x| cap * (x / cap).tanh()).collect(),
            None => logits,
        }
    }

    fn block(&self, tensors: &Tensors, block: usize, layer: &Layer, rows: &mut [Vec<f64>]) {
        let get = |part: &str| tensors.get(&format!("blk.{block}.{part}"));
        let linear = |part: &str, x: &[f64]| {
            let mut out = product(&tensors[&format!("blk.{block}.{part}.weight")], x);
            if let Some(bias) = get(&format!("{part}.bias")) {
                out.iter_mut().zip(bias).for_each(|(x, b)| *x += b);
            }
            out
        };
        let (dim, group) = (self.head_dim, self.n_heads / self.n_kv_heads);
        let (mut queries, mut keys, mut values) = (Vec::new(), Vec::new(), Vec::new());
        for (position, row) in rows.iter().enumerate() {
            let normed = self.norm(row, &tensors[&format!("blk.{block}.attn_norm.weight")]);
            let heads = |part: &str, norm: &str| {
                let mut heads = linear(part, &normed);
                for head in heads.chunks_exact_mut(dim) {
                    if let Some(weight) = get(norm) {
                        let normed = self.norm(head, weight);
                        head.copy_from_slice(&normed);
                    }
                    self.rotate(head, position as f64 * layer.scale, layer.base);
                }
                heads
            };
            queries.push(heads("attn_q", "attn_q_norm.weight"));
            keys.push(heads("attn_k", "attn_k_norm.weight"));
            values.push(linear("attn_v", &normed));
        }
        for (position, row) in rows.iter_mut().enumerate() {
            let first = layer.window.map_or(0, |window| (position + 1).saturating_sub(window));
            let mut attended = Vec::new();
            for head in 0..self.n_heads {
                let kv = head / group * dim;
                let query = &queries[position][head * dim..][..dim];
                let scores: Vec<f64> = (first..=position)
                    .map(|past| dot(query, &keys[past][kv..][..dim]) * self.attention_scale)
                    .collect();
                let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = scores.iter().map(|score| (score - most).exp()).collect();
                let sum: f64 = weights.iter().sum();
                for i in 0..dim {
                    let past = (first..=position).zip(&weights);
                    attended.push(past.map(|(past, weight)| weight / sum * values[past][kv + i]).sum());
                }
            }
            let mut out = linear("attn_output", &attended);
            if let Some(weight) = get("post_attention_norm.weight") {
                out = self.norm(&out, weight);
            }
            row.iter_mut().zip(out).for_each(|(x, y)| *x += y);
            let normed = self.norm(row, &tensors[&format!("blk.{block}.ffn_norm.weight")]);
            let (gate, up) = (linear("ffn_gate", &normed), linear("ffn_up", &normed));
            let activated: Vec<f64> =
                gate.iter().zip(&up).map(|(gate, up)| self.activate(*gate) * up).collect();
            let mut out = linear("ffn_down", &activated);
            if let Some(weight) = get("post_ffw_norm.weight") {
                out = self.norm(&out, weight);
            }
            row.iter_mut().zip(out).for_each(|(x, y)| *x += y);
        }
    }

    fn activate(&self, x: f64) -> f64 {
        if self.gelu {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x);
            0.5 * x * (1.0 + inner.tanh())
        } else {
            x / (1.0 + (-x).exp())
        }
    }

    fn norm(&self, x: &[f64], weight: &[f64]) -> Vec<f64> {
        let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
        x.iter().zip(weight).map(|(x, w)| x / (mean + self.eps).sqrt() * w).collect()
    }

    fn rotate(&self, head: &mut [f64], position: f64, base: f64) {
        let half = self.n_rotated / 2;
        for i in 0..half {
            let angle = position * base.powf(-2.0 * i as f64 / self.n_rotated as f64);
            let (a, b) = if self.interleaved { (2 * i, 2 * i + 1) } else { (i, i + half) };
            let (x, y) = (head[a], head[b]);
            head[a] = x * angle.cos() - y * angle.sin();
            head[b] = x * angle.sin() + y * angle.cos();
        }
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// A matrix of rows times a vector.
fn product(matrix: &[f64], x: &[f64]) -> Vec<f64> {
    matrix.chunks_exact(x.len()).map(|row| dot(row, x)).collect()
}
