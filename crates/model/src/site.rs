//! Where the matrices of a block read their inputs, and how to observe them.

use breakers_core::BoxError;

/// A place in a transformer block where matrices read their inputs. Matrices of one place have the same
/// inputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum InputSite {
    /// Queries, keys and values.
    Attention,
    /// The projection after attention.
    AttentionOut,
    /// Gate and up projection.
    FeedForward,
    /// The down projection.
    FeedForwardOut,
}

impl InputSite {
    /// All places, in the order in which a block computes them.
    pub const ALL: [InputSite; 4] =
        [InputSite::Attention, InputSite::AttentionOut, InputSite::FeedForward, InputSite::FeedForwardOut];

    /// The matrices' names in GGUF files, after `blk.N.`
    pub fn matrices(self) -> &'static [&'static str] {
        match self {
            InputSite::Attention => &["attn_q.weight", "attn_k.weight", "attn_v.weight"],
            InputSite::AttentionOut => &["attn_output.weight"],
            InputSite::FeedForward => &["ffn_gate.weight", "ffn_up.weight"],
            InputSite::FeedForwardOut => &["ffn_down.weight"],
        }
    }
}

/// Something that sees the inputs of a model's matrices, such as the statistics that quantizers use.
pub trait InputObserver {
    /// Sees rows of inputs `[n, n_cols]`.
    ///
    /// # Errors
    /// Its own errors, which end the forward pass.
    fn observe(&mut self, site: InputSite, rows: &[f32], n_cols: usize) -> Result<(), BoxError>;
}
