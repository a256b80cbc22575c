use crate::{SequenceId, TokenId};

/// Any error of the underlying engine, kept as the source of [`Error::Engine`].
pub type BoxError = Box<dyn std::error::Error + Send + Sync + 'static>;

/// Any error, kept so that it can be cloned.
pub type SharedError = std::sync::Arc<dyn std::error::Error + Send + Sync + 'static>;

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
    /// One sequence occurs twice in a single forward pass.
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
    /// The step is malformed, or asks for what the sequence cannot give.
    #[error(transparent)]
    Step(#[from] StepError),
    /// One step of a forward pass is at fault; the others were valid.
    #[error("step {step} of the pass, for sequence {sequence:?}: {source}")]
    AtStep {
        /// Index of the step in the call.
        step: usize,
        /// The sequence of the step.
        sequence: SequenceId,
        /// What is wrong with it.
        source: Box<Error>,
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
    /// A constraint failed.
    #[error(transparent)]
    Constraint(#[from] crate::ConstraintError),
    /// The underlying engine failed.
    #[error("the engine failed: {0}")]
    Engine(#[source] BoxError),
}

impl Error {
    /// The same error, naming the step of a forward pass that caused it. An error that already names a step
    /// is returned unchanged.
    pub fn at_step(self, step: usize, sequence: SequenceId) -> Self {
        match self {
            Error::AtStep { .. } => self,
            error => Error::AtStep { step, sequence, source: Box::new(error) },
        }
    }

    /// Index of the step that caused the error; `None` if no step, or all of them, did.
    pub fn step(&self) -> Option<usize> {
        match self {
            Error::AtStep { step, .. } => Some(*step),
            _ => None,
        }
    }

    /// The error itself, without the step that it names.
    pub fn cause(&self) -> &Error {
        match self {
            Error::AtStep { source, .. } => source.cause(),
            error => error,
        }
    }
}

/// What can be wrong with a step, that is, with rows that extend a sequence, or with a call that makes rows
/// final or takes them back.
///
/// Engines and caches share this type, so the cause is not renamed as it passes from one to the other.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StepError {
    /// The step holds no token.
    #[error("a step needs at least one token")]
    Empty,
    /// A step's per-row vectors do not match its number of tokens.
    #[error("{what}: {found} entries for {expected} tokens")]
    RowCount {
        /// Which of the vectors.
        what: &'static str,
        /// Number of tokens in the step.
        expected: usize,
        /// Entries found.
        found: usize,
    },
    /// A parent in a tree does not come before its child.
    #[error("row {row} names row {parent} as its parent; a parent must stand before its child")]
    InvalidParent {
        /// The row in question.
        row: usize,
        /// The parent it names.
        parent: usize,
    },
    /// The sequence would no longer fit into the context.
    #[error("{needed} tokens do not fit into the context of {limit}")]
    ContextFull {
        /// Tokens that the sequence would hold.
        needed: usize,
        /// Tokens that it may hold.
        limit: usize,
    },
    /// An index or a count is larger than what the sequence holds.
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
}

/// An error and its causes as one text; a cause that only repeats its effect is left out.
///
/// # Example
/// ```
/// use breakers_core::{CallError, chain};
///
/// let error = CallError::failed(std::io::Error::other("no power"));
/// assert_eq!(chain(&error, ": "), "the model failed: no power");
/// ```
pub fn chain(error: &dyn std::error::Error, separator: &str) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let line = error.to_string();
        if !text.contains(&line) {
            text += separator;
            text += &line;
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_keeps_the_first_step_that_it_names() {
        let error = Error::from(StepError::Empty);
        assert_eq!(error.step(), None);
        let error = error.at_step(2, SequenceId(7)).at_step(0, SequenceId(1));
        assert_eq!(error.step(), Some(2));
        assert!(matches!(error.cause(), Error::Step(StepError::Empty)));
        assert_eq!(
            error.to_string(),
            "step 2 of the pass, for sequence SequenceId(7): a step needs at least one token"
        );
    }

    #[derive(Debug)]
    struct Layer(&'static str, Option<Box<Layer>>);

    impl std::fmt::Display for Layer {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str(self.0)
        }
    }

    impl std::error::Error for Layer {
        fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
            self.1.as_deref().map(|e| e as _)
        }
    }

    #[test]
    fn causes_are_listed_once() {
        let disk = Layer("the disk is full", None);
        let repeats = Layer("writing failed: the disk is full", Some(Box::new(disk)));
        let top = Layer("no report", Some(Box::new(repeats)));
        assert_eq!(chain(&top, ": "), "no report: writing failed: the disk is full");
        assert_eq!(chain(&top, "\n  because: "), "no report\n  because: writing failed: the disk is full");
    }
}
