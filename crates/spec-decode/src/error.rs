use breakers_core::{SamplingError, TokenId, Want};

use crate::TokenizerFingerprint;

/// Result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong in speculative decoding.
///
/// After any error the target's sequence holds the prompt and the tokens produced so far except the last one,
/// all final: provisional tokens have been removed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The model whose text is generated failed.
    #[error("the target model failed: {0}")]
    Target(#[source] breakers_core::Error),
    /// The model that drafts failed.
    #[error("the draft model failed: {0}")]
    Draft(#[source] breakers_core::Error),
    /// Logits cannot be sampled from, or sampling parameters are out of range.
    #[error(transparent)]
    Sampling(#[from] SamplingError),
    /// The constraint of the text failed, or allows no token.
    #[error(transparent)]
    Constraint(#[from] breakers_core::ConstraintError),
    /// The draft model and the target model have different tokenizers, so the draft's ids would mean
    /// something else.
    #[error("the draft model's tokenizer differs from the target's: expected {expected}, found {found}")]
    TokenizerMismatch {
        /// The target's tokenizer.
        expected: TokenizerFingerprint,
        /// The draft model's.
        found: TokenizerFingerprint,
    },
    /// No drafter has this name.
    #[error("unknown drafter {name:?}; known: {known}")]
    UnknownDrafter {
        /// The name asked for.
        name: String,
        /// Names that exist.
        known: String,
    },
    /// The prompt has no tokens to predict from.
    #[error("the prompt is empty; it needs at least one token")]
    EmptyPrompt,
    /// The sequence already holds the whole prompt, so there is no row left to predict from.
    #[error(
        "the sequence holds {held} tokens and the prompt has {prompt}; at least one must be left to feed"
    )]
    NothingToFeed {
        /// Tokens in the sequence.
        held: usize,
        /// Tokens in the prompt, including those in the sequence.
        prompt: usize,
    },
    /// The sequence ends in provisional tokens that another caller has fed.
    #[error("the sequence holds {held} tokens but only {committed} are final; commit or truncate the others")]
    ProvisionalTokens {
        /// Final tokens.
        committed: usize,
        /// All tokens.
        held: usize,
    },
    /// A drafter proposed more than it was asked for.
    #[error("the draft has {found} tokens, at most {expected} were asked for")]
    DraftTooLong {
        /// The most that was asked for.
        expected: usize,
        /// What was proposed.
        found: usize,
    },
    /// A drafter proposed an id that the target does not have.
    #[error("draft token {token} is outside of the target's vocabulary of {vocab_size}")]
    DraftToken {
        /// The id proposed.
        token: TokenId,
        /// Ids below this are valid.
        vocab_size: usize,
    },
    /// A vector of a draft does not match its number of tokens.
    #[error("a draft's {what} have {found} entries for {expected} tokens")]
    DraftShape {
        /// Which vector.
        what: &'static str,
        /// Number of tokens in the draft.
        expected: usize,
        /// Entries found.
        found: usize,
    },
    /// A draft token names a parent that does not come before it.
    #[error("draft token {row} names token {parent} as its parent; a parent must stand before its child")]
    DraftParent {
        /// Index of the token in the draft.
        row: usize,
        /// The parent it names.
        parent: usize,
    },
    /// A drafter says that it drew a token from a distribution that cannot give it.
    #[error("draft token {row} ({token}) has probability 0 in the distribution that it was drawn from")]
    ImpossibleProposal {
        /// Index of the token in the draft.
        row: usize,
        /// The token.
        token: TokenId,
    },
    /// A limit that no text of the constraint fits into; nothing was fed.
    #[error("the constraint needs at least {minimum} tokens, and {limit} are allowed")]
    TooFewTokens {
        /// Tokens of the shortest text that is known, its end token included.
        minimum: usize,
        /// Tokens allowed, by [`Config::max_tokens`](crate::Config::max_tokens) or by the model's context.
        limit: usize,
    },
    /// A model that says that it looks at masks answered with a token that the row's mask does not hold.
    #[error("row {row} came back with token {token}, which its mask does not hold")]
    OutsideMask {
        /// The row.
        row: usize,
        /// The token.
        token: TokenId,
    },
    /// A model did not answer what was wanted of a row.
    #[error("row {row} of {rows} came back without the {want:?} that was asked for")]
    MissingOutput {
        /// The row.
        row: usize,
        /// Rows fed.
        rows: usize,
        /// What was asked for.
        want: Want,
    },
}
