//! How well a model predicts given text: log-likelihoods and perplexity.

use breakers_core::{
    LanguageModel, Output, Result, SequenceId, Step, StepError, TokenId, TokenLogprob, Want, log_sum_exp,
    top_k,
};

/// A given token and what the model thought of its place.
#[derive(Clone, Debug, PartialEq)]
pub struct ScoredToken {
    /// The token that was given.
    pub token: TokenId,
    /// Its log-probability, in nats.
    pub logprob: f32,
    /// The most likely tokens of that place, best first.
    pub top: Vec<TokenLogprob>,
}

/// Log-probabilities of a given continuation (teacher forcing).
///
/// # Shapes
/// `prompt`: at least one token. `n_rows`: tokens fed in one forward pass, at least one; the result does not
/// depend on it. `n_top`: how many alternatives are listed for each place. Result: one entry for each token of
/// `continuation`.
///
/// # Errors
/// [`StepError::Empty`] for an empty prompt, and those of [`LanguageModel::forward`].
pub fn score(
    model: &mut impl LanguageModel,
    prompt: &[TokenId],
    continuation: &[TokenId],
    n_rows: usize,
    n_top: usize,
) -> Result<Vec<ScoredToken>> {
    with_sequence(model, |model, sequence| {
        if prompt.is_empty() {
            return Err(StepError::Empty.into());
        }
        let mut tokens = prompt.to_vec();
        tokens.extend_from_slice(continuation);
        let mut scored = Vec::with_capacity(continuation.len());
        visit(model, sequence, &tokens, prompt.len() - 1, n_rows, |token, logits| {
            let z = log_sum_exp(logits);
            let logprob = (logits[token as usize] as f64 - z) as f32;
            scored.push(ScoredToken { token, logprob, top: top_k(logits, n_top)? });
            Ok(())
        })?;
        Ok(scored)
    })
}

/// Perplexity of a text.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Perplexity {
    /// exp of the mean negative log-likelihood.
    pub perplexity: f64,
    /// Mean negative log-likelihood, in nats a token.
    pub nll: f64,
    /// Tokens that counted.
    pub n_tokens: usize,
}

/// Rows fed at a time: bounds the memory of their logits.
pub(crate) const WINDOW_ROWS: usize = 128;

/// Perplexity over non-overlapping windows, as llama.cpp's `perplexity` program defines it.
///
/// The text is cut into windows of `context` tokens, a remainder is dropped. With `bos`, the first token of
/// each window is replaced by it. Of each window the `context`/2 − 1 targets of its second half count, so that
/// each has at least half a window in front of it.
///
/// `progress` is told (windows done, windows in all).
///
/// # Errors
/// [`StepError::OutOfRange`] if the text is shorter than one window or the window shorter than 4 tokens, and those
/// of [`LanguageModel::forward`].
pub fn perplexity(
    model: &mut impl LanguageModel,
    tokens: &[TokenId],
    context: usize,
    bos: Option<TokenId>,
    mut progress: impl FnMut(usize, usize),
) -> Result<Perplexity> {
    if context < 4 {
        return Err(StepError::OutOfRange {
            what: "tokens in a window (4 at least)",
            requested: context,
            available: 4,
        }
        .into());
    }
    if tokens.len() < context {
        return Err(StepError::OutOfRange {
            what: "tokens of text for one window",
            requested: context,
            available: tokens.len(),
        }
        .into());
    }
    let n_windows = tokens.len() / context;
    let (mut sum, mut n_tokens) = (0.0, 0);
    for (i, window) in tokens.chunks_exact(context).enumerate() {
        let mut window = window.to_vec();
        if let Some(bos) = bos {
            window[0] = bos;
        }
        with_sequence(model, |model, sequence| {
            visit(model, sequence, &window, context / 2, WINDOW_ROWS, |token, logits| {
                sum += log_sum_exp(logits) - logits[token as usize] as f64;
                n_tokens += 1;
                Ok(())
            })
        })?;
        progress(i + 1, n_windows);
    }
    let nll = sum / n_tokens as f64;
    Ok(Perplexity { perplexity: nll.exp(), nll, n_tokens })
}

/// Opens a sequence for the length of a closure.
pub(crate) fn with_sequence<M: LanguageModel, R>(
    model: &mut M,
    f: impl FnOnce(&mut M, SequenceId) -> Result<R>,
) -> Result<R> {
    let sequence = model.open()?;
    let result = f(model, sequence);
    model.close(sequence);
    result
}

/// Feeds all tokens but the last, and shows the logits of rows `first..` together with the token that
/// followed each.
pub(crate) fn visit(
    model: &mut impl LanguageModel,
    sequence: SequenceId,
    tokens: &[TokenId],
    first: usize,
    n_rows: usize,
    mut see: impl FnMut(TokenId, &[f32]) -> Result<()>,
) -> Result<()> {
    let fed = tokens.len() - 1;
    let mut from = 0;
    while from < fed {
        let to = fed.min(from + n_rows.max(1));
        let mut steps = [Step::each(sequence, tokens[from..to].to_vec(), Want::Logits)];
        let n_wanted = to - first.clamp(from, to);
        steps[0].wants.truncate(n_wanted);
        model.forward(&mut steps)?;
        model.commit(sequence, to - from)?;
        for (next, row) in tokens[from + 1..].iter().zip(&steps[0].outputs) {
            if let Output::Logits(logits) = &row.output {
                see(*next, logits)?;
            }
        }
        from = to;
    }
    Ok(())
}
