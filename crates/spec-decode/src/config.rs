use breakers_core::{FinishReason, SamplingConfig, TokenId, TokenScore};

use crate::Stats;

/// How many tokens to draft in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DraftLength {
    /// As many as the drafter proposes, up to this number. Runs are reproducible in everything except their
    /// times.
    Fixed(usize),
    /// As many as pay off according to measured costs, possibly 0. Since this depends on the clock,
    /// statistics differ from run to run. Tokens do not, unless both the target and the drafter sample; even
    /// then their distribution is the same.
    Adaptive {
        /// The most draft tokens in a step.
        max: usize,
    },
}

impl DraftLength {
    /// The most draft tokens in a step.
    pub fn max(self) -> usize {
        match self {
            DraftLength::Fixed(n) | DraftLength::Adaptive { max: n } => n,
        }
    }
}

/// What happens to a constrained text at the limit of its tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum AtLimit {
    /// It has come to its end by then: no token is taken behind which no way to the end fits into what is
    /// left. A limit that no text fits into is an error before anything is generated. Constraints that know
    /// no way ([`Constraint::completion`](breakers_core::Constraint::completion)) are cut.
    #[default]
    Complete,
    /// It is cut there, and may break off anywhere.
    Cut,
}

/// Settings of a text.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The most new tokens.
    pub max_tokens: usize,
    /// How to choose the target's tokens.
    pub sampling: SamplingConfig,
    /// Seed of all random choices.
    pub seed: u64,
    /// Tokens that end the text and are part of it. `None`: those of the target's
    /// [`ModelInfo`](breakers_core::ModelInfo).
    pub end_tokens: Option<Vec<TokenId>>,
    /// How many tokens to draft.
    pub draft_length: DraftLength,
    /// `Some(n)`: report the log-probability of each token and the `n` most likely tokens in its place.
    /// `None`: report neither.
    pub top_logprobs: Option<usize>,
    /// What happens to a constrained text at the limit of its tokens.
    pub at_limit: AtLimit,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_tokens: 256,
            sampling: SamplingConfig::greedy(),
            seed: 0,
            end_tokens: None,
            draft_length: DraftLength::Adaptive { max: 16 },
            top_logprobs: None,
            at_limit: AtLimit::default(),
        }
    }
}

impl Config {
    /// The published setting for a draft model: a fixed length of 4.
    ///
    /// # Source
    /// Chen et al. (arXiv 2302.01318), table 1.
    pub fn paper() -> Self {
        Self { draft_length: DraftLength::Fixed(4), ..Self::default() }
    }
}

/// A finished continuation.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Speculated {
    /// Tokens produced, including the end token.
    pub tokens: Vec<TokenId>,
    /// How likely each was; empty unless [`Config::top_logprobs`] asks for it.
    pub scores: Vec<TokenScore>,
    /// Why the text ended.
    pub finish: FinishReason,
    /// Statistics of the run.
    pub stats: Stats,
}
