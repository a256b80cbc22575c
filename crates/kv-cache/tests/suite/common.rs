//! Random inputs, and a second, plain implementation of attention in f64.
#![allow(unreachable_pub)]

use breakers_cpu::random::SplitMix64;
use breakers_kv_cache::{CacheShape, Element, KvCache, LayerShape, PlainCache};
use burn::tensor::{Device, Tensor, TensorData, f16};

/// Seeded numbers, about normal.
pub struct Random(SplitMix64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(SplitMix64::new(seed))
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.0.next() % n as u64) as usize
    }

    pub fn uniform(&mut self) -> f32 {
        (self.0.next() >> 40) as f32 / (1u32 << 24) as f32
    }

    pub fn normal(&mut self) -> f32 {
        (0..6).map(|_| self.uniform() - 0.5).sum::<f32>() * std::f32::consts::SQRT_2
    }

    pub fn vec(&mut self, n: usize, size: f32) -> Vec<f32> {
        (0..n).map(|_| self.normal() * size).collect()
    }
}

/// One layer's shape with its query heads.
#[derive(Clone, Copy, Debug)]
pub struct Heads {
    pub n_heads: usize,
    pub n_kv_heads: usize,
    pub head_dim: usize,
    pub window: Option<usize>,
}

pub const fn heads(n_heads: usize, n_kv_heads: usize, head_dim: usize) -> Heads {
    Heads { n_heads, n_kv_heads, head_dim, window: None }
}

impl Heads {
    pub const fn window(self, window: usize) -> Self {
        Self { window: Some(window), ..self }
    }

    pub fn layer(&self) -> LayerShape {
        LayerShape { n_kv_heads: self.n_kv_heads, head_dim: self.head_dim, window: self.window }
    }

    pub fn scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }

    pub fn cache(&self, element: Element) -> PlainCache {
        let shape = CacheShape::uniform(1, self.layer(), 1 << 20);
        PlainCache::new(shape, element, &Device::flex()).unwrap()
    }
}

/// Queries, keys and values of `n` tokens.
#[derive(Clone)]
pub struct Tokens {
    pub heads: Heads,
    pub n: usize,
    pub q: Vec<f32>,
    pub k: Vec<f32>,
    pub v: Vec<f32>,
}

impl Tokens {
    pub fn random(heads: Heads, n: usize, seed: u64) -> Self {
        let mut random = Random::new(seed);
        let Heads { n_heads, n_kv_heads, head_dim, .. } = heads;
        Self {
            heads,
            n,
            q: random.vec(n * n_heads * head_dim, 1.5),
            k: random.vec(n * n_kv_heads * head_dim, 1.5),
            v: random.vec(n * n_kv_heads * head_dim, 1.0),
        }
    }

    /// The tokens with the given indices.
    pub fn pick(&self, rows: &[usize]) -> Self {
        let take = |x: &[f32]| -> Vec<f32> {
            let width = x.len() / self.n.max(1);
            rows.iter().flat_map(|&row| &x[row * width..][..width]).copied().collect()
        };
        Self { heads: self.heads, n: rows.len(), q: take(&self.q), k: take(&self.k), v: take(&self.v) }
    }

    pub fn range(&self, rows: std::ops::Range<usize>) -> Self {
        self.pick(&rows.collect::<Vec<_>>())
    }

    pub fn tensors(&self) -> [Tensor<3>; 3] {
        let Heads { n_heads, n_kv_heads, head_dim, .. } = self.heads;
        let tensor = |x: &[f32], n_heads: usize| {
            let data = TensorData::new(x.to_vec(), [self.n, n_heads, head_dim]);
            Tensor::<3>::from_data(data, &Device::flex())
        };
        [tensor(&self.q, n_heads), tensor(&self.k, n_kv_heads), tensor(&self.v, n_kv_heads)]
    }

    /// One step over all tokens, in every layer of the cache; the last layer's result.
    pub fn feed(&self, cache: &mut dyn KvCache, parents: Option<&[Option<usize>]>) -> Vec<f32> {
        cache.begin(self.n, parents).unwrap();
        let mut out = Vec::new();
        for layer in 0..cache.shape().layers.len() {
            let [q, k, v] = self.tensors();
            let result = cache.attend(layer, q, k, v, self.heads.scale()).unwrap();
            assert_eq!(result.dims(), [self.n, self.heads.n_heads * self.heads.head_dim]);
            out = result.into_data().try_to_vec::<f32>().unwrap();
        }
        cache.end().unwrap();
        out
    }

    /// Attention in f64 of the last token over those that `sees` allows, keys and values rounded as stored.
    pub fn reference(&self, row: usize, element: Element, sees: impl Fn(usize) -> bool) -> Vec<f64> {
        let Heads { n_heads, n_kv_heads, head_dim, .. } = self.heads;
        let round = |x: f32| match element {
            Element::F16 => f16::from_f32(x).to_f64(),
            _ => x as f64,
        };
        let mut out = Vec::new();
        for head in 0..n_heads {
            let kv = head / (n_heads / n_kv_heads);
            let q = &self.q[(row * n_heads + head) * head_dim..][..head_dim];
            let seen: Vec<usize> = (0..self.n).filter(|&i| sees(i)).collect();
            let scores: Vec<f64> = seen
                .iter()
                .map(|i| {
                    let k = &self.k[(i * n_kv_heads + kv) * head_dim..][..head_dim];
                    let dot: f64 = q.iter().zip(k).map(|(&q, &k)| q as f64 * round(k)).sum();
                    dot * self.heads.scale() as f64
                })
                .collect();
            let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
            let sum: f64 = weights.iter().sum();
            for dim in 0..head_dim {
                let value = |i: &usize| round(self.v[(i * n_kv_heads + kv) * head_dim + dim]);
                out.push(seen.iter().zip(&weights).map(|(i, w)| w * value(i)).sum::<f64>() / sum);
            }
        }
        out
    }
}

pub fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// A random tree: each row follows an earlier row or none.
pub fn random_parents(random: &mut Random, n_rows: usize) -> Vec<Option<usize>> {
    (0..n_rows).map(|row| random.below(row + 1).checked_sub(1)).collect()
}

/// The rows of a tree from its root to one of them.
pub fn path_to(parents: &[Option<usize>], row: usize) -> Vec<usize> {
    let mut path: Vec<usize> = std::iter::successors(Some(row), |&row| parents[row]).collect();
    path.reverse();
    path
}
