use std::sync::Arc;

use crate::{Result, StepError, TokenId, TokenMask};

/// Names one sequence of a [`LanguageModel`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId(pub u64);

/// Facts about a model that callers need for planning.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ModelInfo {
    /// The model's name, for messages.
    pub name: String,
    /// Number of token ids; logits have this length.
    pub vocab_size: usize,
    /// The most tokens that one sequence may hold.
    pub max_context: usize,
    /// Number of transformer blocks.
    pub n_layers: usize,
    /// Width of the hidden state.
    pub hidden_size: usize,
    /// Token ids that end a text.
    pub end_tokens: Vec<TokenId>,
    /// Whether [`Want::ArgMax`] is answered with the most likely token of a row's mask ([`Step::masks`]).
    /// Where it is not, a caller with a mask wants logits, and applies the mask itself.
    pub masked_argmax: bool,
}

impl ModelInfo {
    /// The facts that every model has. Assign to the other fields to fill them in.
    pub fn new(name: impl Into<String>, vocab_size: usize, max_context: usize) -> Self {
        Self {
            name: name.into(),
            vocab_size,
            max_context,
            n_layers: 0,
            hidden_size: 0,
            end_tokens: Vec::new(),
            masked_argmax: false,
        }
    }
}

/// What is wanted for one row (one token) of a step: something about the *next* token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Want {
    /// Nothing: the row only extends the sequence, and the output head is not computed for it.
    #[default]
    Nothing,
    /// The most likely next token; among equal logits, the one with the lowest id.
    ArgMax,
    /// The `k` most likely next tokens with their log-probabilities.
    TopK(usize),
    /// All logits, copied to the host.
    Logits,
}

/// A place in the network whose hidden state is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LayerTap {
    /// The residual stream after block `i` (0-based).
    AfterBlock(usize),
    /// After the final norm, as the head sees it.
    Final,
}

/// A token and its log-probability, in nats.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenLogprob {
    /// The token.
    pub token: TokenId,
    /// Natural logarithm of its probability under the model's full softmax.
    pub logprob: f32,
}

/// The answer to a [`Want`].
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub enum Output {
    /// Nothing was wanted.
    #[default]
    Nothing,
    /// The most likely next token.
    ArgMax(TokenId),
    /// The most likely next tokens, best first; equal logits in ascending order of id.
    TopK(Vec<TokenLogprob>),
    /// Logits, one for each id of the vocabulary.
    Logits(Vec<f32>),
}

impl Output {
    /// The most likely token, whatever form the answer has.
    ///
    /// `None` for [`Output::Nothing`], an empty top-k and logits that hold a NaN.
    pub fn best(&self) -> Option<TokenId> {
        match self {
            Output::Nothing => None,
            Output::ArgMax(token) => Some(*token),
            Output::TopK(best) => best.first().map(|b| b.token),
            Output::Logits(logits) => crate::argmax(logits).ok(),
        }
    }
}

/// Everything that a forward pass returns for one row.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RowOutput {
    /// The answer to the row's [`Want`].
    pub output: Output,
    /// One hidden state `[hidden_size]` for each of the step's taps, in their order.
    pub hidden: Vec<Vec<f32>>,
}

/// The tokens of one sequence in a forward pass, and what is wanted of them.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// The sequence that the tokens extend.
    pub sequence: SequenceId,
    /// Tokens to feed, one row each.
    pub tokens: Vec<TokenId>,
    /// `None`: a chain, each token follows the one before. Otherwise, for each token, the row of its
    /// parent in this step (`None`: it follows what the sequence holds already). A row sees what the
    /// sequence held before the step, its ancestors and itself; siblings share a position.
    pub parents: Option<Vec<Option<usize>>>,
    /// What is wanted of each row. If it is shorter than `tokens`, the leading rows want nothing, so a prompt
    /// needs only one entry, for its last token.
    pub wants: Vec<Want>,
    /// The tokens that the next one is chosen from, row by row; `None`: any. Shorter than `tokens`: the
    /// missing leading rows have none. A mask saves work and never changes a number:
    ///
    /// - With [`Want::ArgMax`] the answer is the most likely token of the mask, if
    ///   [`ModelInfo::masked_argmax`] says so; such a row must not have a mask otherwise.
    /// - With [`Want::Logits`] a model may leave tokens outside of the mask out, and answer −∞ for them. The
    ///   logits of the others have the bits that they have without a mask. Or it ignores the mask.
    /// - With [`Want::TopK`] the mask is ignored: log-probabilities are of the whole vocabulary.
    pub masks: Vec<Option<Arc<TokenMask>>>,
    /// Hidden states wanted of every row.
    pub taps: Vec<LayerTap>,
    /// Filled by [`LanguageModel::forward`]: one entry for each token.
    pub outputs: Vec<RowOutput>,
}

