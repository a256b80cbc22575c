//! Feeding given text to a model, and seeing its predictions.

use breakers_core::{Error, LanguageModel, Output, SequenceId, Step, TokenId, Want};

use crate::Result;

/// Rows fed at a time: bounds the memory of their logits.
pub(crate) const WINDOW_ROWS: usize = 128;

/// Opens a sequence for the length of a closure.
pub(crate) fn with_sequence<M: LanguageModel + ?Sized, R>(
    model: &mut M,
    f: impl FnOnce(&mut M, SequenceId) -> Result<R>,
) -> Result<R> {
    let sequence = model.open()?;
    let result = f(model, sequence);
    model.close(sequence);
    result
}

/// Checks ids, also of tokens that are never fed.
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

/// Feeds all tokens but the last, and shows the logits of rows `first..` together with the token that
/// followed each.
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

/// Cuts a text into windows of `context` tokens that do not overlap; a remainder is dropped. With `bos`, the
/// first token of each is replaced by it.
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
