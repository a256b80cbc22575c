//! How well a model predicts given text: log-likelihoods and perplexity.
//!
//! # Example
//! ```
//! use breakers_core::LanguageModel;
//! use breakers_eval::score::{perplexity, score};
//!
//! fn report(model: &mut impl LanguageModel, text: &[u32]) -> breakers_eval::Result<()> {
//!     let (prompt, rest) = text.split_at(1);
//!     let total: f32 = score(model, prompt, rest, 128, 0)?.iter().map(|token| token.logprob).sum();
//!     let result = perplexity(model, text, 512, None, |_done, _all| ())?;
//!     println!("{total} nats; perplexity {:.2} over {} tokens", result.perplexity, result.n_tokens);
//!     Ok(())
//! }
//! ```

use breakers_core::{
    Error as CoreError, LanguageModel, StepError, TokenId, TokenLogprob, log_probability, top_k,
};

use crate::feed::{WINDOW_ROWS, check_tokens, visit, windows, with_sequence};
use crate::{Error, Result};

/// A given token, and what the model predicted in its place.
#[derive(Clone, Debug, PartialEq)]
pub struct ScoredToken {
    /// The token that was given.
    pub token: TokenId,
    /// Its log-probability, in nats.
    pub logprob: f32,
    /// The most likely tokens in that place, best first.
    pub top: Vec<TokenLogprob>,
}

/// Log-probabilities of a given continuation (teacher forcing).
///
/// # Shapes
/// `prompt`: at least one token. `n_rows`: tokens fed in one forward pass, at least one; the result does not
/// depend on it. `n_top`: how many alternatives are listed for each place. Result: one entry for each
/// token of `continuation`.
///
/// # Errors
/// [`StepError::Empty`] for an empty prompt; [`breakers_core::Error::InvalidToken`] for any token outside of
/// the vocabulary, even one that is never fed; [`breakers_core::SamplingError::NotFinite`]; and those of
/// [`LanguageModel::forward`].
pub fn score(
    model: &mut impl LanguageModel,
    prompt: &[TokenId],
    continuation: &[TokenId],
    n_rows: usize,
    n_top: usize,
) -> Result<Vec<ScoredToken>> {
    if prompt.is_empty() {
        return Err(CoreError::from(StepError::Empty).into());
    }
    check_tokens(model, prompt.iter().chain(continuation))?;
    let tokens = [prompt, continuation].concat();
    let mut scored = Vec::with_capacity(continuation.len());
    with_sequence(model, |model, sequence| {
        visit(model, sequence, &tokens, prompt.len() - 1, n_rows, |token, logits| {
            let logprob = log_probability(logits, token).map_err(CoreError::from)? as f32;
            let top = top_k(logits, n_top).map_err(CoreError::from)?;
            scored.push(ScoredToken { token, logprob, top });
            Ok(())
        })
    })?;
    Ok(scored)
}

/// Perplexity of a text.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Perplexity {
    /// exp of the mean negative log-likelihood.
    pub perplexity: f64,
    /// Mean negative log-likelihood, in nats a token.
    pub nll: f64,
    /// Number of tokens that were counted.
    pub n_tokens: usize,
}

/// Perplexity over non-overlapping windows, as llama.cpp's `perplexity` program defines it.
///
/// The text is cut into windows of `context` tokens, and the remainder is dropped. If `bos` is given, it
/// replaces the first token of each window. Only the `context`/2 − 1 targets in the second half of each
/// window count, so that each has at least half a window before it.
///
/// `progress` is told (windows done, windows in all).
///
/// # Errors
/// [`StepError::OutOfRange`] if the text is shorter than one window or the window shorter than 4 tokens;
/// [`breakers_core::Error::InvalidToken`]; [`breakers_core::SamplingError::NotFinite`] for logits that are
/// not finite; [`Error::Impossible`] for a token that the model excludes; and those of
/// [`LanguageModel::forward`].
pub fn perplexity(
    model: &mut impl LanguageModel,
    tokens: &[TokenId],
    context: usize,
    bos: Option<TokenId>,
    mut progress: impl FnMut(usize, usize),
) -> Result<Perplexity> {
    let windows = windows(tokens, context, bos)?;
    check_tokens(model, windows.iter().flatten())?;
    let (mut sum, mut n_tokens) = (0.0, 0);
    for (i, window) in windows.iter().enumerate() {
        with_sequence(model, |model, sequence| {
            visit(model, sequence, window, context / 2, WINDOW_ROWS, |token, logits| {
                sum += surprise(logits, token)?;
                n_tokens += 1;
                Ok(())
            })
        })?;
        progress(i + 1, windows.len());
    }
    let nll = sum / n_tokens as f64;
    Ok(Perplexity { perplexity: nll.exp(), nll, n_tokens })
}

/// Negative log-likelihood of a token, in nats; always finite.
pub(crate) fn surprise(logits: &[f32], token: TokenId) -> Result<f64> {
    match -log_probability(logits, token).map_err(CoreError::from)? {
        f64::INFINITY => Err(Error::Impossible { token }),
        nats => Ok(nats),
    }
}
