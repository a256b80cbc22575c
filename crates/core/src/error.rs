use crate::{SequenceId, TokenId};

/// Any error of an engine underneath, kept as the source of [`Error::Engine`].
pub type BoxError = Box<dyn std::error::Error + Send + Sync + 'static>;

/// Result of this crate's traits.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong when a [`LanguageModel`](crate::LanguageModel) is driven.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The sequence was never opened, or has been closed.
    #[error("unknown sequence {sequence:?}: it was never opened or is closed already")]
    UnknownSequence {
        /// The sequence named in the call.
        sequence: SequenceId,
    },
    /// One sequence stands twice in a single forward pass.
    #[error("sequence {sequence:?} appears twice in one forward pass; put its tokens into one step")]
    DuplicateSequence {
        /// The sequence named twice.
        sequence: SequenceId,
    },
    /// A token id is outside of the vocabulary.
    #[error("token {token} is outside of the vocabulary of {vocab_size}")]
    InvalidToken {
        /// The token received.
        token: TokenId,
        /// Size of the vocabulary; ids below it are valid.
        vocab_size: usize,
    },
    /// The step holds no token.
    #[error("a step for sequence {sequence:?} holds no tokens")]
    EmptyStep {
        /// The sequence of the step.
        sequence: SequenceId,
    },
    /// A step's per-row vectors do not fit its tokens.
    #[error("{what} has {found} entries for {expected} tokens")]
    RowCount {
        /// Which field of the step.
        what: &'static str,
        /// Number of tokens in the step.
        expected: usize,
        /// Entries found.
        found: usize,
    },
    /// A tree parent does not stand before its child.
    #[error("row {row} names row {parent} as its parent; a parent must stand before its child")]
    InvalidParent {
        /// The row in question.
        row: usize,
        /// The parent it names.
        parent: usize,
    },
    /// The sequence would outgrow the model's context.
    #[error("{needed} tokens do not fit into the context of {limit}")]
    ContextFull {
        /// Tokens that the sequence would hold.
        needed: usize,
        /// Tokens that it may hold.
        limit: usize,
    },
    /// A length is beyond what the sequence holds.
    #[error("{what}: {requested} asked for, {available} there")]
    OutOfRange {
        /// The operation.
        what: &'static str,
        /// What was asked for.
        requested: usize,
        /// What the sequence has.
        available: usize,
    },
    /// Tokens to be taken back are final already, and this cache cannot undo them.
    #[error("cannot truncate to {requested} tokens: {evicted_from} and later were compressed or evicted")]
    TruncateEvicted {
        /// Length asked for.
        requested: usize,
        /// First token index that cannot be restored.
        evicted_from: usize,
    },
    /// The model cannot do what a step asks for.
    #[error("{model} does not support {feature}")]
    Unsupported {
        /// The model's name.
        model: String,
        /// What was asked for.
        feature: &'static str,
    },
    /// Sampling failed.
    #[error(transparent)]
    Sampling(#[from] crate::SamplingError),
    /// The engine underneath failed.
    #[error("the engine failed: {0}")]
    Engine(#[source] BoxError),
}
