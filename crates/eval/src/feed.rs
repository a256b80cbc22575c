//! Feeding a given text to a model, and looking at its predictions.

use breakers_core::{Error, LanguageModel, Output, SequenceId, Step, TokenId, Want};

use crate::Result;

/// Rows fed at a time. This bounds the memory for their logits.
pub(crate) const WINDOW_ROWS: usize = 128;

/// Opens a sequence while a closure runs.
pub(crate) fn with_sequence<M: LanguageModel + ?Sized, R>(
    model: &mut M,
    f: impl FnOnce(&mut M, SequenceId) -> Result<R>,
) -> Result<R> {
    let sequence = model.open()?;
    let result = f(model, sequence);
    model.close(sequence);
    result
}

/// Checks token ids, including those of tokens that are never fed.
pub(crate) fn check_tokens<'t>(
    model: &(impl LanguageModel + ?Sized),
    tokens: impl IntoIterator<Item = &'t TokenId>,
) -> Result<()> {
    let vocab_size = model.info().vocab_size;
    match tokens.into_iter().find(|&&token| token as usize >= vocab_size) {
        Some(&token) => Err(Error::InvalidToken { token, vocab_size }.into()),
        None => Ok(()),
    }
}

/// Feeds all tokens but the last, and calls the closure with the logits of each row from `first` on and the
/// token that follows it.
pub(crate) fn visit(
    model: &mut (impl LanguageModel + ?Sized),
    sequence: SequenceId,
    tokens: &[TokenId],
    first: usize,
    n_rows: usize,
    mut see: impl FnMut(TokenId, &[f32]) -> Result<()>,
) -> Result<()> {
    let fed = tokens.len().saturating_sub(1);
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

/// Cuts a text into non-overlapping windows of `context` tokens and drops the remainder. If `bos` is given,
/// it replaces the first token of each window.
///
/// # Errors
/// [`StepError::OutOfRange`](breakers_core::StepError::OutOfRange) if the text is shorter than one window or
/// the window shorter than 4 tokens.
pub(crate) fn windows(tokens: &[TokenId], context: usize, bos: Option<TokenId>) -> Result<Vec<Vec<TokenId>>> {
    for (what, available, requested) in [
        ("tokens in a window (4 at least)", context, 4),
        ("tokens of text for one window", tokens.len(), context),
    ] {
        if available < requested {
            let error = breakers_core::StepError::OutOfRange { what, requested, available };
            return Err(Error::from(error).into());
        }
    }
    let window = |window: &[TokenId]| {
        let mut window = window.to_vec();
        if let Some(bos) = bos {
            window[0] = bos;
        }
        window
    };
    Ok(tokens.chunks_exact(context).map(window).collect())
}
