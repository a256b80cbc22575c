//! Presses: which tokens stay in the cache.
//!
//! A press gives every token of every key-value head a score. Each head keeps the tokens with its highest
//! scores.
//!
//! | file | keeps the tokens |
//! |---|---|
//! | `snapkv` | that the last queries attend to, with their neighbors |
//! | `streaming_llm` | at the beginning and at the end |
//! | `h2o` | that all queries attended to |
//! | `tova` | that the last query attends to |
//! | `knorm` | with short keys |
//! | `key_diff` | with keys unlike the others |
//! | `expected_attention` | that queries like the last ones are expected to attend to |
//! | `random` | drawn at random: the baseline for every press |
//! | `budgets` | PyramidKV and AdaKV: how the budget is divided among layers and heads |
//!
//! [`EvictingCache`](crate::EvictingCache) uses them.

mod budgets;
mod expected_attention;
mod h2o;
mod key_diff;
mod knorm;
mod random;
mod snapkv;
mod streaming_llm;
mod table;
mod tova;

pub use budgets::{HeadBudgets, LayerBudgets};
pub use expected_attention::ExpectedAttention;
pub use h2o::H2o;
pub use key_diff::KeyDiff;
pub use knorm::Knorm;
pub use random::RandomPress;
pub use snapkv::{SnapKv, SnapKvConfig};
pub use streaming_llm::StreamingLlm;
pub use table::{Entry, PRESSES};
pub use tova::Tova;

/// Keys and values of one layer, and the queries that a press asked for.
pub struct LayerView<'a> {
    /// Elements of a head.
    pub head_dim: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Factor on the scores, 1 / √head_dim in most models.
    pub scale: f32,
    /// One for each key-value head.
    pub heads: Vec<HeadView>,
    /// The last queries, `[n_queries, n_heads, head_dim]`; the last one is the last token's.
    pub queries: &'a [f32],
    /// Position of the last token.
    pub last_position: usize,
}

/// Keys and values of one head.
pub struct HeadView {
    /// `[n_tokens, head_dim]`
    pub keys: Vec<f32>,
    /// `[n_tokens, head_dim]`
    pub values: Vec<f32>,
    /// Places of the tokens in the text, ascending.
    pub positions: Vec<usize>,
}

impl LayerView<'_> {
    /// Number of queries.
    pub fn n_queries(&self) -> usize {
        self.queries.len() / (self.n_heads * self.head_dim)
    }

    /// Calls `see` with the attention of each of the last `n_queries` queries, of each query head that reads
    /// key-value head `head`, over the head's tokens: weights that sum to 1, zero for later tokens.
    pub fn attention(&self, head: usize, n_queries: usize, mut see: impl FnMut(usize, &[f32])) {
        let (dim, group) = (self.head_dim, self.n_heads / self.heads.len());
        let HeadView { keys, positions, .. } = &self.heads[head];
        let n_queries = n_queries.min(self.n_queries());
        let mut weights = vec![0.0f32; positions.len()];
        for query in 0..n_queries {
            let row = self.n_queries() - n_queries + query;
            let position = (self.last_position + 1 + query).saturating_sub(n_queries);
            let n_seen = positions.partition_point(|&p| p <= position);
            for member in 0..group {
                let q = &self.queries[(row * self.n_heads + head * group + member) * dim..][..dim];
                let mut most = f32::MIN;
                for (weight, key) in weights[..n_seen].iter_mut().zip(keys.chunks_exact(dim)) {
                    *weight = self.scale * dot(q, key);
                    most = most.max(*weight);
                }
                let mut sum = 0.0;
                for weight in &mut weights[..n_seen] {
                    *weight = (*weight - most).exp();
                    sum += *weight;
                }
                weights[..n_seen].iter_mut().for_each(|weight| *weight /= sum);
                weights[n_seen..].fill(0.0);
                see(query, &weights);
            }
        }
    }
}

/// A method that decides which tokens may be evicted.
///
/// # Example
/// ```
/// use breakers_kv_cache::presses::{HeadView, LayerView, Press};
///
/// /// Keeps every second token.
/// struct Alternate;
///
/// impl Press for Alternate {
///     fn name(&self) -> String {
///         "alternate".to_owned()
///     }
///     fn scores(&self, layer: &LayerView<'_>) -> Vec<Vec<f32>> {
///         let score = |position: &usize| (position % 2) as f32;
///         layer.heads.iter().map(|head| head.positions.iter().map(score).collect()).collect()
///     }
/// }
/// assert_eq!(Alternate.n_queries(), 0);
/// ```
pub trait Press: Send + Sync {
    /// A name for reports.
    fn name(&self) -> String;

    /// How many of the last queries it looks at; `usize::MAX`: all of them.
    fn n_queries(&self) -> usize {
        0
    }

    /// How many of the newest tokens it keeps whatever their score.
    fn window(&self) -> usize {
        0
    }

    /// A score for each head's tokens: the higher, the more it is worth keeping. Infinite: the token stays.
    fn scores(&self, layer: &LayerView<'_>) -> Vec<Vec<f32>>;
}

/// The dot product, in eight parts so that the compiler can vectorize it.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0f32; 8];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    for (a, b) in a.iter().zip(b) {
        for i in 0..8 {
            sums[i] += a[i] * b[i];
        }
    }
    sums.iter().sum::<f32>() + a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum::<f32>()
}

/// Gives the last `n` scores the greatest value.
fn keep_last(scores: &mut [f32], n: usize) {
    let first = scores.len().saturating_sub(n);
    scores[first..].fill(f32::INFINITY);
}