impl Step {
    /// A chain of tokens of which only the last has an output (a prompt, or a step of plain decoding).
    pub fn last(sequence: SequenceId, tokens: Vec<TokenId>, want: Want) -> Self {
        Self::new(sequence, tokens, vec![want])
    }

    /// A chain of tokens that all have the same kind of output (verification, scoring).
    pub fn each(sequence: SequenceId, tokens: Vec<TokenId>, want: Want) -> Self {
        let wants = vec![want; tokens.len()];
        Self::new(sequence, tokens, wants)
    }

    fn new(sequence: SequenceId, tokens: Vec<TokenId>, wants: Vec<Want>) -> Self {
        let (masks, taps, outputs) = (Vec::new(), Vec::new(), Vec::new());
        Self { sequence, tokens, parents: None, wants, masks, taps, outputs }
    }

    /// What is wanted of row `row`.
    pub fn want(&self, row: usize) -> Want {
        let missing = self.tokens.len().saturating_sub(self.wants.len());
        if row < missing { Want::Nothing } else { self.wants.get(row - missing).copied().unwrap_or_default() }
    }

    /// The tokens that the one after row `row` is chosen from; `None`: any.
    pub fn mask(&self, row: usize) -> Option<&Arc<TokenMask>> {
        let missing = self.tokens.len().saturating_sub(self.masks.len());
        self.masks.get(row.checked_sub(missing)?)?.as_ref()
    }

    /// Checks what can be checked without knowing the sequence.
    ///
    /// # Errors
    /// [`StepError::Empty`], [`StepError::RowCount`] and [`StepError::InvalidParent`];
    /// [`Error::InvalidToken`](crate::Error::InvalidToken).
    pub fn validate(&self, vocab_size: usize) -> Result<()> {
        use crate::Error;
        let n = self.tokens.len();
        if n == 0 {
            return Err(StepError::Empty.into());
        }
        if let Some(&token) = self.tokens.iter().find(|&&t| t as usize >= vocab_size) {
            return Err(Error::InvalidToken { token, vocab_size });
        }
        if self.wants.len() > n {
            return Err(StepError::RowCount { what: "wants", expected: n, found: self.wants.len() }.into());
        }
        if self.masks.len() > n {
            return Err(StepError::RowCount { what: "masks", expected: n, found: self.masks.len() }.into());
        }
        if let Some(parents) = &self.parents {
            if parents.len() != n {
                return Err(StepError::RowCount { what: "parents", expected: n, found: parents.len() }.into());
            }
            for (row, parent) in parents.iter().enumerate() {
                if let Some(parent) = *parent
                    && parent >= row
                {
                    return Err(StepError::InvalidParent { row, parent }.into());
                }
            }
        }
        Ok(())
    }
}

/// What a sequence holds at a moment, detached from its model: it can be written down on another thread, and
/// restored later ([`LanguageModel::restore`]).
pub trait Snapshot: Send {
    /// Hands out its bytes piece by piece, the same ones each time.
    fn pieces(&self, put: &mut dyn FnMut(&[u8]));
}

