//! Where the matrices of a block read their inputs, and who may watch.

use breakers_core::BoxError;

/// A place in a transformer's block where matrices read their inputs; matrices of one place share them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum InputSite {
    /// Queries, keys and values.
    Attention,
    /// The projection behind attention.
    AttentionOut,
    /// Gate and up projection.
    FeedForward,
    /// The down projection.
    FeedForwardOut,
}

impl InputSite {
    /// All places, in the order in which a block comes through them.
    pub const ALL: [InputSite; 4] =
        [InputSite::Attention, InputSite::AttentionOut, InputSite::FeedForward, InputSite::FeedForwardOut];

    /// The matrices' names in GGUF files, behind `blk.N.`
    pub fn matrices(self) -> &'static [&'static str] {
        match self {
            InputSite::Attention => &["attn_q.weight", "attn_k.weight", "attn_v.weight"],
            InputSite::AttentionOut => &["attn_output.weight"],
            InputSite::FeedForward => &["ffn_gate.weight", "ffn_up.weight"],
            InputSite::FeedForwardOut => &["ffn_down.weight"],
        }
    }
}

/// Whom a model shows the inputs of its matrices: statistics for quantizers, for one.
pub trait InputObserver {
    /// Sees rows of inputs `[n, n_cols]`.
    ///
    /// # Errors
    /// Its own; the forward pass ends with it.
    fn observe(&mut self, site: InputSite, rows: &[f32], n_cols: usize) -> Result<(), BoxError>;
}
