use breakers_core::JsonError;

/// Result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong between a grammar and a constraint.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A vocabulary without an end token: no text could end.
    #[error("the vocabulary of {n_tokens} tokens has no end token, expected at least one")]
    NoEndToken {
        /// Size of the vocabulary.
        n_tokens: usize,
    },
    /// The vocabulary cannot be made into a tree of its tokens.
    #[error("the vocabulary cannot be used for constraints: {reason}")]
    Vocabulary {
        /// What the engine says.
        reason: String,
    },
    /// A part of a schema that is neither enforced nor harmless.
    #[error("{keyword:?} at {pointer:?} of the schema is refused: {reason}")]
    Keyword {
        /// The keyword.
        keyword: String,
        /// JSON pointer to the schema that holds it; empty for the whole.
        pointer: String,
        /// Why.
        reason: String,
    },
    /// A schema that does not parse.
    #[error("the schema is not JSON")]
    Json(#[from] JsonError),
    /// A grammar that is too large or nested too deeply.
    #[error("the grammar has {found} {what}, at most {limit} are allowed")]
    Limit {
        /// What is limited.
        what: &'static str,
        /// What may be.
        limit: usize,
        /// What was found.
        found: usize,
    },
    /// A list of choices without a choice.
    #[error("no choice is given, expected at least one")]
    NoChoice,
    /// A rule of a document that cannot be followed.
    #[error("the rule of {name:?} cannot be followed: {reason}")]
    Rule {
        /// The element or attribute.
        name: String,
        /// Why.
        reason: &'static str,
    },
    /// No thread can be started to compile a grammar.
    #[error("no thread to compile the grammar on: {kind}")]
    Thread {
        /// What the system says.
        kind: std::io::ErrorKind,
    },
    /// The engine refuses the grammar.
    #[error("the grammar is refused: {reason}")]
    Grammar {
        /// What the engine says.
        reason: String,
    },
}