/// The bytes of a snapshot, in memory or mapped. A model may go on reading them as long as it holds them.
pub type SnapshotBytes = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// A causal language model that holds sequences and extends several of them in one forward pass.
///
/// Tokens fed by [`forward`](Self::forward) are *provisional*: everything fed later sees them, and they can
/// be taken back by [`truncate`](Self::truncate) or thinned out by [`retain`](Self::retain).
/// [`commit`](Self::commit) makes them final, which allows the cache to compress them. Plain decoding commits
/// after each step; speculation after verification.
///
/// # Batch invariance
/// An implementation must give a row the same bits, whatever else is in the call: the number of rows,
/// other sequences, the chunks in which the prefix was fed, the number of threads. Speculative decoding
/// and batching are lossless because of it. Implementations that cannot promise it must say so.
///
/// # Masks
/// A step may tell which tokens will be chosen from ([`Step::masks`]), so that a head need not compute the
/// others. An implementation that knows nothing of masks is right as it is: callers put a mask on a row that
/// wants the most likely token only where [`ModelInfo::masked_argmax`] is set, and look at no logit outside
/// of a mask.
pub trait LanguageModel {
    /// Facts about the model.
    fn info(&self) -> &ModelInfo;

    /// Opens an empty sequence.
    ///
    /// # Errors
    /// The engine's own, if it has no room for one more.
    fn open(&mut self) -> Result<SequenceId>;

    /// Opens a sequence that starts as a copy of another one; storage is shared where possible.
    ///
    /// # Errors
    /// [`Error::UnknownSequence`](crate::Error::UnknownSequence).
    fn fork(&mut self, sequence: SequenceId) -> Result<SequenceId>;

    /// Drops a sequence and frees its memory. Unknown sequences are ignored.
    fn close(&mut self, sequence: SequenceId);

    /// Number of tokens in a sequence, provisional ones included.
    ///
    /// # Errors
    /// [`Error::UnknownSequence`](crate::Error::UnknownSequence).
    fn len(&self, sequence: SequenceId) -> Result<usize>;

    /// Number of final tokens in a sequence.
    ///
    /// # Errors
    /// [`Error::UnknownSequence`](crate::Error::UnknownSequence).
    fn committed(&self, sequence: SequenceId) -> Result<usize>;

    /// Feeds each step's tokens and fills its `outputs`. On an error no sequence has changed: either all
    /// steps are carried out or none is.
    ///
    /// # Errors
    /// Those of [`Step::validate`], [`Error::UnknownSequence`](crate::Error::UnknownSequence),
    /// [`Error::DuplicateSequence`](crate::Error::DuplicateSequence), [`StepError::ContextFull`],
    /// [`Error::Unsupported`](crate::Error::Unsupported), [`Error::Engine`](crate::Error::Engine). An error
    /// that one step causes names that step: [`Error::AtStep`](crate::Error::AtStep).
    fn forward(&mut self, steps: &mut [Step]) -> Result<()>;

    /// Keeps, of the provisional tokens, only those at the given indices (0 = first provisional token),
    /// which must ascend and form one chain; the others are dropped. This is how one path of a token
    /// tree is accepted.
    ///
    /// # Errors
    /// [`StepError::OutOfRange`] if an index is not provisional or does not ascend.
    fn retain(&mut self, sequence: SequenceId, rows: &[usize]) -> Result<()>;

    /// Makes the first `n_tokens` provisional tokens final.
    ///
    /// # Errors
    /// [`StepError::OutOfRange`] if fewer are provisional.
    fn commit(&mut self, sequence: SequenceId, n_tokens: usize) -> Result<()>;

    /// Shortens a sequence to `len` tokens. Final tokens can be removed too if the cache supports it.
    ///
    /// # Errors
    /// [`StepError::OutOfRange`] if it is shorter already,
    /// [`StepError::TruncateEvicted`] if the cache cannot go back that far.
    fn truncate(&mut self, sequence: SequenceId, len: usize) -> Result<()>;

    /// Whether another text with the same beginning may go on from a fork of this sequence, with the results
    /// that it would have alone. A model that says nothing says no.
    fn is_shareable(&self, sequence: SequenceId) -> bool {
        let _ = sequence;
        false
    }

    /// Bytes that all sequences hold, what they share counted once; 0 if that is not known.
    fn held_bytes(&self) -> usize {
        0
    }

    /// All that a snapshot depends on beside the weights and the tokens: how they are stored, and what
    /// computed them. It may be restored where this is the same and the weights are. `None`: this model makes
    /// none.
    fn snapshot_kind(&self) -> Option<String> {
        None
    }

    /// What the final tokens of a sequence have left in it. It shares storage with the sequence where that is
    /// possible, and is not changed by what happens to it.
    ///
    /// # Errors
    /// [`Error::UnknownSequence`](crate::Error::UnknownSequence);
    /// [`Error::Unsupported`](crate::Error::Unsupported) where [`snapshot_kind`](Self::snapshot_kind) is
    /// `None`.
    fn snapshot(&self, sequence: SequenceId) -> Result<Box<dyn Snapshot>> {
        let _ = sequence;
        Err(self.no_snapshots())
    }

    /// Opens a sequence that holds the first `len` of the `n_tokens` tokens of a snapshot, all of them final.
    /// The caller answers for the bytes being those of a snapshot of the same kind and weights.
    ///
    /// # Errors
    /// [`Error::Unsupported`](crate::Error::Unsupported); [`StepError::OutOfRange`] for a `len` above
    /// `n_tokens`; the model's own, such as for bytes of another length.
    fn restore(&mut self, bytes: SnapshotBytes, n_tokens: usize, len: usize) -> Result<SequenceId> {
        let _ = (bytes, n_tokens, len);
        Err(self.no_snapshots())
    }

    #[doc(hidden)]
    fn no_snapshots(&self) -> crate::Error {
        crate::Error::Unsupported { model: self.info().name.clone(), feature: "snapshots of sequences" }
    }
}

/// Passes every call on to the model behind a pointer.
macro_rules! forward_to_pointee {
    ($pointer:ty) => {
        impl<M: LanguageModel + ?Sized> LanguageModel for $pointer {
            fn info(&self) -> &ModelInfo {
                (**self).info()
            }
            fn open(&mut self) -> Result<SequenceId> {
                (**self).open()
            }
            fn fork(&mut self, sequence: SequenceId) -> Result<SequenceId> {
                (**self).fork(sequence)
            }
            fn close(&mut self, sequence: SequenceId) {
                (**self).close(sequence)
            }
            fn len(&self, sequence: SequenceId) -> Result<usize> {
                (**self).len(sequence)
            }
            fn committed(&self, sequence: SequenceId) -> Result<usize> {
                (**self).committed(sequence)
            }
            fn forward(&mut self, steps: &mut [Step]) -> Result<()> {
                (**self).forward(steps)
            }
            fn retain(&mut self, sequence: SequenceId, rows: &[usize]) -> Result<()> {
                (**self).retain(sequence, rows)
            }
            fn commit(&mut self, sequence: SequenceId, n_tokens: usize) -> Result<()> {
                (**self).commit(sequence, n_tokens)
            }
            fn truncate(&mut self, sequence: SequenceId, len: usize) -> Result<()> {
                (**self).truncate(sequence, len)
            }
            fn is_shareable(&self, sequence: SequenceId) -> bool {
                (**self).is_shareable(sequence)
            }
            fn held_bytes(&self) -> usize {
                (**self).held_bytes()
            }
            fn snapshot_kind(&self) -> Option<String> {
                (**self).snapshot_kind()
            }
            fn snapshot(&self, sequence: SequenceId) -> Result<Box<dyn Snapshot>> {
                (**self).snapshot(sequence)
            }
            fn restore(&mut self, bytes: SnapshotBytes, n_tokens: usize, len: usize) -> Result<SequenceId> {
                (**self).restore(bytes, n_tokens, len)
            }
        }
    };
}

forward_to_pointee!(&mut M);
forward_to_pointee!(Box<M>);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wants_and_masks_belong_to_the_last_rows() {
        let mut step = Step::last(SequenceId(1), vec![4, 5, 6], Want::Logits);
        let mask = Arc::new(TokenMask::of(9, [7]));
        step.masks = vec![Some(mask.clone()), None];
        assert_eq!([0, 1, 2].map(|row| step.want(row)), [Want::Nothing, Want::Nothing, Want::Logits]);
        assert_eq!([0, 1, 2, 3].map(|row| step.mask(row)), [None, Some(&mask), None, None]);
        step.validate(9).unwrap();
        step.masks = vec![None; 4];
        let error = step.validate(9).unwrap_err();
        assert!(error.to_string().contains("masks"), "{error}");
        assert!(!ModelInfo::new("toy", 9, 9).masked_argmax);
    }
}
